# SPDX-License-Identifier: GPL-2.0-or-later
"""What constant weights of the other closed forms gain, without any network: the least that networks must beat.

    .venv/bin/python .ci/mixture.py --pairs 100 --into docs/models.md

For each plane that a network may weigh (`learned_planes.READ`) one weight and one more for each constant that the
network is told, by least squares of what is left in the bands on training pairs; judged on the networks' own
validation pairs. With all forms and without each; fitted on the cubes' pairs or the photographs' alone; and, for what
could be known at most, fitted to each judged pair's own truth.
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
)
from hypersharp.backend.training.cubes import read_cubes
from hypersharp.backend.training.examples import ExampleStream, psnr_gain
from hypersharp.backend.training.pairs import PairSettings
from hypersharp.backend.training.photographs import read_photographs
from hypersharp.backend.training.presets import COMPONENTS
from hypersharp.backend.training.run import (
    VALIDATION_EXAMPLES,
    VALIDATION_PAIRS,
    VALIDATION_SEED,
    split_cubes,
)
from learned_table import HELD_OUT
from pages import check_data, page_parser, publish
from train_weights import VALIDATED_ON

SEED = 1029
RIDGE = 1e-2
PER_PLANE = 1 + len(CONSTANT_PLANES)
EVERY = 5
"""One of so many pixels counts."""
BEGIN, END = "<!-- mixture:begin -->", "<!-- mixture:end -->"


def told(example):
    """Return 1 and what a network is told of each component, `[K, constants + 1]`."""
    fine = example.fine.float()
    return torch.cat([torch.ones(len(fine), 1), fine[:, CONSTANT_PLANES, 0, 0]], dim=1)


def normal_equations(example):
    """Return the matrix and the right side of one pair."""
    fine, facts = example.fine.float(), told(example)
    here = torch.nonzero(example.mask.flatten())[::EVERY, 0]
    planes = fine[:, list(READ)].flatten(2)[..., here].double()
    terms = (planes[:, :, None] * facts.double()[:, None, :, None]).flatten(1, 2)
    basis, error = example.basis.double(), example.error.double().flatten(1)[:, here]
    size = len(here) * len(basis)
    matrix = torch.einsum("kjn,kl,lin->ji", terms, basis.T @ basis, terms) / size
    return matrix, torch.einsum("kjn,kb,bn->j", terms, basis.T, error) / size


def solved(system, without=()):
    """Return the weights of a system, `[planes, constants + 1]`; those of the forms `without` are 0."""
    matrix, right = system
    gone = {READ.index(OTHER_PLANES[OTHER_FORMS.index(name)]) for name in without}
    keep = [i for i in range(len(right)) if i // PER_PLANE not in gone]
    part = matrix[keep][:, keep]
    ridge = RIDGE * part.diagonal().mean() * torch.eye(len(part))
    weights = torch.zeros(len(right))
    weights[keep] = torch.linalg.solve(part + ridge, right[keep]).float()
    return weights.view(len(READ), PER_PLANE)


def added(systems):
    """Return the sum of normal equations."""
    return tuple(sum(parts) for parts in zip(*systems))


def gain(example, weights):
    """Return the rise of PSNR in dB with constant weights `[planes, constants + 1]`."""
    output = torch.zeros(len(example.fine), OUTPUTS, *example.fine.shape[2:])
    output[:, : len(READ)] = (told(example) @ weights.T)[:, :, None, None]
    return psnr_gain(output, example)


def main():
    """Fit, judge, print and write the table."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--pairs", type=int, default=100)
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
    fitted = {
        "all": solved(both),
        "none of the other forms": solved(both, OTHER_FORMS),
        **{f"without `{name}`": solved(both, [name]) for name in OTHER_FORMS},
        "all, fitted on the cubes' pairs alone": solved(real),
        "all, fitted on the photographs' pairs alone": solved(made),
    }
    rows = [(title, [gain(example, weights) for example in judged]) for title, weights in fitted.items()]
    own = [gain(example, solved(normal_equations(example))) for example in judged]
    rows.append(("all, fitted to each judged pair's own truth", own))
    whole = rows[0][1]
    lines = [
        f"{half} training pairs of the cubes, {half} of photographs with the cubes' spectra; "
        f"{len(judged)} pairs of cubes not trained on.",
        "",
        "| planes weighed | PSNR over `lmmse`, dB | against the first row, dB (standard error) |",
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
