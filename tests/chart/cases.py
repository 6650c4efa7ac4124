"""Values that turn each option of the chart on and off, alone and together."""

from functools import cache
from typing import Any

from tests.chart.rendering import BUNDLED, EXTERNAL, Manifest, Values, merged, render

NAMESPACE_SELECTOR = {"matchLabels": {"team": "looking"}}
KEDA = {"mode": "keda", "minReplicas": 0, "maxReplicas": 20}
PROMETHEUS = {"keda": {"prometheus": {"serverAddress": "http://prometheus.monitoring.svc:9090"}}}
HPA = {"mode": "hpa", "minReplicas": 2, "maxReplicas": 6}


def agent(**more: Any) -> dict[str, Any]:
    """One agent with all that an agent needs to say, and more."""
    return {"targets": ["my_agents.triage"], "capabilities": ["triage"], **more}


EVERYTHING: dict[str, Any] = {
    "image": {"registry": "registry.example:5000", "tag": "1.2.3", "pullSecrets": ["pull-me", {"name": "me-too"}]},
    "commonLabels": {"team": "support"},
    "commonAnnotations": {"example.com/owner": "support"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "agents", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
    "runtimeClassName": "gvisor",
    "env": [{"name": "TZ", "value": "UTC"}],
    "envFrom": [{"configMapRef": {"name": "more"}}],
    "extraSecrets": [{"existingSecret": "billing.keys", "env": {"BILLING_KEY": "key"}, "mountPath": "/etc/billing"}],
    "extraVolumes": [{"name": "models", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "models", "mountPath": "/models"}],
    "annotations": {"example.com/a": "1"},
    "labels": {"example.com/b": "2"},
    "podAnnotations": {"example.com/c": "3"},
    "podLabels": {"example.com/d": "4"},
    "graceS": 45.5,
    "llm": {"baseUrl": "http://models:11434/v1", "model": "small", "timeoutS": 30, "existingSecret": "llm"},
    "extraEgress": [{"ports": [{"port": 5432, "protocol": "TCP"}]}],
    "extraIngress": [{"from": [{"podSelector": {}}]}],
    "mesh": {"settings": {"MESH_RESULT_TTL_S": 3_600_000, "MESH_BIDS": False, "MESH_TRACES": "otlp"}},
    "topology": {"withCare": True},
    "test": {"capability": "triage", "payload": {"text": 'it\'s "broken"'}, "withinS": 30},
    "networkPolicy": {
        "monitoringNamespace": NAMESPACE_SELECTOR,
        "dns": {"to": [{"namespaceSelector": {}}]},
        "llm": {"enabled": True, "ports": [443, 11434], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    },
    "serviceMonitor": {
        "enabled": True,
        "scrapeTimeout": "10s",
        "labels": {"release": "prometheus"},
        "relabelings": [{"targetLabel": "cluster", "replacement": "eu"}],
        "metricRelabelings": [{"regex": "le", "action": "labeldrop"}],
    },
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Starling"}},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/agents"}},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more", "labels": {}}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-text\n",
    ],
}
SEVERAL: dict[str, Any] = {
    "agents": {
        "triage": agent(breakers=["openai", "a.b"], autoscaling=merged(KEDA, PROMETHEUS)),
        "writer": agent(targets=["my_agents.writer:agent", "more.py"], capabilities=["write", "edit"], autoscaling=HPA),
        "night": agent(capabilities=["report"], image={"repository": "night", "tag": "9"}, replicas=1, graceS=300),
        "wheels": agent(capabilities=["wheel"], wheels={"configMap": {"name": "wheels"}}, nats={"user": "roller"}),
    }
}
TLS_EXTERNAL: dict[str, Any] = {
    "nats": {
        "external": {
            "url": "tls://a.example:4222, tls://b.example:4223",
            "monitoring": {"endpoint": "nats-headless.nats.svc.cluster.local:8222", "https": True},
            "tls": {"ca": {"existingSecret": "nats-ca"}, "client": {"existingSecret": "nats-client"}},
        }
    }
}
INSECURE: Values = merged(BUNDLED, {"nats": {"bundled": {"auth": {"existingSecret": "", "insecure": True}}}})

CASES: dict[str, Values] = {
    "external": EXTERNAL,
    "bundled": BUNDLED,
    "insecure": INSECURE,
    "no agents": {"nats": EXTERNAL["nats"]},
    "external, everything": merged(EXTERNAL, TLS_EXTERNAL, EVERYTHING, SEVERAL),
    "bundled, everything": merged(
        BUNDLED, EVERYTHING, SEVERAL, {"nats": {"bundled": {"tls": {"existingSecret": "nats-tls"}}}}
    ),
    "external, several": merged(EXTERNAL, TLS_EXTERNAL, SEVERAL),
    "creds": merged(EXTERNAL, {"nats": {"auth": {"type": "creds"}}}),
    "nobody asks": merged(EXTERNAL, {"nats": {"auth": {"type": "none"}}}),
    "own secrets": merged(
        EXTERNAL,
        {"nats": {"auth": {"key": "nk", "operator": {"user": "boss", "existingSecret": "boss-seed"}}}},
        {"agents": {"triage": {"nats": {"existingSecret": "triage-seed"}}}},
    ),
    "single server": merged(BUNDLED, {"nats": {"bundled": {"replicas": 1, "exporter": {"enabled": False}}}}),
    "five servers": merged(BUNDLED, {"nats": {"bundled": {"replicas": 5, "antiAffinity": "soft"}}}),
    "servers placed": merged(
        BUNDLED,
        {
            "nats": {
                "bundled": {
                    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
                    "nodeSelector": {"disk": "fast"},
                    "topologySpreadConstraints": [
                        {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
                    ],
                    "tolerations": [{"operator": "Exists"}],
                    "priorityClassName": "highest",
                    "annotations": {"a": "b"},
                    "podAnnotations": {"c": "d"},
                    "podLabels": {"e": "f"},
                    "persistence": {"size": "1Ti", "storageClassName": "fast", "annotations": {"g": "h"}},
                    "goMemLimit": "",
                    "extraConfig": "max_connections: {{ add 1 99 }}",
                    "image": {"registry": "", "digest": "sha256:" + "a" * 64},
                }
            }
        },
    ),
    "digest": merged(EXTERNAL, {"image": {"registry": "r.example", "digest": "sha256:" + "0" * 64}}),
    "hpa by memory": merged(
        EXTERNAL,
        {
            "agents": {
                "triage": {
                    "autoscaling": {
                        "mode": "hpa",
                        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
                        "hpa": {
                            "targetCPUUtilizationPercentage": None,
                            "targetMemoryUtilizationPercentage": 80,
                            "metrics": [
                                {
                                    "type": "Pods",
                                    "pods": {
                                        "metric": {"name": "m"},
                                        "target": {"type": "AverageValue", "averageValue": "1"},
                                    },
                                }
                            ],
                        },
                    }
                }
            }
        },
    ),
    "keda with a token": merged(
        BUNDLED,
        {
            "autoscaling": {
                **KEDA,
                "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0}},
                "keda": {
                    "lanes": [],
                    "fallback": {"failureThreshold": 3, "replicas": 1, "behavior": "currentReplicasIfHigher"},
                    "annotations": {"autoscaling.keda.sh/paused": "true"},
                    "prometheus": {"serverAddress": "https://p.example", "existingSecret": "prometheus-token"},
                },
            },
            "agents": {"triage": {"breakers": ["openai"]}},
        },
    ),
    "keda without breakers": merged(INSECURE, {"agents": {"triage": {"autoscaling": KEDA}}}),
    "little": merged(
        EXTERNAL,
        {
            "topology": {"enabled": False},
            "doctor": {"enabled": False},
            "networkPolicy": {"enabled": False},
            "podDisruptionBudget": {"enabled": False},
            "serviceAccount": {"create": False},
            "test": {"enabled": False, "capability": "triage"},
        },
    ),
    "budget by share": merged(
        EXTERNAL, {"podDisruptionBudget": {"minAvailable": "50%", "maxUnavailable": None}, "replicas": 4}
    ),
    "doctor at installs": merged(EXTERNAL, {"doctor": {"onUpgrade": False}}),
    "other names": merged(
        EXTERNAL, {"nameOverride": "agents", "fullnameOverride": "mesh-a", "mesh": {"prefix": "a.mesh"}}
    ),
    "beside the peer": merged(
        EXTERNAL,
        {
            "agents": {
                "triage": {
                    "initContainers": [
                        {
                            "name": "fetch-{{ .Release.Name }}",
                            "image": "fetch:1",
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "readOnlyRootFilesystem": True,
                                "runAsNonRoot": True,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            "resources": {
                                "requests": {"cpu": "1m", "memory": "1Mi"},
                                "limits": {"cpu": "1m", "memory": "1Mi"},
                            },
                        }
                    ],
                    "extraContainers": [
                        {
                            "name": "beside",
                            "image": "beside:1",
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "readOnlyRootFilesystem": True,
                                "runAsNonRoot": True,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            "resources": {
                                "requests": {"cpu": "1m", "memory": "1Mi"},
                                "limits": {"cpu": "1m", "memory": "1Mi"},
                            },
                        }
                    ],
                }
            }
        },
    ),
}


@cache
def rendered(case: str) -> tuple[Manifest, ...]:
    """What one of the cases comes to; not to be changed."""
    return tuple(render(CASES[case]))
