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
