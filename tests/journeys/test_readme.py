"""What the README and the guide say, done as they say it."""

import asyncio
import os
import re
import shlex
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page that are marked with a language, or with none."""
    fences = re.split(r"^```(\w*)\n", (ROOT / page).read_text(), flags=re.MULTILINE)
    # Text, opening mark, block, closing mark, text, …
    return [block for mark, block in zip(fences[1::4], fences[2::4], strict=True) if mark == language]


async def test_the_readmes_agent_answers_the_readmes_commands(tmp_path: Path) -> None:
    (source,) = blocks("README.md", "python")
    (tmp_path / "my_agent.py").write_text(source)
    transcript = next(block for block in blocks("README.md", "") if block.startswith("$ mesh up"))
    up, submit, answer = (re.sub(r"\s+#.*", "", line).removeprefix("$ ") for line in transcript.splitlines())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    mesh_up = await asyncio.create_subprocess_exec(*shlex.split(up), cwd=tmp_path, env=environment, stdout=PIPE)
    try:
        assert mesh_up.stdout is not None
        async with asyncio.timeout(60):
            async for line in mesh_up.stdout:
                if b"Ctrl-C ends it" in line:
                    break
        asked = await asyncio.create_subprocess_exec(*shlex.split(submit), cwd=tmp_path, env=environment, stdout=PIPE)
        printed, _ = await asked.communicate()
        mesh_up.send_signal(signal.SIGINT)
        await mesh_up.communicate()
    finally:
        if mesh_up.returncode is None:
            mesh_up.kill()
            await mesh_up.wait()

    assert len(source.splitlines()) == 8
    assert printed.decode().strip() == answer
    assert asked.returncode == 0
    assert mesh_up.returncode == 0
    assert not (tmp_path / ".mesh" / "server.json").exists()


async def test_the_guides_agent_can_be_declared_and_called() -> None:
    from contracts.subjects import Identity
    from mesh import Context

    names: dict[str, object] = {"__name__": "guide"}
    exec(compile(blocks("docs/agents.md", "python")[0], "docs/agents.md", "exec"), names)

    found = await names["review"](names["SourceFile"]("a.py", "x = 1  # FIXME"), Context(Identity("review-file", "k")))  # type: ignore[operator]

    assert found.findings == ["x = 1  # FIXME"]
