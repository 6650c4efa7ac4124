"""Wrong values are refused in words that name the key and what to write."""

from typing import Any

import helm_python
import pytest

from tests.chart.cases import agent
from tests.chart.rendering import BUNDLED, EXTERNAL, Values, merged, render

BARE: Values = {"agents": EXTERNAL["agents"]}


def of_agent(**said: Any) -> Values:
    return {"agents": {"triage": said}}


# What is said wrongly over which values, and the words that the refusal holds.
REFUSED: dict[str, tuple[Values, Values, tuple[str, ...]]] = {
    # Where NATS is.
    "no NATS": (BARE, {}, ("nobody said where NATS is", "nats.external.url", "nats.bundled.enabled")),
    "two NATS": (EXTERNAL, {"nats": {"bundled": {"enabled": True}}}, ("both set", "nats.external.url")),
    "credentials in the address": (
        EXTERNAL, {"nats": {"external": {"url": "nats://me:secret@nats:4222"}}}, ("credentials into a Secret",),
    ),
    "no address": (EXTERNAL, {"nats": {"external": {"url": "nats.example"}}}, ("no address", "nats://HOST:PORT")),
    "no accounts": (
        BUNDLED, {"nats": {"bundled": {"auth": {"existingSecret": ""}}}},
        ("mesh auth generate", "nats.bundled.auth.existingSecret to demo-nats-accounts", "insecure to true"),
    ),
    "accounts and insecure": (BUNDLED, {"nats": {"bundled": {"auth": {"insecure": True}}}}, ("leave insecure",)),
    "creds with bundled accounts": (BUNDLED, {"nats": {"auth": {"type": "creds"}}}, ("set it to nkey",)),
    "an even number of servers": (BUNDLED, {"nats": {"bundled": {"replicas": 2}}}, ("replicas is 2", "1, 3 or 5")),
    "more copies than servers": (
        BUNDLED, {"nats": {"bundled": {"replicas": 1}}, "mesh": {"replicas": 3}}, ("mesh.replicas is 3", "has 1"),
    ),
    "a way to prove who one is that is none": (
        EXTERNAL, {"nats": {"auth": {"type": "password"}}}, ("/nats/auth/type", "'nkey', 'creds', 'none'"),
    ),
    "monitoring with a scheme": (
        EXTERNAL, {"nats": {"external": {"monitoring": {"endpoint": "http://nats:8222"}}}},
        ("nats.external.monitoring.endpoint", "a host and a port alone"),
    ),
    "a store without a unit": (
        BUNDLED, {"nats": {"bundled": {"jetstream": {"maxFile": "18"}}}}, ("maxFile", "as 18GiB"),
    ),
    "a volume without a unit": (
        BUNDLED, {"nats": {"bundled": {"persistence": {"size": "20"}}}}, ("persistence.size", "as 20Gi"),
    ),
    "a store below what the streams are promised": (
        BUNDLED, {"nats": {"bundled": {"jetstream": {"maxFile": "6463MiB"}}}},
        ("maxFile is 6463MiB", "promised 6464 MiB", "MESH_OBJECTS_BYTES_MAX"),
    ),
    "a store below what larger streams are promised": (
        BUNDLED, {"mesh": {"settings": {"MESH_STREAM_BYTES_MAX": 16 * 2**30}}}, ("promised 18752 MiB",),
    ),
    "a store as large as its volume": (
        BUNDLED, {"nats": {"bundled": {"persistence": {"size": "19G"}}}}, ("maxFile is 18GiB", "volume has 19G"),
    ),
    "syncs now and then": (
        BUNDLED, {"nats": {"bundled": {"jetstream": {"syncInterval": "sometimes"}}}}, ("always, or a length",),
    ),
    "a short lame duck": (BUNDLED, {"nats": {"bundled": {"lameDuckS": 5}}}, ("lameDuckS", "30")),
    "anti-affinity unheard of": (
        BUNDLED, {"nats": {"bundled": {"antiAffinity": "medium"}}}, ("antiAffinity", "'hard', 'soft'"),
    ),
    # The mesh.
    "a prefix with a star": (EXTERNAL, {"mesh": {"prefix": "mesh.*"}}, ("mesh.prefix", "cannot begin subjects")),
    "six copies": (EXTERNAL, {"mesh": {"replicas": 6}}, ("/mesh/replicas", "5")),
    "a log level unheard of": (EXTERNAL, {"mesh": {"logLevel": "LOUD"}}, ("/mesh/logLevel", "'INFO'")),
    "a setting that is none": (EXTERNAL, {"mesh": {"settings": {"TZ": "UTC"}}}, ("mesh.settings.TZ", "under env")),
    "a password among settings": (
        EXTERNAL, {"mesh": {"settings": {"MESH_NATS_PASSWORD": "x"}}}, ("ConfigMap for everybody", "nats.auth"),
    ),
    "an API key among settings": (
        EXTERNAL, {"mesh": {"settings": {"MESH_LLM_API_KEY": "x"}}}, ("llm.existingSecret",),
    ),
    "a setting that has a key": (
        EXTERNAL, {"mesh": {"settings": {"MESH_GRACE_S": "9"}}}, ("from graceS, write it there",),
    ),
    "another port": (EXTERNAL, {"mesh": {"settings": {"MESH_HTTP_PORT": 1}}}, ("expect 9464",)),
    # Agents.
    "a key that is none": (EXTERNAL, {"agnets": {}}, ("'agnets' not allowed",)),
    "an agent's key that is none": (EXTERNAL, of_agent(replica=2), ("/agents/triage", "'replica' not allowed")),
    "an agent without targets": (EXTERNAL, {"agents": {"b": {}}}, ("/agents/b", "missing property 'targets'")),
    "an agent with no target": (EXTERNAL, of_agent(targets=[]), ("agents.triage.targets is empty", "my_agents")),
    "an agent in capitals": (EXTERNAL, {"agents": {"Triage": agent()}}, ("agents.Triage", "small letter")),
    "an agent called nats": (EXTERNAL, {"agents": {"nats": agent()}}, ("agents.nats", "call the agent otherwise")),
    "an agent with a long name": (EXTERNAL, {"agents": {"t" * 40: agent()}}, ("46", "fullnameOverride")),
    "a long name without agents": (
        {"nats": EXTERNAL["nats"]}, {"fullnameOverride": "f" * 45}, ("45 characters", "fullnameOverride"),
    ),
    "a capability with a dot": (EXTERNAL, of_agent(capabilities=["a.b"]), ('"a.b" cannot name a capability',)),
    "a number in quotes": (EXTERNAL, of_agent(replicas="2"), ("/agents/triage/replicas", "got string, want integer")),
    "the latest image": (EXTERNAL, of_agent(image={"tag": "latest"}), ("agents.triage", "another image tomorrow")),
    "the latest image of all": ({"nats": EXTERNAL["nats"]}, {"image": {"tag": "latest"}}, ("image.tag is latest",)),
    "the latest server": (BUNDLED, {"nats": {"bundled": {"image": {"tag": "latest"}}}}, ("nats.bundled.image.tag",)),
    "half a digest": (EXTERNAL, {"image": {"digest": "sha256:12"}}, ("image.digest", "64 hexadecimal digits")),
    "an image pulled now and then": (EXTERNAL, {"image": {"pullPolicy": "Often"}}, ("'IfNotPresent'",)),
    "killed while it drains": (
        EXTERNAL, of_agent(terminationGracePeriodSeconds=30),
        ("terminationGracePeriodSeconds is 30", "graceS 20 needs 35"),
    ),
    "killed while a long one drains": (
        EXTERNAL, {"terminationGracePeriodSeconds": 60, **of_agent(graceS=100)}, ("graceS 100 needs 115",),
    ),
    "a secret among variables": (
        EXTERNAL, of_agent(env=[{"name": "STRIPE_API_KEY", "value": "sk"}]), ("env STRIPE_API_KEY", "extraSecrets"),
    ),
    "a secret among variables of commands": (
        EXTERNAL, {"jobs": {"env": [{"name": "PROXY_TOKEN", "value": "t"}]}}, ("jobs: env PROXY_TOKEN", "valueFrom"),
    ),
    "a number as a variable": (EXTERNAL, {"env": [{"name": "N", "value": 1}]}, ("/env/0/value", "want string")),
    "a secret without its name": (EXTERNAL, {"extraSecrets": [{"env": {"A": "b"}}]}, ("'existingSecret'",)),
    "a user with a dot": (EXTERNAL, of_agent(nats={"user": "a.b"}), ("agents.triage: nats.user", "letters, digits")),
    "both budgets": (
        EXTERNAL, {"podDisruptionBudget": {"minAvailable": 1}}, ("both minAvailable and maxUnavailable",),
    ),
    "a budget that lets nobody go": (
        EXTERNAL, {"podDisruptionBudget": {"minAvailable": 2, "maxUnavailable": None}}, ("minAvailable is 2 of 2",),
    ),
    "a budget that lets the last peer never go": (
        BUNDLED,
        {
            "autoscaling": {"mode": "keda", "minReplicas": 0},
            "podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": None},
        },
        ("minAvailable is 1 of 1", "set maxUnavailable"),
    ),
    "half a peer": (
        EXTERNAL, {"podDisruptionBudget": {"maxUnavailable": "half"}}, ("maxUnavailable", "a number or a percentage"),
    ),
    "an image of one's own without capabilities": (
        EXTERNAL, of_agent(capabilities=[], image={"tag": "2"}), ("capabilities is empty", "write the names"),
    ),
    "a model's address without a scheme": (EXTERNAL, {"llm": {"baseUrl": "ollama:11434"}}, ("llm.baseUrl",)),
    # Scaling.
    "both scalers": (EXTERNAL, {"autoscaling": {"mode": "both"}}, ("'none', 'hpa', 'keda'",)),
    "an HPA from zero": (
        EXTERNAL, {"autoscaling": {"mode": "hpa", "minReplicas": 0}}, ("HorizontalPodAutoscaler cannot do",),
    ),
    "an HPA with nothing to go by": (
        EXTERNAL, {"autoscaling": {"mode": "hpa", "hpa": {"targetCPUUtilizationPercentage": None}}},
        ("nothing to go by",),
    ),
    "more at least than at most": (
        EXTERNAL, {"autoscaling": {"mode": "hpa", "minReplicas": 9, "maxReplicas": 3}}, ("9 is above maxReplicas 3",),
    ),
    "KEDA without queues": (
        BUNDLED, of_agent(capabilities=[], autoscaling={"mode": "keda"}), ("agents.triage.capabilities is empty",),
    ),
    "KEDA without monitoring": (
        EXTERNAL, of_agent(autoscaling={"mode": "keda"}), ("nats.external.monitoring.endpoint",),
    ),
    "KEDA that stops who works": (
        BUNDLED, of_agent(autoscaling={"mode": "keda", "keda": {"lagThreshold": 5, "activationLagThreshold": 5}}),
        ("activationLagThreshold 5 is not below lagThreshold 5",),
    ),
    "a lane that is none": (BUNDLED, {"autoscaling": {"keda": {"lanes": ["fast"]}}}, ("'urgent', 'bulk'",)),
    "Prometheus without a scheme": (
        EXTERNAL, {"autoscaling": {"keda": {"prometheus": {"serverAddress": "p:9090"}}}},
        ("autoscaling.keda.prometheus.serverAddress", "an address"),
    ),
    # Commands and looking.
    "a test of what cannot be": (EXTERNAL, {"test": {"capability": "a b"}}, ("test.capability",)),
    "an interval without a unit": (EXTERNAL, {"serviceMonitor": {"interval": "15"}}, ("interval", "as 15s")),
    "a port too high": (EXTERNAL, {"networkPolicy": {"llm": {"ports": [70_000]}}}, ("ports/0", "65")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values_are_refused_in_plain_words(case: str) -> None:
    base, wrong, words = REFUSED[case]

    with pytest.raises(helm_python.HelmError) as caught:
        render(merged(base, wrong))

    assert all(word in str(caught.value) for word in words), str(caught.value)
