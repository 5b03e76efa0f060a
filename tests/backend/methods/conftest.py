# SPDX-License-Identifier: GPL-2.0-or-later
"""Small pairs with a known truth, a way to fuse them, and the shared steps of every paper in plain numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.registry import load_method
from hypersharp.backend.scene import Scene, tile_windows

MTF = 0.3


def keys_matrix(coarse, ratio):
    """Cubic convolution, a = -1/2, one fine pixel after the other; borders replicated."""

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    matrix = np.zeros((coarse * ratio, coarse))
    for i in range(coarse * ratio):
        position = (i + 0.5) / ratio - 0.5
        for k in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            matrix[i, min(max(k, 0), coarse - 1)] += kernel(position - k)
    return matrix


def upsample(image, ratio):
    """`[bands, rows, cols]` to `ratio` times the rows and columns."""
    rows, cols = keys_matrix(image.shape[1], ratio), keys_matrix(image.shape[2], ratio)
    return np.stack([rows @ band @ cols.T for band in image])


def filter_axis(image, kernel, centre, axis, step):
    """Correlate along an axis with replicated borders, output pixel i looking at i * step + centre (may be x.5)."""
    moved = np.moveaxis(image, axis, -1)
    size = moved.shape[-1]
    first = centre - (len(kernel) - 1) / 2
    assert first == int(first)
    out = np.zeros((*moved.shape[:-1], size // step))
    for i in range(size // step):
        for k, weight in enumerate(kernel):
            out[..., i] += weight * moved[..., min(max(i * step + int(first) + k, 0), size - 1)]
    return np.moveaxis(out, -1, axis)


def gaussian(ratio, mtf, even):
    """The PSF whose transform is `mtf` at half a cycle per coarse pixel."""
    sigma = np.sqrt(-2 * np.log(mtf)) * ratio / np.pi
    reach = int(np.ceil(4 * sigma))
    # even: taps of a decimation, `ratio` own pixels and `reach` more on each side
    x = np.arange(-reach, ratio + reach) - (ratio - 1) / 2 if even else np.arange(-reach, reach + 1)
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def degrade(image, ratio, mtf=MTF):
    """MTF filter and centred decimation; block means for mtf None."""
    kernel = np.full(ratio, 1 / ratio) if mtf is None else gaussian(ratio, mtf, True)
    centre = (ratio - 1) / 2
    return filter_axis(filter_axis(image, kernel, centre, 1, ratio), kernel, centre, 2, ratio)


def smooth(image, ratio, mtf=MTF):
    """MTF filter without decimation."""
    kernel = gaussian(ratio, mtf, False)
    return filter_axis(filter_axis(image, kernel, 0, 1, 1), kernel, 0, 2, 1)


def make_truth(bands, rows, cols, seed, materials=7):
    """Mixtures of smooth spectra on patches with soft edges; all values positive."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(materials, rows // 6 + 2, cols // 6 + 2))
    fine = np.stack([np.kron(m, np.ones((6, 6)))[:rows, :cols] for m in coarse])
    fine = fine + 0.7 * rng.normal(size=fine.shape)
    fine = filter_axis(
        filter_axis(fine, np.array([0.25, 0.5, 0.25]), 0, 1, 1), np.array([0.25, 0.5, 0.25]), 0, 2, 1
    )
    shares = np.exp(2 * fine)
    shares /= shares.sum(axis=0)
    waves = np.cos(np.outer(np.arange(1, 7), np.linspace(0, np.pi, bands))) / np.arange(1, 7)[:, None]
    spectra = np.linspace(600, 1800, materials)[:, None] * np.exp(
        0.25 * rng.normal(size=(materials, 6)) @ waves
    )
    return np.einsum("mb,mrc->brc", spectra, shares)


def make_pair(bands=6, coarse=24, ratio=4, guide_bands=1, seed=0, width=None):
    """Return truth, hs = degraded truth, guide = mixtures of neighbouring bands (float64 numpy)."""
    truth = make_truth(bands, coarse * ratio, (width or coarse) * ratio, seed)
    weights = np.zeros((guide_bands, bands))
    for k, group in enumerate(np.array_split(np.arange(min(bands, 2 * guide_bands + 2)), guide_bands)):
        weights[k, group] = 1 / len(group)
    guide = 2.5 * np.einsum("kb,brc->krc", weights, truth) + 300
    return SimpleNamespace(
        truth=truth, hs=degrade(truth, ratio), guide=guide, ratio=ratio, weights=weights, mtf=MTF
    )


def make_scene(hs, guide, ratio, hs_mask=None, guide_mask=None, device="cpu"):
    """A scene of two arrays."""

    def source(image, mask):
        mask = None if mask is None else torch.as_tensor(mask)
        return TensorSource(torch.as_tensor(np.ascontiguousarray(image), dtype=torch.float32), mask)

    return Scene(source(hs, hs_mask), source(guide, guide_mask), ratio, MTF, MTF, device=device)


def fuse(method, hs, guide, ratio, hs_mask=None, guide_mask=None, tile=None, device="cpu", **parameters):
    """Fuse arrays with a method id, whole or by tiles; returns numpy float32 and the valid mask."""
    scene = make_scene(hs, guide, ratio, hs_mask, guide_mask, device)
    engine = load_method(method)(parameters or None)
    engine.fit(scene, Control())
    out = np.full((hs.shape[0], *guide.shape[1:]), np.nan, np.float32)
    valid = np.zeros(guide.shape[1:], bool)
    rows, cols = (0, guide.shape[1]), (0, guide.shape[2])
    for r, c in tile_windows(rows, cols, tile or max(rows[1], cols[1])):
        part = scene.tile(r, c, engine.halo)
        out[:, r[0] : r[1], c[0] : c[1]] = engine.fuse(part).cpu().numpy()
        valid[r[0] : r[1], c[0] : c[1]] = part.mask.cpu().numpy()
    return SimpleNamespace(image=out, valid=valid, engine=engine)


@pytest.fixture(scope="session")
def plain():
    """The shared steps in plain numpy and the pairs' maker."""
    return SimpleNamespace(
        upsample=upsample,
        degrade=degrade,
        smooth=smooth,
        filter_axis=filter_axis,
        make_pair=make_pair,
        scene=make_scene,
        fuse=fuse,
        mtf=MTF,
    )
