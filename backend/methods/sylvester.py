# SPDX-License-Identifier: GPL-2.0-or-later
"""FUSE: Bayesian fusion by the closed-form solution of a Sylvester equation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .blocks import pull_back
from .linear_model import LinearModelMethod


class Sylvester(LinearModelMethod):
    """Fast fusion based on a Sylvester equation (Wei, Dobigeon and Tourneret, IEEE TIP 24(11), 2015, eqs. 9 to 24).

    The posterior mean under the linear model with the Gaussian prior x ~ N(U z, Sigma) solves
    C1 x + x D'D = C3. In the eigenvectors of C1 each component is a scalar problem; the decimated blur of a block
    is separable, so D D' is diagonalised exactly by two small eigendecompositions where the paper uses the
    circulant blur's FFT. Sigma is the covariance of the coefficients' detail one scale down.

    The solution is written as the pixel's own estimate from guide and prior, p = W (g - A U z), plus
    D' (lambda + D D')^-1 (z - D p): the same values, without cancellation where the noise is small.
    """

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the model and diagonalise C1."""
        super().fit(scene, control)
        precision = self.mixing.T @ (self.mixing / self.guide_noise[:, None])
        precision = precision + torch.linalg.inv(self.detail)
        scale = self.hs_noise.sqrt()
        self.strength, vectors = torch.linalg.eigh(precision * scale[:, None] * scale[None, :])
        self.turn = vectors.T / scale[None, :]
        self.turn_back = scale[:, None] * vectors
        # Sigma A' (A Sigma A' + R)^-1: the estimate of a pixel from the guide alone.
        spread = self.detail @ self.mixing.T
        system = self.mixing @ spread + torch.diag(self.guide_noise)
        self.gains = torch.linalg.solve(system, spread.T).T

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: the posterior mean."""
        block = self.block(tile)
        flat = block.missing.reshape(len(block.missing), -1)
        shape = block.missing.shape[1:]
        estimate = block.start.add_((self.gains.to(flat) @ flat).view(-1, *shape))
        residual = (block.target - block.degrade(estimate)) * block.hs_seen
        turned = torch.einsum("jk,krc->jrc", self.turn.to(residual), residual)
        change = pull_back(turned, self.strength.clamp_min(0), block.rows, block.cols)
        estimate += torch.einsum("kj,jrc->krc", self.turn_back.to(change), change)
        return self.assemble(block, estimate)
