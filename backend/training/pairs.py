# SPDX-License-Identifier: GPL-2.0-or-later
"""Training pairs drawn on the fly by Wald's protocol: the cube is the truth, its degraded versions the pair.

Source: Wald, Ranchin and Mangolini, PE&RS 63(6), 1997. Everything that differs between sensors is drawn at
random: ratio, PSF, what is assumed of it, bands, guide, noise, registration, orientation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ..degradation import degrade
from ..io.source import TensorSource
from ..job import DEFAULT_MTF_GUIDE, DEFAULT_MTF_HS
from ..scene import Scene
from .cubes import Cube

MIN_COARSE = 12
"""Coarse pixels that a pair should have along each side: ratios that leave fewer are drawn only if all do."""


@dataclass(frozen=True)
class PairSettings:
    """What is drawn.

    Attributes:
        ratios: drawn evenly.
        side: largest side of a pair in fine pixels.
        mtf: range of the MTF gain at Nyquist.
        known_mtf: share of pairs whose gain is known; the others are fused as if it were the default one.
        pan: share of pairs with a single-band guide.
        noise: share of pairs whose HS image is noisy, and the range of its signal-to-noise ratio in dB.
        noise_db: see `noise`.
        guide_noise: share of pairs whose guide is noisy, and the range of its signal-to-noise ratio in dB.
        guide_noise_db: see `guide_noise`.
        shift: share of pairs whose HS image is shifted against guide and truth, by up to half a fine pixel along
            each axis.
        bands: smallest share of a cube's bands that a pair keeps.
    """

    ratios: tuple[int, ...] = (2, 3, 4, 4, 5, 6, 8)
    side: int = 120
    mtf: tuple[float, float] = (0.15, 0.45)
    known_mtf: float = 0.6
    pan: float = 0.5
    noise: float = 0.5
    noise_db: tuple[float, float] = (25.0, 45.0)
    guide_noise: float = 0.0
    guide_noise_db: tuple[float, float] = (32.0, 50.0)
    shift: float = 0.25
    bands: float = 0.4


@dataclass
class TrainingPair:
    """A pair with its truth.

    Attributes:
        scene: what a method may see.
        truth: `[bands, rows, cols]`.
        mask: `[rows, cols]`, True where truth, HS and guide are valid.
        facts: how it was drawn, for messages and tests.
    """

    scene: Scene
    truth: Tensor
    mask: Tensor
    facts: dict[str, object]


class Dice:
    """Random numbers from one generator."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def uniform(self, lower: float, upper: float) -> float:
        """Return a number from [lower, upper)."""
        return lower + (upper - lower) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def integer(self, lower: int, upper: int) -> int:
        """Return an integer from lower to upper, both included."""
        return int(torch.randint(lower, upper + 1, (), generator=self.generator))

    def happens(self, share: float) -> bool:
        """Return True in this share of calls."""
        return self.uniform(0.0, 1.0) < share

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(shape, generator=self.generator)


def draw_bands(cube: Cube, least: float, dice: Dice) -> Tensor:
    """Return the indices of a run of neighbouring bands, every one or every second of them."""
    count = len(cube.image)
    keep = max(min(count, 8), round(count * dice.uniform(least, 1.0)))
    start = dice.integer(0, count - keep)
    step = 2 if keep >= 60 and dice.happens(0.3) else 1
    return torch.arange(start, start + keep, step)


def draw_responses(wavelength_nm: Tensor, pan: bool, dice: Dice) -> Tensor:
    """Return the guide's weights `[guide bands, bands]`, rows summing to 1.

    A PAN band is a window 150 to 450 nm wide in the visible and near infrared; MSI bands, 2 to 8 of them, are
    Gaussians 20 to 150 nm wide, usually below 1000 nm, sometimes anywhere. Where the bands lie elsewhere, the
    ranges are taken relative to theirs.
    """
    first, last = float(wavelength_nm.min()), float(wavelength_nm.max())
    span = max(last - first, 1.0)
    lower, upper = max(first, 400.0), min(last, 1000.0)
    if upper - lower < 150.0:
        lower, upper = first, last
    width_unit = min(1.0, (upper - lower) / 500.0)
    rows = []
    if pan:
        width = dice.uniform(150, 450) * width_unit
        start = dice.uniform(lower, max(lower, upper - width))
        edge = dice.uniform(5, 40) * width_unit
        rise = torch.sigmoid((wavelength_nm - start) / edge)
        rows.append(rise * torch.sigmoid((start + width - wavelength_nm) / edge))
    else:
        for _ in range(dice.integer(2, 8)):
            anywhere = dice.happens(0.2)
            centre = dice.uniform(first, last) if anywhere else dice.uniform(lower, upper)
            # Sensors' infrared bands are wider.
            sigma = dice.uniform(20, 150) * width_unit * (1.5 if anywhere and span > 900 else 1.0) / 2.3548
            rows.append(torch.exp(-0.5 * ((wavelength_nm - centre) / sigma) ** 2))
    weights = torch.stack(rows) + 1e-12
    nearest = torch.stack([functional.one_hot(row.argmax(), len(row)) for row in weights])
    weights = weights + 1e-3 * nearest
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def shift_image(image: Tensor, rows: float, cols: float) -> Tensor:
    """Shift `[bands, rows, cols]` by a fraction of a pixel (cubic), border replicated."""
    height, width = image.shape[1:]
    theta = torch.tensor([[1.0, 0.0, 2 * cols / width], [0.0, 1.0, 2 * rows / height]])[None]
    grid = functional.affine_grid(theta.to(image), [1, *image.shape], align_corners=False)
    return functional.grid_sample(
        image[None], grid, mode="bicubic", padding_mode="border", align_corners=False
    )[0]


def draw_pair(cube: Cube, settings: PairSettings, generator: Generator) -> TrainingPair:
    """Draw a pair from a cube; the same generator state gives the same pair.

    Raises:
        ValueError: the cube has no valid pixel where the pair was drawn.
    """
    dice = Dice(generator)
    rows, cols = cube.image.shape[1:]
    fitting = [r for r in settings.ratios if min(rows, cols, settings.side) // r >= MIN_COARSE]
    ratios = fitting or [min(settings.ratios)]
    ratio = ratios[dice.integer(0, len(ratios) - 1)]
    side = settings.side // ratio * ratio
    height, width = min(rows // ratio * ratio, side), min(cols // ratio * ratio, side)
    top, left = dice.integer(0, rows - height), dice.integer(0, cols - width)
    bands = draw_bands(cube, settings.bands, dice)
    truth = cube.image[bands, top : top + height, left : left + width]
    mask = cube.mask[top : top + height, left : left + width]
    turns, mirror = dice.integer(0, 3), dice.happens(0.5)
    truth, mask = torch.rot90(truth, turns, (1, 2)), torch.rot90(mask, turns, (0, 1))
    if mirror:
        truth, mask = truth.flip(2), mask.flip(1)
    truth, mask = truth.contiguous(), mask.contiguous()
    if not bool(mask.any()):
        raise ValueError("no valid pixel in this part of the cube")
    gain = dice.uniform(*settings.mtf)
    shift = (0.0, 0.0)
    if dice.happens(settings.shift):
        shift = (dice.uniform(-0.5, 0.5), dice.uniform(-0.5, 0.5))
    # The HS image is what is shifted: the closed form puts its result on the guide's ground, where the truth is.
    hs, hs_mask = degrade(shift_image(truth, *shift) if any(shift) else truth, ratio, gain, mask)
    snr = dice.uniform(*settings.noise_db) if dice.happens(settings.noise) else None
    noise = dice.normal(tuple(hs.shape))
    if snr is not None:
        # Half of the time of the same size in every band, else in proportion to the band's signal.
        power = hs.square().mean(dim=(1, 2), keepdim=True)
        level = power.mean() if dice.happens(0.5) else power
        hs = hs + noise * (level * 10 ** (-snr / 10)).sqrt()
    pan = dice.happens(settings.pan)
    weights = draw_responses(cube.wavelength_nm[bands], pan, dice)
    guide = torch.einsum("gb,byx->gyx", weights, truth)
    if settings.guide_noise and dice.happens(settings.guide_noise):
        level = 10 ** (-dice.uniform(*settings.guide_noise_db) / 20)
        root = guide[:, mask].square().mean(dim=1).sqrt()
        guide = guide + dice.normal(tuple(guide.shape)) * (level * root)[:, None, None]
    known = dice.happens(settings.known_mtf)
    scene = Scene(
        TensorSource(hs, hs_mask),
        TensorSource(guide, mask),
        ratio,
        gain if known else DEFAULT_MTF_HS,
        DEFAULT_MTF_GUIDE,
    )
    seen = hs_mask.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)
    facts: dict[str, object] = {
        "cube": cube.name,
        "ratio": ratio,
        "mtf": gain,
        "known": known,
        "bands": len(bands),
        "guide_bands": len(weights),
        "snr_db": snr,
        "shift": shift,
    }
    return TrainingPair(scene, truth, mask & seen, facts)
