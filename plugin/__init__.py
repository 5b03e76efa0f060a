# SPDX-License-Identifier: GPL-2.0-or-later
"""The QGIS glue: menu, Processing provider, tasks, the worker process, layers, settings."""
