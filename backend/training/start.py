# SPDX-License-Identifier: GPL-2.0-or-later
"""The weights that a network starts from: how far to lean towards which form, fitted to training pairs at once.

A ridge regression of the closed form's error, counted in the bands, on the planes that a network may weigh, each times
what the planes tell of a component and of the surroundings (`learned_planes.start_facts`). What a network then learns
is what no such regression can say.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..methods.learned_planes import READ, START_SHAPE, start_facts
from .examples import Example

RIDGE = 3e-3
"""Ridge, relative to each term's own mean square."""
EVERY = 11
"""One of so many pixels counts."""


def normal_equations(example: Example) -> tuple[Tensor, Tensor]:
    """Return the matrix and the right side of one pair, float64, per pixel and band."""
    here = torch.nonzero(example.mask.flatten())[::EVERY, 0]
    fine = example.fine.flatten(2)[..., here][..., None].float()
    terms = (fine[:, list(READ), None] * start_facts(fine)).flatten(1, 2)[..., 0]
    basis, error = example.basis.float(), example.error.flatten(1)[:, here].float()
    in_bands = torch.einsum("kl,ljn->jkn", basis.T @ basis, terms).flatten(1)
    terms = terms.transpose(0, 1).flatten(1)
    size = max(1, len(here) * len(basis))
    return (terms @ in_bands.T).double() / size, (terms @ (basis.T @ error).flatten()).double() / size


def solved(matrix: Tensor, right: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the weights of a system, of `START_SHAPE`.

    Args:
        matrix, right: sums or means of `normal_equations`.
        keep: of `START_SHAPE`, True for the weights to fit; the others are 0. None for all.
    """
    kept = torch.arange(len(right)) if keep is None else torch.nonzero(keep.flatten())[:, 0]
    part = matrix[kept][:, kept]
    own = part.diagonal()
    # A term that is 0 everywhere (a constant that no pair has) must not make the system singular.
    ridge = RIDGE * own + 1e-4 * own.mean().clamp_min(1e-12)
    weights = torch.zeros(len(right))
    weights[kept] = torch.linalg.solve(part + ridge.diag(), right[kept]).float()
    return weights.view(START_SHAPE)


def fit_start(examples: Iterable[Example]) -> Tensor:
    """Return the weights that fit the examples best, each counting the same, of `START_SHAPE`."""
    systems = [normal_equations(example) for example in examples]
    return solved(sum(m for m, _ in systems), sum(r for _, r in systems))  # type: ignore[arg-type]
