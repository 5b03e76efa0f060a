# SPDX-License-Identifier: GPL-2.0-or-later
"""Training of the full-band form, the papers' own, on one pair: Wald's protocol one scale down, the published losses.

The network takes every HS band and guide band and returns every HS band (docs/full-band.md). The left part of the
pair is trained on, the right part judges; `lmmse` on the same part is what a network is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..control import Control
from ..job import FULL_BAND, TrainJob
from ..methods.full_band import FullBandInput, Means, load_full_band, network_inputs
from ..methods.lmmse import LMMSE
from ..models.hyfusion import HyFusion, HyFusionConfig
from ..models.mbfn import MBFN, MBFNConfig
from ..models.mpsrnet import MPSRNet, MPSRNetConfig
from ..models.pretrained import PretrainedModel
from ..weights import find_weights
from .adapt import HELD_OUT, OneScene, reduced_pair
from .examples import TRIES
from .losses import fusion_loss, hyfusion_loss, sam_loss, student_loss
from .pairs import Dice, TrainingPair
from .setup import (
    Setup,
    job_pair,
    pair_facts,
    reading_images,
    shared_settings,
    taken_over,
    too_small,
)
from .trainer import STEP_LOSS, Trainer, TrainSettings

LARGEST_SIDE = 512
"""Pixels along a side of the part of the HS image that is trained and judged on."""
LEARNING_RATE = 1e-3
"""Ten times the papers': their networks are fifty times as large."""
SYMMETRIC, UNIT = (-1.0, 1.0), (0.0, 1.0)
"""Ranges of the data in the papers of CSAKD and S3RNet, and of the others."""
STEP_SAM = 0.1
"""Weight of the spectral angle in MPSRNet's loss (specification 4.4)."""


@dataclass(frozen=True)
class FullBandSettings(TrainSettings):
    """How to train, beside what `TrainSettings` says.

    Attributes:
        loss: "fusion" (S3RNet, CSAKD), "hyfusion", or "steps" (MPSRNet).
        noise_db: signal-to-noise ratio of the noise that the HS image gets in training (CSAKD: 35); None for none.
        hs_scale, guide_scale, range: see `FullBandInput`.
    """

    side: int = 64
    learning_rate: float = LEARNING_RATE
    loss: str = "fusion"
    noise_db: float | None = None
    hs_scale: float = 1.0
    guide_scale: float = 1.0
    range: tuple[float, float] = UNIT


@dataclass(frozen=True)
class Recipe:
    """A method's networks and how they are trained.

    Attributes:
        model, student: the networks for a pair; student None for none.
        loss, noise_db: see `FullBandSettings`.
        range: see `FullBandInput`.
    """

    model: PretrainedModel
    student: PretrainedModel | None
    loss: str
    noise_db: float | None
    range: tuple[float, float]


def recipe(method: str, hs_bands: int, guide_bands: int, ratio: int) -> Recipe:
    """Return the networks of a method at compact widths, for these bands and this ratio.

    The attention is local, so that tiles fit together. MPSRNet goes without the prior: that is drawn in the HS
    image's subspace, not in its bands.
    """
    sizes = (hs_bands, guide_bands, ratio)
    if method == "hyfusion":
        config = HyFusionConfig(*sizes, width=32, depth=1, growth=16, heads=4)
        return Recipe(HyFusion(config), None, "hyfusion", None, UNIT)
    if method == "mpsrnet-diff":
        slim = MPSRNetConfig(
            *sizes, prior=False, prior_bands=0, width=24, blocks=1, d_state=4, patch=2, scan_span=32
        )
        return Recipe(MPSRNet(slim), None, "steps", None, UNIT)
    teacher = MBFNConfig(
        *sizes, width=48, growth=24, blocks=(2, 2, 1, 1), dense=1, attention=16, heads=4, window=15
    )
    student = None
    model = MBFN(teacher)
    if method == "csakd":
        # The fused features that are distilled ask for the teacher's width.
        student = MBFN(replace(teacher, blocks=(0, 1, 1, 1), hs_groups=24))
    return Recipe(model, student, "fusion", 35.0, SYMMETRIC)


@dataclass
class BandExample:
    """Part of a pair one scale down, in the network's range.

    Attributes:
        coarse: HS image, `[1, bands, rows / ratio, cols / ratio]`.
        fine: guide, `[1, guide bands, rows, cols]`.
        truth: `[1, bands, rows, cols]`.
        mask: `[rows, cols]`, True where the truth is known.
        ratio: fine pixels per coarse pixel.
        closed_form, interpolated: `[bands]`, mean square errors of `lmmse` and of interpolation where the truth is
            known, in the truth's units; None where nobody asks.
        prior: always None; what `Trainer` looks for.
    """

    coarse: Tensor
    fine: Tensor
    truth: Tensor
    mask: Tensor
    ratio: int
    closed_form: Tensor | None = None
    interpolated: Tensor | None = None
    prior: None = None

    @property
    def usable(self) -> bool:
        """Whether it can teach or judge anything."""
        finite = all(bool(torch.isfinite(t).all()) for t in (self.coarse, self.fine, self.truth))
        return finite and min(self.coarse.shape[-2:]) > 1 and bool(self.mask.any())

    def part(self, rows: tuple[int, int], cols: tuple[int, int]) -> BandExample:
        """Return the part in a window of coarse pixels."""
        coarse = (..., slice(*rows), slice(*cols))
        fine = (..., *(slice(a * self.ratio, b * self.ratio) for a, b in (rows, cols)))
        return BandExample(
            self.coarse[coarse], self.fine[fine], self.truth[fine], self.mask[fine], self.ratio
        )


def make_examples(pair: TrainingPair, takes: FullBandInput) -> tuple[BandExample, BandExample] | None:
    """Return what is trained on, left, and what judges, right; None if one of them is no use.

    The parts are cut apart, a coarse pixel between them: nothing of the one is seen in the other.

    Args:
        pair: from `reduced_pair`.
        takes: with scales.

    Raises:
        ValueError: no coarse pixel is valid in both images.
    """
    scene, control, ratio = pair.scene, Control(), pair.scene.ratio
    (rows, cols), (height, width) = scene.shape, scene.coarse_shape
    closed = LMMSE()
    closed.fit(scene, control)
    tile = scene.tile((0, rows), (0, cols), closed.halo)
    hs, guide = network_inputs(tile, takes, Means.of(scene, control))
    whole = BandExample(hs, guide, takes.moved(pair.truth, takes.hs_scale or 1.0)[None], pair.mask, ratio)
    split = round(width * (1 - HELD_OUT))
    taught, judge = whole.part((0, height), (0, split)), whole.part((0, height), (split + 1, width))
    if not (taught.usable and judge.usable):
        return None
    own = (..., slice((split + 1) * ratio, None))
    errors = []
    for image in (closed.fuse(tile), tile.upsample(tile.hs)):
        left = takes.moved(image, takes.hs_scale or 1.0)[own] - judge.truth[0]
        errors.append(left[:, judge.mask].square().mean(dim=1))
    return taught, replace(judge, closed_form=errors[0], interpolated=errors[1])


def gain_db(error: Tensor, against: Tensor) -> float:
    """Return by how many dB the mean PSNR over the bands of one error is above another's.

    Args:
        error, against: `[bands]`, mean square errors; bands in which the other makes none do not count.
    """
    alive = against > 0
    return float(10.0 * torch.log10(against[alive] / error[alive].clamp_min(1e-30)).mean())


class FullBandTrainer(Trainer):
    """A training run in the full-band form; what differs from `Trainer` is the data and the loss.

    Args: as `Trainer`, with `BandExample` as examples and `FullBandSettings`.
    """

    settings: FullBandSettings

    def crop(self, example: BandExample, dice: Dice) -> BandExample:
        """Return a crop, turned and mirrored, its HS image with noise where the settings want it."""
        ratio, settings = example.ratio, self.settings
        sizes = [min(max(4, -(-self.side // ratio)), n) for n in example.coarse.shape[-2:]]
        for _ in range(TRIES):
            starts = [dice.integer(0, n - size) for n, size in zip(example.coarse.shape[-2:], sizes)]
            crop = example.part(*((start, start + size) for start, size in zip(starts, sizes)))
            if float(crop.mask.float().mean()) > 0.5:
                break
        turns, mirror = dice.integer(0, 3), dice.happens(0.5)

        def turned(image: Tensor) -> Tensor:
            image = torch.rot90(image, turns, (-2, -1))
            return (image.flip(-1) if mirror else image).contiguous().to(self.device)

        coarse = turned(crop.coarse)
        if settings.noise_db is not None:
            low, high = settings.range
            power = ((coarse - low) / (high - low)).square().mean() * 10 ** (-settings.noise_db / 10)
            noise = dice.normal(tuple(coarse.shape)).to(self.device)
            coarse = coarse + noise * power.sqrt() * (high - low)
        return BandExample(coarse, turned(crop.fine), turned(crop.truth), turned(crop.mask), ratio)

    def score(self, net: PretrainedModel, example: BandExample) -> float:
        """Return by how many dB a network is better than `lmmse` on the part that judges."""
        left = (self.forward(net, example)[0].cpu() - example.truth)[0]
        return gain_db(left[:, example.mask].square().mean(dim=1), example.closed_form)

    def _loss(self, crop: BandExample) -> Tensor:
        """Return the published loss; a student's has no gradient for its teacher."""
        out, beside = self.forward(self.model, crop)
        truth = known(crop, out)
        if self.settings.loss == "hyfusion":
            return hyfusion_loss(out, truth)
        if self.settings.loss == "steps":
            return sum((self._step_loss(step.float(), crop) for step in beside[:-1]), image_loss(out, truth))
        loss = fusion_loss(out, truth)
        if self.student is None:
            return loss
        own, features = self.forward(self.student, crop)
        return loss + student_loss(own, features, out, beside, known(crop, own))

    @staticmethod
    def _step_loss(result: Tensor, crop: BandExample) -> Tensor:
        """Return the loss of a progressive network's step before the last, against the area mean of the truth."""
        shrink = partial(functional.adaptive_avg_pool2d, output_size=result.shape[-2:])
        seen = shrink(crop.mask[None, None].float()) > 0.99
        return STEP_LOSS * image_loss(result, torch.where(seen, shrink(crop.truth), result.detach()))


def known(crop: BandExample, output: Tensor) -> Tensor:
    """Return the truth, and where there is none a network's own output, which costs nothing."""
    return torch.where(crop.mask, crop.truth, output.detach())


def image_loss(output: Tensor, truth: Tensor) -> Tensor:
    """Return MPSRNet's loss of a step: mean absolute error and spectral angle; data in [0, 1]."""
    return functional.l1_loss(output, truth) + STEP_SAM * sam_loss(output, truth)


def full_band_setup(job: TrainJob, control: Control, device: torch.device) -> Setup:
    """Return the training run of a job in the full-band form.

    Raises:
        HyperSharpError: the pair is no use, or the weights to start from do not take it.
    """
    with job_pair(job, control) as pair, reading_images():
        scene = pair.scene
        torch.manual_seed(job.seed)
        made = recipe(job.method, scene.hs.bands, scene.guide.bands, scene.ratio)
        takes = FullBandInput(scene.hs.bands, scene.guide.bands, scene.ratio, range=made.range)
        model = made.model
        if job.weights:
            folder = find_weights(job.weights)
            start, takes = load_full_band(folder, type(model))
            takes.check(scene, folder)
            model = taken_over(model, made.student, start)
        takes = replace(takes.scaled(scene, control), ratio=scene.ratio)
        reduced = reduced_pair(scene, LARGEST_SIDE)
        parts = make_examples(reduced, takes) if reduced else None
    if parts is None:
        raise too_small()
    taught, judge = parts
    settings = FullBandSettings(
        **shared_settings(job),
        loss=made.loss,
        noise_db=made.noise_db,
        hs_scale=takes.hs_scale,
        guide_scale=takes.guide_scale,
        range=takes.range,
    )
    control_gain = gain_db(judge.interpolated, judge.closed_form)
    control.info(f"plain interpolation is at {control_gain:+.2f} dB over lmmse where not trained on")
    data = {
        **pair_facts(job),
        "started_from": job.weights,
        "interpolation_db": round(control_gain, 3),
        "form": FULL_BAND,
    }
    trainer = FullBandTrainer(model, OneScene(taught), settings, [judge], made.student, device)
    words = f"{takes}; HS values over {takes.hs_scale:g}, the guide's over {takes.guide_scale:g} (docs/full-band.md)"
    return Setup(trainer, data, takes.entry(), words)
