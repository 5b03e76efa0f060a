# SPDX-License-Identifier: GPL-2.0-or-later
"""Trains what kernel regression has learned, through the regression, on blocks of pairs with a known truth.

Every example is solved on its own coarse pixels, as a scene of a user is; what is trained is what makes that solution
good on the fine pixels. The weights are small, so that few cubes teach them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..control import Control
from ..methods.kernel_block import TERMS, KernelBlock, regress
from ..methods.kernel_regression import FACTS, INPUTS, KernelRegression
from ..methods.learned_base import fit_base
from ..models.kernel_features import KernelConfig, KernelFeatures
from ..models.pretrained import PretrainedModel
from .examples import MOST_BANDS, Example, ExampleStream
from .pairs import Dice, PairSettings, TrainingPair
from .trainer import Trainer, TrainSettings

SIDES = (10, 16)
"""Coarse pixels along a block's side, at least and at most; its surroundings come on top."""
PIXELS = 900
"""Fine pixels of a block on which it is judged."""
LEAST_PIXELS = 100
FEW_SIDES, FEW_RATIOS = (4, 11), (3, 4, 5, 6, 8, 10)
"""Coarse pixels along the sides of a scene of few pixels, and its ratios."""
WORST_DB = -6.0
"""A block that loses more than this teaches no more than one that loses this: some few would rule."""
CONFIG = KernelConfig(INPUTS, len(TERMS), FACTS, dilations=(1, 1, 1, 1))


@dataclass
class KernelExample:
    """A block ready for training.

    Attributes:
        block: what the regression sees.
        rows, cols: fine pixels of the block on which it is judged, `[pixels]`.
        basis: `[bands, K]`: what one such unit does to the bands, each in units of the closed form's root mean square
            error in it.
        error: `[bands, pixels]`: the closed form's error in the same units.
    """

    block: KernelBlock
    rows: Tensor
    cols: Tensor
    basis: Tensor
    error: Tensor

    @property
    def usable(self) -> bool:
        """Whether it can teach anything."""
        tensors = (self.block.image, self.block.target, self.block.estimate, self.basis, self.error)
        return len(self.basis) > 0 and all(bool(torch.isfinite(t).all()) for t in tensors)


def make_kernel_example(
    pair: TrainingPair, components: int, dice: Dice, model: KernelFeatures
) -> KernelExample:
    """Return a block of a pair.

    Args:
        pair: from `draw_pair`.
        components: at most so many are regressed.
        dice: says which block and which pixels.
        model: says how much context is needed; its weights do not matter.

    Raises:
        HyperSharpError, ValueError: the closed form cannot be fitted, or too little is valid.
    """
    scene = pair.scene
    method, subspace, statistics = fit_base(scene, Control())
    kernel = KernelRegression(method, subspace, statistics, model)
    kernel.fit(scene, Control())
    sizes = [min(n, dice.integer(*SIDES)) for n in scene.coarse_shape]
    starts = [dice.integer(0, n - size) for n, size in zip(scene.coarse_shape, sizes)]
    area = [(start, start + size) for start, size in zip(starts, sizes)]
    count = min(components, len(subspace.projector))
    block, _, window = kernel.block(count, (area[0], area[1]))
    if block is None:
        raise ValueError("too few valid pixels in this block")
    ratio = scene.ratio
    fine = [(max(a[0] * ratio, ratio), min(a[1] * ratio, n - ratio)) for a, n in zip(area, scene.shape)]
    known = pair.mask[slice(*fine[0]), slice(*fine[1])]
    here = torch.nonzero(known)
    if len(here) < LEAST_PIXELS:
        raise ValueError("too few valid pixels in this block")
    here = here[torch.randperm(len(here), generator=dice.generator)[:PIXELS]]
    rows, cols = here[:, 0] + fine[0][0], here[:, 1] + fine[1][0]
    own_rows, own_cols = rows - window[0][0], cols - window[1][0]
    tile = scene.tile(fine[0], fine[1], method.halo)
    image = method.fuse(tile)[:, here[:, 0], here[:, 1]]
    truth = pair.truth[:, rows, cols]
    error = truth - image
    rms = error.square().mean(dim=1).sqrt()
    alive = torch.nonzero(rms > 1e-6 * truth.abs().amax(dim=1)).flatten()
    chosen = alive[:: max(1, math.ceil(len(alive) / MOST_BANDS))]
    return KernelExample(
        block,
        own_rows,
        own_cols,
        subspace.basis[chosen, :count] * block.scale / rms[chosen, None],
        error[chosen] / rms[chosen, None],
    )


class KernelStream(ExampleStream):
    """A stream of blocks; see `ExampleStream`."""

    model = KernelFeatures(CONFIG)

    def make(self, pair: TrainingPair, dice: Dice) -> KernelExample:  # type: ignore[override]
        """Return a block of a pair."""
        return make_kernel_example(pair, self.components, dice, self.model)


def kernel_gain(model: KernelFeatures, example: KernelExample) -> Tensor:
    """Return by how many dB the mean PSNR over the bands is above the closed form's (a scalar)."""
    found = regress(model, example.block, example.rows, example.cols)
    if found is None:
        return 0.0 * model.table.sum()  # which a gradient can be taken of
    change = found - example.block.estimate[:, example.rows, example.cols]
    left = example.error - example.basis @ change
    before, after = example.error.square().mean(dim=1), left.square().mean(dim=1)
    return 10.0 * torch.log10(before / after.clamp_min(1e-30)).mean()


class KernelTrainer(Trainer):
    """A run that trains `KernelFeatures`; see `Trainer`, of which losses and scores are replaced."""

    def crop(self, example: KernelExample, dice: Dice) -> KernelExample:  # type: ignore[override]
        """Return the example: a block is small already."""
        return example

    def score(self, net: PretrainedModel, example: KernelExample) -> float:  # type: ignore[override]
        """Return the gain over the closed form in dB."""
        return float(kernel_gain(net, example))  # type: ignore[arg-type]

    def _loss(self, crop: KernelExample) -> Tensor:  # type: ignore[override]
        gain = kernel_gain(self.model, crop)  # type: ignore[arg-type]
        return -gain.clamp_min(WORST_DB)


class FewPixelsStream(KernelStream):
    """A stream of scenes of a few coarse pixels each."""

    def pair_settings(self, dice: Dice) -> PairSettings:
        """Return what the next pair is drawn by: a scene of `FEW_SIDES` coarse pixels a side."""
        ratio = FEW_RATIOS[dice.integer(0, len(FEW_RATIOS) - 1)]
        return replace(self.settings, ratios=(ratio,), side=ratio * dice.integer(*FEW_SIDES))


class FewPixelsTrainer(KernelTrainer):
    """A run that trains what a lack of pixels changes (the last fact's weights), and nothing else.

    Results on blocks of at least `FEW_PIXELS` stay as they are. A loss against the closed form counts twice: a scene
    that is too small to learn from should be left alone.

    Args:
        model: trained members; all of its weights but those of the last fact are frozen from now on.
        stream: of small scenes.
        settings: how.
        validation: small scenes that are not trained on.
    """

    def __init__(
        self,
        model: KernelFeatures,
        stream: FewPixelsStream,
        settings: TrainSettings,
        validation: Sequence[Example],
    ) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter is model.table)
        last = torch.zeros_like(model.table)
        last[-1] = 1.0
        model.table.register_hook(lambda gradient: gradient * last)
        super().__init__(model, stream, settings, validation)

    def _loss(self, crop: KernelExample) -> Tensor:  # type: ignore[override]
        self.model.eval()  # the features are settled: those of all orientations, as in use
        gain = kernel_gain(self.model, crop).clamp_min(WORST_DB)  # type: ignore[arg-type]
        return torch.relu(-gain) - gain
