# SPDX-License-Identifier: GPL-2.0-or-later
"""Peak memory of drawing a prior against the side of the scene, each in a process of its own.

    .venv/bin/python .ci/prior_memory.py --into docs/diffusion.md

60 made bands at ratio 4, two steps, an analytic denoiser in the network's place: only the drawing counts.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "backend"))
from pages import page_parser, publish

BANDS, RATIO, STEPS = 60, 4, 2
SIDES = "768,1200,2000,3200"
BEGIN, END = "<!-- memory:begin -->", "<!-- memory:end -->"


def resident() -> float:
    """Return the process's peak of resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def draw(side):
    """Draw the prior of a made scene of `side` x `side` fine pixels; print what it took as JSON."""
    import torch
    from diffusion.conftest import White
    from diffusion.test_blocks import Waves
    from hypersharp.backend.control import Control
    from hypersharp.backend.diffusion.prior import PriorSettings, sample_prior
    from hypersharp.backend.scene import Scene

    torch.set_num_threads(1)
    coarse = side // RATIO
    scene = Scene(Waves(BANDS, coarse, coarse, float(RATIO)), Waves(1, side, side, 1.0), RATIO, 0.3, 0.3)
    before, started = resident(), time.perf_counter()
    prior = sample_prior(scene, PriorSettings(steps=STEPS, half=False), Control(), White(0.15))
    print(
        json.dumps(
            {
                "blocks": prior.facts["blocks"],
                "before": before,
                "peak": resident(),
                "seconds": time.perf_counter() - started,
            }
        )
    )


def main():
    """Measure, print and write."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--sides", default=SIDES, help="fine pixels, by comma")
    parser.add_argument("--draw", type=int, help="draw one in this process")
    options = parser.parse_args()
    if options.draw:
        draw(options.draw)
        return
    lines = ["| fine pixels | blocks | MB before | peak MB | seconds |", "|---|---|---|---|---|"]
    for side in (int(part) for part in options.sides.split(",")):
        with tempfile.TemporaryDirectory() as cache:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, "--draw", str(side)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "HYPERSHARP_CACHE": cache, "OMP_NUM_THREADS": "1"},
            )
        found = json.loads(done.stdout.splitlines()[-1])
        lines.append(
            f"| {side} x {side} | {found['blocks']} | {found['before']:.0f} | {found['peak']:.0f} | "
            f"{found['seconds']:.0f} |"
        )
        print(lines[-1], flush=True)
    publish(options.into, BEGIN, END, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
