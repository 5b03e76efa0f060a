# SPDX-License-Identifier: GPL-2.0-or-later
"""Sensors' products that no GIS reads as they are delivered, made into rasters that a fusion takes."""

from __future__ import annotations

from .importing import run_import

__all__ = ["run_import"]
