# SPDX-License-Identifier: GPL-2.0-or-later
"""The quality indices, one a file, all behind `base.Metric`."""
