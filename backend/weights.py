# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the weights of learned methods are: shipped ones by name, the user's own by folder.

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

from .errors import ErrorCode, HyperSharpError

SHIPPED = Path(__file__).resolve().parent.parent / "resources" / "weights"


def shipped_names() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


def shipped_for(method: str) -> list[str]:
    """Return the names of the shipped weights that a method can take: its own first, then others of its class.

    Without weights of its own (named as the method is), those that were trained as this method.
    """
    kinds = {name: _kind(SHIPPED / name) for name in shipped_names()}
    own = kinds.get(method)
    if own is None:
        return [name for name, kind in kinds.items() if kind is not None and kind[2] == method]
    others = [name for name, kind in kinds.items() if kind is not None and kind[:2] == own[:2]]
    return [method, *(name for name in others if name != method)]


def _kind(folder: Path) -> Optional[tuple[str, str, str]]:
    """Return class, input form and method of weights; None where their configuration cannot be read."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(content["class"]), str(content["input"]["form"]), str(content.get("method", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def weights_problem(weights: str) -> Optional[str]:
    """Return what is wrong, at first sight, with weights given by name or folder; None for nothing."""
    try:
        folder = find_weights(weights)
    except HyperSharpError as error:
        return f"{error.message}; {error.hint}"
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    return f"{folder} holds no weights: there is no {' and no '.join(missing)}" if missing else None


def absolute_weights(weights: str) -> str:
    """Return weights as a job for another process names them: a shipped name as it is, a folder by its full path."""
    return weights if weights in shipped_names() else str(Path(weights).expanduser().absolute())


def find_weights(weights: str) -> Path:
    """Return the folder of weights given by a shipped name or by a folder.

    Raises:
        HyperSharpError: code `no_weights`; there is neither such a name nor such a folder.
    """
    names = shipped_names()
    if weights in names:
        return SHIPPED / weights
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    # A denoiser has no input form; nobody wants it as a method's weights.
    networks = [name for name in names if _kind(SHIPPED / name)]
    raise HyperSharpError(
        f"there are no weights {weights!r}",
        f"give a folder with config.json and model.safetensors, or one of: {', '.join(networks) or 'none shipped'}",
        ErrorCode.NO_WEIGHTS,
    )
