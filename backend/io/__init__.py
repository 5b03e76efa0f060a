# SPDX-License-Identifier: GPL-2.0-or-later
"""Rasters in and out: opening, wavelengths, windowed sources, the output file."""
