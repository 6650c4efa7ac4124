"""What the Dockerfile says: rules of a linter, and our own."""

import json
import re
import shutil
import subprocess
import sysconfig
import tomllib

import pathspec
import pytest

from tests.image.dockerfile import DOCKERFILE, REPOSITORY, Dockerfile, parsed

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXAMPLE = REPOSITORY / "ops/docker/example/Dockerfile"
BUILD_TOOLS = ("apt-get", "gcc", "build-essential", "pip install", "curl", "wget", "npm", "cargo")


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return parsed()


@pytest.mark.parametrize("path", [DOCKERFILE, EXAMPLE], ids=["image", "example"])
def test_the_linter_has_nothing_to_say(path: object) -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("no hadolint for this platform")

    ended = subprocess.run([hadolint, "--disable-ignore-pragma", str(path)], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (0, "")


def test_every_stage_starts_from_one_slim_python_of_a_patch_release(dockerfile: Dockerfile) -> None:
    bases = {stage.base for stage in dockerfile.stages}

    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", bases.pop())


def test_the_final_stage_runs_nothing_so_it_holds_no_build_tools(dockerfile: Dockerfile) -> None:
    assert dockerfile.final.named("RUN") == []
    assert not any(tool in one.value for one in dockerfile.final.instructions for tool in BUILD_TOOLS)


def test_a_container_runs_as_a_number_that_is_not_root(dockerfile: Dockerfile) -> None:
    assert [one.value for one in dockerfile.final.named("USER")] == ["10001:10001"]


def test_process_1_is_the_mesh_itself_and_no_shell(dockerfile: Dockerfile) -> None:
    (entry,) = dockerfile.final.named("ENTRYPOINT")

    assert json.loads(entry.value) == ["mesh"]
    assert "mesh" in PROJECT["scripts"]


def test_the_extras_exist_and_hold_neither_a_server_nor_what_developers_need(dockerfile: Dockerfile) -> None:
    extras = set(dockerfile.stages[0].pairs("ARG")["EXTRAS"].split(","))

    assert extras <= PROJECT["optional-dependencies"].keys()
    assert extras >= {"llm", "nkeys", "otel"}
    assert not extras & {"dev", "local"}


def test_labels_name_the_version_that_is_built(dockerfile: Dockerfile) -> None:
    labels = dockerfile.final.pairs("LABEL")
    defaults = dockerfile.final.pairs("ARG")

    assert all(label.startswith("org.opencontainers.image.") for label in labels)
    assert labels["org.opencontainers.image.version"] == "${VERSION}"
    assert defaults["VERSION"] == PROJECT["version"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]


def test_everything_that_is_installed_is_pinned(dockerfile: Dockerfile) -> None:
    stage = dockerfile.stages[0]

    assert stage.pairs("ENV")["PIP_CONSTRAINT"] == "/src/constraints.txt"
    assert "constraints.txt" in stage.named("COPY")[0].words
    assert not any("--constraint" in one.value or "-U" in one.words for one in stage.named("RUN"))


def test_the_health_check_asks_the_port_that_is_served(dockerfile: Dockerfile) -> None:
    served = dockerfile.final.pairs("ENV")
    (check,) = dockerfile.final.named("HEALTHCHECK")
    (exposed,) = dockerfile.final.named("EXPOSE")

    assert served["MESH_HTTP_HOST"] == "0.0.0.0"
    assert served["MESH_HTTP_PORT"] == exposed.value
    assert "MESH_HTTP_PORT" in check.value
    assert "/healthz" in check.value


def test_the_build_sees_what_it_copies_and_neither_history_nor_secrets(dockerfile: Dockerfile) -> None:
    # Docker's patterns are git's but for a leading slash, which these have none of.
    ignored = pathspec.GitIgnoreSpec.from_lines((REPOSITORY / ".dockerignore").read_text().splitlines())
    copied = [
        source
        for stage in dockerfile.stages
        for one in stage.named("COPY")
        if "from" not in one.flags
        for source in one.words[:-1]
    ]
    unseen = [".git/config", ".env", "mesh/.env", ".venv/bin/python", ".mesh/store/nats.conf", "tests/conftest.py"]

    assert copied
    for source in copied:
        inside = f"{source}/__init__.py" if (REPOSITORY / source).is_dir() else source
        assert (REPOSITORY / inside).is_file()
        # Docker lets a file back in below a folder that is out, as git does not.
        assert f"!{source}" in (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert [path for path in [*unseen, "mesh/__pycache__/a.pyc", "agents/ops.nk"] if not ignored.match_file(path)] == []
