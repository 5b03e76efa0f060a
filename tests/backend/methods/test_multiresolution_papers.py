# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiresolution analysis against an independent reading of each paper: plain numpy, the whole scene at once."""

import numpy as np
import pytest
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.methods import coarse_detail, full_scale
from hypersharp.backend.methods.full_scale import full_scale_moments

TOLERANCE = 2e-5
"""Of the largest value: float32 in the method, float64 here."""


def close(fused, expected, truth, tolerance=TOLERANCE):
    assert np.abs(fused - expected).max() < tolerance * truth.max()


def regression(targets, predictors):
    """Least squares with intercept, image by image: `[targets, predictors]` slopes.

    Several predictors are standardised and get the methods' ridge, 1e-3 of unit variance, as additional lines.
    """
    x, y = (i.reshape(len(i), -1).T - i.mean(axis=(1, 2)) for i in (predictors, targets))
    deviation = x.std(axis=0)
    lines = np.sqrt(1e-3 * len(x)) * np.eye(len(deviation)) * (len(deviation) > 1)
    design, right = (
        np.concatenate([x / deviation, lines]),
        np.concatenate([y, np.zeros((len(lines), y.shape[1]))]),
    )
    return (np.linalg.lstsq(design, right, rcond=None)[0] / deviation[:, None]).T


def images(plain, **options):
    pair = plain.make_pair(**options)
    pair.up = plain.upsample(pair.hs, pair.ratio)
    pair.guide_lr = plain.degrade(pair.guide, pair.ratio)
    pair.guide_low = plain.upsample(pair.guide_lr, pair.ratio)
    return pair


def modulated(up, synthetic, low):
    """`up * synthetic / low`, as the papers have it; the small pairs here need none of the guards."""
    factor = synthetic / low
    assert low.min() > 0 and factor.min() > 0 and factor.max() < 4
    return up * factor


def test_interpolation_is_keys_cubic_convolution(plain):
    for ratio in (3, 4):
        pair = plain.make_pair(ratio=ratio)
        close(
            plain.fuse("bicubic", pair.hs, pair.guide, ratio).image,
            plain.upsample(pair.hs, ratio),
            pair.truth,
            2e-6,
        )


@pytest.mark.parametrize("ratio", [3, 4])
@pytest.mark.parametrize("guide_bands", [1, 3])
def test_mtf_glp(plain, guide_bands, ratio):
    """Aiazzi et al. 2006: detail beyond the MTF, gain cov(hs, low) / var(low); for MSI its multivariate form."""
    p = images(plain, guide_bands=guide_bands, ratio=ratio)
    gains = regression(p.hs, p.guide_lr)
    if guide_bands == 1:
        joint = np.cov(np.concatenate([p.hs, p.guide_lr]).reshape(7, -1))
        np.testing.assert_allclose(gains[:, 0], joint[:6, 6] / joint[6, 6], rtol=1e-9)
    expected = p.up + np.einsum("bk,krc->brc", gains, p.guide - p.guide_low)
    close(plain.fuse("mtf-glp", p.hs, p.guide, ratio).image, expected, p.truth)


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_mtf_glp_fs(plain, guide_bands):
    """Vivone, Restaino and Chanussot 2018 (TIP): cov(interpolated band, guide) / cov(low-pass guide, guide)."""
    p = images(plain, guide_bands=guide_bands)
    stack = np.concatenate([p.up, p.guide, p.guide_low]).reshape(6 + 2 * guide_bands, -1)
    covariance = np.cov(stack)
    band, guide, low = slice(0, 6), slice(6, 6 + guide_bands), slice(6 + guide_bands, None)
    if guide_bands == 1:
        gains = covariance[band, guide] / covariance[6, 7]
    else:
        ridge = 1e-3 * np.diag(np.diag(covariance[low, guide]))
        gains = covariance[band, guide] @ np.linalg.inv(covariance[low, guide] + ridge)
    expected = p.up + np.einsum("bk,krc->brc", gains, p.guide - p.guide_low)
    fused = plain.fuse("mtf-glp-fs", p.hs, p.guide, 4).image
    close(fused, expected, p.truth)
    if guide_bands == 1:
        # What the gains are for: the fused bands regress on the guide with the very gains that were injected.
        np.testing.assert_allclose(regression(fused.astype(float), p.guide), gains, rtol=1e-4)


@pytest.mark.parametrize("method", ["mtf-glp-hpm", "mtf-glp-hpm-r"])
def test_high_pass_modulation_pan(plain, method):
    """Vivone et al. 2014 and 2018: `h (p + c) / (low + c)`, `c = mean(h) / w - mean(p)`, w = cov(h, low) / var(low)."""
    p = images(plain)
    expected = np.empty_like(p.up)
    for b, band in enumerate(p.up):
        fine = method == "mtf-glp-hpm-r"
        h, low = (band, p.guide_low[0]) if fine else (p.hs[b], p.guide_lr[0])
        w = np.cov(h.ravel(), low.ravel())[0, 1] / low.var(ddof=1)
        c = h.mean() / w - (p.guide.mean() if fine else low.mean())
        expected[b] = modulated(band, p.guide[0] + c, p.guide_low[0] + c)
    close(plain.fuse(method, p.hs, p.guide, 4).image, expected, p.truth)


@pytest.mark.parametrize("method", ["mtf-glp-hpm", "mtf-glp-hpm-r", "sfim"])
def test_modulation_msi(plain, method):
    """Selva et al. 2015: each band is modulated by its synthetic guide over that guide's low-pass version."""
    p = images(plain, guide_bands=3)
    low, low_lr = p.guide_low, p.guide_lr
    if method == "sfim":
        low_lr = plain.degrade(p.guide, 4, None)
        low = plain.upsample(low_lr, 4)
    if method == "mtf-glp-hpm-r":
        gains, means = regression(p.up, low), (p.up.mean(axis=(1, 2)), p.guide.mean(axis=(1, 2)))
    else:
        gains, means = regression(p.hs, low_lr), (p.hs.mean(axis=(1, 2)), low_lr.mean(axis=(1, 2)))

    def synthetic(image):
        return means[0][:, None, None] + np.einsum("bk,krc->brc", gains, image - means[1][:, None, None])

    expected = modulated(p.up, synthetic(p.guide), synthetic(low))
    close(plain.fuse(method, p.hs, p.guide, 4).image, expected, p.truth)


def test_sfim_pan_is_modulation_by_the_equalised_guide(plain):
    """Liu 2000, eq. 7: `hs * guide / smoothed guide`; exactly that for a band proportional to the guide."""
    p = images(plain)
    block = plain.degrade(p.guide, 4, None)
    hs = np.concatenate([0.4 * block, p.hs])
    expected = plain.upsample(hs[:1], 4) * p.guide / plain.upsample(block, 4)
    close(plain.fuse("sfim", hs, p.guide, 4).image[:1], expected, p.truth)


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_awlp(plain, ratio):
    """Otazu et al. 2005 with the a trous cascade itself, level by level, on bands proportional to the luminance.

    There the published equalisation (one gain for the luminance) and ours (one a band) are the same.
    """
    p = images(plain, ratio=ratio, coarse=20)
    shares = np.linspace(0.5, 1.5, 6)
    hs = shares[:, None, None] * p.hs.mean(axis=0)
    low = p.guide
    level_kernel = np.array([1, 4, 6, 4, 1]) / 16
    pad = 4 * ratio  # the cascade sees the replicated border, as the single kernel does
    low = np.pad(p.guide, ((0, 0), (pad, pad), (pad, pad)), "edge")
    for level in range(int(np.log2(ratio))):
        kernel = np.zeros(4 * 2**level + 1)
        kernel[:: 2**level] = level_kernel
        low = plain.filter_axis(plain.filter_axis(low, kernel, 0, 1, 1), kernel, 0, 2, 1)
    low = low[:, pad:-pad, pad:-pad]
    luminance = hs.mean(axis=0, keepdims=True)
    gain = regression(luminance, p.guide_lr)[0, 0]
    up = plain.upsample(hs, ratio)
    expected = up + up / up.mean(axis=0) * gain * (p.guide - low)
    close(plain.fuse("awlp", hs, p.guide, ratio).image, expected, p.truth)


def test_awlp_gives_each_band_its_own_share(plain):
    """Our equalisation on ordinary bands: `h + h / L g / s detail`, s the slope of h on L through the origin."""
    p = images(plain, guide_bands=2)
    kernel = np.convolve(np.array([1, 4, 6, 4, 1]) / 16, np.array([1, 0, 4, 0, 6, 0, 4, 0, 1]) / 16)
    low = plain.filter_axis(plain.filter_axis(p.guide, kernel, 0, 1, 1), kernel, 0, 2, 1)
    gains = regression(p.hs, p.guide_lr)
    luminance = plain.upsample(p.hs.mean(axis=0, keepdims=True), 4)
    coarse = p.hs.mean(axis=0)
    share = (coarse**2).sum() / (p.hs * coarse).sum(axis=(1, 2))
    detail = np.einsum("bk,krc->brc", gains, p.guide - low)
    factor = 1 + share[:, None, None] * detail / luminance
    assert factor.min() > 0.25 and factor.max() < 4
    close(plain.fuse("awlp", p.hs, p.guide, 4).image, p.up * factor, p.truth)


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_hypersharpening(plain, guide_bands):
    """Selva et al. 2015 with the synthetic guides fitted on detail, and their detail added or modulated in."""
    p = images(plain, guide_bands=guide_bands)
    gains = regression(p.hs - plain.smooth(p.hs, 4), p.guide_lr - plain.smooth(p.guide_lr, 4))
    offset = p.hs.mean(axis=(1, 2)) - gains @ p.guide_lr.mean(axis=(1, 2))
    synthetic = np.einsum("bk,krc->brc", gains, p.guide) + offset[:, None, None]
    low = np.einsum("bk,krc->brc", gains, p.guide_low) + offset[:, None, None]
    close(plain.fuse("glp-hs", p.hs, p.guide, 4).image, p.up + synthetic - low, p.truth)
    close(plain.fuse("sfim-hs", p.hs, p.guide, 4).image, modulated(p.up, synthetic, low), p.truth)


@pytest.mark.parametrize("method,published", [("glp-hs", "mtf-glp"), ("sfim-hs", "mtf-glp-hpm")])
def test_hypersharpening_as_published(plain, method, published):
    """Fitted on level, hypersharpening is the pyramid with the regression on all guide bands."""
    p = plain.make_pair(guide_bands=3)
    level = plain.fuse(method, p.hs, p.guide, 4, fit="level").image
    np.testing.assert_array_equal(level, plain.fuse(published, p.hs, p.guide, 4).image)
    with pytest.raises(HyperSharpError, match="no fit 'both'"):
        plain.fuse(method, p.hs, p.guide, 4, fit="both")


def test_full_scale_moments_with_masks(plain):
    """The transposed interpolation counts exactly the valid fine pixels."""
    p = plain.make_pair(guide_bands=2, width=27)
    rng = np.random.default_rng(2)
    hs_mask, guide_mask = rng.uniform(size=p.hs.shape[1:]) > 0.02, rng.uniform(size=p.guide.shape[1:]) > 0.05
    hs, guide = p.hs.copy(), p.guide.copy()
    hs[:, ~hs_mask], guide[:, ~guide_mask] = 1e6, -1e6
    scene = plain.scene(hs, guide, 4, hs_mask, guide_mask)
    moments = full_scale_moments(scene)
    tile = scene.tile((0, guide.shape[1]), (0, guide.shape[2]))
    assert 0.8 < float(tile.mask.float().mean()) < 0.98
    stack = np.concatenate([tile.upsample(tile.hs), tile.guide_core, tile.guide_lowpass(plain.mtf)])
    stack = stack[:, tile.mask.numpy()].astype(float)
    covariance = np.cov(stack, bias=True)
    np.testing.assert_allclose(moments.hs_mean, stack[:6].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(moments.guide_mean, stack[6:8].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(moments.low_mean, stack[8:].mean(axis=1), rtol=1e-6)
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(moments.hs_guide, covariance[:6, 6:8], atol=1e-6 * scale)
    np.testing.assert_allclose(moments.hs_low, covariance[:6, 8:], atol=1e-6 * scale)
    np.testing.assert_allclose(moments.low_guide, covariance[8:, 6:8], atol=1e-6 * scale)
    np.testing.assert_allclose(moments.low_low, covariance[8:, 8:], atol=1e-6 * scale)


def test_statistics_passes_do_not_depend_on_their_tiles(plain, monkeypatch):
    """Strips of the guide, tiles of the fine and of the coarse pass: only the order of sums changes."""
    p = plain.make_pair(guide_bands=2, width=33)
    hs_mask = np.random.default_rng(4).uniform(size=p.hs.shape[1:]) > 0.05
    methods = ("bdsd-pc", "glp-hs", "mtf-glp-fs", "mtf-glp-hpm-r")
    whole = [plain.fuse(m, p.hs, p.guide, 4, hs_mask).image for m in methods]
    monkeypatch.setattr(full_scale, "FINE_TILE", 24)
    monkeypatch.setattr(coarse_detail, "MAX_FINE_PIXELS", 1500)
    monkeypatch.setattr(coarse_detail.coarse_detail_tiles, "__defaults__", (None, 7))
    for method, before in zip(methods, whole):
        close(plain.fuse(method, p.hs, p.guide, 4, hs_mask).image, before, p.truth)


def test_full_scale_moments_need_a_valid_pixel(plain):
    p = plain.make_pair()
    with pytest.raises(ValueError, match="no valid pixel"):
        full_scale_moments(plain.scene(p.hs, p.guide, 4, np.zeros(p.hs.shape[1:], bool)))


def test_detail_beside_nodata_keeps_linear_relations(plain):
    """Different holes in the two images: band = 3 + 0.5 guide must still be seen in what is left, exactly."""
    p = plain.make_pair()
    guide_lr = plain.degrade(p.guide, 4)
    rng = np.random.default_rng(8)
    hs_mask, guide_mask = rng.uniform(size=guide_lr.shape[1:]) > 0.3, np.ones(p.guide.shape[1:], bool)
    guide_mask[:, 40:44] = False
    hs = np.concatenate([3 + 0.5 * guide_lr, p.hs])
    hs[:, ~hs_mask] = 1e5
    fused = plain.fuse("glp-hs", hs, p.guide, 4, hs_mask, guide_mask)
    np.testing.assert_allclose(float(fused.engine.gains[0, 0]), 0.5, rtol=1e-5)
