"""An environment of their own for libraries that do what this one does, or a part of it."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "MLtraq DataStore": ("mltraq",),
    "advanced-alchemy StoredObject": ("advanced-alchemy", "obstore"),
    "sqlalchemy-file": ("sqlalchemy-file", "fasteners"),
    "filedepot": ("filedepot",),
}
_SHARED = ("sqlalchemy", "numpy", "pandas")


@dataclass(frozen=True)
class PeerEnvironment:
    """What was installed.

    Attributes:
        python: the interpreter of the environment.
        versions: of the peers that are there, by the subject's name.
        missing: why a peer is not there, by the subject's name.
    """

    python: Path
    versions: Mapping[str, str]
    missing: Mapping[str, str]


def make_environment(folder: Path) -> PeerEnvironment:
    """Install the peers beside the versions that this process has of what all need."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name)}\n" for name in _SHARED))
    missing = {}
    for name, requirements in {"": _SHARED, **REQUIREMENTS}.items():
        reason = _install(python, constraints, requirements)
        if reason:
            missing[name] = reason
    installed = _installed(python)
    versions = {
        name: installed[requirements[0]]
        for name, requirements in REQUIREMENTS.items()
        if name not in missing
    }
    return PeerEnvironment(python, versions, missing)


def _install(python: Path, constraints: Path, requirements: tuple[str, ...]) -> str:
    """Return why requirements could not be installed, or nothing."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return errors[-1].removeprefix("ERROR: ") if done.returncode and errors else ""


def _installed(python: Path) -> dict[str, str]:
    command = [str(python), "-m", "pip", "list", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(done.stdout)
    }
