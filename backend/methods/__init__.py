# SPDX-License-Identifier: GPL-2.0-or-later
"""The fusion methods, one a file, all behind `base.FusionMethod`."""
