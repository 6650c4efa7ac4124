"""What KEDA sees of a server, and what follows for a Deployment: written after its source, as of release 2.20.

The scaler `nats-jetstream` asks `/jsz` of the monitoring endpoint. Its lag is what a consumer has yet to hand out, and
what it handed out and nobody acknowledged. Two things are easily missed:

- In a cluster a server answers for every consumer, but only the consumer's leader knows its numbers. The scaler looks
  for the leader among the servers that the endpoint names, by their names put before the endpoint's own.
- Where the stream is there and the consumer is not, the lag is the stream's last sequence: a Deployment would grow to
  its limit for nothing. Where the stream is missing, it is zero.

With `scalingModifiers` one formula over all triggers decides in place of each alone, and a trigger that cannot be read
leaves it undecided.
"""

import asyncio
import json
import math
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Resolve = Callable[[str], str]
"""The address of a host's name; those of a cluster mean nothing here."""


class Unreadable(Exception):
    """A trigger that has no value now."""


@dataclass(frozen=True)
class Scaled:
    """What KEDA and the autoscaler that it makes would come to."""

    values: Mapping[str, float]
    is_active: bool
    replicas: int


@dataclass(frozen=True)
class Keda:
    """One ScaledObject as rendered."""

    rendered: Mapping[str, Any]
    resolve: Resolve = lambda host: host

    async def looks(self) -> Scaled:
        """What it comes to now, once the cooldown and the autoscaler's own waits are over.

        Raises:
            Unreadable: a trigger cannot be read; the fallback decides then.
        """
        spec = self.rendered["spec"]
        values = {trigger["name"]: await self._value(trigger) for trigger in spec["triggers"]}
        modifiers = spec.get("advanced", {}).get("scalingModifiers")
        if modifiers:
            composite = evaluated(modifiers["formula"], values)
            is_active = composite > float(modifiers.get("activationTarget") or 0)
            wanted = math.ceil(composite / float(modifiers["target"]))
        else:
            lags = {trigger["name"]: trigger["metadata"] for trigger in spec["triggers"]}
            is_active = any(values[name] > int(lags[name].get("activationLagThreshold", 0)) for name in lags)
            wanted = max(math.ceil(values[name] / int(lags[name].get("lagThreshold", 10))) for name in lags)
        least = spec["minReplicaCount"]
        if not is_active and least == 0:
            return Scaled(values, is_active, 0)
        return Scaled(values, is_active, min(spec["maxReplicaCount"], max(wanted, least, 1)))

    async def _value(self, trigger: Mapping[str, Any]) -> float:
        return await asyncio.to_thread(
            {"nats-jetstream": self._lag, "prometheus": self._query}[trigger["type"]], trigger
        )

    def _query(self, trigger: Mapping[str, Any]) -> float:
        asked = trigger["metadata"]
        parameters = urllib.parse.urlencode({"query": asked["query"]})
        answer = fetched(f"{asked['serverAddress']}/api/v1/query?{parameters}")
        found = answer["data"]["result"]
        if not found:
            if asked.get("ignoreNullValues", "true") != "true":
                raise Unreadable(f"{trigger['name']}: nothing found")
            return 0.0
        if len(found) > 1:
            raise Unreadable(f"{trigger['name']}: {len(found)} series in place of one")
        return float(found[0]["value"][1])

    def _lag(self, trigger: Mapping[str, Any]) -> float:
        asked = trigger["metadata"]
        scheme = "https" if asked.get("useHttps") == "true" else "http"
        host, _, port = asked["natsServerMonitoringEndpoint"].rpartition(":")

        def page(of: str, path: str) -> Any:
            return fetched(f"{scheme}://{self.resolve(of)}:{port}{path}")

        path = f"/jsz?acc={asked['account']}&consumers=true&config=true"
        first = page(host, path)
        account = next((one for one in first.get("account_details") or () if one["name"] == asked["account"]), None)
        stream, consumer = _found(account, asked)
        if first.get("meta_cluster", {}).get("cluster_size", 0) > 1:
            for name, node in self._nodes(page(host, "/varz"), host, lambda of: page(of, "/varz")):
                answer = page(node, path)
                for one in answer.get("account_details") or ():
                    there, candidate = _found(one if one["name"] == asked["account"] else None, asked)
                    if candidate is not None and candidate.get("cluster", {}).get("leader") == name:
                        stream, consumer = there, candidate
        if stream is None:
            return 0.0
        if consumer is None:
            return float(stream["state"]["last_seq"])
        return float(consumer["num_pending"] + consumer["num_ack_pending"])

    def _nodes(self, server: Mapping[str, Any], host: str, ask: Callable[[str], Any]) -> list[tuple[str, str]]:
        """Names of the servers, and where each is asked: what is advertised, or else the routes before the endpoint."""
        if advertised := server.get("connect_urls"):
            hosts = [url.rpartition(":")[0] for url in advertised]
            return [(ask(one)["server_name"], one) for one in hosts]
        names = [server["server_name"], *server.get("cluster", {}).get("urls", ())]
        return [(name.partition(".")[0], f"{name.partition('.')[0]}.{host}") for name in names]


def evaluated(formula: str, values: Mapping[str, float]) -> float:
    """What a formula of `scalingModifiers` comes to; of its language only what is used here is known."""
    known = {"min": min, "max": max, "float": float}
    return float(eval(_as_python(formula), {"__builtins__": {}}, {**known, **values}))


def _as_python(formula: str) -> str:
    """`a ? b : c` as `(b) if (a) else (c)`, at every depth."""
    pieces, marks, depth, begin = [""], [""], 0, 0
    for position, letter in enumerate(formula):
        depth += (letter == "(") - (letter == ")")
        if depth == 1 and letter == "(":
            begin = position
        elif depth == 0 and letter == ")":
            pieces[-1] += f"({_as_python(formula[begin + 1 : position])})"
        elif depth == 0 and letter in "?:,":
            pieces.append("")
            marks.append(letter)
        elif depth == 0:
            pieces[-1] += letter
    if "," in marks:
        assert not {"?", ":"} & set(marks), f"a choice among arguments is not known here: {formula}"
        return ",".join(pieces)
    assert marks in ([""], ["", "?", ":"]), f"not known here: {formula}"
    return pieces[0] if len(pieces) == 1 else f"({pieces[1]}) if ({pieces[0]}) else ({pieces[2]})"


def _found(account: Mapping[str, Any] | None, asked: Mapping[str, str]) -> tuple[Any, Any]:
    for stream in (account or {}).get("stream_detail") or ():
        if stream["name"] == asked["stream"]:
            consumers = stream.get("consumer_detail") or ()
            return stream, next((one for one in consumers if one["name"] == asked["consumer"]), None)
    return None, None


def fetched(url: str) -> Any:
    """A JSON page.

    Raises:
        Unreadable: nobody answers, or not with a page.
    """
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return json.load(answer)
    except OSError as error:
        raise Unreadable(f"{url}: {error}") from error
