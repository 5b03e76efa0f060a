# SPDX-License-Identifier: GPL-2.0-or-later
"""The two data terms: what an image of base bands would look like to the HS sensor and to the guide's.

With base A in [0, 1], X = offset + E A + R, and the measured pair Y, P:

    hs:    || W (Y - D B X) ||        W: one over each band's standard deviation
    guide: || V (P - rho X) ||        V: one over each guide band's standard deviation

(PLRDiff, arXiv 2305.10925, there without weights.) The HS term is computed in the s dimensions that E spans: what
lies outside does not depend on A and is one number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..degradation import separable

TERMS = ("hs", "guide")
TINY = 1e-12


@dataclass
class DataTerms:
    """Both terms of a scene, in units of standard deviations.

    Attributes:
        down: the degradation, `[coarse rows, fine rows]` and `[coarse cols, fine cols]`.
        hs: `[s, coarse rows, coarse cols]`: what E A has to be seen as, in an orthonormal basis of W E's span.
        hs_mixing: `[s, s]`: A in that basis.
        hs_rest: squared norm of what lies outside the span.
        hs_mask: `[coarse rows, coarse cols]`, 1 where the HS pixel is valid.
        hs_count: number of values that the HS term sums up.
        guide: `[guide bands, fine rows, fine cols]`: what rho E A has to be.
        guide_mixing: `[guide bands, s]`: V rho E.
        guide_mask: `[fine rows, fine cols]`, 1 where the guide is valid.
        deviation: a base band's standard deviation on the coarse grid (base in [0, 1]), root mean square.
        noise: standard deviations of what the model cannot explain of HS image and guide, relative to the bands' own.
        known: `[s, rows, cols]`: another estimate of the base (the closed form's); None for none.
        precision: `[s, s]`: inverse covariance of its error.
    """

    down: tuple[Tensor, Tensor]
    hs: Tensor
    hs_mixing: Tensor
    hs_rest: float
    hs_mask: Tensor
    hs_count: float
    guide: Tensor
    guide_mixing: Tensor
    guide_mask: Tensor
    deviation: float
    noise: tuple[float, float] = (0.0, 0.0)
    known: Tensor | None = None
    precision: Tensor | None = None

    @property
    def guide_count(self) -> float:
        """Number of values that the guide's term sums up."""
        return max(1.0, float(self.guide_mask.sum()) * len(self.guide))

    def hs_residual(self, base: Tensor) -> Tensor:
        """Return `[s, coarse rows, coarse cols]` of a base `[s, rows, cols]`, 0 where unknown."""
        return self.hs * self.hs_mask - self.hs_seen(base)

    def guide_residual(self, base: Tensor) -> Tensor:
        """Return `[guide bands, rows, cols]` of a base `[s, rows, cols]`, 0 where unknown."""
        return self.guide * self.guide_mask - self.guide_seen(base)

    def hs_seen(self, base: Tensor) -> Tensor:
        """Return what the HS sensor sees of a base `[s, rows, cols]`, where valid."""
        return mix(self.hs_mixing, separable(*self.down, base)) * self.hs_mask

    def guide_seen(self, base: Tensor) -> Tensor:
        """Return what the guide's sensor sees of a base `[s, rows, cols]`, where valid."""
        return mix(self.guide_mixing, base) * self.guide_mask

    def without(self, part: Tensor) -> DataTerms:
        """Return the terms of `base - part`, for a part `[s, rows, cols]` of the base that is taken as known."""
        return replace(
            self,
            hs=self.hs * self.hs_mask - self.hs_seen(part),
            guide=self.guide * self.guide_mask - self.guide_seen(part),
            known=None if self.known is None else self.known - part,
        )

    def norms(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return both norms (not squared), differentiable."""
        hs = (self.hs_residual(base).square().sum() + self.hs_rest + TINY).sqrt()
        return hs, (self.guide_residual(base).square().sum() + TINY).sqrt()

    def rms(self, base: Tensor) -> dict[str, float]:
        """Return both terms as root mean squares over the valid values, in standard deviations of the bands."""
        hs, guide = self.norms(base)
        return {
            "hs": float(hs) / max(1.0, self.hs_count) ** 0.5,
            "guide": float(guide) / self.guide_count**0.5,
        }

    def solve(
        self, base: Tensor, weights: tuple[float, float], trust: float, iterations: int, anchor: float = 0.0
    ) -> Tensor:
        """Return the image nearest to `base` that explains the pair: conjugate gradients.

            argmin  w_hs |hs term|^2 + w_guide |guide term|^2 + trust |A - base|^2
                    + anchor (A - known)' precision (A - known)

        Args:
            base: `[s, rows, cols]`; the start too.
            weights: of the HS and the guide's term.
            trust: of the base.
            iterations: of conjugate gradients.
            anchor: weight of the other estimate, where there is one.
        """
        rows, cols = (d.to(base) for d in self.down)
        known, precision = base, torch.zeros(len(base), len(base)).to(base)
        if anchor > 0 and self.known is not None and self.precision is not None:
            known, precision = self.known.to(base), anchor * self.precision.to(base)

        def pull(hs: Tensor, guide: Tensor) -> Tensor:
            """Both adjoints."""
            up = separable(rows.T, cols.T, mix(self.hs_mixing.T, hs * self.hs_mask))
            return weights[0] * up + weights[1] * mix(self.guide_mixing.T, guide * self.guide_mask)

        def normal(v: Tensor) -> Tensor:
            seen = mix(self.hs_mixing, separable(rows, cols, v))
            return pull(seen, mix(self.guide_mixing, v)) + trust * v + mix(precision, v)

        left = pull(self.hs_residual(base), self.guide_residual(base)) + mix(precision, known - base)
        x, direction, size = base.clone(), left.clone(), left.square().sum()
        for _ in range(iterations):
            if float(size) <= TINY:
                break
            image = normal(direction)
            step = size / (direction * image).sum().clamp_min(TINY)
            x += step * direction
            left = left - step * image
            new = left.square().sum()
            direction = left + new / size * direction
            size = new
        return x


def mix(matrix: Tensor, image: Tensor) -> Tensor:
    """Return `matrix @ image` over the bands, `[n, k]` and `[k, rows, cols]` to `[n, rows, cols]`."""
    return torch.einsum("nk,kyx->nyx", matrix.to(image), image)
