# SPDX-License-Identifier: GPL-2.0-or-later
"""How torch's threads wait for each other. Standard library only: it must run before torch is imported."""

from __future__ import annotations

import os


def wait_politely() -> None:
    """Let idle OpenMP threads sleep instead of spin; a value that the user has set stays.

    Spinning gains nothing on an idle machine, and with one other program running it was seen to take eight times
    as long (docs/benchmarks.md): each step waits for a thread that the system has set aside.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
