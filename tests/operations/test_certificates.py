"""A server's certificate is replaced by a reload: who is connected stays, who comes sees the new one."""

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from mesh import Agent
from mesh.client import Mesh
from mesh.settings import Settings
from mesh.testing import hosting
from mesh.testing.cluster import free_ports
from mesh.testing.servers import configured_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")

agent = Agent("echoing", version="1")


@agent.handles("echo")
async def echo(number: int) -> int:
    return number


async def test_a_new_certificate_is_shown_after_a_reload_and_nobody_is_disconnected(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    openssl(tmp_path, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=mesh-ca")
    issue(tmp_path, "1001")
    config = f"""
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: store }}
tls {{ cert_file: "{tmp_path}/tls.crt", key_file: "{tmp_path}/tls.key" }}
"""
    settings = Settings(nats_url=f"tls://127.0.0.1:{port}", nats_tls_ca=tmp_path / "ca.crt", prefix="mesh", grace_s=2)
    with configured_server(tmp_path / "server", config, port=port) as server:
        async with hosting(agent, settings=settings) as peer, Mesh.connect(settings=settings) as mesh:
            before = shown(port, tmp_path / "ca.crt")
            issue(tmp_path, "1002")

            server.reload(config)
            answer = await (await mesh.submit(echo, 1)).result()
            after = shown(port, tmp_path / "ca.crt")
            reconnects = peer.bus.reconnects + mesh.bus.reconnects
            async with Mesh.connect(settings=settings) as newcomer:
                answer += await (await newcomer.submit(echo, 2)).result()

    assert (before, after) == (1001, 1002)
    assert reconnects == 0
    assert answer == 3


def issue(folder: Path, serial: str) -> None:
    """A key and a certificate for 127.0.0.1, signed by the folder's authority, in place of those that were there."""
    (folder / "san.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(folder, "req -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj /CN=nats")
    signed = "-CA ca.crt -CAkey ca.key -days 30 -extfile san.ext"
    openssl(folder, f"x509 -req -in tls.csr -out tls.crt -set_serial {serial} {signed}")


def openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)


def shown(port: int, authority: Path) -> int:
    """The serial number of the certificate that the server shows to who connects now."""
    context = ssl.create_default_context(cafile=authority)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.recv(4096)  # the server says who it is before it speaks TLS
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            certificate = secured.getpeercert()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)
