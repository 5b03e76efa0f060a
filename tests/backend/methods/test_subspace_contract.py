# SPDX-License-Identifier: GPL-2.0-or-later
"""What every subspace and unmixing method must hold to, whatever its formula."""

import json

import numpy as np
import pytest
from hypersharp.backend.control import Control
from hypersharp.backend.errors import Cancelled, HyperSharpError
from hypersharp.backend.registry import load_method, method_info

METHODS = ["lmmse", "sylvester", "bayes", "hysure", "cnmf"]
SEAM = {"sylvester": 1e-3, "bayes": 1e-3, "hysure": 1e-2, "cnmf": 2e-3}
"""Largest difference, of the largest value, where a method solves overlapping blocks; the others are exact."""


def relative(a, b, scale):
    return float(np.abs(a - b).max() / scale)


def psnr(fused, truth, border=4):
    cut = (slice(None), slice(border, -border), slice(border, -border))
    mse = ((fused[cut] - truth[cut]) ** 2).mean(axis=(1, 2))
    return float((10 * np.log10(truth[cut].max(axis=(1, 2)) ** 2 / mse)).mean())


@pytest.mark.parametrize("method", METHODS)
def test_registry_describes_it(method):
    info = method_info(method)
    assert info.kind == "subspace"
    assert info.guide_kinds == ("pan", "msi")
    assert info.citation[-4:].isdigit()


@pytest.mark.parametrize("method", METHODS)
def test_unknown_options_are_refused(method):
    with pytest.raises(HyperSharpError, match="unknown method option gain"):
        load_method(method)({"gain": 2})


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_tiles_do_not_show(plain, method, guide_bands):
    """Tiles of any size, aligned to the coarse grid or not, with nodata in both images."""
    pair = plain.make_pair(guide_bands=guide_bands, width=41, coarse=40)
    hs_mask, guide_mask = np.ones(pair.hs.shape[1:], bool), np.ones(pair.guide.shape[1:], bool)
    hs_mask[9:12, 5:9] = False
    guide_mask[60:75, 80:97] = False
    whole = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask, guide_mask)
    assert 0.9 < whole.valid.mean() < 1
    for side in (17, 32, 90):
        tiled = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask, guide_mask, tile=side)
        np.testing.assert_array_equal(tiled.valid, whole.valid)
        apart = relative(tiled.image[:, whole.valid], whole.image[:, whole.valid], pair.truth.max())
        assert apart < SEAM.get(method, 1e-5)


@pytest.mark.parametrize("ratio", [2, 3, 5, 8])
@pytest.mark.parametrize("method", METHODS)
def test_any_ratio(plain, method, ratio):
    pair = plain.make_pair(ratio=ratio, guide_bands=2, coarse=20)
    whole = plain.fuse(method, pair.hs, pair.guide, ratio)
    tiled = plain.fuse(method, pair.hs, pair.guide, ratio, tile=7 * ratio + 1)
    assert relative(tiled.image, whole.image, pair.truth.max()) < SEAM.get(method, 1e-5)
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
    valid = results[0].valid
    for other in results[1:]:
        np.testing.assert_array_equal(other.image[:, valid], results[0].image[:, valid])
    assert np.isfinite(results[0].image).all()
    inside = results[0].image[:, valid]
    assert inside.min() > -pair.truth.max() and inside.max() < 2 * pair.truth.max()


@pytest.mark.parametrize("value", [1234.5, -3e4])
@pytest.mark.parametrize("guide_bands", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_constant_guide_gives_nothing(plain, method, guide_bands, value):
    """Not even its rounding errors, blown up by a regression on them."""
    pair = plain.make_pair(guide_bands=guide_bands)
    black = plain.fuse(method, pair.hs, np.zeros_like(pair.guide), 4).image
    flat = plain.fuse(method, pair.hs, np.full_like(pair.guide, value), 4).image
    assert relative(flat, black, pair.truth.max()) < 1e-3
    assert psnr(flat, pair.truth) > psnr(plain.upsample(pair.hs, 4), pair.truth) - 0.2


@pytest.mark.parametrize("method", METHODS)
def test_dead_guide_band_is_ignored(plain, method):
    pair = plain.make_pair(guide_bands=3)
    dead = np.concatenate([pair.guide, np.full_like(pair.guide[:1], 777.7)])
    with_dead = plain.fuse(method, pair.hs, dead, 4).image
    assert relative(with_dead, plain.fuse(method, pair.hs, pair.guide, 4).image, pair.truth.max()) < 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_empty_hs_bands_stay_as_they_are(plain, method):
    pair = plain.make_pair()
    hs = np.concatenate([pair.hs, np.full_like(pair.hs[:1], 250.0), np.zeros_like(pair.hs[:1])])
    fused = plain.fuse(method, hs, pair.guide, 4).image
    np.testing.assert_allclose(fused[-2], 250.0, rtol=1e-4)
    np.testing.assert_allclose(fused[-1], 0.0, atol=1e-2)
    assert np.isfinite(fused).all()


@pytest.mark.parametrize("bands", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_few_bands_and_few_pixels(plain, method, bands):
    pair = plain.make_pair(bands=max(bands, 2), coarse=5, guide_bands=1)
    fused = plain.fuse(method, pair.hs[:bands], pair.guide, 4).image
    assert np.isfinite(fused).all()
    assert fused.min() > -pair.truth.max() and fused.max() < 2 * pair.truth.max()


@pytest.mark.parametrize("method", METHODS)
def test_more_bands_than_pixels(plain, method):
    pair = plain.make_pair(bands=90, coarse=8, guide_bands=3)
    fused = plain.fuse(method, pair.hs, pair.guide, 4).image
    assert psnr(fused, pair.truth) > psnr(plain.upsample(pair.hs, 4), pair.truth)


@pytest.mark.parametrize("method", METHODS)
def test_units_do_not_matter(plain, method):
    """Reflectance 0 to 1 with a guide in radiance, or both as integers: the same picture."""
    pair = plain.make_pair(guide_bands=2)
    one = plain.fuse(method, pair.hs, pair.guide, 4).image
    other = plain.fuse(method, pair.hs * 1e-4, pair.guide * 37.0, 4).image
    assert relative(other * 1e4, one, pair.truth.max()) < 1e-4


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_deterministic(plain, method, guide_bands):
    pair = plain.make_pair(guide_bands=guide_bands)
    first = plain.fuse(method, pair.hs, pair.guide, 4).image
    np.testing.assert_array_equal(plain.fuse(method, pair.hs, pair.guide, 4).image, first)


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_better_than_interpolation(plain, method, guide_bands):
    pair = plain.make_pair(bands=12, guide_bands=guide_bands)
    control = psnr(plain.upsample(pair.hs, 4), pair.truth)
    assert psnr(plain.fuse(method, pair.hs, pair.guide, 4).image, pair.truth) > control + 1.5


@pytest.mark.parametrize("method", METHODS)
def test_says_what_it_learned(plain, method):
    pair = plain.make_pair(guide_bands=2)
    details = plain.fuse(method, pair.hs, pair.guide, 4).engine.describe()
    json.dumps(details, allow_nan=False)
    assert details


@pytest.mark.parametrize("method", METHODS)
def test_cancel_stops_the_fit(plain, method):
    pair = plain.make_pair()
    with pytest.raises(Cancelled):
        load_method(method)().fit(plain.scene(pair.hs, pair.guide, 4), Control(is_cancelled=lambda: True))


@pytest.mark.gpu
@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_same_on_cuda(plain, method, guide_bands):
    pair = plain.make_pair(guide_bands=guide_bands)
    hs_mask = np.ones(pair.hs.shape[1:], bool)
    hs_mask[3:5, 7:9] = False
    on_cpu = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask)
    on_gpu = plain.fuse(method, pair.hs, pair.guide, 4, hs_mask, device="cuda")
    assert relative(on_gpu.image[:, on_cpu.valid], on_cpu.image[:, on_cpu.valid], pair.truth.max()) < 1e-3
