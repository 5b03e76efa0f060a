# SPDX-License-Identifier: GPL-2.0-or-later
"""Every index: tiled equals untiled, masked pixels leave no trace, and bad input gives a reason, never NaN.

Tiled sums differ from untiled ones only in the order of float64 additions (1e-9 is rounding). SAM adds a pixel's
bands in float32, in an order that may depend on the tile's width: 1e-7.
"""

import json
import math

import pytest
import torch
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.metrics import (
    FULL_REFERENCE,
    NO_REFERENCE,
    FullReferenceSet,
    MetricValue,
    NoReferenceSet,
    describe,
    reference_range,
)

CONTRACT = {
    "full": ["PSNR", "SAM", "ERGAS", "RMSE", "CC", "SSIM", "UIQI", "Q2n", "SCC"],
    "none": ["D_lambda", "D_lambda_K", "D_s", "D_s_R", "D_rho", "QNR", "HQNR", "RQNR"],
}


def full(fused, reference, mask, keys=None):
    metrics = FullReferenceSet(4, keys)
    metrics.update(fused, reference, mask)
    return metrics.compute()


def tiled(fused, reference, mask, side, data_range, halo=5):
    """The same by tiles of `side` with context, as the assessment reads them."""
    metrics = FullReferenceSet(4, data_range=data_range)
    assert metrics.halo == halo
    rows, cols = mask.shape
    for i in range(0, rows, side):
        for j in range(0, cols, side):
            a, b = max(0, i - halo), max(0, j - halo)
            c, d = min(rows, i + side + halo), min(cols, j + side + halo)
            core = (slice(i - a, min(rows, i + side) - a), slice(j - b, min(cols, j + side) - b))
            metrics.update(fused[:, a:c, b:d], reference[:, a:c, b:d], mask[a:c, b:d], core)
    return metrics.compute()


def same(one, other, rel=1e-9):
    assert one.keys() == other.keys()
    for key in one:
        if one[key].value is None:
            assert other[key] == one[key], key
            continue
        tolerance = max(rel, 1e-7) if key == "SAM" else rel
        assert other[key].value == pytest.approx(one[key].value, rel=tolerance), key
        assert other[key].reason == one[key].reason, key
        if one[key].per_band is not None:
            for a, b in zip(one[key].per_band, other[key].per_band):
                assert (a is None) == (b is None) and (a is None or b == pytest.approx(a, rel=1e-6)), key


# ---------------------------------------------------------------- the interface


def test_the_keys_are_those_of_metrics_json():
    assert list(FULL_REFERENCE) == CONTRACT["full"]
    assert list(NO_REFERENCE) == CONTRACT["none"]
    infos = describe()
    assert [info.key for info in infos] == CONTRACT["full"] + CONTRACT["none"]
    for info in infos:
        assert info.better in ("higher", "lower")
        assert info.variant and info.range and info.source
        assert "\n" not in info.variant
    assert [info.key for info in infos if info.full_reference] == CONTRACT["full"]


def test_unknown_index():
    with pytest.raises(HyperSharpError, match="unknown index FOO"):
        FullReferenceSet(4, ["PSNR", "FOO"])
    with pytest.raises(HyperSharpError, match="unknown index PSNR"):
        NoReferenceSet(4, keys=["PSNR"])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f, r, m: (f[:, :-1], r, m), "differ in size"),
        (lambda f, r, m: (f[:-1], r, m), "differ in size"),
        (lambda f, r, m: (f, r, m[:-1]), "mask"),
        (lambda f, r, m: (f, r, m.to(torch.uint8)), "mask"),
        (lambda f, r, m: (f.to(torch.int16), r.to(torch.int16), m), "int16"),
        (lambda f, r, m: (f[0], r[0], m), r"give|\[50, 75\]"),
        (lambda f, r, m: (f[:0], r[:0], m), r"\[0, 50, 75\]"),
    ],
)
@pytest.mark.parametrize("key", CONTRACT["full"])
def test_input_that_does_not_fit_is_refused(scene, key, change, words):
    metric = FullReferenceSet(4, [key]).metrics[key]
    with pytest.raises(HyperSharpError, match=words) as error:
        metric.update(*change(*scene()))
    assert error.value.hint


def test_reset_forgets(scene):
    fused, reference, mask = scene()
    metrics = FullReferenceSet(4)
    metrics.update(fused + 500, reference, mask)
    metrics.reset()
    assert all(v.value is None and v.reason for v in metrics.compute().values())
    metrics.update(fused, reference, mask)
    same(full(fused, reference, mask), metrics.compute())


def test_an_index_alone_equals_the_set(scene, holes):
    fused, reference, _ = scene()
    mask = holes(50, 75)
    values = full(fused, reference, mask)
    for key, metric in FullReferenceSet(4).metrics.items():
        metric.update(fused, reference, mask)
        same({key: values[key]}, {key: metric.compute()})


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("size", [(64, 96), (70, 91), (33, 130), (31, 20)])
@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("with_holes", [False, True])
def test_tiled_equals_untiled(scene, holes, size, side, with_holes):
    fused, reference, mask = scene(bands=5, rows=size[0], cols=size[1])
    if with_holes:
        mask = holes(*size, share=0.002)
    data_range = None
    for i in range(0, size[0], side):
        rows = slice(i, i + side)
        data_range = reference_range(reference[:, rows], mask[rows], data_range)
    same(full(fused, reference, mask), tiled(fused, reference, mask, side, data_range))


def test_chunks_do_not_change_the_values(scene, monkeypatch):
    fused, reference, mask = scene(bands=20, rows=100, cols=140)
    expected = full(fused, reference, mask)
    monkeypatch.setattr("hypersharp.backend.metrics.base.CHUNK_VALUES", 20 * 32 * 32)
    monkeypatch.setattr("hypersharp.backend.metrics.windows.CHUNK_VALUES", 30000)
    same(expected, full(fused, reference, mask))


def test_ssim_of_several_tiles_wants_the_range_first(scene):
    fused, reference, mask = scene(rows=64, cols=64)
    metrics = FullReferenceSet(4, ["SSIM"])
    for rows in (slice(0, 32), slice(32, 64)):
        metrics.update(fused[:, rows], reference[:, rows], mask[rows])
    value = metrics.compute()["SSIM"]
    assert value.value is None and "range" in value.reason


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("garbage", [0.0, -32768.0, 3e38, float("nan"), float("inf")])
def test_what_lies_under_the_mask_changes_nothing(scene, holes, garbage):
    fused, reference, _ = scene(bands=5, rows=70, cols=91)
    mask = holes(70, 91, share=0.005)
    expected = full(fused, reference, mask)
    assert all(v.value is not None for v in expected.values())
    spoilt = [torch.where(mask, image, torch.tensor(garbage)) for image in (fused, reference)]
    assert full(spoilt[0], reference, mask) == expected
    assert full(fused, spoilt[1], mask) == expected
    assert full(*spoilt, mask) == expected


@pytest.mark.parametrize("key", ["PSNR", "SAM", "ERGAS", "RMSE", "CC"])
def test_pointwise_indices_of_a_masked_scene_are_those_of_the_valid_pixels(scene, holes, key):
    fused, reference, _ = scene(rows=70, cols=91)
    mask = holes(70, 91, share=0.2)
    alone = [image[:, mask][:, None] for image in (fused, reference)]
    expected = full(*alone, torch.ones(alone[0].shape[1:], dtype=torch.bool), [key])
    same(expected, full(fused, reference, mask, [key]))


def test_mask_of_the_right_half_is_the_left_half(scene):
    """Also for windows and blocks: a masked border is the image's border."""
    fused, reference, mask = scene(rows=64, cols=128)
    mask[:, 64:] = False
    expected = full(fused[:, :, :64], reference[:, :, :64], mask[:, :64])
    same(expected, full(fused, reference, mask))


# ---------------------------------------------------------------- bad input


def finite(values):
    """Every number is finite, and what has none says why; JSON would refuse NaN."""
    for key, v in values.items():
        assert isinstance(v, MetricValue)
        assert (v.value is None) <= bool(v.reason), key
        numbers = [v.value, *(v.per_band or [])]
        assert all(n is None or math.isfinite(n) for n in numbers), key
        json.dumps(numbers, allow_nan=False)


def test_nothing_valid(scene):
    fused, reference, mask = scene()
    values = full(fused, reference, torch.zeros_like(mask))
    finite(values)
    assert all(v.value is None for v in values.values())
    values = FullReferenceSet(4).compute()
    finite(values)
    assert all(v.value is None and "no valid pixel" in v.reason for v in values.values())


def test_one_valid_pixel(scene):
    fused, reference, mask = scene()
    mask[:] = False
    mask[20, 30] = True
    values = full(fused, reference, mask)
    finite(values)
    assert values["SAM"].value is not None


@pytest.mark.parametrize("level", [0.0, 1234.5, -7.0])
def test_a_constant_reference_band_is_left_out_and_named(scene, level):
    fused, reference, mask = scene(bands=6, rows=64, cols=64)
    good = [i for i in range(6) if i != 2]
    reference[2] = level
    fused[2] = level + 3
    values = full(fused, reference, mask)
    finite(values)
    expected = full(fused[good], reference[good], mask)
    for key in ("PSNR", "ERGAS", "RMSE", "CC", "SSIM", "UIQI", "SCC"):
        assert values[key].value == pytest.approx(expected[key].value, rel=1e-9), key
        assert "band 3 left out" in values[key].reason, key
        assert values[key].per_band[2] is None, key
    assert values["SAM"].value is not None and values["Q2n"].value is not None


def test_every_band_constant(scene):
    fused, reference, mask = scene()
    values = full(fused, torch.full_like(reference, 5.0), mask)
    finite(values)
    for key in set(CONTRACT["full"]) - {"SAM"}:
        assert values[key].value is None, key
    assert values["SAM"].value > 0


def test_a_constant_fused_band_lowers_the_score_and_is_named(scene):
    fused, reference, mask = scene(rows=64, cols=64)
    before = full(fused, reference, mask)
    fused[1] = 4000.0
    values = full(fused, reference, mask)
    finite(values)
    for key in ("CC", "SCC"):
        assert values[key].per_band[1] == 0 and "band 2" in values[key].reason
    for key in CONTRACT["full"]:
        better = before[key].value < values[key].value
        assert better == (FULL_REFERENCE[key].better == "lower"), key


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_under_valid_pixels_of_the_fused_image_gives_no_value(scene, bad):
    fused, reference, mask = scene(rows=64, cols=64)
    fused[1, 20, 20] = bad
    values = full(fused, reference, mask)
    finite(values)
    for key in CONTRACT["full"]:
        assert values[key].value is None and "NaN" in values[key].reason, key
        if values[key].per_band:
            assert "band 2" in values[key].reason and values[key].per_band[0] is not None, key


def test_nan_in_the_reference_leaves_the_band_out(scene):
    fused, reference, mask = scene(bands=4, rows=64, cols=64)
    reference[3, 10, 10] = float("nan")
    values = full(fused, reference, mask)
    finite(values)
    expected = full(fused[:3], reference[:3], mask)
    for key in ("PSNR", "ERGAS", "RMSE", "CC", "SSIM", "UIQI", "SCC"):
        assert values[key].value == pytest.approx(expected[key].value, rel=1e-9), key
        assert "band 4 left out" in values[key].reason
    for key in ("SAM", "Q2n"):  # these need every band
        assert values[key].value is None and "NaN" in values[key].reason


def test_a_band_of_mean_zero_has_no_ergas(scene):
    fused, reference, mask = scene(bands=4, rows=64, cols=64)
    reference = reference.double()
    reference[1] -= reference[1].mean()
    fused = fused.double()
    values = full(fused, reference, mask, ["ERGAS"])["ERGAS"]
    keep = [0, 2, 3]
    assert values.value == pytest.approx(full(fused[keep], reference[keep], mask, ["ERGAS"])["ERGAS"].value)
    assert "band 2 left out: mean 0" in values.reason


def test_negative_values(scene):
    fused, reference, mask = scene(rows=64, cols=64)
    values = full(-fused, -reference, mask)
    finite(values)
    assert values["PSNR"].value is None and "no positive peak" in values["PSNR"].reason
    positive = full(fused, reference, mask)
    for key in ("SAM", "RMSE", "ERGAS", "CC"):
        assert values[key].value == pytest.approx(positive[key].value, rel=1e-9), key


def test_zero_spectra_are_left_out_of_sam(scene):
    fused, reference, mask = scene(rows=64, cols=64)
    expected = full(fused[:, :32], reference[:, :32], mask[:32], ["SAM"])["SAM"].value
    reference[:, 32:48], fused[:, 48:] = 0, 0
    value = full(fused, reference, mask, ["SAM"])["SAM"]
    assert value.value == pytest.approx(expected, rel=1e-9)
    assert "2048 pixels with a zero spectrum" in value.reason


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (10, 40), (11, 11)])
def test_tiny_images(scene, size):
    fused, reference, mask = scene(rows=size[0], cols=size[1])
    values = full(fused, reference, mask)
    finite(values)
    assert (values["SSIM"].value is None) == (min(size) < 11)


def test_one_band(scene):
    values = full(*scene(bands=1, rows=64, cols=64))
    finite(values)
    assert values["SAM"].value == pytest.approx(0, abs=1e-5)
    assert values["Q2n"].value is not None


def test_huge_and_tiny_units(scene):
    fused, reference, mask = scene(rows=64, cols=64, scale=1.0)
    base = full(fused, reference, mask)
    for unit in (1e-12, 1e12, 1e30):
        values = full(fused * unit, reference * unit, mask)
        finite(values)
        for key in CONTRACT["full"]:
            expected = base[key].value * (unit if key == "RMSE" else 1)
            assert values[key].value == pytest.approx(expected, rel=1e-4), (key, unit)


@pytest.mark.gpu
def test_cuda_equals_cpu(scene, holes):
    fused, reference, _ = scene(bands=31, rows=70, cols=91)
    mask = holes(70, 91, share=0.002)
    same(
        full(fused, reference, mask),
        full(fused.cuda(), reference.cuda(), mask.cuda()),
        rel=1e-5,  # float32 filters and angles add in another order there
    )
