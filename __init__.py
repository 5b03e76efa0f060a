# SPDX-License-Identifier: GPL-2.0-or-later
"""HyperSharp: hyperspectral and panchromatic or multispectral image fusion, as a QGIS plugin and alone."""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Return the plugin; QGIS calls this when it loads the plugin folder."""
    from .plugin.main import HyperSharpPlugin

    return HyperSharpPlugin(iface)
