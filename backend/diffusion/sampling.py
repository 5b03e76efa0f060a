# SPDX-License-Identifier: GPL-2.0-or-later
"""Guided sampling: from noise to a base image that looks like imagery and explains the pair.

At every step the network finds the noise, hence a clean estimate; the two data terms pull at it:

* "gradient": the noisy image moves against the gradient of both norms, through the network (PLRDiff, arXiv
  2305.10925), as far along it as both terms, each relative to its own size, go down together (an exact line
  search on the linear terms): no step size has to be tuned to the data;
* "published": the same with PLRDiff's constant step sizes (for 500 steps);
* "solve": the clean estimate is replaced by the image nearest to it that explains the pair (half-quadratic
  splitting: DiffPIR, Zhu et al., CVPR workshops 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..errors import ErrorCode, HyperSharpError
from .blocks import PlacedNoise, WholeNoise
from .schedule import RATE, TIMESTEPS, Scheduler, exponential_alpha_bars, make_scheduler
from .terms import TERMS, DataTerms
from .tiles import TiledNoise

GUIDANCES = ("gradient", "published", "solve")
PUBLISHED_ETA = 2.0
LEAST_SIDE = 64
"""Tiles are halved down to this side, the network's training crops', before memory is given up on."""
LEAST_DOUBT = 2e-3
"""Least variance of the clean estimate that "solve" assumes: to the last step the data have their say."""
CLIP_BELOW = 0.5
"""Signal share below which the network's clean estimate is held in [-1, 1], where its error is largest. Above, it is
free: a roof or a boat can be far brighter than any coarse pixel."""


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample.

    Attributes:
        steps: sampling steps.
        sampler: "ddim" or "ddpm".
        guidance: see above.
        terms: which data terms guide; empty for none.
        eta: of "gradient", relative to the step of the line search.
        solve_iterations: conjugate gradients a step of "solve".
        noise: least standard deviations of HS and guide data, relative to the bands' own, that "solve" assumes; what
            the pair shows counts where it is more.
        trust: of the network's clean estimate in "solve", relative to the noise left in it.
        anchor: weight of the closed form's estimate in "solve", where the terms know it and both of them guide (it
            knows both images); 0 for none.
        churn: DDIM's own eta: how much of the noise is drawn anew at each step, 0 to 1.
        signal: signal share of the first step; the schedule's noisier steps are left out (for a start from an image).
        timesteps, rate: of the exponential schedule.
    """

    steps: int = 20
    sampler: str = "ddim"
    guidance: str = "solve"
    terms: tuple[str, ...] = TERMS
    eta: float = 1.0
    solve_iterations: int = 6
    noise: tuple[float, float] = (0.02, 0.02)
    trust: float = 1.0
    anchor: float = 30.0
    churn: float = 1.0
    signal: float = 0.0
    timesteps: int = TIMESTEPS
    rate: float = RATE

    def __post_init__(self) -> None:
        if self.guidance not in GUIDANCES:
            raise HyperSharpError(
                f"unknown guidance {self.guidance!r}", f"use one of {', '.join(GUIDANCES)}", ErrorCode.USAGE
            )
        unknown = sorted(set(self.terms) - set(TERMS))
        if unknown:
            raise HyperSharpError(
                f"unknown data term {unknown[0]!r}", f"use {' and '.join(TERMS)}", ErrorCode.USAGE
            )
        if not 1 <= self.steps <= self.timesteps:
            raise HyperSharpError(
                f"{self.steps} sampling steps are not possible", f"use 1 to {self.timesteps}", ErrorCode.USAGE
            )


@dataclass
class Sample:
    """What sampling gives.

    Attributes:
        base: `[s, rows, cols]`, in [0, 1] but for pixels brighter or darker than any coarse one.
        curves: root mean squares of both data terms before the first step's guidance, after each step, in standard
            deviations of the bands: {"hs": [...], "guide": [...]}, steps + 1 values each.
        facts: steps done, signal share of the first.
    """

    base: Tensor
    curves: dict[str, list[float]]
    facts: dict[str, Any]


def plan(settings: SamplerSettings) -> tuple[Scheduler, list[int]]:
    """Return the scheduler and its times to visit, noisiest first.

    diffusers' step assumes that the steps divide the schedule: its length is the next multiple of them, on the same
    curve. With `signal`, as many of the whole schedule's steps are taken that `steps` of them have more signal.
    """
    steps, total = settings.steps, settings.steps
    if settings.signal > 0:
        shares = exponential_alpha_bars(settings.timesteps, settings.rate)[1:]
        kept = float((shares >= settings.signal).double().mean())
        total = math.ceil(steps / max(kept, 1e-3))
    length = -(-max(settings.timesteps, total) // total) * total
    scheduler = make_scheduler(settings.sampler, length, settings.rate)
    scheduler.set_timesteps(total)
    return scheduler, [int(t) for t in scheduler.timesteps[-steps:]]


def draw(
    noise_of: TiledNoise,
    terms: DataTerms,
    settings: SamplerSettings,
    control: Control,
    seed: int = 0,
    start: Tensor | None = None,
    noise: PlacedNoise | None = None,
) -> Sample:
    """Draw a base image under the guidance of the data terms.

    Args:
        noise_of: the network, for whole images; where memory runs out, its tiles get smaller.
        terms: of the pair.
        settings: how.
        control: progress by step, and cancel.
        seed: of every random number: the same seed gives the same image on the same device.
        start: `[s, rows, cols]` in [0, 1]: an image that is noised to the first step's level (SDEdit, Meng et al.,
            ICLR 2022); None starts from noise alone.
        noise: of the place that is drawn, where it is part of a larger scene; `seed` is in it.
    """
    if noise is not None and settings.sampler == "ddpm":
        # The same process: diffusers' DDPM draws its noise itself, where the place could not be told.
        settings = replace(settings, sampler="ddim", churn=1.0)
    scheduler, times = plan(settings)
    chance: WholeNoise | PlacedNoise
    chance = WholeNoise(seed, (len(terms.hs), *terms.guide_mask.shape)) if noise is None else noise
    first = chance().to(terms.hs)
    share = float(scheduler.alphas_cumprod[times[0]])
    x = first if start is None else share**0.5 * (2 * start - 1) + (1 - share) ** 0.5 * first
    guided = _Guided(noise_of, terms, settings, control, (scheduler, chance))
    curves: dict[str, list[float]] = {name: [] for name in TERMS}
    clean = x
    for time in times:
        x, before, clean = guided.step(x, time)
        if not curves["hs"]:
            _note(curves, terms, before)
        _note(curves, terms, clean)
        control.step()
    return Sample(
        (x + 1) / 2,
        curves,
        {"steps": len(times), "first_signal_share": round(share, 4), "sampler": settings.sampler},
    )


def _note(curves: dict[str, list[float]], terms: DataTerms, clean: Tensor) -> None:
    for name, value in terms.rms((clean + 1) / 2).items():
        curves[name].append(value)


class _Guided:
    """One step of a guided sampler."""

    def __init__(
        self,
        noise_of: TiledNoise,
        terms: DataTerms,
        settings: SamplerSettings,
        control: Control,
        chance: tuple[Scheduler, WholeNoise | PlacedNoise],
    ) -> None:
        self.noise_of, self.terms, self.settings, self.control = noise_of, terms, settings, control
        self.scheduler, self.noise = chance

    def step(self, x: Tensor, time: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image at the next level, and the clean estimate before and after the guidance."""
        settings, share = self.settings, float(self.scheduler.alphas_cumprod[time])
        through = settings.guidance != "solve" and bool(settings.terms)
        try:
            clean, move = self._cleaned(x, share, through)
        except torch.cuda.OutOfMemoryError:
            if self.noise_of.side <= LEAST_SIDE:
                raise
            # For good: the next block of the scene would run into the same.
            self.noise_of.side = max(LEAST_SIDE, self.noise_of.side // 2)
            self.control.warn(
                f"not enough device memory: the prior is drawn in tiles of {self.noise_of.side} pixels"
            )
            return self.step(x, time)
        after = clean
        if settings.terms and not through:
            after = self._solved(clean, share)
        epsilon = (x - share**0.5 * after) / max(1 - share, 1e-12) ** 0.5
        following = self._scheduled(epsilon, time, x)
        if move is not None:
            following = following - move
            # A move of the noisy image by d moves the clean estimate by about d / sqrt(share).
            after = clean - move / share**0.5
        return following, clean, after

    def _cleaned(self, x: Tensor, share: float, through: bool) -> tuple[Tensor, Tensor | None]:
        """Return the network's clean estimate, and how far its data terms move the noisy image where they do."""
        with torch.set_grad_enabled(through):
            x = x.detach().requires_grad_(through)
            epsilon = self.noise_of(x, share, self.control)
            clean = (x - (1 - share) ** 0.5 * epsilon) / share**0.5
            if share < CLIP_BELOW or self.settings.guidance == "published":
                clean = clean.clamp(-1, 1)
            move = self._against_gradient(x, clean, share) if through else None
        return clean.detach(), move

    def _scheduled(self, epsilon: Tensor, time: int, x: Tensor) -> Tensor:
        """Return the scheduler's next image."""
        if self.settings.sampler == "ddpm":
            return self.scheduler.step(epsilon, time, x, generator=self.noise.generator).prev_sample
        churn = self.settings.churn
        fresh = self.noise().to(x) if churn else None
        return self.scheduler.step(epsilon, time, x, eta=churn, variance_noise=fresh).prev_sample

    def _against_gradient(self, x: Tensor, clean: Tensor, share: float) -> Tensor:
        """Return by how much the noisy image is moved (to be subtracted)."""
        settings, terms = self.settings, self.terms
        base = (clean + 1) / 2
        norms = dict(zip(TERMS, terms.norms(base)))
        loss = sum(norms[name] for name in settings.terms)
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            if settings.guidance == "published":
                # Published for images in [0, 1]; the terms here are in standard deviations of the bands.
                return PUBLISHED_ETA * terms.deviation * gradient
            return settings.eta * self._line_search(base.detach(), gradient, norms, share) * gradient

    def _line_search(self, base: Tensor, gradient: Tensor, norms: dict[str, Tensor], share: float) -> Tensor:
        """Return how far along the gradient both squared norms, relative to their sizes, are least."""
        moved = gradient / (2 * share**0.5)
        seen = {
            "hs": (self.terms.hs_residual(base), self.terms.hs_seen(moved)),
            "guide": (self.terms.guide_residual(base), self.terms.guide_seen(moved)),
        }
        down = curvature = 0.0
        for name in self.settings.terms:
            left, change = seen[name]
            # The residual of base - t moved is left + t change.
            down = down - (left * change).sum() / norms[name]
            curvature = curvature + change.square().sum() / norms[name]
        return (down / curvature.clamp_min(1e-20)).clamp_min(0.0)

    def _solved(self, clean: Tensor, share: float) -> Tensor:
        """Return the clean estimate made to explain the pair."""
        settings = self.settings
        noise = [max(least, found) for least, found in zip(settings.noise, self.terms.noise)]
        hs, guide = (1.0 / n**2 if t in settings.terms else 0.0 for t, n in zip(TERMS, noise))
        doubt = max((1 - share) / share / 4, LEAST_DOUBT)
        base = self.terms.solve(
            (clean + 1) / 2,
            (hs, guide),
            settings.trust / doubt,
            settings.solve_iterations,
            settings.anchor if len(settings.terms) == len(TERMS) else 0.0,
        )
        return 2 * base - 1
