"""What the environment says to the desk: nowhere else does it look there."""

import os
from pathlib import Path
from typing import Final

MODELS_FILE: Final = "SUPPORT_DESK_MODELS"


def models_file() -> Path | None:
    """The file of trained models that the environment names, or None."""
    named = os.environ.get(MODELS_FILE)
    return Path(named) if named else None


def own_environment(models: Path, **more: str) -> None:
    """Have this process, and those that it starts, use these models and no mesh that was set up for something else."""
    for name in list(os.environ):
        if name.startswith("MESH_"):
            del os.environ[name]
    os.environ.update({MODELS_FILE: str(models), **more})
