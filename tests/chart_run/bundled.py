"""The three servers of the bundled NATS, as their StatefulSet starts them, on addresses of this machine."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from mesh.testing import eventually
from tests.chart.rendering import NAMESPACE, RELEASE, one
from tests.chart_run.kubelet import Manifest, Node, Running, SecretFiles, Started, address

NATS = f"{RELEASE}-starling-nats"
HEADLESS = f"{NATS}-headless.{NAMESPACE}.svc"


class Servers:
    """The pods of the StatefulSet by number, each at an address of its own."""

    def __init__(self, folder: Path, manifests: list[dict[str, Any]], secrets: SecretFiles) -> None:
        self.rendered = one(manifests, "StatefulSet", NATS)
        self.addresses = [address() for _ in range(self.rendered["spec"]["replicas"])]
        pods = {f"{NATS}-{number}.{HEADLESS}": [at] for number, at in enumerate(self.addresses)}
        names = {f"{NATS}.{NAMESPACE}.svc": self.addresses, HEADLESS: self.addresses, **pods}
        # What a pod's resolver adds.
        names |= {f"{name}.cluster.local": at for name, at in names.items()}
        self.node = Node(folder, manifests, secrets, names)
        self.running: dict[int, Running] = {}

    def pod(self) -> Manifest:
        """The template, with its claims as the volumes that they become."""
        template = self.rendered["spec"]["template"]
        claims = [
            {"name": claim["metadata"]["name"], "persistentVolumeClaim": {}}
            for claim in self.rendered["spec"]["volumeClaimTemplates"]
        ]
        return {**template, "spec": {**template["spec"], "volumes": [*template["spec"]["volumes"], *claims]}}

    def _started(self, number: int) -> Started:
        pod, name = self.pod(), f"{NATS}-{number}"
        started = self.node.started(pod, "nats", name=name)
        config = Path(started.command[started.command.index("--config") + 1])
        rendered = config.read_text()
        if "0.0.0.0:" in rendered:
            # In a pod every address is its own; here they all are the machine's.
            own = rendered.replace("0.0.0.0:", f"{self.addresses[number]}:")
            config.write_text(self.node.placed(own, pod, started.container, name))
        return started

    @asynccontextmanager
    async def server(self, number: int) -> AsyncIterator[Running]:
        """One server while it runs; its store is kept."""
        async with self.node.running(self._started(number), at=self.addresses[number]) as running:
            self.running[number] = running
            yield running

    @asynccontextmanager
    async def all(self) -> AsyncIterator["Servers"]:
        """All servers, ready."""
        async with AsyncExitStack() as stack:
            for number in range(len(self.addresses)):
                await stack.enter_async_context(self.server(number))
            for running in self.running.values():
                await running.until_started()
                await eventually(lambda one=running: one.probe("readinessProbe"), within_s=30)
            yield self

    def resolve(self, name: str) -> str:
        """The address of a name of the cluster."""
        return self.node.resolved(name)
