# SPDX-License-Identifier: GPL-2.0-or-later
"""What constant weights of the other closed forms gain, without any network: the least that networks must beat.

    .venv/bin/python .ci/mixture.py --pairs 120 --into docs/models.md

For each plane that a network may weigh (`learned_planes.READ`) one weight and one more for each constant that the
network is told (explained share, roughness, detail over scale, ratio, guide bands), by least squares of what is left
in the bands on training pairs; judged on the networks' own validation pairs. Once with all forms and once without
each.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.methods.learned_planes import FINE_PLANES, OTHER_FORMS, OUTPUTS, READ
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
CONSTANTS = (9, 10, 11, 13, 14)
"""Fine planes that are the same everywhere."""
RIDGE = 1e-2
EVERY = 5
"""One of so many pixels counts."""
BEGIN, END = "<!-- mixture:begin -->", "<!-- mixture:end -->"


def told(example):
    """Return 1 and what a network is told of each component, `[K, constants + 1]`."""
    fine = example.fine.float()
    return torch.cat([torch.ones(len(fine), 1), fine[:, CONSTANTS, 0, 0]], dim=1)


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


def gain(example, weights):
    """Return the rise of PSNR in dB with constant weights `[planes, constants + 1]`."""
    output = torch.zeros(len(example.fine), OUTPUTS, *example.fine.shape[2:])
    output[:, : len(READ)] = (told(example) @ weights.T)[:, :, None, None]
    return psnr_gain(output, example)


def main():
    """Fit, judge, print and write the table."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--pairs", type=int, default=120)
    options = parser.parse_args()
    check_data(quality.DATA)
    cubes = read_cubes(quality.DATA / "cubes", tuple(HELD_OUT))
    training, validation = split_cubes(cubes, VALIDATED_ON, SEED)
    photographs = read_photographs(quality.DATA / "rgb")
    stream = ExampleStream(training, PairSettings(), COMPONENTS, SEED, photographs=photographs)
    seen = ExampleStream(validation, VALIDATION_PAIRS, COMPONENTS, VALIDATION_SEED)
    judged = [seen.example(i) for i in range(VALIDATION_EXAMPLES)]
    matrix = right = 0.0
    for index in range(options.pairs):
        found = normal_equations(stream.example(index))
        matrix, right = matrix + found[0], right + found[1]
    per_plane = 1 + len(CONSTANTS)
    first = FINE_PLANES - len(OTHER_FORMS)
    rows = []
    cases = {"all": (), "none of the other forms": OTHER_FORMS} | {
        f"without `{n}`": (n,) for n in OTHER_FORMS
    }
    for title, without in cases.items():
        gone = {READ.index(first + OTHER_FORMS.index(name)) for name in without}
        keep = [i for i in range(len(READ) * per_plane) if i // per_plane not in gone]
        part = matrix[keep][:, keep]
        solved = torch.linalg.solve(part + RIDGE * part.diagonal().mean() * torch.eye(len(part)), right[keep])
        weights = torch.zeros(len(READ) * per_plane)
        weights[keep] = solved.float()
        gains = [gain(example, weights.view(len(READ), per_plane)) for example in judged]
        rows.append((title, gains))
    whole = rows[0][1]
    lines = [
        f"{options.pairs} training pairs, {len(judged)} pairs of cubes not trained on.",
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
