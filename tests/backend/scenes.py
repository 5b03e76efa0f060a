"""Scenes made by code, for tests of methods and of the engine."""

import numpy as np


def smooth_scene(bands, rows, cols, seed=0, low=500.0, high=4000.0):
    """Return `[bands, rows, cols]` float64: three smooth materials with different spectra."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:cols] / 16.0
    parts = [
        np.sin(x * a + b) * np.cos(y * c + d) + 0.3 * np.sin(3 * x * a + 2 * y * c)
        for a, b, c, d in rng.uniform(0.6, 2.2, (3, 4))
    ]
    spectra = rng.uniform(0.2, 1.0, (3, bands))
    image = sum(p[None] * s[:, None, None] for p, s in zip(parts, spectra))
    image = (image - image.min()) / (image.max() - image.min())
    return low + (high - low) * image


def rough_scene(bands, rows, cols, seed=0, low=500.0, high=4000.0):
    """Return `[bands, rows, cols]` float64: four materials, each with detail of many sizes, nothing repeated."""
    rng = np.random.default_rng(seed)
    image = np.zeros((bands, rows, cols))
    for spectrum in rng.uniform(0.2, 1.0, (4, bands)):
        part = np.zeros((rows, cols))
        for size in (4, 8, 16, 32):
            grid = rng.standard_normal((rows // size + 2, cols // size + 2))
            y, x = np.arange(rows) / size, np.arange(cols) / size
            r, c = y.astype(int), x.astype(int)
            a, b = (y - r)[:, None], (x - c)[None, :]
            top = grid[r][:, c] * (1 - b) + grid[r][:, c + 1] * b
            bottom = grid[r + 1][:, c] * (1 - b) + grid[r + 1][:, c + 1] * b
            part += size**0.5 * (top * (1 - a) + bottom * a)
        image += spectrum[:, None, None] * part
    image = (image - image.min()) / (image.max() - image.min())
    return low + (high - low) * image
