"""What is secret appears nowhere: marked secrets in every setting, at debug level, through failures."""

import asyncio
import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mesh.auth.keys import new_seed, public_key
from mesh.local.server import LocalServer
from mesh.testing import eventually

PASSWORD, TOKEN, KEY, OTEL, LLM = (f"MARKED{word}SECRET" for word in ("password", "token", "key", "otel", "llm"))
SEED = new_seed()
SERVERS = {
    "password in the address": f'authorization {{ user: "someone", password: "{PASSWORD}" }}',
    "password": f'authorization {{ user: "someone", password: "{PASSWORD}" }}',
    "token": f'authorization {{ token: "{TOKEN}" }}',
    "seed": f"authorization {{ users: [ {{ nkey: {public_key(SEED)} }} ] }}",
}
READY = re.compile(r"serves fail")


def variables(kind: str, port: int, folder: Path, collector: str) -> dict[str, str]:
    """The environment of a process that has every secret there is."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
    found = clean | {
        "MESH_NATS_URL": f"nats://127.0.0.1:{port}",
        "MESH_LOG_LEVEL": "DEBUG",
        "MESH_TRACES": "otlp",
        "MESH_LLM_BASE_URL": f"http://user:{LLM}@127.0.0.1:9/v1",
        "MESH_LLM_API_KEY": KEY,
        "MESH_LLM_MODEL": "none",
        "MESH_CONNECT_WITHIN_S": "3",
        "MESH_ACK_WAIT_S": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {OTEL}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    match kind:
        case "password in the address":
            found["MESH_NATS_URL"] = f"nats://someone:{PASSWORD}@127.0.0.1:{port}"
        case "password":
            found |= {"MESH_NATS_USER": "someone", "MESH_NATS_PASSWORD": PASSWORD}
        case "token":
            found["MESH_NATS_TOKEN"] = TOKEN
        case "seed":
            (folder / "seed.nk").write_text(SEED)
            found["MESH_NATS_NKEY_SEED"] = str(folder / "seed.nk")
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "kind", ["seed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SERVERS if kind != "seed")]
)
async def test_no_secret_is_in_what_a_process_says(kind: str, tmp_path: Path) -> None:
    said: dict[str, str] = {}
    agents = Path(__file__).with_name("failing.py")
    server = LocalServer.start(tmp_path / "store", more=SERVERS[kind])
    try:
        with collected() as (collector, exported):
            ours = variables(kind, server.port, tmp_path, collector)

            async def mesh(*arguments: str, **more: str) -> str:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "mesh", *arguments),
                    env=ours | more,
                    cwd=tmp_path,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
                out, _ = await process.communicate()
                said[" ".join(arguments) + "".join(more)] = out.decode()
                return out.decode()

            with (tmp_path / "peer.log").open("wb") as log:
                peer = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "mesh", "run", str(agents)), env=ours, cwd=tmp_path, stdout=log, stderr=log
                )
                text = (tmp_path / "peer.log").read_text
                await eventually(lambda: READY.search(text()), within_s=60.0)
                for how in ("transient", "permanent", "bug", "ask a model"):
                    await mesh("submit", "fail", json.dumps(how), "--no-wait", "--key", how.split(" ")[0])
                await mesh("submit", "fail", '"permanent"')
                await mesh("result", "fail", "permanent", "--json")
                server.kill()
                server.restart()
                async with asyncio.TaskGroup() as asking:
                    for command in (
                        "doctor",
                        "doctor --json",
                        "agents --json",
                        "events --json",
                        "dead ls --json",
                        "report --json",
                        "status fail transient --json",
                        "trace fail bug --json",
                        "map --json",
                        "limits ls --json",
                    ):
                        asking.create_task(mesh(*command.split(" ")))
                metrics = re.search(r"http://127\.0\.0\.1:\d+", said["agents --json"])
                assert metrics is not None, said["agents --json"][:400]
                said["metrics"] = await asyncio.to_thread(read, f"{metrics[0]}/metrics")
                await mesh("doctor", MESH_NATS_PASSWORD="WRONG" + PASSWORD, MESH_NATS_TOKEN="WRONG" + TOKEN)
                await mesh("doctor", MESH_NATS_URL=f"nats://someone:{PASSWORD}@127.0.0.1:9")
                await mesh("run", str(agents), MESH_NATS_URL=f"nats://someone:{PASSWORD}@127.0.0.1:x")
                peer.terminate()
                await peer.wait()
            said["the peer's log"] = text()
            said["spans"] = b"".join(exported).decode("latin-1")
        said["the stream of events"] = "".join(
            path.read_bytes().decode("latin-1") for path in (tmp_path / "store").rglob("*.blk")
        )
    finally:
        server.stop()

    secrets = {PASSWORD, TOKEN, KEY, OTEL, LLM, SEED, SEED[2:]}
    leaks = {where: secret for where, text in said.items() for secret in secrets if secret in text}
    assert leaks == {}
    assert "fail" in said["spans"]
    assert "mesh_" in said["metrics"]
    assert len(said["the peer's log"]) > 1_000


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as page:
        return str(page.read().decode())


@contextmanager
def collected() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP collector that keeps what it is sent, without the headers; its address."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
