# SPDX-License-Identifier: GPL-2.0-or-later
"""What the weights gain that the networks start from, without any network: the least that networks must beat.

    .venv/bin/python .ci/mixture.py --pairs 192 --into docs/models.md

The regression of `training/start.py`, fitted on training pairs and judged on the networks' own validation pairs: as it
is, with fewer terms, without each form, fitted on the cubes' pairs or the photographs' alone; and, for what could be
known at most, constants fitted to each judged pair's own truth.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.methods.learned_planes import (
    CONSTANT_PLANES,
    OTHER_FORMS,
    OTHER_PLANES,
    OUTPUTS,
    READ,
    SMOOTHED_PLANES,
    START_SHAPE,
    with_start,
)
from hypersharp.backend.training.cubes import read_cubes
from hypersharp.backend.training.examples import ExampleStream, psnr_gain
from hypersharp.backend.training.pairs import PairSettings
from hypersharp.backend.training.photographs import read_photographs
from hypersharp.backend.training.presets import COMPONENTS
from hypersharp.backend.training.run import (
    START_EXAMPLES,
    VALIDATION_EXAMPLES,
    VALIDATION_PAIRS,
    VALIDATION_SEED,
    split_cubes,
)
from hypersharp.backend.training.start import normal_equations, solved
from learned_table import HELD_OUT
from pages import check_data, page_parser, publish
from train_weights import VALIDATED_ON

SEED = 1029
CONSTANTS = 1 + len(CONSTANT_PLANES)
BEGIN, END = "<!-- mixture:begin -->", "<!-- mixture:end -->"


def kept(without=(), facts=START_SHAPE[1], smoothed=True):
    """Return which weights are fitted: not those of the forms `without`, and of the first `facts` alone."""
    keep = torch.ones(START_SHAPE, dtype=torch.bool)
    for name in without:
        i = OTHER_FORMS.index(name)
        keep[[READ.index(OTHER_PLANES[i]), READ.index(SMOOTHED_PLANES[i])]] = False
    keep[:, facts:] = False
    if not smoothed:
        keep[[READ.index(plane) for plane in SMOOTHED_PLANES]] = False
    return keep


def added(systems):
    """Return the sum of normal equations."""
    return tuple(sum(parts) for parts in zip(*systems))


def gain(example, weights):
    """Return the rise of PSNR in dB with weights of `START_SHAPE`."""
    fine = example.fine.float()
    return psnr_gain(with_start(torch.zeros(len(fine), OUTPUTS, *fine.shape[2:]), fine, weights), example)


def main():
    """Fit, judge, print and write the table."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--pairs", type=int, default=START_EXAMPLES)
    options = parser.parse_args()
    check_data(quality.DATA)
    cubes = read_cubes(quality.DATA / "cubes", tuple(HELD_OUT))
    training, validation = split_cubes(cubes, VALIDATED_ON, SEED)
    photographs = read_photographs(quality.DATA / "rgb")
    pool = training, PairSettings(), COMPONENTS, SEED
    half = options.pairs // 2
    real, made = (
        added(normal_equations(stream.example(i)) for i in range(half))
        for stream in (
            ExampleStream(*pool),
            ExampleStream(*pool, photographs=photographs, photographed=1.0),
        )
    )
    both = added([real, made])
    seen = ExampleStream(validation, VALIDATION_PAIRS, COMPONENTS, VALIDATION_SEED)
    judged = [seen.example(i) for i in range(VALIDATION_EXAMPLES)]
    constants = kept(facts=CONSTANTS, smoothed=False)
    fitted = {
        "all": solved(*both),
        "no smoothed planes": solved(*both, kept(smoothed=False)),
        "constants alone, no smoothed planes": solved(*both, constants),
        "none of the other forms": solved(*both, kept(OTHER_FORMS)),
        **{f"without `{name}`": solved(*both, kept([name])) for name in OTHER_FORMS},
        "all, fitted on the cubes' pairs alone": solved(*real),
        "all, fitted on the photographs' pairs alone": solved(*made),
    }
    rows = [(title, [gain(example, weights) for example in judged]) for title, weights in fitted.items()]
    own = [gain(example, solved(*normal_equations(example), constants)) for example in judged]
    rows.append(("constants fitted to each judged pair's own truth", own))
    whole = rows[0][1]
    lines = [
        f"{half} training pairs of the cubes, {half} of photographs with the cubes' spectra; "
        f"{len(judged)} pairs of cubes not trained on.",
        "",
        "| weights | PSNR over what a network corrects, dB | against the first row, dB (standard error) |",
        "|---|---|---|",
    ]
    for title, gains in rows:
        differences = [a - b for a, b in zip(gains, whole)]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        against = "" if gains is whole else f"{statistics.fmean(differences):+.3f} ({error:.3f})"
        lines.append(f"| {title} | {statistics.fmean(gains):+.3f} | {against} |")
    text = "\n".join(lines) + "\n"
    publish(options.into, BEGIN, END, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
