# SPDX-License-Identifier: GPL-2.0-or-later
"""The exponential noise schedule, in diffusers' form: its betas make any of their schedulers follow it.

Source: Rui et al. (PLRDiff), Information Fusion 2024, arXiv 2305.10925: most of the steps stand at low noise, where
the two data terms decide.
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from ..errors import ErrorCode, HyperSharpError

TIMESTEPS = 500
RATE = 10.0
LEAST_SIGNAL = 1e-3
"""Signal share at the noisiest step."""
SAMPLERS = ("ddim", "ddpm")

Scheduler = DDIMScheduler | DDPMScheduler


def exponential_alpha_bars(timesteps: int = TIMESTEPS, rate: float = RATE) -> Tensor:
    """Return the signal shares after 0, 1 ... `timesteps` steps, `[timesteps + 1]` float64, from 1 down.

    1 - exp(-rate i / T), turned round and mapped to [1e-3, 1] linearly.

    Raises:
        ValueError: fewer than two steps, or a rate that is not positive.
    """
    if timesteps < 2 or rate <= 0:
        raise ValueError("a schedule needs two steps and a positive rate")
    curve = -torch.expm1(-rate * torch.arange(timesteps + 1, dtype=torch.float64) / timesteps).flip(0)
    curve = (curve - curve[-1]) / (curve[0] - curve[-1])
    return LEAST_SIGNAL + (1.0 - LEAST_SIGNAL) * curve


def exponential_betas(timesteps: int = TIMESTEPS, rate: float = RATE) -> Tensor:
    """Return the noise added at each step, `[timesteps]` float64: 1 - a_i / a_(i-1)."""
    shares = exponential_alpha_bars(timesteps, rate)
    return 1.0 - shares[1:] / shares[:-1]


def make_scheduler(sampler: str, timesteps: int = TIMESTEPS, rate: float = RATE) -> Scheduler:
    """Return diffusers' scheduler on the exponential schedule; it clips nothing, the sampler does.

    Args:
        sampler: "ddim" (deterministic, few steps) or "ddpm" (ancestral, for parity with the published system).
        timesteps: of the schedule.
        rate: of the schedule.

    Raises:
        HyperSharpError: unknown sampler.
    """
    betas = exponential_betas(timesteps, rate).numpy()
    common = {
        "num_train_timesteps": timesteps,
        "trained_betas": betas,
        "clip_sample": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    if sampler == "ddim":
        return DDIMScheduler(set_alpha_to_one=True, **common)
    if sampler == "ddpm":
        return DDPMScheduler(variance_type="fixed_small", **common)
    raise HyperSharpError(
        f"unknown sampler {sampler!r}", f"use one of {', '.join(SAMPLERS)}", ErrorCode.USAGE
    )
