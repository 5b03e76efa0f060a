# SPDX-License-Identifier: GPL-2.0-or-later
"""The quality report: plots, page, metrics.json."""

from __future__ import annotations

from .files import write_csv, write_metrics
from .indices import summary_table
from .page import build_report, quicklook
from .verdict import verdict

__all__ = ["build_report", "quicklook", "summary_table", "verdict", "write_csv", "write_metrics"]
