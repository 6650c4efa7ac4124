"""What the kubelet does with a rendered pod, done here with processes: its environment, its files, probes and hooks.

A pod's address is one of the machine's own (127.0.0.0/8), so that every pod has the ports that are rendered for it.
What is mounted lies in a folder, and paths of mounts in commands and variables lead there. The image's own variables,
entry point and command come from ops/docker/Dockerfile.
"""

import asyncio
import base64
import json
import os
import re
import secrets
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mesh.testing import eventually
from tests.image.dockerfile import REPOSITORY, parsed

Manifest = Mapping[str, Any]
SecretFiles = Mapping[str, Mapping[str, bytes]]

_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


def address() -> str:
    """An address of this machine that nothing else uses."""
    first, second, third = (secrets.randbelow(253) + 1 for _ in range(3))
    return f"127.{first}.{second}.{third}"


@dataclass(frozen=True)
class Started:
    """How one container of a pod is started."""

    command: tuple[str, ...]
    variables: Mapping[str, str]
    pre_stop: tuple[str, ...]
    container: Manifest
    pod: Manifest


@dataclass
class Node:
    """Where pods run: what the cluster knows, and a folder for their mounts."""

    folder: Path
    manifests: Sequence[Manifest]
    secrets: SecretFiles = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Addresses by the names that the cluster resolves; needs the right to mount."""
    working_folder: Path = Path()

    def __post_init__(self) -> None:
        programs = self.folder / "programs"
        programs.mkdir(parents=True)
        (programs / "mesh").write_text(f'#!/bin/sh\nexec {sys.executable} -m mesh "$@"\n')
        (programs / "mesh").chmod(0o755)
        self.working_folder = self.folder / "app"
        self.working_folder.mkdir()

    def started(self, pod: Manifest, container: str | None = None, *, name: str = "pod-0") -> Started:
        """How a container of the pod is started; its only or first one, where none is named."""
        containers = pod["spec"]["containers"]
        chosen = next(one for one in containers if container in (None, one["name"]))
        image = parsed().final
        is_ours = chosen["image"].rpartition("/")[2].startswith("starling")
        variables: dict[str, str] = {
            # Of the image's own, those that are no paths in it.
            **{
                key: value
                for key, value in image.pairs("ENV").items()
                if is_ours and key.startswith(("MESH_", "PYTHON"))
            },
            **self._variables(chosen, name),
        }
        variables = {key: self.placed(value, pod, chosen, name) for key, value in variables.items()}
        command = chosen.get("command") or (json.loads(image.named("ENTRYPOINT")[0].value) if is_ours else [])
        arguments = chosen.get("args", [])
        hook = chosen.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        words, hooked = (
            tuple(
                self.placed(_VARIABLE.sub(lambda found: variables.get(found[1], found[0]), word), pod, chosen, name)
                for word in some
            )
            for some in ((*command, *arguments), hook)
        )
        # Beside what is rendered only what finds this machine's programs.
        here = {
            "PATH": f"{self.folder / 'programs'}:{os.environ['PATH']}",
            "HOME": self.placed("/tmp", pod, chosen, name),
            "TMPDIR": self.placed("/tmp", pod, chosen, name),
        }
        variables["PYTHONPATH"] = str(REPOSITORY)
        return Started(words, {**here, **variables}, hooked, chosen, pod)

    def _variables(self, container: Manifest, name: str) -> dict[str, str]:
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            prefix = source.get("prefix", "")
            if "configMapRef" in source:
                found: Mapping[str, str] = self._config_map(source["configMapRef"]["name"])
            else:
                found = {key: value.decode() for key, value in self._secret(source["secretRef"]["name"]).items()}
            variables |= {f"{prefix}{key}": value for key, value in found.items()}
        for entry in container.get("env", []):
            if "value" in entry:
                text = _VARIABLE.sub(lambda match: variables.get(match[1], match[0]), str(entry["value"]))
                variables[entry["name"]] = text
                continue
            source = entry["valueFrom"]
            if "fieldRef" in source:
                path = source["fieldRef"]["fieldPath"]
                assert path == "metadata.name", f"{path} is not known here"
                variables[entry["name"]] = name
            elif "secretKeyRef" in source:
                variables[entry["name"]] = self._secret(source["secretKeyRef"]["name"])[
                    source["secretKeyRef"]["key"]
                ].decode()
            else:
                reference = source["configMapKeyRef"]
                variables[entry["name"]] = self._config_map(reference["name"])[reference["key"]]
        return variables

    def _config_map(self, name: str) -> Mapping[str, str]:
        (found,) = (m for m in self.manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == name)
        data: Mapping[str, str] = found["data"]
        return data

    def _secret(self, name: str) -> Mapping[str, bytes]:
        if name in self.secrets:
            return self.secrets[name]
        (found,) = (m for m in self.manifests if m["kind"] == "Secret" and m["metadata"]["name"] == name)
        return {
            **{key: base64.b64decode(value) for key, value in found.get("data", {}).items()},
            **{key: value.encode() for key, value in found.get("stringData", {}).items()},
        }

    def placed(self, text: str, pod: Manifest, container: Manifest, name: str) -> str:
        """Text with the paths of mounts replaced by where they are; what is mounted is made on the way."""
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        # The longest first, and all at once: what stands there afterwards may look like a mount's path again.
        places = "|".join(re.escape(place) for place in sorted(mounts, key=len, reverse=True))
        return re.sub(
            rf"(?<![\w/.-])({places})(?=[/:\s\"';,]|$)",
            lambda found: str(self.mounted(volumes[mounts[found[1]]], name)),
            text,
        )

    def mounted(self, volume: Manifest, name: str) -> Path:
        """The folder of a pod's volume."""
        there = self.folder / name / volume["name"]
        if there.exists():
            return there
        there.mkdir(parents=True)
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        for source in sources:
            if "secret" in source:
                secret = source["secret"]
                self._files(there, self._secret(secret.get("secretName", secret.get("name"))), secret.get("items"))
            elif "configMap" in source:
                found = {key: value.encode() for key, value in self._config_map(source["configMap"]["name"]).items()}
                self._files(there, found, source["configMap"].get("items"))
            else:
                assert "emptyDir" in source or "persistentVolumeClaim" in source, source
        return there

    def _files(self, folder: Path, content: Mapping[str, bytes], items: Sequence[Mapping[str, str]] | None) -> None:
        for key, path in (
            {item["key"]: item["path"] for item in items}.items() if items else zip(content, content, strict=True)
        ):
            assert key in content, f"the key {key} is missing, and the pod would not start"
            (folder / path).write_bytes(content[key])

    def resolved(self, name: str) -> str:
        """The first address of a name."""
        return self.names[name][0]

    def _among_names(self, command: Sequence[str]) -> list[str]:
        """A command for which the cluster's names have addresses."""
        if not self.names:
            return list(command)
        hosts = self.folder / "hosts"
        hosts.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{at} {name}\n" for name, all_ in self.names.items() for at in all_)
        )
        return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts), *command]

    @asynccontextmanager
    async def running(self, started: Started, *, at: str = "", **more: str) -> AsyncIterator["Running"]:
        """A container while it runs; killed with everything below it, if it has not ended itself."""
        log = self.folder / f"log-{secrets.token_hex(4)}"
        with log.open("wb") as written:
            process = await asyncio.create_subprocess_exec(
                *self._among_names(started.command),
                cwd=self.working_folder,
                env={**started.variables, **more},
                stdout=written,
                stderr=written,
            )
        below = psutil.Process(process.pid)
        try:
            yield Running(self, started, process, log, at)
        finally:
            with suppress(psutil.NoSuchProcess):
                for child in below.children(recursive=True):
                    child.kill()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def ended(self, started: Started, within_s: float, **more: str) -> tuple[int, str]:
        """The exit code of a container that ends by itself, and what it said."""
        async with self.running(started, **more) as run, asyncio.timeout(within_s):
            code = await run.process.wait()
            return code, run.said()


@dataclass
class Running:
    """A container that runs."""

    node: Node
    started: Started
    process: asyncio.subprocess.Process
    log: Path
    address: str = ""
    """The pod's; a peer's stands in its variables."""

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    async def probe(self, which: str) -> bool:
        """Whether one probe succeeds, asked once as the kubelet asks."""
        rendered = self.started.container[which]
        asked = rendered["httpGet"]
        (port,) = (
            one["containerPort"]
            for one in self.started.container["ports"]
            if asked["port"] in (one["name"], one["containerPort"])
        )
        host = self.address or self.started.variables["MESH_HTTP_HOST"]
        url = f"{asked.get('scheme', 'http').lower()}://{host}:{port}{asked['path']}"
        return 200 <= await status(url, timeout_s=rendered.get("timeoutSeconds", 1)) < 400

    async def until_started(self) -> None:
        """Return when the startup probe has succeeded.

        Raises:
            AssertionError: not before the kubelet would have killed the container.
        """
        rendered = self.started.container["startupProbe"]
        longest_s = rendered["failureThreshold"] * rendered.get("periodSeconds", 10)

        async def succeeds() -> bool:
            assert self.process.returncode is None, self.said()[-2_000:]
            return await self.probe("startupProbe")

        await eventually(succeeds, within_s=longest_s, every_s=0.05)

    async def stopped(self) -> int:
        """The exit code after the rendered end: preStop, SIGTERM, and no more than the rendered grace for both.

        Raises:
            TimeoutError: the kubelet would have killed it.
        """
        hook = self.started.pre_stop
        # In its container the peer is process 1.
        command = [
            str(self.process.pid) if before == "--pid" else word
            for before, word in zip(("", *hook), hook, strict=False)
        ]
        async with asyncio.timeout(self.started.pod["spec"]["terminationGracePeriodSeconds"]):
            prepared = await asyncio.create_subprocess_exec(*command, env=dict(self.started.variables))
            await prepared.wait()
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            return await self.process.wait()


async def status(url: str, *, timeout_s: float) -> int:
    """The status of a page, 0 where nobody answers in time."""

    def fetch() -> int:
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code)
        except OSError:
            return 0

    return await asyncio.to_thread(fetch)
