# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated pairs: Wald's protocol on a reference cube, and the sample scene."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ..control import Control
from ..job import DEFAULT_MTF_HS, SimulateJob
from ..protocol import Result
from .pair import run_simulate
from .sample import write_scene

__all__ = ["run_simulate", "sample_pair", "simulate", "write_scene"]


def simulate(
    reference: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    ratio: int = 4,
    guide: str = "pan",
    snr_db: float | None = None,
    mtf_hs: float = DEFAULT_MTF_HS,
    seed: int = 0,
    control: Control | None = None,
) -> Result:
    """Make a pair with a known truth from a cube; arguments as in `job.SimulateJob`, errors as `run_simulate`."""
    job = SimulateJob(os.fspath(reference), os.fspath(folder), ratio, str(guide), snr_db, mtf_hs, seed)
    return run_simulate(job, control)


def sample_pair(
    folder: str | os.PathLike[str],
    guide: str = "pan",
    ratio: int = 4,
    seed: int = 0,
    size: int = 240,
    snr_db: float | None = None,
) -> dict[str, str]:
    """Write the sample scene as a pair: hs.tif, guide.tif and reference.tif.

    Args:
        folder: where they go; made when absent.
        guide: "pan", "4", ... as in `job.SimulateJob`.
        ratio: fine pixels per coarse pixel.
        seed: another seed is another village.
        size: rows and columns of the reference, in pixels of 4 m.
        snr_db: noise of the HS image; None for none beyond the scene's own.

    Returns:
        Paths by "hs", "guide", "reference".
    """
    options: dict[str, Any] = {"ratio": ratio, "guide": guide, "snr_db": snr_db, "seed": seed}
    with tempfile.TemporaryDirectory(prefix="hypersharp-") as temporary:
        scene = write_scene(Path(temporary) / "scene.tif", size, size, seed)
        result = simulate(scene, folder, **options)
    return {key.lower(): path for key, path in result.outputs.items()}
