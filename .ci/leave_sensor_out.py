# SPDX-License-Identifier: GPL-2.0-or-later
"""What a network is worth on a sensor that it never saw: trains without it, then fuses its scenes.

    .venv/bin/python .ci/leave_sensor_out.py --sensor aviris --into docs/benchmarks.md

Kernel regression's learned part is trained without the sensor too, for a shorter time than what ships. The shipped
weights already know nothing of ROSIS, EnMAP, NEON, Hyperion and the simulated EnMAP of Berlin (learned_table.py);
AVIRIS is what they were trained on, so it needs a training of its own. Ratio 4, PAN and MSI, with and without noise of
30 dB. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import statistics
import sys
import zlib
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.job import TRAIN_STATE, TrainJob
from hypersharp.backend.methods import kernel_regression
from hypersharp.backend.training.cubes import read_cubes
from hypersharp.backend.training.photographs import read_photographs
from hypersharp.backend.training.run import run_train, split_cubes
from learned_table import score
from pages import page_parser, publish
from train_kernel import SEED, Plan, train_all

METHOD, BASE, RATIO = "csakd", "lmmse", 4
MEMBERS, KERNEL_STEPS = 1, 750
"""See train_kernel.py."""
BEGIN, END = "<!-- sensor:begin -->", "<!-- sensor:end -->"


def train_kernel(sensor, folder):
    """Train kernel regression without a sensor's cubes, or take what was trained; it is used from now on."""
    cubes = read_cubes(quality.DATA / "cubes", (sensor,))
    training, validation = split_cubes(cubes, (), SEED)
    photographs = read_photographs(quality.DATA / "rgb")
    plan = Plan(training, validation, photographs, folder / "kernel", members=MEMBERS, steps=KERNEL_STEPS)
    model, *_ = train_all(plan)
    kernel_regression.shipped_model = lambda: model


def train(sensor, steps, folder):
    """Train without a sensor's cubes, or take what was trained; return what is known of the training."""
    config = folder / "config.json"
    if not config.is_file() or (folder / TRAIN_STATE).is_file():
        job = TrainJob(
            output=str(folder),
            method=METHOD,
            cubes=str(quality.DATA / "cubes"),
            photographs=str(quality.DATA / "rgb"),
            steps=steps,
            batch=2,
            resume=(folder / TRAIN_STATE).is_file(),
            leave_out=[sensor],
            validate_every=100,
            patience=0,
        )
        run_train(job, Control())
    return json.loads(config.read_text(encoding="utf-8"))["training"]


def main():
    """Train, fuse, print and write the table."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--sensor", default="aviris", help="beginning of its cubes' names")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    cubes = sorted((quality.DATA / "cubes").glob(f"{options.sensor}*.tif"))
    if not cubes:
        parser.exit(
            2, f"error: no cube of {options.sensor}\nhint: HYPERSHARP_DATA names the folder of the data\n"
        )
    folder = quality.ROOT / "build" / f"without-{options.sensor}"
    train_kernel(options.sensor, folder)
    facts = train(options.sensor, options.steps, folder)
    lines = [
        f"`{METHOD}` trained without any scene of {options.sensor.upper()} ({', '.join(facts['data']['cubes'])}; "
        f"kernel regression {KERNEL_STEPS} steps, network {facts['outcome']['best_step']}), on scenes of "
        f"that sensor, ratio {RATIO}:",
        "",
        "| guide | scenes | `lmmse` PSNR dB | PSNR against it, dB: mean (range) | SAM against it, ° |",
        "|---|---|---|---|---|",
    ]
    found = {(guide, noise): [] for guide in quality.GUIDES for noise in quality.NOISES}
    for path in cubes:
        cube = quality.read_cube(path.stem)
        if min(cube[1].shape) // RATIO < quality.MIN_COARSE:
            continue
        for (guide, noise), values in found.items():
            made = quality.simulate(*cube, RATIO, guide, noise, zlib.crc32(path.stem.encode()))
            values.append([score(BASE, *made, {}), score(METHOD, *made, {"weights": str(folder)})])
        print(
            path.stem,
            {k: round(v[-1][1]["PSNR"] - v[-1][0]["PSNR"], 2) for k, v in found.items()},
            flush=True,
        )
    for (guide, noise), values in found.items():
        gains = [new["PSNR"] - old["PSNR"] for old, new in values]
        angle = statistics.fmean(new["SAM"] - old["SAM"] for old, new in values)
        said = quality.GUIDES[guide] + ("" if noise is None else f", noise {noise:.0f} dB")
        base = statistics.fmean(old["PSNR"] for old, _ in values)
        lines.append(
            f"| {said} | {len(values)} | {base:.2f} | {statistics.fmean(gains):+.2f} ({min(gains):+.2f} to "
            f"{max(gains):+.2f}) | {angle:+.2f} |"
        )
    text = "\n".join(lines) + "\n"
    publish(options.into, BEGIN, END, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
