# SPDX-License-Identifier: GPL-2.0-or-later
"""Small scenes and denoisers made by code."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hypersharp.backend.degradation import degrade
from hypersharp.backend.diffusion.denoiser import ARCHITECTURE, UNetDenoiser
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.scene import Scene
from hypersharp.backend.weights import SHIPPED


class White:
    """The exact denoiser of white Gaussian images in [-1, 1] of a given variance: no weights, no surprises."""

    multiple = 1

    def __init__(self, variance=0.25):
        self.variance = variance
        self.calls = 0

    def epsilon(self, x, alpha_bar):
        self.calls += 1
        a = alpha_bar.to(x)[:, None, None, None]
        return (1 - a).sqrt() * x / (a * self.variance + 1 - a)


def tiny_unet(seed=0):
    torch.manual_seed(seed)
    sizes = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "norm_num_groups": 4,
    }
    return UNetDenoiser(UNet2DModel(**{**ARCHITECTURE, **sizes}))


def low_rank_cube(bands=12, rows=48, cols=40, rank=3, seed=0):
    """Return [bands, rows, cols] float32, of exactly this rank about its mean, with edges and texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:cols]
    planes = []
    for i in range(rank):
        soft = np.sin(x / (5.0 + i) + i) * np.cos(y / (6.0 + 2 * i))
        block = rng.normal(size=(rows // 6 + 1, cols // 6 + 1)).repeat(6, 0).repeat(6, 1)[:rows, :cols]
        planes.append(soft + 0.7 * block)
    wave = np.arange(bands)[:, None] / bands
    spectra = np.exp(-((wave - rng.uniform(0, 1, rank)[None]) ** 2) / 0.1) + 0.1
    image = np.einsum("bk,krc->brc", spectra, np.stack(planes))
    return torch.from_numpy(1000 + 300 * image).float()


def make_scene(truth, ratio=4, response=None, mask=None, **options):
    """Return a scene simulated from a cube; the guide is the mean of the bands, or response @ cube."""
    hs, hs_mask = degrade(truth, ratio, 0.3, mask)
    if response is None:
        response = torch.full((1, len(truth)), 1.0 / len(truth))
    guide = torch.einsum("kb,brc->krc", response, truth)
    guide_mask = torch.ones(guide.shape[1:], dtype=torch.bool) if mask is None else mask
    pair = TensorSource(hs, hs_mask), TensorSource(guide, guide_mask)
    return Scene(*pair, ratio, 0.3, 0.3, **options)


@pytest.fixture
def cube():
    return low_rank_cube()


@pytest.fixture
def scene(cube):
    return make_scene(cube)


@pytest.fixture(scope="session")
def shipped():
    from hypersharp.backend.diffusion.denoiser import load_denoiser

    return load_denoiser(SHIPPED / "prior")
