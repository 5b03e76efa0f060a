# SPDX-License-Identifier: GPL-2.0-or-later
"""LMMSE against a plain numpy reading of its docstring, and what its docstring promises."""

import numpy as np
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.methods.lmmse import LMMSE
from hypersharp.backend.methods.subspace import band_noise, fit_subspace, shrinkage


def psnr(fused, truth, border=8):
    cut = (slice(None), slice(border, -border), slice(border, -border))
    mse = ((fused[cut] - truth[cut]) ** 2).mean(axis=(1, 2))
    return float((10 * np.log10(truth[cut].max(axis=(1, 2)) ** 2 / mse)).mean())


def padded(image, reach):
    return np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")


def neighbourhood(image, reach, r, c):
    """Rows before columns, the bands outermost, as in the docstring's C."""
    return padded(image, reach)[:, r : r + 2 * reach + 1, c : c + 2 * reach + 1].reshape(-1)


def local_mean(image):
    w = np.array([1, 4, 6, 4, 1]) / 16
    wide = padded(image, 2)
    rows, cols = image.shape[1:]
    out = np.zeros_like(image)
    for i in range(5):
        for k in range(5):
            out += w[i] * w[k] * wide[:, i : i + rows, k : k + cols]
    return out


def read_plainly(p, plain, mean, encode, decode, noise, residual, prior_weight, iterations):
    """The docstring's four steps on a whole scene, float64, one pixel after the other where that is clearest."""
    ratio = p.ratio
    rows, cols = p.hs.shape[1:]
    low = plain.degrade(p.guide, ratio)
    g_mean = low.mean(axis=(1, 2))[:, None, None]
    low = low - g_mean
    z = np.einsum("kb,brc->krc", encode, p.hs - mean[:, None, None])
    rank, bands = len(z), len(low)
    # 1. Wiener filter of each coefficient: its 5 x 5 and the guide's 3 x 3 neighbourhood.
    clean, reliability = np.empty_like(z), np.empty(rank)
    for k in range(rank):
        seen = np.array(
            [
                np.concatenate([neighbourhood(z[k : k + 1], 2, r, c), neighbourhood(low, 1, r, c)])
                for r in range(rows)
                for c in range(cols)
            ]
        )
        covariance = seen.T @ seen / len(seen)
        unit = np.zeros(len(covariance))
        unit[12] = 1
        covariance += 1e-4 * np.diag(covariance.diagonal())
        inverse = np.linalg.solve(covariance, unit)
        weights = unit - min(noise[k], 1 / inverse[12]) * inverse
        clean[k] = (seen @ weights).reshape(rows, cols)
        reliability[k] = np.clip(weights[12], 0, 1)
    # 2. Gains: scene-wide one scale down, then local.
    down = plain.upsample(plain.degrade(np.concatenate([clean, low]), ratio), ratio)
    detail = (np.concatenate([clean, low]) - down).reshape(rank + bands, -1)
    detail = detail - detail.mean(axis=1, keepdims=True)
    covariance = detail @ detail.T / detail.shape[1]
    scene_wide = covariance[:rank, rank:] @ np.linalg.inv(covariance[rank:, rank:])
    square = local_mean((low[:, None] * low[None]).reshape(-1, rows, cols)).reshape(bands, bands, rows, cols)
    cross = local_mean((clean[:, None] * low[None]).reshape(-1, rows, cols)).reshape(rank, bands, rows, cols)
    z_mean, l_mean = local_mean(clean), local_mean(low)
    square = square - l_mean[:, None] * l_mean[None]
    cross = cross - z_mean[:, None] * l_mean[None]
    mean_square = square.mean(axis=(2, 3))
    mean_square = mean_square + 1e-4 * np.diag(mean_square.diagonal())
    gains = np.empty((rank, bands, rows, cols))
    for r in range(rows):
        for c in range(cols):
            a = cross[:, :, r, c] + prior_weight * scene_wide @ mean_square
            b = square[:, :, r, c] + prior_weight * mean_square
            gains[:, :, r, c] = a @ np.linalg.inv(b)
    # 3. Injection and back-projection.
    high = p.guide - g_mean - plain.upsample(low, ratio)
    fine = plain.upsample(gains.reshape(-1, rows, cols), ratio).reshape(rank, bands, *high.shape[1:])
    x = plain.upsample(clean, ratio) + (fine * high[None]).sum(axis=1)
    miss = (clean - plain.degrade(x, ratio)) * reliability[:, None, None]
    correction = miss.copy()
    for _ in range(iterations - 1):
        correction += miss - plain.degrade(plain.upsample(correction, ratio), ratio)
    x += plain.upsample(correction, ratio)
    # 4. What stays outside the subspace.
    outside = np.einsum("bs,src->brc", residual, p.hs - mean[:, None, None])
    return np.einsum("bk,krc->brc", decode, x) + plain.upsample(outside, ratio) + mean[:, None, None]


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_plain_reading(plain, guide_bands):
    pair = plain.make_pair(bands=8, coarse=16, guide_bands=guide_bands, ratio=4)
    result = plain.fuse("lmmse", pair.hs, pair.guide, 4, register=False)
    own = result.engine.subspace
    assert own.rank > 2
    expected = read_plainly(
        pair,
        plain,
        pair.hs.mean(axis=(1, 2)),
        own.encode.numpy(),
        own.decode.numpy(),
        own.component_noise.numpy(),
        own.residual.numpy(),
        0.6,
        4,
    )
    # The back-projection's operator is cut to two pixels: 1e-3 of a correction that is small itself.
    assert np.abs(result.image - expected).max() < 2e-3 * pair.truth.max()
    assert np.abs(result.image - expected).mean() < 1e-4 * pair.truth.max()


def test_noise_is_found():
    """Smooth spectra in five materials, noise of a known size in each band."""
    rng = np.random.default_rng(0)
    waves = np.cos(np.outer(np.arange(5), np.linspace(0, np.pi, 60)))
    sigma = np.linspace(1.0, 12.0, 60)
    for count in (400, 5000):
        image = waves.T @ rng.normal(size=(5, count)) * 100 + sigma[:, None] * rng.normal(size=(60, count))
        found = band_noise(torch.as_tensor(np.cov(image, bias=True)), count).numpy()
        np.testing.assert_allclose(found, sigma, rtol=0.3 if count == 400 else 0.25)


def test_noise_of_collinear_constant_or_single_bands():
    covariance = torch.full((6, 6), 4.0, dtype=torch.float64)
    covariance[3], covariance[:, 3] = 0, 0
    assert float(band_noise(covariance, 1000).max()) < 1e-3
    assert band_noise(torch.ones(1, 1, dtype=torch.float64), 10).tolist() == [0.0]


def test_shrinkage_of_pure_noise_and_of_strong_signal():
    """Gavish and Donoho: nothing of a noise component is kept, all of a strong one."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(50, 500))
    eigenvalues = np.linalg.eigvalsh(noise @ noise.T / 500)
    kept = shrinkage(torch.as_tensor(eigenvalues * 0.98), 0.1)
    assert float(kept.max()) < 0.1
    assert shrinkage(torch.tensor([1e6]), 0.1).item() == pytest.approx(1, abs=1e-5)
    # A spike of strength 3: singular value y, optimal (1/y) sqrt((y^2 - b - 1)^2 - 4 b), by hand.
    assert shrinkage(torch.tensor([4.5]), 0.1).item() == pytest.approx(np.sqrt(3.4**2 - 0.4) / 4.5, rel=1e-6)


def test_rank_follows_the_noise(plain):
    pair = plain.make_pair(bands=40, coarse=40)
    rng = np.random.default_rng(2)
    noisy = pair.hs + 0.2 * pair.hs.std() * rng.normal(size=pair.hs.shape)
    ranks = [
        fit_subspace(plain.scene(hs, pair.guide, 4).statistics(plain.mtf, Control())).rank
        for hs in (pair.hs, noisy)
    ]
    assert ranks[1] < ranks[0] <= 7


@pytest.mark.parametrize("guide_bands", [1, 4])
def test_better_than_gsa(plain, guide_bands):
    for seed in range(3):
        pair = plain.make_pair(bands=20, coarse=40, guide_bands=guide_bands, seed=seed)
        gsa = psnr(plain.fuse("gsa", pair.hs, pair.guide, 4).image, pair.truth)
        assert psnr(plain.fuse("lmmse", pair.hs, pair.guide, 4).image, pair.truth) > gsa + 0.3


def test_noise_does_not_come_through(plain):
    """30 dB of noise in the HS image: the result is nearer the truth than the HS image's own noise allows gsa."""
    pair = plain.make_pair(bands=40, coarse=40, guide_bands=4)
    rng = np.random.default_rng(4)
    noisy = pair.hs + 10 ** (-30 / 20) * np.sqrt((pair.hs**2).mean()) * rng.normal(size=pair.hs.shape)
    gsa = psnr(plain.fuse("gsa", noisy, pair.guide, 4).image, pair.truth)
    assert psnr(plain.fuse("lmmse", noisy, pair.guide, 4).image, pair.truth) > gsa + 2


@pytest.mark.parametrize("guide_bands", [1, 4])
def test_degrades_to_the_hs_image(plain, guide_bands):
    pair = plain.make_pair(bands=12, coarse=32, guide_bands=guide_bands)
    control = plain.degrade(plain.upsample(pair.hs, 4), 4) - pair.hs
    fused = plain.fuse("lmmse", pair.hs, pair.guide, 4, iterations=8).image.astype(float)
    left = plain.degrade(fused, 4) - pair.hs
    assert np.sqrt((left**2).mean()) < 0.06 * np.sqrt((control**2).mean())


def test_exact_where_the_truth_is_a_function_of_the_guide(plain):
    pair = plain.make_pair(bands=6, guide_bands=3, coarse=32)
    rng = np.random.default_rng(3)
    truth = 100 + np.einsum("bk,krc->brc", rng.uniform(0.2, 1.0, size=(6, 3)), pair.guide)
    fused = plain.fuse("lmmse", plain.degrade(truth, 4), pair.guide, 4).image
    assert np.abs(fused - truth).max() < 4e-3 * truth.max()


def moved(image, rows, cols):
    """The image at p + shift, by Fourier's shift theorem on a mirrored image."""
    mirrored = np.concatenate([image, image[:, ::-1]], axis=1)
    mirrored = np.concatenate([mirrored, mirrored[:, :, ::-1]], axis=2)
    fr, fc = np.fft.fftfreq(mirrored.shape[1]), np.fft.fftfreq(mirrored.shape[2])
    phase = np.exp(2j * np.pi * (rows * fr[:, None] + cols * fc[None, :]))
    return np.fft.ifft2(np.fft.fft2(mirrored) * phase).real[:, : image.shape[1], : image.shape[2]]


@pytest.mark.parametrize("shift", [(0.5, 0.5), (-1.3, 2.2)])
def test_shifted_guide(plain, shift):
    """The shift is found to a tenth of a pixel and costs little; left in, it costs decibels."""
    pair = plain.make_pair(bands=12, coarse=40, guide_bands=3)
    guide = moved(pair.guide, -shift[0], -shift[1])
    result = plain.fuse("lmmse", pair.hs, guide, 4, frame="hs")
    np.testing.assert_allclose(result.engine.registration.shift, shift, atol=0.1)
    ideal = psnr(plain.fuse("lmmse", pair.hs, pair.guide, 4).image, pair.truth)
    left_in = psnr(plain.fuse("lmmse", pair.hs, guide, 4, register=False).image, pair.truth)
    found = psnr(result.image, pair.truth)
    assert found > ideal - 3.0
    assert found > left_in + 2.0
    tiled = plain.fuse("lmmse", pair.hs, guide, 4, tile=44, frame="hs").image
    assert np.abs(tiled - result.image).max() < 1e-5 * pair.truth.max()


@pytest.mark.parametrize("gain", [0.15, 0.5])
def test_wrong_mtf(plain, gain):
    pair = plain.make_pair(bands=12, coarse=40, guide_bands=3)
    hs = plain.degrade(pair.truth, 4, gain)
    result = plain.fuse("lmmse", hs, pair.guide, 4)
    assert result.engine.registration.mtf_gain == pytest.approx(gain, abs=0.02)
    blind = psnr(plain.fuse("lmmse", hs, pair.guide, 4, register=False).image, pair.truth)
    assert psnr(result.image, pair.truth) > blind + 1.0
    tiled = plain.fuse("lmmse", hs, pair.guide, 4, tile=44).image
    assert np.abs(tiled - result.image).max() < 1e-5 * pair.truth.max()


def test_a_good_nominal_psf_is_kept(plain):
    pair = plain.make_pair(bands=12, coarse=40, guide_bands=3)
    used = plain.fuse("lmmse", pair.hs, pair.guide, 4).engine.registration
    assert used.mtf_gain == pytest.approx(plain.mtf, abs=0.01)
    assert max(abs(s) for s in used.shift) < 0.05


def test_says_that_the_guide_was_moved(plain):
    pair = plain.make_pair(coarse=40)
    control = Control()
    LMMSE().fit(plain.scene(pair.hs, moved(pair.guide, -1.0, 0.0), 4), control)
    assert len(control.warnings) == 1 and "off the HS image" in control.warnings[0]


@pytest.mark.parametrize("method", ["lmmse", "sylvester"])
def test_frame_says_on_whose_ground_the_result_lies(plain, method):
    """The HS image is off, the guide is right: asked for the guide's ground, the truth comes out there."""
    pair = plain.make_pair(bands=12, coarse=40, guide_bands=3)
    hs = plain.degrade(moved(pair.truth, 1.3, -0.6), 4)
    on_hs = plain.fuse(method, hs, pair.guide, 4, frame="hs")
    on_guide = plain.fuse(method, hs, pair.guide, 4, frame="guide")
    np.testing.assert_allclose(on_hs.engine.registration.shift, (1.3, -0.6), atol=0.1)
    assert psnr(on_guide.image, pair.truth) > psnr(on_hs.image, pair.truth) + 4
    assert psnr(on_hs.image, moved(pair.truth, 1.3, -0.6)) > psnr(on_hs.image, pair.truth) + 4
    tiled = plain.fuse(method, hs, pair.guide, 4, tile=44, frame="guide").image
    assert np.abs(tiled - on_guide.image).max() < 1e-3 * pair.truth.max()


def test_unknown_frame_is_refused():
    with pytest.raises(HyperSharpError, match="unknown frame 'pan'"):
        LMMSE({"frame": "pan"})
