# SPDX-License-Identifier: GPL-2.0-or-later
"""Component substitution against an independent reading of each paper: plain numpy, the whole scene at once."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

TOLERANCE = 2e-5
"""Of the largest value: float32 in the method, float64 here."""


def close(fused, expected, truth, tolerance=TOLERANCE):
    assert np.abs(fused - expected).max() < tolerance * truth.max()


def flat(image):
    return image.reshape(len(image), -1)


def images(plain, **options):
    pair = plain.make_pair(**options)
    pair.up = plain.upsample(pair.hs, pair.ratio)
    pair.guide_lr = plain.degrade(pair.guide, pair.ratio)
    pair.mean = pair.hs.mean(axis=(1, 2))
    pair.guide_mean = pair.guide_lr.mean(axis=(1, 2))
    return pair


def mix(weights, image):
    return np.tensordot(weights, image, axes=1)


def published_substitution(p, weights):
    """Vivone et al. 2015: guide equalised to the component by mean and deviation, gain cov(h, c) / var(c).

    Returns it with the gain multiplied by the correlation of guide and component (our addition), and that.
    """
    component_lr = mix(weights, p.hs).ravel()
    component = mix(weights, p.up)
    correlation = np.corrcoef(component_lr, p.guide_lr.ravel())[0, 1]
    spread = np.sign(correlation) * component_lr.std() / p.guide_lr.std()
    equalised = (p.guide[0] - p.guide_lr.mean()) * spread + component_lr.mean()
    gains = np.array([np.cov(band.ravel(), component_lr)[0, 1] for band in p.hs]) / component_lr.var(ddof=1)
    return p.up + abs(correlation) * gains[:, None, None] * (equalised - component), correlation


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_pca_pan(plain, seed):
    """Chavez et al. 1991: the component is replaced by the guide, the inverse transform spreads it."""
    p = images(plain, seed=seed)
    _, vectors = np.linalg.eigh(np.cov(flat(p.hs)))
    scores = vectors.T @ (flat(p.hs) - p.mean[:, None])
    correlations = np.array([np.corrcoef(s, p.guide_lr.ravel())[0, 1] for s in scores])
    best = np.abs(correlations).argmax()
    expected, correlation = published_substitution(p, vectors[:, best])
    assert abs(correlation) == pytest.approx(np.abs(correlations).max())
    close(plain.fuse("pca", p.hs, p.guide, 4).image, expected, p.truth)


def test_pca_is_the_published_one_where_the_component_is_the_guide(plain):
    """At correlation 1 nothing is damped: forward transform, substitution, inverse transform."""
    p = plain.make_pair()
    _, vectors = np.linalg.eigh(np.cov(flat(p.hs)))
    first = vectors[:, -1]
    guide = mix(first[None], p.truth) * 3 + 7
    up = plain.upsample(p.hs, 4)
    scores = vectors.T @ (flat(up) - p.hs.mean(axis=(1, 2))[:, None])
    scores[-1] = first @ (flat(p.truth) - p.hs.mean(axis=(1, 2))[:, None])
    expected = (vectors @ scores + p.hs.mean(axis=(1, 2))[:, None]).reshape(up.shape)
    close(plain.fuse("pca", p.hs, guide, 4).image, expected, p.truth)


def test_gs_pan(plain):
    """Laben and Brower 2000: the mean of the bands that the guide overlaps is replaced."""
    p = images(plain, bands=8)
    correlation = np.array([np.corrcoef(band.ravel(), p.guide_lr.ravel())[0, 1] for band in p.hs])
    chosen = correlation >= 0.95 * correlation.max()
    assert 0 < chosen.sum() < 8
    expected, _ = published_substitution(p, chosen / chosen.sum())
    close(plain.fuse("gs", p.hs, p.guide, 4).image, expected, p.truth)


def test_gs_and_pca_replace_one_component_for_each_guide_band(plain):
    """MSI: with as many independent components as the image has, nothing of the HS image's own detail is lost."""
    p = plain.make_pair(bands=6, guide_bands=2)
    basis = np.random.default_rng(1).uniform(0.2, 1, size=(6, 2))
    truth = mix(basis, p.guide)
    for method in ("pca", "gs"):
        # the ridge of several guide bands
        close(plain.fuse(method, plain.degrade(truth, 4), p.guide, 4).image, truth, truth, 2e-3)


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_gsa(plain, guide_bands):
    """Aiazzi et al. 2007, eqs. 6 to 8: regression intensity (with the ridge), gain cov(h, I) / var(I)."""
    p = images(plain, guide_bands=guide_bands)
    x = flat(p.hs) - p.mean[:, None]
    y = flat(p.guide_lr) - p.guide_mean[:, None]
    deviation = x.std(axis=1)
    z = x / deviation[:, None]
    weights = np.linalg.solve(z @ z.T / z.shape[1] + 1e-3 * np.eye(6), z @ y.T / z.shape[1]).T / deviation
    intensity = weights @ x
    system = intensity @ intensity.T
    system += (guide_bands > 1) * 1e-3 * np.diag(np.diag(system))
    gains = (x @ intensity.T) @ np.linalg.inv(system)
    low = mix(weights, p.up - p.mean[:, None, None]) + p.guide_mean[:, None, None]
    expected = p.up + mix(gains, p.guide - low)
    close(plain.fuse("gsa", p.hs, p.guide, 4).image, expected, p.truth)


def test_brovey_of_bands_proportional_to_the_intensity(plain):
    """Gillespie et al. 1987: `h p / i`, where the guide is a non-negative mixture and the bands follow it."""
    p = plain.make_pair()
    intensity = p.guide[0]
    truth = np.linspace(0.5, 2, 6)[:, None, None] * intensity
    hs = plain.degrade(truth, 4)
    up = plain.upsample(hs, 4)
    low = plain.upsample(plain.degrade(p.guide, 4), 4)
    expected = up * p.guide / low
    close(plain.fuse("brovey", hs, p.guide, 4).image, expected, truth)


def test_bt_h_of_bands_proportional_to_the_intensity_above_haze(plain):
    """Lolli et al. 2017: `H + (h - H) (p - H_p) / (i - H_p)` with dark-object haze."""
    p = plain.make_pair()
    guide_lr = plain.degrade(p.guide, 4)
    slopes, offsets = np.linspace(0.5, 2, 6)[:, None, None], np.linspace(50, 900, 6)[:, None, None]
    hs = slopes * (guide_lr - guide_lr.min()) + offsets
    up, low = plain.upsample(hs, 4), plain.upsample(guide_lr, 4)
    haze, guide_haze = offsets, guide_lr.min()
    np.testing.assert_allclose(hs.min(axis=(1, 2)), haze[:, 0, 0])
    expected = haze + (up - haze) * (p.guide - guide_haze) / (low - guide_haze)
    fused = plain.fuse("bt-h", hs, p.guide, 4)
    # Where the interpolated intensity is well above the haze; below it detail is added, not scaled.
    usable = (low[0] - guide_haze > 0.3 * (guide_lr.mean() - guide_haze)) & (p.guide[0] > guide_haze)
    assert usable.mean() > 0.8
    # 1e-3 is the ridge of the intensity's regression.
    assert np.abs(fused.image - expected)[:, usable].max() < 2e-3 * hs.max()
    assert fused.image.min() >= haze.min() - 0.05 * hs.max()
    np.testing.assert_allclose(fused.engine.describe()["haze"], haze[:, 0, 0], rtol=1e-4)


def test_bt_h_haze_is_the_darkest_valid_pixel_and_never_negative(plain):
    p = plain.make_pair()
    hs = p.hs.copy()
    hs[1] -= hs[1].min() + 20.0
    hs_mask = np.ones(hs.shape[1:], bool)
    hs_mask[2, 3] = False
    hs[:, 2, 3] = -1e4
    haze = plain.fuse("bt-h", hs, p.guide, 4, hs_mask).engine.describe()["haze"]
    expected = hs[:, hs_mask].min(axis=1)
    expected[1] = 0.0
    np.testing.assert_allclose(haze, expected, rtol=1e-5)


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_bdsd_pc(plain, guide_bands):
    """Vivone 2019: bounded least squares of `h - low(h)` on `[-low(h), guide]`, all coefficients non-negative."""
    p = images(plain, guide_bands=guide_bands, bands=5)
    hs_low = plain.smooth(p.hs, 4)
    x = flat(p.guide_lr) - p.guide_mean[:, None]
    system = x @ x.T
    system += (guide_bands > 1) * 1e-3 * np.diag(np.diag(system))
    synthesis = (flat(p.hs) - p.mean[:, None]) @ x.T @ np.linalg.inv(system)
    predictors = flat(hs_low) - hs_low.mean(axis=(1, 2))[:, None]
    expected = np.empty_like(p.up)
    for b in range(5):
        guide_b = synthesis[b] @ x
        design = np.concatenate([-predictors, guide_b[None]]).T
        target = (p.hs[b] - hs_low[b]).ravel()
        # The ridge, as further lines: 1e-3 of the variance of what each coefficient acts on.
        power = np.append(np.maximum(p.hs.var(axis=(1, 2)), predictors.var(axis=1)), guide_b.var())
        design = np.concatenate([design, np.diag(np.sqrt(1e-3 * target.size * power))])
        right = np.concatenate([target - target.mean(), np.zeros(6)])
        solution = lsq_linear(design, right, bounds=(0, np.inf), tol=1e-12).x
        expected[b] = (
            p.up[b]
            - mix(solution[:5], p.up - p.mean[:, None, None])
            + solution[5] * mix(synthesis[b], p.guide - p.guide_mean[:, None, None])
        )
        assert (solution >= 0).all() and solution[5] > 0
    close(plain.fuse("bdsd-pc", p.hs, p.guide, 4).image, expected, p.truth, 1e-4)


def test_bdsd_pc_turns_the_guide_over_for_a_band_that_mirrors_it(plain):
    """Without the synthetic guide the constraint would leave such a band without detail."""
    p = plain.make_pair()
    mirrored = 9000.0 - p.hs[1:2]
    fused = plain.fuse("bdsd-pc", np.concatenate([p.hs, mirrored]), p.guide, 4)
    error = np.abs(fused.image[-1] - (9000.0 - p.truth[1])).mean()
    control = np.abs(plain.upsample(mirrored, 4)[0] - (9000.0 - p.truth[1])).mean()
    assert error < 0.8 * control
    assert min(fused.engine.describe()["guide_amount"]) > 0
