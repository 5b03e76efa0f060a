# SPDX-License-Identifier: GPL-2.0-or-later
"""Trains the denoiser: noise of many levels, the mean square error of what the network takes it for.

Crop i of step k is a function of the seed, k and i alone, and the whole state lies in one safetensors file: a run
stopped at any step and resumed ends with the same weights as one that was never stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ErrorCode, HyperSharpError
from .denoiser import CHANNELS, UNetDenoiser

SCHEDULE_RATE = 9.5
"""Rate of the exponential schedule that most noise levels are drawn from: log(1 - a) is uniform down to minus it."""
NOISY_SHARE = 0.15
"""Share of the crops whose level is drawn from the noisy end instead, where the schedule has few steps."""

CropSource = Callable[[np.random.Generator], np.ndarray]
"""Draws one crop `[3, side, side]` float32 in [-1, 1]."""


@dataclass(frozen=True)
class PriorTraining:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run.
        batch: crops of a step.
        learning_rate: of AdamW until the cool-down.
        cool_down: share of the steps at the end over which the learning rate falls to zero.
        average: decay of the averaged weights (EMA), which are the ones kept.
        seed: of every random number.
        half: bfloat16 arithmetic in the network.
    """

    steps: int = 10000
    batch: int = 8
    learning_rate: float = 5e-4
    cool_down: float = 0.25
    average: float = 0.999
    seed: int = 1029
    half: bool = True


def spectral_jitter(crop: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a crop with its bands permuted, mixed, bent and stretched: any three bands of any sensor.

    Args:
        crop: `[3, rows, cols]` in about [0, 1] (a scene's own range).
        generator: random numbers.

    Returns:
        `[3, rows, cols]` float32 in [-1, 1], flipped and turned at random.
    """
    crop = np.clip(crop[generator.permutation(CHANNELS)], 0.0, 1.0)
    if generator.random() < 0.7:
        mixing = generator.random((CHANNELS, CHANNELS)) ** 3
        mixing /= mixing.sum(axis=1, keepdims=True)
        share = generator.random()
        mixing = share * mixing + (1 - share) * np.eye(CHANNELS)
        crop = np.einsum("ij,jrc->irc", mixing, crop)
    gamma = np.exp(generator.normal(0.0, 0.25, CHANNELS))[:, None, None]
    low = generator.uniform(-0.05, 0.3, CHANNELS)[:, None, None]
    high = generator.uniform(0.6, 1.05, CHANNELS)[:, None, None]
    crop = crop**gamma * (high - low) + low
    crop = np.rot90(crop, int(generator.integers(4)), axes=(1, 2))
    if generator.random() < 0.5:
        crop = crop[:, :, ::-1]
    return np.clip(crop * 2 - 1, -1.0, 1.0).astype(np.float32)


def draw_alpha_bar(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return noise levels `[count]`: signal shares, mostly as the exponential schedule has them."""
    u = (np.arange(count) + generator.random(count)) / count  # stratified: every step sees every level
    scheduled = -np.expm1(-SCHEDULE_RATE * u)
    noisy = 1.0 / (1.0 + np.exp(-generator.uniform(-7.0, 0.5, count)))
    chosen = np.where(generator.random(count) < NOISY_SHARE, noisy, scheduled)
    return np.clip(chosen, 1e-3, 1.0 - 1e-6)


class PriorTrainer:
    """A training run.

    Args:
        denoiser: trained in place.
        source: draws crops.
        settings: how.
    """

    def __init__(self, denoiser: UNetDenoiser, source: CropSource, settings: PriorTraining) -> None:
        self.denoiser, self.source, self.settings = denoiser.train(), source, settings
        self.step = 0
        self.running = math.nan
        self.optimiser = torch.optim.AdamW(
            denoiser.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.average = {k: v.detach().clone() for k, v in denoiser.state_dict().items()}

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return crops `[n, 3, side, side]`, their noise, and signal shares `[n]` of a step."""
        count, seed = self.settings.batch, self.settings.seed
        crops = [self.source(np.random.default_rng([seed, step, i])) for i in range(count)]
        generator = np.random.default_rng([seed, step, count])
        x = torch.from_numpy(np.stack(crops))
        noise = torch.from_numpy(generator.standard_normal(x.shape).astype(np.float32))
        return x, noise, torch.from_numpy(draw_alpha_bar(count, generator))

    def learning_rate(self) -> float:
        """Return the rate of the present step: risen over 200 steps, constant, cooled down at the end."""
        settings = self.settings
        cool = max(1.0, settings.cool_down * settings.steps)
        return settings.learning_rate * min(1.0, (self.step + 1) / 200, (settings.steps - self.step) / cool)

    def train_step(self) -> float:
        """Take one step; return its loss.

        Raises:
            HyperSharpError: the loss is no number.
        """
        x, noise, a = self.batch(self.step)
        scale = a.sqrt().float()[:, None, None, None]
        noisy = scale * x + (1 - a).sqrt().float()[:, None, None, None] * noise
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.half):
            found = self.denoiser(noisy, a)
        loss = functional.mse_loss(found.float(), noise)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise HyperSharpError(
                f"training diverged at step {self.step}: the loss is {value}", "lower the learning rate"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.settings.average, self.step / (self.step + 20.0))
        with torch.no_grad():
            for key, value_now in self.denoiser.state_dict().items():
                self.average[key].lerp_(value_now, 1.0 - decay)
        self.running = value if math.isnan(self.running) else 0.99 * self.running + 0.01 * value
        return value

    def averaged(self) -> UNetDenoiser:
        """Return a copy with the averaged weights, in evaluation mode."""
        copy = UNetDenoiser(type(self.denoiser.unet)(**self.denoiser.unet.config))
        copy.load_state_dict(self.average)
        return copy.eval()

    def save(self, path: Path) -> None:
        """Write the whole state; the file is whole or the old one."""
        tensors = {f"model.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for name, parameter in self.denoiser.named_parameters():
            for what, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{name}|{what}"] = value
        tensors = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        facts = {"step": self.step, "running": self.running, "settings": asdict(self.settings)}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        save_file(tensors, part, metadata={"facts": json.dumps(facts)})
        part.replace(path)

    def load(self, path: Path) -> None:
        """Continue where `save` left off.

        Raises:
            HyperSharpError: the state is of another network or seed.
        """
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        if facts["settings"]["seed"] != self.settings.seed:
            raise HyperSharpError(
                f"{path} was trained with seed {facts['settings']['seed']}",
                "give the same seed, or another folder",
                ErrorCode.USAGE,
            )
        part = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        try:
            self.denoiser.load_state_dict(part)
        except RuntimeError as error:
            raise HyperSharpError(
                f"{path} is of another network", "give another folder", ErrorCode.USAGE
            ) from error
        self.average = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
        for name, parameter in self.denoiser.named_parameters():
            start = f"optimiser.{name}|"
            own = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            if own:
                self.optimiser.state[parameter] = own
        self.step, self.running = int(facts["step"]), float(facts["running"])
