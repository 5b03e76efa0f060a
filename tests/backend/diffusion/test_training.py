# SPDX-License-Identifier: GPL-2.0-or-later
import numpy as np
import pytest
import torch
from hypersharp.backend.diffusion.training import (
    PriorTrainer,
    PriorTraining,
    draw_alpha_bar,
    spectral_jitter,
)
from hypersharp.backend.errors import HyperSharpError

from .conftest import tiny_unet


def stripes(generator):
    """Crops that a network can learn: stripes of random phase."""
    x = np.arange(16)[None, None, :] / 16.0 * 4 * np.pi + generator.uniform(0, 6.28, (3, 1, 1))
    return np.broadcast_to(np.sin(x) * 0.8, (3, 16, 16)).astype(np.float32).copy()


def settings(**changes):
    return PriorTraining(**{"steps": 40, "batch": 4, "learning_rate": 3e-3, "half": False, **changes})


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path):
    straight = PriorTrainer(tiny_unet(), stripes, settings(steps=8))
    for _ in range(8):
        straight.train_step()
    first = PriorTrainer(tiny_unet(), stripes, settings(steps=8))
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "state.safetensors")
    second = PriorTrainer(tiny_unet(5), stripes, settings(steps=8))
    second.load(tmp_path / "state.safetensors")
    assert second.step == 3
    while second.step < 8:
        second.train_step()
    for key, value in straight.averaged().state_dict().items():
        torch.testing.assert_close(second.averaged().state_dict()[key], value, rtol=0, atol=0)
    assert second.running == pytest.approx(straight.running)


def test_it_learns():
    trainer = PriorTrainer(tiny_unet(), stripes, settings(steps=120))
    losses = [trainer.train_step() for _ in range(120)]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])


def test_averaged_weights_follow_slowly():
    trainer = PriorTrainer(tiny_unet(), stripes, settings())
    before = {k: v.clone() for k, v in trainer.average.items()}
    for _ in range(10):
        trainer.train_step()
    key = next(k for k in before if k.endswith("conv_in.weight"))
    now, average = trainer.denoiser.state_dict()[key], trainer.average[key]
    assert 0 < float((average - before[key]).norm()) < float((now - before[key]).norm())


def test_the_rate_rises_and_cools_down():
    trainer = PriorTrainer(tiny_unet(), stripes, settings(steps=1000))
    rates = []
    for step in (0, 199, 500, 900, 999):
        trainer.step = step
        rates.append(trainer.learning_rate())
    assert rates[0] < rates[1] == rates[2] == pytest.approx(3e-3) and rates[2] > rates[3] > rates[4] > 0


def test_another_seed_or_network_is_refused(tmp_path):
    trainer = PriorTrainer(tiny_unet(), stripes, settings())
    trainer.train_step()
    trainer.save(tmp_path / "s.safetensors")
    with pytest.raises(HyperSharpError, match="seed"):
        PriorTrainer(tiny_unet(), stripes, settings(seed=1)).load(tmp_path / "s.safetensors")


def test_noise_levels_are_mostly_low():
    levels = np.concatenate([draw_alpha_bar(8, np.random.default_rng(i)) for i in range(500)])
    assert levels.min() >= 1e-3 and levels.max() < 1
    assert np.mean(levels > 0.9) > 0.5 and np.mean(levels < 0.1) > 0.02


def test_jitter_keeps_structure_and_range():
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32]
    image = np.stack([np.sin(x / 3.0), np.cos(y / 4.0), np.sin((x + y) / 5.0)]) * 0.5 + 0.5
    seen = [spectral_jitter(image, generator) for _ in range(50)]
    assert all(s.dtype == np.float32 and s.shape == (3, 32, 32) for s in seen)
    assert all(s.min() >= -1 and s.max() <= 1 for s in seen)
    assert np.median([s.std(axis=(1, 2)).min() for s in seen]) > 0.1
    assert len({s.tobytes() for s in seen}) == 50
    again = spectral_jitter(image, np.random.default_rng(0))
    np.testing.assert_array_equal(again, seen[0])
