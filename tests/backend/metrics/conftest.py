# SPDX-License-Identifier: GPL-2.0-or-later
"""Synthetic scenes, and the indices as a textbook would write them: numpy, float64, loops over bands and blocks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch


def make_scene(bands=6, rows=50, cols=75, scale=10000.0, noise=0.03, seed=0):
    """Return (fused, reference, mask): smooth classes with texture, spectra that differ, and a noisy copy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :cols]
    fields = [
        np.sin(x / rng.uniform(4, 15) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(4, 15)) for _ in range(3)
    ]
    weights = rng.uniform(0.02, 0.1, (bands, 3))
    reference = 0.4 + np.tensordot(weights, np.stack(fields), 1) + 0.02 * rng.standard_normal((1, rows, cols))
    reference += 0.2 * np.sin(np.linspace(0, 3, bands))[:, None, None]
    reference += 0.01 * rng.standard_normal(reference.shape)
    fused = (
        reference + noise * rng.standard_normal(reference.shape) * rng.uniform(0.2, 1, (bands, 1, 1)) + 0.01
    )
    both = [torch.from_numpy((scale * image).astype(np.float32)) for image in (fused, reference)]
    return (*both, torch.ones(rows, cols, dtype=torch.bool))


def make_holes(rows, cols, seed=1, share=0.05):
    """Return a mask with a block, a border and scattered pixels missing."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, cols)) > share
    mask[: rows // 5, : cols // 4] = False
    mask[:, -3:] = False
    return torch.from_numpy(mask)


def conj(z):
    return np.concatenate([z[..., :1], -z[..., 1:]], axis=-1)


def cayley_dickson(x, y):
    """(a, b)(c, d) = (a c - d* b, d a + b c*), by recursion down to real numbers."""
    if x.shape[-1] == 1:
        return x * y
    h = x.shape[-1] // 2
    a, b, c, d = x[..., :h], x[..., h:], y[..., :h], y[..., h:]
    first = cayley_dickson(a, c) - cayley_dickson(conj(d), b)
    return np.concatenate([first, cayley_dickson(d, a) + cayley_dickson(b, conj(c))], axis=-1)


def blocks_of(image, mask, size=32):
    """Yield ([pixels, bands], number of valid pixels) of each block."""
    rows, cols = mask.shape
    for i in range(0, rows, size):
        for j in range(0, cols, size):
            m = mask[i : i + size, j : j + size]
            yield image[:, i : i + size, j : j + size][:, m].T, int(m.sum())


def q2n(fused, reference, mask, size=32):
    """Garzelli and Nencini's index with every product of 2^k-ons written out."""
    total = weight = 0.0
    for (f, n), (r, _) in zip(blocks_of(fused, mask, size), blocks_of(reference, mask, size)):
        if n < 64:
            continue
        mean, std = r.mean(0), r.std(0, ddof=1)
        parts = 1 << max(0, int(np.ceil(np.log2(r.shape[1]))))
        z1, z2 = (np.pad((v - mean) / std + 1, ((0, 0), (0, parts - v.shape[1]))) for v in (r, f))
        z2 = conj(z2)
        m1, m2 = z1.mean(0), z2.mean(0)
        unbiased = n / (n - 1)
        covariance = unbiased * (cayley_dickson(z1, z2).mean(0) - cayley_dickson(m1, m2))
        s1, s2 = (unbiased * ((z**2).sum(1).mean() - (m**2).sum()) for z, m in ((z1, m1), (z2, m2)))
        a, b = np.linalg.norm(m1), np.linalg.norm(m2)
        total += n * np.linalg.norm(covariance) * 2 / (s1 + s2) * 2 * a * b / (a * a + b * b)
        weight += n
    return total / weight


def q_block(x, y):
    """Wang and Bovik's Q of two lists of pixels."""
    cov = ((x - x.mean()) * (y - y.mean())).mean()
    return 4 * cov * x.mean() * y.mean() / ((x.var() + y.var()) * (x.mean() ** 2 + y.mean() ** 2))


def q_image(x, y, mask, size=32, weights=None):
    """Q averaged over blocks by `weights` (valid pixels, from 64 on)."""
    values, counts = [], []
    for (a, n), (b, _) in zip(blocks_of(x[None], mask, size), blocks_of(y[None], mask, size)):
        counts.append(n if n >= 64 else 0)
        values.append(q_block(a[:, 0], b[:, 0]) if n >= 64 else 0.0)
    weights = counts if weights is None else weights
    return np.average(values, weights=weights), weights


def sam(fused, reference, mask):
    f, r = fused[:, mask], reference[:, mask]
    cosine = (f * r).sum(0) / (np.linalg.norm(f, axis=0) * np.linalg.norm(r, axis=0))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()


def windows_of(image, side):
    """Return every window of an image as a list of its pixels, [windows, side * side]."""
    return np.lib.stride_tricks.sliding_window_view(image, (side, side)).reshape(-1, side * side)


def correlation(x, y):
    """Pearson's coefficient along the last axis."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def scc(fused, reference, mask):
    """Correlation of 3 x 3 Laplacians where the whole neighbourhood is valid."""
    whole = windows_of(mask, 3).all(1)
    detail = [
        [(9 * w[:, 4] - w.sum(1))[whole] for w in (windows_of(v, 3) for v in image)]
        for image in (fused, reference)
    ]
    return np.mean([correlation(f, r) for f, r in zip(*detail)])


def d_rho(fused, guide, mask, side):
    """One less the mean correlation with the guide over all whole windows."""
    whole = windows_of(mask, side).all(1)
    guide = windows_of(guide, side)[whole]
    return 1 - np.mean([correlation(windows_of(f, side)[whole], guide) for f in fused])


@pytest.fixture(scope="session")
def naive():
    """The textbook forms."""
    return SimpleNamespace(
        sam=sam,
        scc=scc,
        q2n=q2n,
        q_image=q_image,
        q_block=q_block,
        d_rho=d_rho,
        cayley_dickson=cayley_dickson,
    )


@pytest.fixture(scope="session")
def scene():
    """Maker of synthetic (fused, reference, mask)."""
    return make_scene


@pytest.fixture(scope="session")
def holes():
    """Maker of masks with holes."""
    return make_holes
