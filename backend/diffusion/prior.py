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
from ..errors import ErrorCode, HyperSharpError
from ..scene import Scene
from ..weights import find_weights
from .denoiser import Denoiser, load_denoiser
from .problem import Problem, make_problem
from .sampling import SamplerSettings, draw
from .terms import TERMS, mix
from .tiles import TiledNoise

PRESETS = {"quick": 10, "standard": 20, "fine": 50}
STARTS = ("noise", "interpolated", "lmmse")
WEIGHTS = "prior"
STAGE = "drawing the prior"


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
            brighter or darker than any coarse one may lie outside [0, 1].
        loadings: `[S, s]` float64: of every band on the base, in the HS image's units.
        offset: `[S]` float64.
        bands: the selected bands.
        low, span: `[s]` float64, in the HS image's units.
        residual: `[S, coarse rows, coarse cols]`: interpolated and added.
        curves: root mean square of the data terms "hs" and "guide", in standard deviations of the bands: before the
            first guidance, and after each step.
        facts: what was found and done, JSON-ready.
    """

    base: Tensor
    loadings: Tensor
    offset: Tensor
    bands: list[int]
    low: Tensor
    span: Tensor
    residual: Tensor
    curves: dict[str, list[float]]
    facts: dict[str, Any]
    up: tuple[Tensor, Tensor]
    closed_form: Callable[[Range, Range], Tensor] | None = None
    """With the residual "lmmse": its result `[S, rows, cols]` on fine pixels of the scene."""

    @torch.no_grad()
    def image(self, rows: Range | None = None, cols: Range | None = None) -> Tensor:
        """Return the prior `[S, rows, cols]` float32, in the HS image's units.

        Args:
            rows, cols: fine pixels of the scene; None for all.
        """
        rows, cols = rows or (0, self.base.shape[1]), cols or (0, self.base.shape[2])
        if self.closed_form is not None:
            return self.refine(self.closed_form(rows, cols), rows, cols)
        image = separable(self.up[0][slice(*rows)], self.up[1][slice(*cols)], self.residual)
        image += mix(self.loadings, self.base[:, slice(*rows), slice(*cols)])
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
        own = (image[self.bands] - self.low.to(image)[:, None, None]) / self.span.to(image)[:, None, None]
        return image + mix(self.loadings, self.base[:, slice(*rows), slice(*cols)] - own)


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
    problem = make_problem(
        scene,
        control,
        settings.rank,
        settings.rule,
        settings.residual,
        settings.register,
        settings.frame,
        settings.srf,
        closed=settings.start == "lmmse" or settings.use_closed_form,
    )
    known = problem.interpolated if problem.closed is None else problem.closed.base
    # What lies outside the network's range (roofs, boats) is left to what is known already: beyond its range the
    # network is no judge, and such values would shift its normalisation for the whole image.
    excess = known - known.clamp(0, 1)
    start = {"interpolated": problem.interpolated, "lmmse": known}.get(settings.start)
    sampler = replace(
        settings.sampler, steps=settings.step_count, signal=0.0 if start is None else settings.signal
    )
    control.stage(STAGE, sampler.steps)
    half = half_is_fast(scene.device) if settings.half is None else settings.half
    noise_of = TiledNoise(denoiser, settings.side, settings.overlap, half)
    terms = problem.terms.without(excess)
    sample = draw(noise_of, terms, sampler, control, settings.seed, None if start is None else start - excess)
    facts = {
        **sample.facts,
        "bfloat16": half,
        "start": settings.start,
        "residual": settings.residual,
        "seed": settings.seed,
    }
    return finish(scene, problem, sample.base + excess, sample.curves, facts)


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
        problem: made of it.
        base: `[s, rows, cols]`.
        curves, facts: of the sampling.
    """
    up = problem.up
    if problem.back is not None:
        base = separable(*problem.back, base)
        up = problem.back[0] @ up[0], problem.back[1] @ up[1]
    gained = {
        name: None if not values else {"start": round(values[0], 5), "end": round(values[-1], 5)}
        for name, values in curves.items()
    }
    prior = Prior(
        base,
        problem.loadings,
        problem.offset,
        problem.bands,
        problem.low,
        problem.span,
        problem.residual,
        curves,
        {**problem.facts, **facts, "data_terms": gained},
        up,
    )
    if facts.get("residual") == "lmmse" and problem.closed is not None:
        method = problem.closed.method

        def closed(rows: Range, cols: Range) -> Tensor:
            return method.fuse(scene.tile(rows, cols, method.halo))

        prior.closed_form = closed
    return prior
