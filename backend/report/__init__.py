# SPDX-License-Identifier: GPL-2.0-or-later
"""The quality report: plots, page, metrics.json."""

from __future__ import annotations

from .files import write_csv, write_metrics
from .indices import summary_table
from .verdict import verdict

__all__ = ["summary_table", "verdict", "write_csv", "write_metrics"]
