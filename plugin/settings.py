# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin's settings: one typed getter and setter each, all below `hypersharp/` in QGIS's own settings."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsSettings

from ..backend.job import DEFAULT_MEMORY_GB, DEFAULT_METHOD
from ..backend.registry import METHODS

PREFIX = "hypersharp/"
DEVICES = ("auto", "cpu", "cuda")


def _value(name: str, default: Any) -> Any:
    return QgsSettings().value(PREFIX + name, default)


def _set(name: str, value: Any) -> None:
    QgsSettings().setValue(PREFIX + name, value)


def python() -> str:
    """Return the path of the Python that runs the worker; empty: not set."""
    return str(_value("python", "") or "").strip()


def set_python(path: str) -> None:
    """Remember the path of the Python that runs the worker."""
    _set("python", path)


def memory_gb() -> float:
    """Return the bound of working memory in GiB."""
    try:
        value = float(_value("memory_gb", DEFAULT_MEMORY_GB))
    except (TypeError, ValueError):
        return DEFAULT_MEMORY_GB
    return value if value > 0 else DEFAULT_MEMORY_GB


def set_memory_gb(value: float) -> None:
    """Remember the bound of working memory in GiB."""
    _set("memory_gb", float(value))


def device() -> str:
    """Return the device: "auto", "cpu" or "cuda"."""
    value = str(_value("device", "auto"))
    return value if value in DEVICES else "auto"


def set_device(value: str) -> None:
    """Remember the device."""
    _set("device", value)


def method() -> str:
    """Return the method id that was used last."""
    value = str(_value("method", DEFAULT_METHOD))
    return value if value in METHODS else DEFAULT_METHOD


def set_method(value: str) -> None:
    """Remember the method id."""
    _set("method", value)


def match_source_colours() -> bool:
    """Return whether an unstyled source layer is shown in the fused layer's colours after a run."""
    return str(_value("match_source_colours", "true")).lower() in ("true", "1")


def set_match_source_colours(value: bool) -> None:
    """Remember whether to show an unstyled source layer in the fused layer's colours."""
    _set("match_source_colours", "true" if value else "false")
