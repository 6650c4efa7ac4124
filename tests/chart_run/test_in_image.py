"""A rendered pod in the image itself: process 1, its security context, its hook and its probes as they stand."""

import shutil
import signal

import pytest

from mesh import Mesh
from mesh.testing import eventually
from tests.chart.rendering import one
from tests.chart_run.conftest import AGENTS, Deployed
from tests.chart_run.kubelet import status
from tests.holding import until_it_runs
from tests.image import container
from tests.image.conftest import image
from tests.image.dockerfile import Image

__all__ = ["image"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(container.why_not()), reason=f"no container here: {container.why_not()}"),
]


async def test_a_rendered_pod_runs_in_the_image_and_drains_by_its_own_hook(
    image: Image, mesh: Mesh, deployed: Deployed
) -> None:
    node = deployed()
    template = one(list(node.manifests), "Deployment", "demo-starling-triage")["spec"]["template"]
    peer = node.started(template)
    shutil.copy(AGENTS, image.path("/app"))
    empty = image.path("/tmp")
    rendered = {name: value for name, value in peer.variables.items() if name.startswith("MESH_")}
    variables = {**image.variables, **rendered, "TMPDIR": str(empty)}
    command, hook = ((str(image.path("/opt/venv/bin/mesh")), *words[1:]) for words in (peer.command, peer.pre_stop))
    ready = f"http://{rendered['MESH_HTTP_HOST']}:9464/readyz"

    async def answers() -> bool:
        return await status(ready, timeout_s=3) == 200

    async with container.running(
        *command, variables=variables, folder=image.path(image.working_folder), writable=[empty]
    ) as process_1:
        await eventually(answers, within_s=60)
        until = image.path(f"/app/{rendered['MESH_PREFIX']}")
        task = await mesh.submit("hold", str(until))
        await until_it_runs(task)
        hooked = await process_1.execute(*hook)
        until.touch()
        process_1.process.send_signal(signal.SIGTERM)
        code = await process_1.ended(template["spec"]["terminationGracePeriodSeconds"])

    security = [template["spec"]["securityContext"], template["spec"]["containers"][0]["securityContext"]]
    assert security[0]["runAsUser"] == container.USER == int(image.user.partition(":")[0])
    assert security[1]["readOnlyRootFilesystem"]
    assert hooked == (0, "")
    assert code == 0
    assert await task.result(within_s=60) == "held"
