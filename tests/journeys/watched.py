"""A real Prometheus over real peers, with all of a day's trouble in half a minute.

The rules are those of `ops/prometheus`, hurried: see `hurried`. Dashboards' variables stand for everything.
"""

import asyncio
import json
import math
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from mesh.bus.connection import Bus
from mesh.cli.fleet import describe
from mesh.client import Mesh
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.cluster import free_ports
from mesh.testing.fleet import Fleet
from mesh.testing.history import History
from ops.grafana.panels import ZERO
from ops.prometheus import targets

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops/prometheus"
AGENTS = ROOT / "tests/journeys/watched_agents.py"
EVERY_S = 1.0
DEAD_TARGET = "127.0.0.1:9"

SHORT_S = {"1d": 20, "1h": 6}
"""What days and hours become when hurried; minutes become seconds."""
THRESHOLDS = {
    "mesh:threshold:queue_wait_seconds": "0.2",
    "mesh:threshold:cost_usd_per_hour": "0.05",
    "mesh:threshold:inbox_wait_seconds": "1",
}


def tool(name: str) -> str:
    """The path of a program of Prometheus. Where it is missing tests are skipped, but not in CI."""
    found = shutil.which(name)
    if found is None:
        why = f"{name} is not installed: apt-get install --no-install-recommends prometheus prometheus-alertmanager"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


def hurried(rules: str) -> str:
    """Rules in which a minute is a second, an hour 6 and a day 20 of them, and nothing waits for `for`."""

    def shorter(found: re.Match[str]) -> str:
        length = found[0]
        return f"{SHORT_S.get(length) or int(length[:-1])}s"

    document = yaml.safe_load(rules)
    for group in document["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\b\d+[mhd]\b", shorter, str(rule["expr"]))
            rule.pop("for", None)
            if rule.get("record") in THRESHOLDS:
                rule["expr"] = f"vector({THRESHOLDS[rule['record']]})"
    return cast(str, yaml.safe_dump(document))


def for_all(expr: str, *, interval: str = "10s", shown: str = "30s") -> str:
    """A dashboard's query as Grafana sends it with everything chosen; without the zero that stands for no answer."""
    expr = expr.removesuffix(ZERO).replace("$capability", ".+").replace("$owner", ".*")
    return expr.replace("$__rate_interval", interval).replace("$__range", shown)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._since = time.time()

    async def ask(self, path: str, **arguments: str) -> Any:
        """What its API answers; an error there is one here."""
        return await asyncio.to_thread(self._ask, path, arguments)

    async def values(self, expr: str) -> list[float]:
        """Every value that an expression had since the start, but those that are not numbers."""
        found = await self._over_time(expr)
        values = (float(value) for series in found["result"] for _, value in series["values"])
        return [value for value in values if not math.isnan(value)]

    async def fired(self) -> dict[str, set[str]]:
        """The alerts that ever fired, and the owners they named."""
        expr = 'ALERTS{alertstate="firing"}'
        found = await self.ask(
            "query_range", query=expr, start=str(self._since), end=str(time.time()), step=str(EVERY_S)
        )
        fired: dict[str, set[str]] = {}
        for series in found["result"]:
            fired.setdefault(series["metric"]["alertname"], set()).add(series["metric"].get("owner", ""))
        return fired

    async def trace_ids(self, query: str) -> set[str]:
        """The traces that exemplars of a series name."""
        found = await self.ask("query_exemplars", query=query, start=str(self._since), end=str(time.time()))
        return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule as it stands: its health, its last error, its alerts."""
        return [rule for group in (await self.ask("rules"))["groups"] for rule in group["rules"]]

    async def _over_time(self, expr: str) -> Any:
        span = {"start": str(self._since), "end": str(time.time()), "step": str(EVERY_S)}
        return await self.ask("query_range", query=expr, **span)

    def _ask(self, path: str, arguments: dict[str, str]) -> Any:
        body = urllib.parse.urlencode(arguments).encode() if arguments else None
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}", body, timeout=20) as page:
                return json.load(page)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {arguments.get('query', '')}: {error.read().decode()}") from error


@asynccontextmanager
async def prometheus(folder: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus with the configuration of `ops/prometheus`, hurried; it scrapes what is in `targets/peers.json`."""
    config = yaml.safe_load((OPS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{EVERY_S:g}s", "evaluation_interval": f"{EVERY_S:g}s"}
    config["rule_files"] = []
    del config["alerting"]
    for rules in sorted((OPS / "rules").glob("*.yml")):
        (folder / rules.name).write_text(hurried(rules.read_text()))
        config["rule_files"].append(rules.name)
    config["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "1s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "targets").mkdir()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'store'}",
            f"--web.listen-address={address}",
            "--enable-feature=exemplar-storage",
            stdout=log,
            stderr=log,
        )
    try:
        running = Prometheus(f"http://{address}")

        async def answers() -> bool:
            assert process.returncode is None, (folder / "prometheus.log").read_text()[-2_000:]
            with suppress(OSError, AssertionError):  # not listening, or not ready yet
                return bool(await running.ask("status/buildinfo"))
            return False

        await eventually(answers)
        yield running
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def fleet(settings: Settings, *agents: str, size: int, log: Path, collector: str) -> AsyncIterator[Fleet]:
    """Peers as processes that host the agents of `watched_agents` with these names, and `mesh.human` where asked.

    Their spans go to the collector.
    """
    found = [name if "." in name else f"{AGENTS}:{name}" for name in agents]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    chosen = settings.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    variables |= {f"MESH_{name.upper()}": str(value) for name, value in chosen.items()}
    variables |= {"PYTHONPATH": str(ROOT), "MESH_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    command = (sys.executable, "-m", "mesh", "run", "--until-stdin-ends", *found)
    history = History(log.with_suffix(".jsonl"))
    async with Fleet(command, size=size, env=variables, cwd=ROOT, history=history, log=log).running() as running:
        yield running


async def keep_targets(bus: Bus, out: Path) -> None:
    """Tell Prometheus of the peers that answer, and of one that never does."""
    while True:
        peers = await describe(bus, within_s=0.3)
        targets.write(peers, out)
        found = [*targets.entries(peers), {"targets": [DEAD_TARGET], "labels": {"instance": "dead"}}]
        (out.parent / "dead.json").write_text(json.dumps(found[-1:]))
        await asyncio.sleep(EVERY_S)


async def submit_all(mesh: Mesh, stop: asyncio.Event) -> None:
    """All sorts of work until told to stop; nobody waits for what it comes to."""
    number = 0
    while not stop.is_set():
        number += 1
        for capability in ("triage", "flaky", "quota", "broken", "front", "case"):
            await mesh.submit(capability, number)
        for part in range(6):
            await mesh.submit("draft", number * 10 + part)
        # As many as run at once on a peer, and one more that comes too late.
        await mesh.submit("late", number, deadline_s=0.1)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await stop.wait()


async def remaining(prometheus: Prometheus, queries: Iterable[str]) -> list[str]:
    """Those of the queries that never had a value."""
    found = [(query, await prometheus.values(query)) for query in queries]
    return [query for query, values in found if not values]


def texts(rules: Sequence[dict[str, Any]]) -> list[str]:
    """What the alerts that fire now say."""
    return [text for rule in rules for alert in rule.get("alerts", ()) for text in alert["annotations"].values()]
