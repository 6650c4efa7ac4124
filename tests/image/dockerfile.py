"""A Dockerfile without an engine: its instructions read by a parser, and carried out in a folder that stands for the
image's root.

Every absolute path that the Dockerfile makes or uses is one below the folder. All stages share it: what a stage copies
from another is there already, and is looked for.
"""

import json
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "ops/docker/Dockerfile"
_OURS = re.compile(r"(?<![\w./$-])/(opt|src|app|tmp|usr/local/bin)(?=[/:\s\"']|$)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a stage."""

    name: str
    value: str

    @property
    def flags(self) -> dict[str, str]:
        """What stands before its arguments: `--from=build`."""
        return dict(
            word[2:].partition("=")[::2] for word in shlex.split(self.value) if word.startswith("--") and "=" in word
        )

    @property
    def words(self) -> list[str]:
        """Its arguments without flags."""
        return [word for word in shlex.split(self.value) if not word.startswith("--")]


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def named(self, name: str) -> list[Instruction]:
        """Its instructions of one kind, in order."""
        return [instruction for instruction in self.instructions if instruction.name == name]

    def pairs(self, name: str) -> dict[str, str]:
        """What its ENV, ARG or LABEL instructions set."""
        return {
            key: value
            for instruction in self.named(name)
            for key, _, value in (word.partition("=") for word in shlex.split(instruction.value))
        }


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The arguments before the first FROM, and the stages."""

    arguments: dict[str, str]
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        return self.stages[-1]


def parsed(path: Path = DOCKERFILE) -> Dockerfile:
    """A Dockerfile by its stages; what FROM says is resolved with the arguments before it."""
    with path.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for entry in structure:
        name, value = entry["instruction"], entry["value"]
        if name == "COMMENT":
            continue
        if name == "FROM":
            base, _, stage = string.Template(value).substitute(arguments).partition(" AS ")
            stages.append(Stage(base, stage, ()))
        elif not stages:
            assert name == "ARG"
            key, _, default = value.partition("=")
            arguments[key] = default
        else:
            last = stages.pop()
            stages.append(Stage(last.base, last.name, (*last.instructions, Instruction(name, value))))
    return Dockerfile(arguments, tuple(stages))


@dataclass
class Image:
    """What carrying out a Dockerfile made: a folder in place of the root, and how a container of it is started."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    working_folder: str = "/"
    user: str = "0"
    entry_point: list[str] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        """Where a path of the image is."""
        return self.root / inside.lstrip("/")

    def mapped(self, text: str) -> str:
        """Text with paths of the image in it, as they are here."""
        return _OURS.sub(lambda found: f"{self.root}/{found[1]}", text)


def build(
    image: Image,
    dockerfile: Dockerfile,
    *,
    python: Path,
    context: Path,
    also: Mapping[str, str],
    base: Image | None = None,
) -> Image:
    """Carry out every instruction of every stage, RUN with the shell as it stands.

    `python` is the base image's, `also` are more variables for RUN. The first stage starts from `base`, where one
    image starts from another.

    Raises:
        AssertionError: an instruction failed, or is of a kind that is not known here.
    """
    interpreter = image.root / "usr/bin/python"
    if base is None:
        interpreter.parent.mkdir(parents=True)
        # No link: a virtual environment would take the link's folder for Python's.
        interpreter.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        interpreter.chmod(0o755)
    path = f"{interpreter.parent}:{image.root}/usr/local/bin:/usr/bin:/bin"
    for stage in dockerfile.stages:
        image.variables = {"PATH": path} if base is None else dict(base.variables)
        image.working_folder = "/" if base is None else base.working_folder
        arguments = {}
        for instruction in stage.instructions:
            match instruction.name:
                case "ARG":
                    arguments |= stage.pairs("ARG")
                case "ENV":
                    for word in shlex.split(image.mapped(instruction.value)):
                        name, _, value = word.partition("=")
                        image.variables[name] = string.Template(value).safe_substitute(image.variables)
                case "WORKDIR":
                    image.working_folder = instruction.value
                    image.path(instruction.value).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    _copy(image, instruction, context)
                case "RUN":
                    _run(image, instruction.value, {**image.variables, **arguments, **also})
                case "USER":
                    image.user = instruction.value
                case "ENTRYPOINT":
                    image.entry_point = _json_words(instruction.value)
                case "CMD" | "LABEL" | "EXPOSE" | "HEALTHCHECK":
                    pass
                case other:
                    raise AssertionError(f"{other} is not known here")
    return image


def _run(image: Image, command: str, variables: Mapping[str, str]) -> None:
    ended = subprocess.run(
        ["/bin/sh", "-ec", image.mapped(command)],
        cwd=image.path(image.working_folder),
        env={**variables, "HOME": str(image.root)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-2_000:]}\n{ended.stderr[-4_000:]}"


def _copy(image: Image, instruction: Instruction, context: Path) -> None:
    *sources, destination = instruction.words
    if "from" in instruction.flags:
        for source in sources:
            assert source == destination, "stages share a root here"
            assert image.path(source).exists(), f"{source} was not made by the stage {instruction.flags['from']}"
        return
    target = image.path(destination if destination.startswith("/") else f"{image.working_folder}/{destination}")
    found = [match for source in sources for match in context.glob(source)]
    assert found, f"nothing of {sources} is in the context"
    is_folder = destination.endswith("/") or len(found) > 1
    for source_path in found:
        if source_path.is_dir():
            # A folder's content is copied, not the folder.
            shutil.copytree(
                source_path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            to = target / source_path.name if is_folder or target.is_dir() else target
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source_path, to)


def _json_words(value: str) -> list[str]:
    words: list[str] = json.loads(value)
    return words


def readable_python() -> Path:
    """An interpreter of the running one's version that another user may run, or the running one's base."""
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(getattr(sys, "_base_executable", sys.executable))
    for candidate in _interpreters(wanted):
        if _version(candidate) == wanted and candidate.stat().st_mode & 0o005 == 0o005:
            return candidate
    return base


def _interpreters(wanted: str) -> Iterable[Path]:
    return filter(Path.exists, (Path(f"/usr/{place}python{wanted}") for place in ("local/bin/", "bin/")))


def _version(python: Path) -> str:
    program = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", program], capture_output=True, text=True).stdout.strip()
