# SPDX-License-Identifier: GPL-2.0-or-later
"""What every component substitution and multiresolution method must hold to, whatever its formula."""

import json

import numpy as np
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.errors import Cancelled, HyperSharpError
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.registry import load_method, method_info
from hypersharp.backend.scene import Scene

METHODS = [
    "bicubic", "brovey", "pca", "gs", "gsa", "bt-h", "bdsd-pc", "sfim", "mtf-glp", "mtf-glp-hpm", "mtf-glp-hpm-r",
    "mtf-glp-fs", "awlp", "glp-hs", "sfim-hs",
]  # fmt: skip
SHARPENING = METHODS[1:]
ADDITIVE = ["bicubic", "pca", "gs", "gsa", "bdsd-pc", "mtf-glp", "mtf-glp-fs", "glp-hs"]
"""Methods without a ratio: an offset of the HS image must come through unchanged."""
# Exact where the truth is a function of the guide: HS and low-pass guide then pass the same operators.
EXACT = ["brovey", "pca", "gs", "gsa", "mtf-glp", "mtf-glp-hpm", "mtf-glp-hpm-r", "mtf-glp-fs", "glp-hs",
         "sfim-hs"]  # fmt: skip


def relative(a, b, scale):
    return float(np.abs(a - b).max() / scale)


def psnr(fused, truth, border=4):
    cut = (slice(None), slice(border, -border), slice(border, -border))
    mse = ((fused[cut] - truth[cut]) ** 2).mean(axis=(1, 2))
    return float((10 * np.log10(truth[cut].max(axis=(1, 2)) ** 2 / mse)).mean())


@pytest.mark.parametrize("method", METHODS)
def test_registry_describes_it(method):
    info = method_info(method)
    assert info.kind in ("interpolation", "component substitution", "multiresolution analysis")
    assert info.guide_kinds == ("pan", "msi")
    assert info.citation[-4:].isdigit()


@pytest.mark.parametrize("method", METHODS)
def test_unknown_options_are_refused(method):
    with pytest.raises(HyperSharpError, match="unknown method option gain"):
        load_method(method)({"gain": 2})


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_tiles_do_not_show(plain, method, guide_bands):
    """Tiles of any size, aligned to the coarse grid or not, with nodata in both images; other ratios below."""
    pair = plain.make_pair(guide_bands=guide_bands, width=31)
    hs_mask, guide_mask = np.ones(pair.hs.shape[1:], bool), np.ones(pair.guide.shape[1:], bool)
    hs_mask[9:12, 5:9] = False
    guide_mask[60:75, 80:97] = False
    whole = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask, guide_mask)
    assert 0.9 < whole.valid.mean() < 1
    for side in (17, 32, 90):
        tiled = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask, guide_mask, tile=side)
        np.testing.assert_array_equal(tiled.valid, whole.valid)
        # float32 products of up to 100 terms in another order
        assert relative(tiled.image[:, whole.valid], whole.image[:, whole.valid], pair.truth.max()) < 5e-6


@pytest.mark.parametrize("ratio", [2, 3, 5, 8])
@pytest.mark.parametrize("method", METHODS)
def test_any_ratio(plain, method, ratio):
    pair = plain.make_pair(ratio=ratio, guide_bands=2, coarse=20)
    whole = plain.fuse(method, pair.hs, pair.guide, ratio)
    tiled = plain.fuse(method, pair.hs, pair.guide, ratio, tile=7 * ratio + 1)
    assert relative(tiled.image, whole.image, pair.truth.max()) < 5e-6
    assert np.isfinite(whole.image).all()


@pytest.mark.parametrize("guide_bands", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_what_lies_under_nodata_changes_nothing(plain, method, guide_bands):
    pair = plain.make_pair(guide_bands=guide_bands)
    rng = np.random.default_rng(5)
    hs_mask, guide_mask = rng.uniform(size=pair.hs.shape[1:]) > 0.03, np.ones(pair.guide.shape[1:], bool)
    hs_mask[:, :4] = False
    guide_mask[40:52, 30:50] = False
    results = []
    for garbage in (0.0, -1e7, 3e6):
        hs, guide = pair.hs.copy(), pair.guide.copy()
        hs[:, ~hs_mask], guide[:, ~guide_mask] = garbage, -garbage
        results.append(plain.fuse(method, hs, guide, 4, hs_mask, guide_mask))
    for other in results[1:]:
        np.testing.assert_array_equal(other.image, results[0].image)
    assert np.isfinite(results[0].image).all()
    # Beside the holes the result is as good as anywhere: within twice the truth's own range.
    inside = results[0].image[:, results[0].valid]
    assert inside.min() > -pair.truth.max() and inside.max() < 2 * pair.truth.max()


@pytest.mark.parametrize("value", [0.0, 1234.5, -3e4])
@pytest.mark.parametrize("guide_bands", [1, 3])
@pytest.mark.parametrize("method", SHARPENING)
def test_constant_guide_leaves_interpolation(plain, method, guide_bands, value):
    """A guide that shows nothing gives nothing: not even its rounding errors, blown up by a regression on them."""
    pair = plain.make_pair(guide_bands=guide_bands)
    flat = np.full_like(pair.guide, value)
    fused = plain.fuse(method, pair.hs, flat, 4).image
    assert relative(fused, plain.upsample(pair.hs, 4), pair.truth.max()) < 2e-6


@pytest.mark.parametrize("method", SHARPENING)
def test_dead_guide_band_is_ignored(plain, method):
    pair = plain.make_pair(guide_bands=3)
    dead = np.concatenate([pair.guide, np.full_like(pair.guide[:1], 777.7)])
    with_dead = plain.fuse(method, pair.hs, dead, 4).image
    assert relative(with_dead, plain.fuse(method, pair.hs, pair.guide, 4).image, pair.truth.max()) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_empty_hs_bands_stay_as_they_are(plain, method):
    pair = plain.make_pair()
    hs = np.concatenate([pair.hs, np.full_like(pair.hs[:1], 250.0), np.zeros_like(pair.hs[:1])])
    fused = plain.fuse(method, hs, pair.guide, 4).image
    np.testing.assert_allclose(fused[-2], 250.0, rtol=1e-5)
    np.testing.assert_allclose(fused[-1], 0.0, atol=1e-3)
    assert np.isfinite(fused).all()


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_negative_values(plain, method, guide_bands):
    """Anomalies or logarithms: no band has a positive mean. Still sharper than interpolation, never wild."""
    pair = plain.make_pair(guide_bands=guide_bands)
    hs = pair.hs - pair.hs.mean(axis=(1, 2), keepdims=True) - 50.0
    truth = pair.truth - pair.hs.mean(axis=(1, 2), keepdims=True) - 50.0
    fused = plain.fuse(method, hs, pair.guide, 4).image
    assert np.isfinite(fused).all()
    error = np.sqrt(((fused - truth) ** 2).mean())
    control = np.sqrt(((plain.upsample(hs, 4) - truth) ** 2).mean())
    assert error < {"bicubic": 1.0001, "pca": 1.05}.get(method, 0.97) * control


@pytest.mark.parametrize("method", ADDITIVE)
def test_offset_of_the_hs_image_comes_through(plain, method):
    pair = plain.make_pair(guide_bands=2)
    low = plain.fuse(method, pair.hs, pair.guide, 4).image
    high = plain.fuse(method, pair.hs + 5000.0, pair.guide - 90.0, 4).image
    assert relative(high - 5000.0, low, pair.truth.max()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_units_do_not_matter(plain, method):
    """Reflectance 0 to 1 with a guide in radiance, or both as integers: the same picture."""
    pair = plain.make_pair(guide_bands=2)
    one = plain.fuse(method, pair.hs, pair.guide, 4).image
    other = plain.fuse(method, pair.hs * 1e-4, pair.guide * 37.0, 4).image
    assert relative(other * 1e4, one, pair.truth.max()) < 1e-5


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_deterministic(plain, method, guide_bands):
    pair = plain.make_pair(guide_bands=guide_bands)
    first = plain.fuse(method, pair.hs, pair.guide, 4).image
    np.testing.assert_array_equal(plain.fuse(method, pair.hs, pair.guide, 4).image, first)


@pytest.mark.parametrize("guide_bands", [1, 2])
@pytest.mark.parametrize("method", EXACT)
def test_exact_where_the_truth_is_a_function_of_the_guide(plain, method, guide_bands):
    """truth = a + B guide: every band is known from the guide, and nothing may be lost or added."""
    pair = plain.make_pair(guide_bands=guide_bands)
    rng = np.random.default_rng(3)
    mixing = rng.uniform(0.2, 1.0, size=(6, guide_bands))
    if guide_bands > 1:
        mixing[0], mixing[1] = (
            (1, 0),
            (0, 1),
        )  # Brovey's non-negative intensity must be able to reach the guide
    truth = 100 + np.einsum("bk,krc->brc", mixing, pair.guide)
    fused = plain.fuse(method, plain.degrade(truth, 4), pair.guide, 4).image
    # Several guide bands and GSA's intensity are regressed on with a ridge of 1e-3 of unit variance.
    assert relative(fused, truth, truth.max()) < (2e-3 if guide_bands > 1 or method == "gsa" else 2e-5)


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", SHARPENING)
def test_better_than_interpolation(plain, method, guide_bands):
    pair = plain.make_pair(bands=12, guide_bands=guide_bands)
    control = psnr(plain.upsample(pair.hs, 4), pair.truth)
    assert psnr(plain.fuse(method, pair.hs, pair.guide, 4).image, pair.truth) > control + 1.0


@pytest.mark.parametrize("method", SHARPENING)
def test_a_band_that_ignores_the_guide_is_left_alone(plain, method):
    """A band of another scene, uncorrelated with the guide, must not get the guide's edges."""
    pair = plain.make_pair(bands=8, coarse=40)
    stranger = plain.make_pair(bands=8, coarse=40, seed=77)
    hs = np.concatenate([pair.hs, stranger.hs[3:4]])
    fused = plain.fuse(method, hs, pair.guide, 4).image[-1]
    control = plain.upsample(hs, 4)[-1]
    sharpening = np.abs(plain.fuse(method, hs, pair.guide, 4).image[2] - plain.upsample(hs, 4)[2]).mean()
    assert np.abs(fused - control).mean() < 0.35 * sharpening


@pytest.mark.parametrize("method", METHODS)
def test_says_what_it_learned(plain, method):
    pair = plain.make_pair(guide_bands=2)
    details = plain.fuse(method, pair.hs, pair.guide, 4).engine.describe()
    json.dumps(details, allow_nan=False)
    assert details or method == "bicubic"


@pytest.mark.parametrize("method", SHARPENING)
def test_cancel_stops_the_fit(plain, method):
    pair = plain.make_pair()
    scene = Scene(
        TensorSource(torch.as_tensor(pair.hs)),
        TensorSource(torch.as_tensor(pair.guide)),
        4,
        plain.mtf,
        plain.mtf,
    )
    with pytest.raises(Cancelled):
        load_method(method)().fit(scene, Control(is_cancelled=lambda: True))


@pytest.mark.gpu
@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_same_on_cuda(plain, method, guide_bands):
    pair = plain.make_pair(guide_bands=guide_bands)
    hs_mask = np.ones(pair.hs.shape[1:], bool)
    hs_mask[3:5, 7:9] = False
    on_cpu = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask)
    on_gpu = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask, device="cuda", tile=40)
    assert relative(on_gpu.image[:, on_cpu.valid], on_cpu.image[:, on_cpu.valid], pair.truth.max()) < 2e-5
