# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import torch
from hypersharp.backend.diffusion.sampling import SamplerSettings, plan
from hypersharp.backend.diffusion.schedule import (
    exponential_alpha_bars,
    exponential_betas,
    make_scheduler,
)
from hypersharp.backend.errors import HyperSharpError

PUBLISHED = {250: 0.993, 350: 0.950, 400: 0.865, 450: 0.632, 480: 0.330, 490: 0.182, 499: 0.021}


def test_it_has_the_published_values():
    shares = exponential_alpha_bars(500, 10.0)
    assert len(shares) == 501 and shares[0] == 1.0 and shares[-1] == pytest.approx(1e-3)
    for time, share in PUBLISHED.items():
        assert float(shares[time]) == pytest.approx(share, abs=6e-4), time
    assert bool((shares.diff() < 0).all())


def test_betas_and_shares_say_the_same():
    betas = exponential_betas(500)
    assert bool(((betas > 0) & (betas < 1)).all())
    torch.testing.assert_close((1 - betas).cumprod(0), exponential_alpha_bars(500)[1:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_diffusers_schedulers_follow_it(sampler):
    scheduler = make_scheduler(sampler, 500)
    torch.testing.assert_close(
        scheduler.alphas_cumprod.double(), exponential_alpha_bars(500)[1:], rtol=1e-5, atol=1e-6
    )


def test_a_ddpm_step_is_the_published_one():
    """Written out from the formula: posterior mean and variance."""
    scheduler = make_scheduler("ddpm", 500)
    scheduler.set_timesteps(500)
    shares, betas = exponential_alpha_bars(500), exponential_betas(500)
    generator = torch.Generator().manual_seed(1)
    x, epsilon = torch.randn(3, 5, 5, generator=generator), torch.randn(3, 5, 5, generator=generator)
    for time in (499, 430, 250, 7):
        a, before, beta = (float(v) for v in (shares[time + 1], shares[time], betas[time]))
        clean = (x - (1 - a) ** 0.5 * epsilon) / a**0.5
        mean = beta * before**0.5 / (1 - a) * clean + (1 - before) * (1 - beta) ** 0.5 / (1 - a) * x
        spread = (beta * (1 - before) / (1 - a)) ** 0.5
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
        got = scheduler.step(epsilon, time, x, generator=torch.Generator().manual_seed(9)).prev_sample
        torch.testing.assert_close(got, mean + spread * noise, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 20, 50, 100, 500])
def test_ddim_with_the_true_noise_ends_at_the_image(steps):
    """Whatever the number of steps: the scheduler's own idea of the step before must be the next one visited."""
    scheduler, times = plan(SamplerSettings(steps=steps))
    assert len(times) == steps and times[0] == len(scheduler.alphas_cumprod) - 1
    image = torch.linspace(-1, 1, 48).view(3, 4, 4)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    a = float(scheduler.alphas_cumprod[times[0]])
    x = a**0.5 * image + (1 - a) ** 0.5 * noise
    for index, time in enumerate(times):
        x = scheduler.step(noise, time, x).prev_sample
        if index + 1 < len(times):
            a = float(scheduler.alphas_cumprod[times[index + 1]])
            torch.testing.assert_close(x, a**0.5 * image + (1 - a) ** 0.5 * noise, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x, image, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("signal", [0.3, 0.7, 0.95])
def test_a_start_from_an_image_keeps_the_number_of_steps(signal):
    scheduler, times = plan(SamplerSettings(steps=12, signal=signal))
    assert len(times) == 12
    assert signal - 1e-3 <= float(scheduler.alphas_cumprod[times[0]]) < signal + 0.3 * (1 - signal) + 0.15


@pytest.mark.parametrize(
    "wrong", [{"sampler": "euler"}, {"guidance": "x"}, {"steps": 0}, {"steps": 501}, {"terms": ("pan",)}]
)
def test_unknown_choices_are_refused(wrong):
    with pytest.raises(HyperSharpError) as caught:
        plan(SamplerSettings(**wrong))
    assert caught.value.hint
