# SPDX-License-Identifier: GPL-2.0-or-later
"""The fusion environment: which Python runs the worker, whether it can, and what it inherits from QGIS.

QGIS's own Python gets nothing installed: the backend runs in an interpreter of its own, found here.
"""

from __future__ import annotations

import json
import os
import subprocess  # nosec B404 # starts the user's own interpreter, never a shell
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ..backend.errors import ErrorCode, HyperSharpError
from . import settings

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
"""The plugin's folder, which is also the package that the worker runs."""
MIN_PYTHON = (3, 10)
REQUIRED_PACKAGES = ("torch", "numpy", "scipy", "rasterio", "matplotlib", "jinja2", "psutil", "safetensors")
"""Without these no run is begun."""
PACKAGES = (*REQUIRED_PACKAGES, "tqdm", "diffusers", "PyWavelets", "h5py")
"""What to install: with what single methods, trainings and imports ask for when they run."""
CHECK_TIMEOUT_S = 60
ENVIRONMENT_VARIABLE = "HYPERSHARP_PYTHON"

_PROBE = (
    "import json, sys\n"
    "from importlib.util import find_spec\n"
    "print(json.dumps({'version': sys.version_info[:3], 'missing': [n for n in sys.argv[1:] if not find_spec(n)]}))"
)
# Variables that QGIS, conda or a shell set for themselves and that break another Python, its GDAL or its PROJ.
_DROPPED = {
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    "GDAL_DATA",
    "GDAL_DRIVER_PATH",
    "PROJ_LIB",
    "PROJ_DATA",
    "GEOTIFF_CSV",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "MPLBACKEND",
    "__PYVENV_LAUNCHER__",
}
_DROPPED_PREFIXES = ("PYTHON", "PIP_", "QGIS_", "DYLD_")


@dataclass(frozen=True)
class Interpreter:
    """A Python that can run the worker; `source` says where its path came from."""

    python: str
    source: str


def checkout_pythons(folder: Path = PACKAGE_FOLDER) -> list[Path]:
    """Return where a checkout's `.venv` keeps its Python, on Linux, macOS and Windows."""
    return [folder / ".venv" / "bin" / "python", folder / ".venv" / "Scripts" / "python.exe"]


def locate() -> Interpreter:
    """Return the interpreter that the setting, the environment variable or the checkout names, not yet tried.

    The first that is named counts: a wrong setting is an error, never silently passed over.

    Raises:
        HyperSharpError: code `no_environment`: none is named, or the named file does not exist.
    """
    named = [
        (settings.python(), "the setting hypersharp/python"),
        (os.environ.get(ENVIRONMENT_VARIABLE, ""), f"the environment variable {ENVIRONMENT_VARIABLE}"),
    ]
    for python, source in named:
        if python:
            if not Path(python).is_file():
                raise HyperSharpError(
                    f"the fusion environment's Python does not exist: {python}",
                    f"correct {source}, or clear it to use another one",
                    ErrorCode.NO_ENVIRONMENT,
                )
            return Interpreter(python, source)
    for candidate in checkout_pythons():
        if candidate.is_file():
            return Interpreter(str(candidate), "the plugin folder's .venv")
    raise HyperSharpError(
        "no fusion environment is set up",
        f"make a Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer with the packages {', '.join(PACKAGES)} "
        f"and name it in the setting hypersharp/python or in {ENVIRONMENT_VARIABLE} "
        "(in a checkout, 'make env' does it all)",
        ErrorCode.NO_ENVIRONMENT,
    )


def child_environment(parent: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """Return the environment for the worker: the parent's without what belongs to QGIS's own Python."""
    source = os.environ if parent is None else parent
    return {
        name: value
        for name, value in source.items()
        if name.upper() not in _DROPPED and not name.upper().startswith(_DROPPED_PREFIXES)
    }


def hidden_window_flags() -> int:
    """Return the creation flags that keep a console window from flashing up (Windows only, else 0)."""
    return getattr(subprocess, "CREATE_NO_WINDOW", 0) if sys.platform == "win32" else 0


_checked: dict[tuple[str, float], None] = {}


def check(interpreter: Interpreter) -> None:
    """Start the interpreter once and see that it is new enough and has the packages; remembered per file.

    Raises:
        HyperSharpError: code `no_environment`, with what is wrong and what to do.
    """
    path = interpreter.python
    try:
        key = (path, Path(path).stat().st_mtime)
    except OSError as error:
        raise HyperSharpError(
            f"cannot read the fusion environment's Python {path}: {error.strerror}",
            f"correct {interpreter.source}",
            ErrorCode.NO_ENVIRONMENT,
        ) from error
    if key in _checked:
        return
    _check_answer(interpreter, _probe(interpreter))
    _checked[key] = None


def _probe(interpreter: Interpreter) -> str:
    """Return what the interpreter says of itself."""
    problem = ""
    try:
        done = subprocess.run(  # nosec B603 # a list, no shell; the path is the user's own setting
            [interpreter.python, "-I", "-c", _PROBE, *REQUIRED_PACKAGES],
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            creationflags=hidden_window_flags(),
            check=False,
        )
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        problem = lines[-1] if lines else f"it ended with code {done.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"no answer within {CHECK_TIMEOUT_S} s"
    except OSError as error:
        problem = error.strerror or str(error)
    raise HyperSharpError(
        f"{interpreter.python} cannot be run as Python ({problem})",
        f"correct {interpreter.source}",
        ErrorCode.NO_ENVIRONMENT,
    )


def _check_answer(interpreter: Interpreter, answer: str) -> None:
    """Raise what is wrong with the interpreter, if anything."""
    try:
        values = json.loads(answer)
        version, missing = tuple(values["version"]), list(values["missing"])
    except (ValueError, KeyError, TypeError) as error:
        raise HyperSharpError(
            f"{interpreter.python} does not answer as Python does",
            f"correct {interpreter.source}",
            ErrorCode.NO_ENVIRONMENT,
        ) from error
    if version < MIN_PYTHON:
        raise HyperSharpError(
            f"{interpreter.python} is Python {'.'.join(map(str, version))}, too old for the fusion",
            f"name a Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer in {interpreter.source}",
            ErrorCode.NO_ENVIRONMENT,
        )
    if missing:
        raise HyperSharpError(
            f"the fusion environment lacks {', '.join(missing)}",
            f"run: {interpreter.python} -m pip install {' '.join(missing)}",
            ErrorCode.NO_ENVIRONMENT,
        )


def worker_command(interpreter: Optional[Interpreter] = None) -> list[str]:
    """Return the command that starts the worker in a tried interpreter.

    Raises:
        HyperSharpError: code `no_environment`.
    """
    interpreter = interpreter or locate()
    check(interpreter)
    # -I: no PYTHON* variable and no user site; faulthandler: a crash in C leaves a Python stack on stderr.
    return [interpreter.python, "-I", "-X", "faulthandler", str(PACKAGE_FOLDER), "worker"]
