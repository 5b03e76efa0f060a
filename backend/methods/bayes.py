# SPDX-License-Identifier: GPL-2.0-or-later
"""Naive Bayes: maximum a posteriori with Gaussian statistics of image and guide."""

from __future__ import annotations

import torch
from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .blocks import pull_back
from .injection import ridge_solve
from .linear_model import DETAIL_FLOOR, LinearModelMethod, positive_definite


class Bayes(LinearModelMethod):
    """MAP estimate from the joint Gaussian statistics of image and guide (Hardie, Eismann and Wilson 2004).

    IEEE TIP 13(9), 2004, eqs. 13 to 24; as the naive Bayesian method of Zhang, De Backer and Scheunders, IEEE TGRS
    47(11), 2009. Given the guide, a pixel is Gaussian with mean mu = E[z] + Czg Cgg^-1 (g - E[g]) and covariance
    C = Czz - Czg Cgg^-1 Cgz, from the moments at coarse resolution; pixels are independent. The estimate is
    mu + C D' (D C D' + noise)^-1 (z - D mu), solved exactly in the eigenvectors of C against the noise.
    """

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the joint moments and diagonalise the conditional covariance."""
        super().fit(scene, control)
        rank = self.subspace.rank
        mean, joint = self.joint_mean, self.joint
        square = joint[rank:, rank:] + torch.diag((1e-5 * self.guide_mean) ** 2 + 1e-30)
        self.gains = ridge_solve(square, joint[rank:, :rank], 1e-6).T
        self.constant = mean[:rank] - self.gains @ mean[rank:]
        given = joint[:rank, :rank] - self.gains @ joint[rank:, :rank] - torch.diag(self.hs_noise)
        given = positive_definite(given, DETAIL_FLOOR * joint.diagonal()[:rank])
        scale = self.hs_noise.sqrt()
        share, vectors = torch.linalg.eigh(given / scale[:, None] / scale[None, :])
        self.strength = 1.0 / share.clamp_min(1e-300)
        self.turn = vectors.T / scale[None, :]
        self.turn_back = scale[:, None] * vectors

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: the MAP estimate."""
        block = self.block(tile)
        guide = block.guide + self.guide_offset.to(block.guide)[:, None, None]
        flat = guide.reshape(len(guide), -1)
        estimate = torch.addmm(self.constant.to(flat)[:, None], self.gains.to(flat), flat)
        # Where the guide is missing, the interpolated HS image is all there is.
        estimate = torch.where(block.seen, estimate.view(block.start.shape), block.start)
        residual = (block.target - block.degrade(estimate)) * block.hs_seen
        turned = torch.einsum("jk,krc->jrc", self.turn.to(residual), residual)
        change = pull_back(turned, self.strength, block.rows, block.cols)
        estimate = estimate + torch.einsum("kj,jrc->krc", self.turn_back.to(change), change)
        return self.assemble(block, estimate)
