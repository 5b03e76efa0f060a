# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the weights of learned methods are: shipped ones by name, the user's own by folder."""

from __future__ import annotations

from pathlib import Path

from .errors import ErrorCode, HyperSharpError

SHIPPED = Path(__file__).resolve().parent.parent / "resources" / "weights"


def shipped_names() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


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
    raise HyperSharpError(
        f"there are no weights {weights!r}",
        f"give a folder with config.json and model.safetensors, or one of: {', '.join(names) or 'none shipped'}",
        ErrorCode.NO_WEIGHTS,
    )
