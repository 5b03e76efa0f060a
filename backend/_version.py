# SPDX-License-Identifier: GPL-2.0-or-later
"""The version, once; metadata.txt and pyproject.toml repeat it (tests/packaging compares them)."""

__version__ = "0.1.0"
