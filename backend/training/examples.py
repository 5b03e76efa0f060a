# SPDX-License-Identifier: GPL-2.0-or-later
"""From a training pair to what a network learns from: its planes, and the closed form's error as the target."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control import Control
from ..methods.learned_base import fit_closed_form
from ..methods.learned_planes import consistent, make_planes, prior_planes, read_output
from ..scene import Scene
from .cubes import Cube
from .pairs import Dice, PairSettings, TrainingPair, draw_pair
from .photographs import decode, scene_of

MOST_BANDS = 64
"""Bands, evenly spread, in which errors are counted."""
TRIES = 20
PHOTOGRAPHED = 0.5
"""Share of the examples that take their structure from a photograph, where there are any."""


@dataclass
class Example:
    """A scene ready for training.

    Attributes:
        coarse, fine: see `learned_planes.Planes` (in half precision).
        basis: `[bands, K]`: what one unit of a component's correction does to the bands, each in units of the
            root mean square error in it of the closed form, completed beyond these components.
        error: `[bands, rows, cols]` half: the closed form's error in the same units, 0 where unknown.
        mask: `[rows, cols]`, True where the truth is known.
        ratio, gain: of the pair.
        trust: `[K]`, share of each coarse coefficient that is signal.
        prior: `[K, PRIOR_PLANES, rows, cols]` half; None where the network takes none.
    """

    coarse: Tensor
    fine: Tensor
    basis: Tensor
    error: Tensor
    mask: Tensor
    ratio: int
    gain: float
    trust: Tensor
    prior: Tensor | None = None

    @property
    def usable(self) -> bool:
        """Whether it can teach anything."""
        tensors = [self.coarse, self.fine, self.basis, self.error]
        tensors += [] if self.prior is None else [self.prior]
        finite = all(bool(torch.isfinite(t).all()) for t in tensors)
        return finite and len(self.basis) > 0 and bool(self.mask.any())


DrawPrior = Callable[[Scene], Callable[[Tensor], Tensor]]
"""Draws a scene's prior; what it returns puts the prior in the place of a fine image of the scene."""


def make_example(pair: TrainingPair, components: int, draw_prior: DrawPrior | None = None) -> Example:
    """Run the closed form on a pair and set its error as the target.

    Args:
        pair: from `draw_pair`.
        components: at most so many components are corrected.
        draw_prior: for a network that takes a prior.

    Raises:
        HyperSharpError, ValueError: the closed form cannot be fitted (too few valid pixels).
    """
    scene = pair.scene
    closed = fit_closed_form(scene, Control())
    statistics = closed.statistics
    rows, cols = scene.shape
    tile = scene.tile((0, rows), (0, cols), closed.halo)
    k = min(components, len(closed.trust))
    image, regressed = closed.image(tile), closed.regressed(tile)
    estimate = closed.subspace.coefficients(image)
    change = closed.completion(estimate, regressed, scene.ratio, k)
    closed.part(k, k + len(change)).add_to(image, change)
    coarse = closed.subspace.coefficients(tile.hs)
    guide = closed.registered(tile).guide
    others = closed.other_coefficients(tile, regressed, k)
    planes = make_planes(estimate[:k], coarse, guide, others, statistics, scene.ratio, closed.mtf_gain)
    prior = None
    if draw_prior is not None:
        drawn = closed.subspace.coefficients(draw_prior(scene)(image))[:k]
        prior = prior_planes(
            drawn, estimate[:k], statistics, planes.unit, scene.ratio, closed.mtf_gain
        ).half()
    error = torch.where(pair.mask, pair.truth - image, torch.zeros(()))
    rms = error[:, pair.mask].square().mean(dim=1).sqrt()
    # Without an error, or with one that is mere rounding, there is nothing to learn from a band.
    alive = torch.nonzero(rms > 1e-6 * pair.truth.flatten(1).abs().amax(dim=1)).flatten()
    step = max(1, math.ceil(len(alive) / MOST_BANDS))
    chosen = alive[::step]
    basis = closed.subspace.basis[chosen, :k].float() * planes.unit / rms[chosen, None]
    return Example(
        planes.coarse.half(),
        planes.fine.half(),
        basis,
        (error[chosen] / rms[chosen, None, None]).clamp(-6e4, 6e4).half(),
        pair.mask,
        scene.ratio,
        closed.mtf_gain,
        closed.trust[:k].float(),
        prior,
    )


@dataclass
class Crop:
    """Part of an example, on the device; attributes as there."""

    coarse: Tensor
    fine: Tensor
    basis: Tensor
    error: Tensor
    mask: Tensor
    ratio: int
    gain: float
    trust: Tensor
    prior: Tensor | None = None


def correction_in_bands(output: Tensor, part: Example | Crop) -> Tensor:
    """Return what a network's output does to the bands, after the consistency step, `[bands, rows, cols]`.

    In units of the closed form's error in each band.

    Args:
        output: `[K, OUTPUTS, rows, cols]`.
        part: what the network was given.
    """
    prior = None if part.prior is None else part.prior.to(output)
    correction = read_output(output, part.fine.to(output), prior)
    units = consistent(correction, part.ratio, part.gain, part.trust)
    return torch.einsum("bk,kyx->byx", part.basis.to(units), units)


def psnr_gain(output: Tensor, example: Example) -> float:
    """Return by how many dB the mean PSNR over the bands rises by a network's correction."""
    error = example.error.to(output)
    left = (error - correction_in_bands(output, example))[:, example.mask]
    before, after = error[:, example.mask].square().mean(dim=1), left.square().mean(dim=1)
    alive = before > 0
    return float(10.0 * torch.log10(before[alive] / after[alive].clamp_min(1e-30)).mean())


class ExampleStream:
    """An endless, reproducible stream of examples, of which a moving window is kept in memory.

    Example i is a function of the seed and i alone; so what is drawn at a step does not depend on where a run
    was interrupted.

    Args:
        cubes: to draw from, each equally often.
        settings: what is drawn.
        components: see `make_example`.
        seed: of everything.
        window: examples that may be drawn at a step.
        renew: steps after which the oldest one is replaced.
        draw_prior: see `make_example`.
        photographs: encoded aerial photographs that lend their structure to examples.
        photographed: share of the examples that take it, where there are photographs.
    """

    def __init__(
        self,
        cubes: Sequence[Cube],
        settings: PairSettings,
        components: int,
        seed: int,
        window: int = 64,
        renew: int = 4,
        draw_prior: DrawPrior | None = None,
        photographs: Sequence[bytes] = (),
        photographed: float = PHOTOGRAPHED,
    ) -> None:
        self.photographs, self.photographed = list(photographs), photographed
        self.cubes, self.settings, self.components = list(cubes), settings, components
        self.seed, self.window, self.renew = seed, window, renew
        self.draw_prior = draw_prior
        self._kept: OrderedDict[int, Example] = OrderedDict()

    def pair_settings(self, dice: Dice) -> PairSettings:
        """Return what the next pair is drawn by."""
        return self.settings

    def make(self, pair: TrainingPair, dice: Dice) -> Example:
        """Return what a network learns from a pair."""
        return make_example(pair, self.components, self.draw_prior)

    def example(self, index: int) -> Example:
        """Return example `index`; a draw that is no use (nodata, flat ground) is drawn again.

        Raises:
            ValueError: nothing usable can be drawn from the cubes.
        """
        if index in self._kept:
            return self._kept[index]
        reason = ""
        for attempt in range(TRIES):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, index, attempt))
            cube = self.cubes[(index + attempt) % len(self.cubes)]
            try:
                if self.photographs:
                    cube = self._photographed(cube, Dice(generator))
                pair = draw_pair(cube, self.pair_settings(Dice(generator)), generator)
                example = self.make(pair, Dice(generator))
            except (ValueError, RuntimeError, ArithmeticError) as error:
                reason = str(error)
                continue
            if example.usable:
                self._kept[index] = example
                return example
        raise ValueError(f"no usable training pair could be drawn: {reason}")

    def _photographed(self, cube: Cube, dice: Dice) -> Cube:
        """Return the cube, or in a share of calls a scene of its spectra and a photograph's structure."""
        if not dice.happens(self.photographed):
            return cube
        return scene_of(decode(self.photographs[dice.integer(0, len(self.photographs) - 1)]), cube, dice)

    def draw(self, step: int, dice: Dice) -> Example:
        """Return an example for a step."""
        first = step // self.renew
        for old in [i for i in self._kept if i < first]:
            del self._kept[old]
        return self.example(first + dice.integer(0, self.window - 1))


def mixed_seed(*parts: int) -> int:
    """Return one seed of several integers (multiply and add, 63 bits)."""
    value = 1469598103934665603
    for part in parts:
        value = ((value ^ (part & (2**63 - 1))) * 1099511628211 + 12345) % 2**63
    return value


def crop_example(example: Example, side: int, dice: Dice, device: torch.device) -> Crop:
    """Cut a crop of about `side` fine pixels.

    Args:
        example: to cut from.
        side: in fine pixels, rounded up to whole coarse ones.
        dice: random numbers.
        device: where the crop goes.
    """
    ratio = example.ratio
    rows, cols = example.coarse.shape[-2:]
    size = max(4, math.ceil(side / ratio))
    height, width = min(size, rows), min(size, cols)
    for _ in range(TRIES):
        top, left = dice.integer(0, rows - height), dice.integer(0, cols - width)
        fine_rows = slice(top * ratio, (top + height) * ratio)
        fine_cols = slice(left * ratio, (left + width) * ratio)
        mask = example.mask[fine_rows, fine_cols]
        if float(mask.float().mean()) > 0.5:
            break
    return Crop(
        example.coarse[..., top : top + height, left : left + width].float().to(device),
        example.fine[..., fine_rows, fine_cols].float().to(device),
        example.basis.to(device),
        example.error[..., fine_rows, fine_cols].float().to(device),
        mask.to(device),
        ratio,
        example.gain,
        example.trust.to(device),
        None if example.prior is None else example.prior[..., fine_rows, fine_cols].float().to(device),
    )
