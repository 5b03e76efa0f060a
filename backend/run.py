# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs any job: the one way in for the worker and the command line."""

from __future__ import annotations

import importlib

from .control import Control
from .job import Job
from .protocol import Result

_RUNNERS = {
    "fuse": (".pipeline", "run_fuse"),
    "assess": (".assessment", "run_assess"),
    "simulate": (".simulation", "run_simulate"),
    "compare": (".comparison", "run_compare"),
    "train": (".training.run", "run_train"),
    "import": (".products", "run_import"),
}


def run_job(job: Job, control: Control) -> Result:
    """Run a job of any kind.

    Raises:
        HyperSharpError: what went wrong, with a hint; nothing was written.
        Cancelled: `control` stopped it; nothing was written.
    """
    module, name = _RUNNERS[job.kind]
    return getattr(importlib.import_module(module, __package__), name)(job, control)
