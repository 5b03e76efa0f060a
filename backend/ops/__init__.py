# SPDX-License-Identifier: GPL-2.0-or-later
"""Operators that torch does not bring along, each with a form that runs everywhere."""
