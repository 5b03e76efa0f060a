# SPDX-License-Identifier: GPL-2.0-or-later
"""Stage 1 of MPSRNet-Diff: the prior, a fine HS image that looks like imagery and explains the pair.

Wu et al., IEEE JSTARS 19, 2026, doi 10.1109/JSTARS.2026.3655787 describe it in words only; this is a
reconstruction after PLRDiff (Rui et al., arXiv 2305.10925). See docs/diffusion.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..degradation import Range, separable
from ..device import is_out_of_memory
from ..errors import ErrorCode, HyperSharpError
from ..scene import Scene
from ..weights import find_weights
from .blocks import Layout, PlacedNoise, block_layout, one_block
from .denoiser import Denoiser, load_denoiser
from .problem import Problem, block_problem
from .sampling import Sample, SamplerSettings, draw
from .scene_model import SceneModel, first_estimate, learn_scene
from .store import on_disk
from .terms import TERMS, mix
from .tiles import TiledNoise

PRESETS = {"quick": 10, "standard": 20, "fine": 50}
STARTS = ("noise", "interpolated", "lmmse")
WEIGHTS = "prior"
STAGE = "drawing the prior"
BLOCK = 768
"""Fine pixels of a side up to which a scene is drawn as a whole."""
LEAST_BLOCK = 192
"""Blocks are halved down to this side before memory is given up on."""


@dataclass(frozen=True)
class PriorSettings:
    """How the prior is drawn.

    Attributes:
        preset: "quick", "standard" or "fine": 10, 20 or 50 steps.
        steps: their number; None for the preset's.
        seed: of the noise.
        rank: number of base bands; beyond three they go through the network in groups of three.
        rule: band selection: "pca", "rrqr", "mvpca" or "equal".
        residual: what is added to what the base explains: "itp": what it does not explain of the HS image,
            interpolated (PLRDiff); "lmmse": what it does not explain of the closed form's result; "none": nothing.
        start: "noise"; or an image noised to the signal share `signal`: "interpolated" or "lmmse".
        signal: see `start`.
        weights: name of shipped weights, or a folder.
        register: estimate PSF and shift from the pair.
        frame: ground of the result, "guide" or "hs".
        srf: the guide's nominal response; None estimates it.
        side, overlap: tiles of the network, in pixels.
        block: most fine pixels of a side that is drawn as a whole; a larger scene is drawn in overlapping blocks.
        half: bfloat16 arithmetic in the network; None where the device is fast at it.
        sampler: guidance and all else; its `steps` and `signal` are set from here.
    """

    preset: str = "standard"
    steps: int | None = None
    seed: int = 0
    rank: int = 3
    rule: str = "pca"
    residual: str = "lmmse"
    start: str = "noise"
    signal: float = 0.5
    weights: str = WEIGHTS
    register: bool = True
    frame: str = "guide"
    srf: str | None = None
    side: int = 160
    overlap: int = 24
    block: int = BLOCK
    half: bool | None = None
    sampler: SamplerSettings = field(default_factory=SamplerSettings)

    def __post_init__(self) -> None:
        for value, known in ((self.preset, PRESETS), (self.start, STARTS)):
            if value not in known:
                raise HyperSharpError(
                    f"unknown choice {value!r}", f"use one of {', '.join(known)}", ErrorCode.USAGE
                )

    @property
    def use_closed_form(self) -> bool:
        """Whether the closed form's estimate is weighed in."""
        sampler = self.sampler
        return sampler.guidance == "solve" and sampler.anchor > 0 and len(sampler.terms) == len(TERMS)

    @property
    def step_count(self) -> int:
        """Sampling steps."""
        return PRESETS[self.preset] if self.steps is None else self.steps


@dataclass
class Prior:
    """The prior of a scene, on the ground that `PriorSettings.frame` names.

    Attributes:
        base: `[s, rows, cols]` float32: the selected bands, 0 at `low` and 1 at `low + span`; a fine pixel that is
            brighter or darker than any coarse one may lie outside [0, 1]. Of a scene drawn in blocks it lies on
            disk: take windows of it.
        loadings: `[S, s]` float64: of every band on the base, in the HS image's units.
        offset: `[S]` float64.
        bands: the selected bands.
        low, span: `[s]` float64, in the HS image's units.
        curves: root mean square of the data terms "hs" and "guide", in standard deviations of the bands: before the
            first guidance, and after each step.
        facts: what was found and done, JSON-ready.
        first_estimate: gives the image `[S, rows, cols]`, on fine pixels of the scene, that the base is put into
            (see `PriorSettings.residual`); None for what the base alone explains, and of a prior from the cache.
    """

    base: Tensor
    loadings: Tensor
    offset: Tensor
    bands: list[int]
    low: Tensor
    span: Tensor
    curves: dict[str, list[float]]
    facts: dict[str, Any]
    first_estimate: Callable[[Range, Range], Tensor] | None = None

    @torch.no_grad()
    def image(self, rows: Range | None = None, cols: Range | None = None) -> Tensor:
        """Return the prior `[S, rows, cols]` float32, in the HS image's units.

        Args:
            rows, cols: fine pixels of the scene; None for all.
        """
        rows, cols = rows or (0, self.base.shape[1]), cols or (0, self.base.shape[2])
        if self.first_estimate is not None:
            return self.refine(self.first_estimate(rows, cols), rows, cols)
        image = mix(self.loadings, self.base[:, slice(*rows), slice(*cols)])
        return image.add_(self.offset.to(image)[:, None, None])

    @torch.no_grad()
    def refine(self, image: Tensor, rows: Range, cols: Range) -> Tensor:
        """Return another image of the same ground with the prior's base in place of its own.

        Args:
            image: `[S, rows, cols]`, for instance the closed form's.
            rows, cols: fine pixels of the scene that it covers.

        Returns:
            `image + loadings (base - base of image)`.
        """
        return image + mix(self.loadings, self._change(image[self.bands], rows, cols))

    @torch.no_grad()
    def refined_coefficients(
        self, base: Tensor, estimate: Tensor, projector: Tensor, rows: Range, cols: Range
    ) -> Tensor:
        """Return the coefficients of what `refine` makes of an image, `[K, rows, cols]`, from its own base alone.

        Args:
            base: the image's selected bands, `[s, rows, cols]`.
            estimate: coefficients of the image, `[K, rows, cols]`.
            projector: `[K, S]`, what makes coefficients of an image.
            rows, cols: see `refine`.
        """
        loadings = projector.to(self.loadings) @ self.loadings
        return estimate + mix(loadings, self._change(base, rows, cols))

    def _change(self, own: Tensor, rows: Range, cols: Range) -> Tensor:
        """Return by how much the prior's base differs from `[s, rows, cols]` of an image, in the base's units."""
        own = (own - self.low.to(own)[:, None, None]) / self.span.to(own)[:, None, None]
        return self.base[:, slice(*rows), slice(*cols)].to(own) - own


def sample_prior(
    scene: Scene, settings: PriorSettings, control: Control, denoiser: Denoiser | None = None
) -> Prior:
    """Draw the prior of a scene.

    Args:
        scene: the pair.
        settings: how.
        control: progress (one stage, one step a sampling step), cancel between steps and tiles, warnings.
        denoiser: the network; None loads `settings.weights`.

    Raises:
        HyperSharpError: no weights, an unknown choice, or a scene too poor for the rank.
        Cancelled: by the caller.
    """
    if denoiser is None:
        denoiser = load_denoiser(find_weights(settings.weights), scene.device)
    half = half_is_fast(scene.device) if settings.half is None else settings.half
    noise_of = TiledNoise(denoiser, settings.side, settings.overlap, half)
    while True:
        try:
            return _sample(scene, settings, control, noise_of)
        except Exception as error:
            side = min(settings.block, max(scene.shape)) // 2
            if not is_out_of_memory(error) or side < LEAST_BLOCK:
                raise
        settings = replace(settings, block=side)
        if scene.device.type == "cuda":
            torch.cuda.empty_cache()
        control.warn(f"memory ran out: the prior is drawn in blocks of {side} pixels")


def _sample(scene: Scene, settings: PriorSettings, control: Control, noise_of: TiledNoise) -> Prior:
    """Learn the scene, and draw it as a whole or in blocks."""
    whole = max(scene.shape) <= settings.block
    model = learn_scene(
        scene,
        control,
        settings.rank,
        settings.rule,
        settings.residual,
        settings.register,
        settings.frame,
        settings.srf,
        closed=settings.start == "lmmse" or settings.use_closed_form,
        windowed=not whole,
    )
    if whole:
        layout = one_block(scene.coarse_shape, scene.ratio)
    else:
        layout = block_layout(scene.coarse_shape, scene.ratio, settings.block, model.guard)
    steps = settings.step_count
    control.stage(STAGE, steps * len(layout))
    facts = {
        "bfloat16": noise_of.half,
        "start": settings.start,
        "residual": settings.residual,
        "seed": settings.seed,
        "blocks": len(layout),
        "block_pixels": list(layout.largest),
    }
    if whole:
        problem = block_problem(scene, model, layout.rows[0], layout.cols[0], control)
        sample = _draw_block(problem, settings, control, noise_of)
        return finish(scene, problem, sample.base, sample.curves, {**sample.facts, **facts})
    return _draw_blocks(scene, model, layout, settings, control, noise_of, facts)


def _draw_block(
    problem: Problem,
    settings: PriorSettings,
    control: Control,
    noise_of: TiledNoise,
    noise: PlacedNoise | None = None,
) -> Sample:
    """Draw a block, or a whole scene, on the HS image's ground."""
    known = problem.interpolated if problem.closed is None else problem.closed
    # What lies outside the network's range (roofs, boats) is left to what is known already: beyond its range the
    # network is no judge, and such values would shift its normalisation for the whole image.
    excess = known - known.clamp(0, 1)
    start = {"interpolated": problem.interpolated, "lmmse": known}.get(settings.start)
    sampler = replace(
        settings.sampler, steps=settings.step_count, signal=0.0 if start is None else settings.signal
    )
    terms = problem.terms.without(excess)
    start = None if start is None else start - excess
    sample = draw(noise_of, terms, sampler, control, settings.seed, start, noise)
    return replace(sample, base=sample.base + excess)


def _draw_blocks(
    scene: Scene,
    model: SceneModel,
    layout: Layout,
    settings: PriorSettings,
    control: Control,
    noise_of: TiledNoise,
    facts: dict[str, Any],
) -> Prior:
    """Draw a scene block by block onto disk; only one of them is in memory at a time."""
    rank, ratio = len(model.low_rank.bands), scene.ratio
    base = on_disk((rank, *scene.shape))
    curves = _MeanCurves()
    for rows, row_weight in zip(layout.rows, layout.weights()[0]):
        for cols, col_weight in zip(layout.cols, layout.weights()[1]):
            problem = block_problem(scene, model, rows, cols, control)
            fine_rows, fine_cols = ((a * ratio, b * ratio) for a, b in (rows, cols))
            if bool(problem.terms.hs_mask.any()) and bool(problem.terms.guide_mask.any()):
                noise = PlacedNoise(settings.seed, rank, fine_rows, fine_cols)
                sample = _draw_block(problem, settings, control, noise_of, noise)
                curves.add(sample.curves, problem)
                facts = {**sample.facts, **facts}
                drawn = _on_its_ground(problem, sample.base)
            else:  # no data: nothing that a network could be guided by
                drawn = _on_its_ground(problem, problem.interpolated)
                control.step(settings.step_count)
            drawn = drawn.cpu() * row_weight[:, None] * col_weight[None, :]
            base[:, slice(*fine_rows), slice(*fine_cols)] += drawn
    return _prior(scene, model, base, curves.mean(), facts)


class _MeanCurves:
    """The data terms of a scene from those of its blocks (what two of them share counts twice)."""

    def __init__(self) -> None:
        self._squares: dict[str, list[float]] = {}
        self._counts = dict.fromkeys(TERMS, 0.0)

    def add(self, curves: dict[str, list[float]], problem: Problem) -> None:
        counts = {"hs": max(1.0, problem.terms.hs_count), "guide": problem.terms.guide_count}
        for name, values in curves.items():
            sums = self._squares.setdefault(name, [0.0] * len(values))
            self._squares[name] = [s + counts[name] * v * v for s, v in zip(sums, values)]
            self._counts[name] += counts[name]

    def mean(self) -> dict[str, list[float]]:
        return {
            name: [(s / self._counts[name]) ** 0.5 for s in self._squares.get(name, [])] for name in TERMS
        }


def half_is_fast(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 itself (a CPU that does not is slower with it, not faster)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and asked is not None and bool(asked())


@torch.no_grad()
def finish(
    scene: Scene, problem: Problem, base: Tensor, curves: dict[str, list[float]], facts: dict[str, Any]
) -> Prior:
    """Return the prior of a base that lies on the HS image's ground.

    Args:
        scene: the pair.
        problem: made of all of it.
        base: `[s, rows, cols]`.
        curves, facts: of the sampling.
    """
    return _prior(scene, problem.scene_model, _on_its_ground(problem, base), curves, facts)


@torch.no_grad()
def _on_its_ground(problem: Problem, base: Tensor) -> Tensor:
    """Return a base on the ground that was asked for."""
    return base if problem.back is None else separable(*problem.back, base)


def _prior(
    scene: Scene, model: SceneModel, base: Tensor, curves: dict[str, list[float]], facts: dict[str, Any]
) -> Prior:
    gained = {
        name: None if not values else {"start": round(values[0], 5), "end": round(values[-1], 5)}
        for name, values in curves.items()
    }
    low_rank = model.low_rank
    return Prior(
        base,
        low_rank.loadings,
        low_rank.offset,
        low_rank.bands,
        low_rank.low,
        low_rank.span,
        curves,
        {**model.facts, **facts, "data_terms": gained},
        first_estimate(scene, model),
    )
