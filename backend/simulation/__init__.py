# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated pairs: Wald's protocol on a reference cube, and the sample scene."""
