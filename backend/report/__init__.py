# SPDX-License-Identifier: GPL-2.0-or-later
"""The quality report: plots, page, metrics.json."""
