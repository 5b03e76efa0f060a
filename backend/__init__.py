# SPDX-License-Identifier: GPL-2.0-or-later
"""The science: rasters, grids, fusion methods, quality indices, the report, the command line, the worker.

Importing this package costs nothing and needs nothing: QGIS imports the contract modules (`errors`, `job`,
`protocol`, `registry`, `sensors`, `estimate`) from here. The functions below load torch and rasterio when used.
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {"fuse": ".pipeline", "assess": ".assessment", "simulate": ".simulation"}

__all__ = ["assess", "fuse", "simulate"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        importlib.import_module(".threads", __name__).wait_politely()
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
