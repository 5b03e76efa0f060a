# SPDX-License-Identifier: GPL-2.0-or-later
"""`lmmse` as it was first specified, without what it has learned since: the base that the aims were set against.

    .venv/bin/python .ci/plain_lmmse.py

Eight components without whitening, one gain for the whole scene, no denoising, no registration, what lies outside the
subspace interpolated as it is. Prints its figures on the scenes of the specification, which gives 33.87 dB with PAN,
31.60 with PAN and noise, 40.38 with MSI and 35.49 with MSI and noise.
"""

from __future__ import annotations

import statistics
import sys
import zlib
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.degradation import degrade, interpolate
from hypersharp.backend.metrics.sets import FullReferenceSet

RANK, ROUNDS, STEP, RIDGE = 8, 8, 0.5, 1e-6
SPECIFIED = {
    "aviris_abu_airport-1": 4,
    "aviris_abu_airport-2": 4,
    "aviris_abu_urban-1": 4,
    "aviris_abu_urban-4": 4,
    "aviris_abu_beach-1": 4,
    "aviris_sandiego_1": 4,
    "aviris_jasper_ridge": 4,
    "rosis_pavia_bridge": 4,
    "cave_cloth": 8,
}
BORDER = 4


def covariance(values):
    """Return the covariance of `[channels, pixels]`."""
    return torch.cov(values).reshape(len(values), len(values))


def fuse(scene, mask):
    """Return the fused image of a scene held in memory, `[bands, rows, cols]`."""
    ratio, gain = scene.ratio, scene.mtf_hs
    coarse, _ = scene.hs.read((0, scene.hs.rows), (0, scene.hs.cols))
    fine, _ = scene.guide.read((0, scene.guide.rows), (0, scene.guide.cols))

    def down(image):
        return degrade(image, ratio, gain)[0]

    valid = (degrade(mask[None].float(), ratio, gain)[0][0] > 0.99).flatten()
    pixels = coarse.flatten(1).double()
    mean = pixels[:, valid].mean(dim=1, keepdim=True)
    basis = torch.linalg.svd(pixels[:, valid] - mean, full_matrices=False)[0][:, :RANK]
    low = down(fine)
    guide_mean = low.flatten(1)[:, valid].mean(dim=1)[:, None, None]
    guide = fine - guide_mean
    z = (basis.T @ (pixels - mean)).float().view(-1, *coarse.shape[1:])
    seen, look = z.flatten(1)[:, valid].double(), (low - guide_mean).flatten(1)[:, valid].double()
    square = seen @ seen.T
    mixing = torch.linalg.solve(
        square + RIDGE * square.diagonal().mean() * torch.eye(len(square)), seen @ look.T
    ).T
    noise = torch.diag((look - mixing @ seen).var(dim=1))
    rows, cols = (n // ratio * ratio for n in z.shape[1:])
    inner = z[:, :rows, :cols]
    detail = covariance((inner - interpolate(down(inner), ratio)).flatten(1).double())
    weight = detail @ mixing.T @ torch.linalg.inv(mixing @ detail @ mixing.T + noise)

    def lift(matrix, image):
        return torch.einsum("ij,jrc->irc", matrix.float(), image)

    found = interpolate(z, ratio) + lift(weight, guide - interpolate(down(guide), ratio))
    for _ in range(ROUNDS):
        found = found + interpolate(z - down(found), ratio)
        missing = guide - lift(mixing, found)
        found = found + STEP * lift(weight, missing - interpolate(down(missing), ratio))
    outside = (pixels - mean - basis @ (basis.T @ (pixels - mean))).float().view_as(coarse)
    return lift(basis, found) + mean.float()[:, :, None] + interpolate(outside, ratio)


def score(scene, truth, mask, border):
    """Return the indices, a border left out."""
    fused = fuse(scene, mask)
    inner = slice(border, -border)
    indices = FullReferenceSet(scene.ratio, quality.INDICES)
    indices.update(fused[:, inner, inner], truth[:, inner, inner], mask[inner, inner])
    return {k: v.value for k, v in indices.compute().items()}


def main():
    """Print the figures of the specification's scenes."""
    for guide in quality.GUIDES:
        for noise in quality.NOISES:
            found = []
            for name, ratio in SPECIFIED.items():
                made = quality.simulate(
                    *quality.read_cube(name), ratio, guide, noise, zlib.crc32(name.encode())
                )
                found.append(score(*made, BORDER))
            print(guide, noise, {i: round(statistics.fmean(f[i] for f in found), 2) for i in quality.INDICES})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
