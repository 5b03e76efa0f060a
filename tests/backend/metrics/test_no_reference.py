# SPDX-License-Identifier: GPL-2.0-or-later
"""No-reference indices against closed forms and textbook numpy, with masks, tiles, guides and bad input.

All of them work in float64: 1e-9 relative is rounding. Where an index is a difference of nearly equal numbers
or the rest of a regression, the tolerance is absolute.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.metrics import NO_REFERENCE, NoReferenceSet
from torch.nn.functional import avg_pool2d

KEYS = list(NO_REFERENCE)


def down(image, ratio):
    """Box degradation: for the indices any will do, they are given its result."""
    return avg_pool2d(image[None].double(), ratio)[0].to(image.dtype)


def up(image, ratio):
    return image.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2)


def make(scene, bands=5, rows=40, cols=48, ratio=3, guide_bands=1, seed=0):
    """Return the arguments of `update`, from a simulated truth and an imperfect fusion."""
    fused, truth, _ = scene(bands=bands, rows=rows * ratio, cols=cols * ratio, seed=seed)
    groups = np.array_split(np.arange(bands), guide_bands)
    guide = torch.stack([truth[list(g)].mean(dim=0) for g in groups])
    return {
        "fused": fused,
        "guide": guide,
        "mask": torch.ones(rows * ratio, cols * ratio, dtype=torch.bool),
        "fused_lr": down(fused, ratio),
        "hs": down(truth, ratio),
        "guide_lr": down(guide, ratio),
        "mask_lr": torch.ones(rows, cols, dtype=torch.bool),
    }


def score(inputs, ratio=3, assignment=None, keys=None):
    metrics = NoReferenceSet(ratio, assignment, keys)
    metrics.update(**inputs)
    return metrics.compute()


def punch(inputs, holes, ratio=3, share=0.02):
    """Mask coarse pixels and the fine pixels on them, and some fine ones more."""
    coarse = holes(*inputs["mask_lr"].shape, share=share)
    fine = holes(*inputs["mask"].shape, seed=5, share=0.001)
    both = coarse.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1) & fine
    return {**inputs, "mask": both, "mask_lr": coarse}


def numpy_inputs(inputs):
    return {k: v.double().numpy() if v.is_floating_point() else v.numpy() for k, v in inputs.items()}


def finite(values):
    for key, v in values.items():
        assert (v.value is None) <= bool(v.reason), key
        json.dumps([v.value, *(v.per_band or [])], allow_nan=False)


# ---------------------------------------------------------------- closed forms


def test_pixels_repeated_on_the_fine_grid_have_no_distortion(scene):
    """Q over a block does not change when every pixel is repeated: D_lambda = D_s = 0, also D_lambda_K."""
    inputs = make(scene, rows=45, cols=70)
    inputs["guide"] = up(inputs["guide_lr"], 3)
    inputs["fused"], inputs["fused_lr"] = up(inputs["hs"], 3), inputs["hs"]
    values = score(inputs)
    for key in ("D_lambda", "D_lambda_K", "D_s"):
        assert values[key].value == pytest.approx(0, abs=1e-12), key
    for key in ("QNR", "HQNR"):
        assert values[key].value == pytest.approx(1, abs=1e-12), key


def test_bands_that_are_the_guide(scene):
    inputs = make(scene)
    gains = torch.linspace(0.5, 2, 5)[:, None, None]
    inputs["fused"] = gains * inputs["guide"].double() + 100
    values = score({**inputs, "guide": inputs["guide"].double()})
    assert values["D_rho"].value == pytest.approx(0, abs=1e-9)
    assert values["D_s_R"].value == pytest.approx(0, abs=1e-9)
    inputs["fused"] = 20000 - inputs["fused"]
    values = score({**inputs, "guide": inputs["guide"].double()})
    assert values["D_rho"].value == pytest.approx(2, abs=1e-9)
    assert values["D_s_R"].value == pytest.approx(0, abs=1e-9)


def test_a_guide_of_noise_is_not_explained(scene):
    inputs = make(scene, rows=64, cols=64)
    inputs["guide"] = torch.randn(inputs["guide"].shape, generator=torch.Generator().manual_seed(0)) + 10
    values = score(inputs)
    assert values["D_s_R"].value == pytest.approx(1, abs=5 / (64 * 3) ** 2 * 5)  # bands / pixels by chance
    assert values["D_rho"].value == pytest.approx(1, abs=0.01)


def test_products_are_of_their_parts(scene, holes):
    v = {k: m.value for k, m in score(punch(make(scene), holes)).items()}
    assert v["QNR"] == pytest.approx((1 - v["D_lambda"]) * (1 - v["D_s"]))
    assert v["HQNR"] == pytest.approx((1 - v["D_lambda_K"]) * (1 - v["D_s"]))
    assert v["RQNR"] == pytest.approx((1 - v["D_lambda_K"]) * (1 - v["D_s_R"]))


# ---------------------------------------------------------------- textbook numpy


@pytest.mark.parametrize("with_holes", [False, True])
@pytest.mark.parametrize("ratio, size", [(2, (70, 45)), (3, (40, 48)), (5, (33, 20))])
def test_against_textbook_numpy(scene, naive, holes, ratio, size, with_holes):
    inputs = make(scene, rows=size[0], cols=size[1], ratio=ratio, guide_bands=2)
    if with_holes:
        inputs = punch(inputs, holes, ratio)
    assignment = torch.tensor([0, 0, 1, 1, 0])
    values = score(inputs, ratio, assignment)
    n = numpy_inputs(inputs)
    bands = range(5)

    def coarse_fine(x, y, fine_x, fine_y):
        coarse, weights = naive.q_image(x, y, n["mask_lr"])
        return coarse, naive.q_image(fine_x, fine_y, n["mask"], 32 * ratio, weights)[0]

    pairs = [(i, j) for i in bands for j in bands if i != j]
    differences = [
        np.subtract(*coarse_fine(n["hs"][i], n["hs"][j], n["fused"][i], n["fused"][j])) for i, j in pairs
    ]
    assert values["D_lambda"].value == pytest.approx(np.abs(differences).mean(), rel=1e-9)
    own = [
        np.subtract(*coarse_fine(n["hs"][b], n["guide_lr"][a], n["fused"][b], n["guide"][a]))
        for b, a in enumerate(assignment.tolist())
    ]
    assert values["D_s"].value == pytest.approx(np.abs(own).mean(), rel=1e-9)
    assert values["D_s"].per_band == pytest.approx(np.abs(own), rel=1e-9)
    assert values["D_lambda_K"].value == pytest.approx(
        1 - naive.q2n(n["fused_lr"], n["hs"], n["mask_lr"]), rel=1e-9
    )
    columns = np.stack([*n["fused"][:, n["mask"]], np.ones(n["mask"].sum())], axis=1)
    rests = []
    for guide in n["guide"]:
        p = guide[n["mask"]]
        rests.append(
            ((p - columns @ np.linalg.lstsq(columns, p, rcond=None)[0]) ** 2).sum() / (p.var() * p.size)
        )
    assert values["D_s_R"].value == pytest.approx(np.mean(rests), rel=1e-6)
    rho = [
        naive.d_rho(n["fused"][[b]], n["guide"][a], n["mask"], ratio)
        for b, a in enumerate(assignment.tolist())
    ]
    assert values["D_rho"].per_band == pytest.approx(rho, rel=1e-9)
    assert values["D_rho"].value == pytest.approx(np.mean(rho), rel=1e-9)


def test_many_bands(scene, naive):
    """426 bands: all 90 525 pairs, spot-checked, and Q2n with 512 components."""
    inputs = make(scene, bands=426, rows=9, cols=14, ratio=2)
    values = score(inputs, 2)
    finite(values)
    n = numpy_inputs(inputs)
    assert values["D_lambda_K"].value == pytest.approx(
        1 - naive.q2n(n["fused_lr"], n["hs"], n["mask_lr"]), rel=1e-9
    )
    band = 77
    expected = [
        abs(
            naive.q_block(n["hs"][band].ravel(), n["hs"][j].ravel())
            - naive.q_block(n["fused"][band].ravel(), n["fused"][j].ravel())
        )
        for j in range(426)
        if j != band
    ]
    assert values["D_lambda"].per_band[band] == pytest.approx(np.mean(expected), rel=1e-9)


def test_more_bands_than_pixels_have_no_regression(scene):
    value = score(make(scene, bands=300, rows=8, cols=8, ratio=2), 2)["D_s_R"]
    assert value.value is None and "256 pixels" in value.reason


def test_bands_in_a_subspace_do_not_upset_the_regression(scene):
    """60 bands of rank 3 in float32: the normal matrix is singular but for rounding."""
    inputs = make(scene, bands=3, rows=32, cols=32)
    mix = torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    expected = score(inputs)["D_s_R"].value
    for key in ("fused", "fused_lr", "hs"):
        inputs[key] = torch.einsum("bk,kij->bij", mix, inputs[key])
    assert expected > 1e-4
    assert score(inputs)["D_s_R"].value == pytest.approx(expected, rel=0.01)


# ---------------------------------------------------------------- tiles and masks


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("with_holes", [False, True])
def test_tiled_equals_untiled(scene, holes, ratio, with_holes):
    inputs = make(scene, rows=70, cols=45, ratio=ratio)
    if with_holes:
        inputs = punch(inputs, holes, ratio)
    expected = score(inputs, ratio)
    metrics = NoReferenceSet(ratio)
    halo, step = metrics.halo, 32
    rows, cols = inputs["mask"].shape
    for i in range(0, 70, step):
        for j in range(0, 45, step):
            y, x = i * ratio, j * ratio
            a, b = max(0, y - halo), max(0, x - halo)
            c, d = min(rows, y + step * ratio + halo), min(cols, x + step * ratio + halo)
            tile = {k: inputs[k][..., a:c, b:d] for k in ("fused", "guide", "mask")}
            tile |= {
                k: inputs[k][..., i : i + step, j : j + step]
                for k in ("fused_lr", "hs", "guide_lr", "mask_lr")
            }
            core = (
                slice(y - a, min(rows, y + step * ratio) - a),
                slice(x - b, min(cols, x + step * ratio) - b),
            )
            metrics.update(**tile, core=core)
    values = metrics.compute()
    for key in KEYS:
        assert values[key].value == pytest.approx(expected[key].value, rel=1e-9), key
        if expected[key].per_band:
            assert values[key].per_band == pytest.approx(expected[key].per_band, rel=1e-9), key


def test_slabs_do_not_change_the_values(scene, holes, monkeypatch):
    inputs = punch(make(scene), holes)
    expected = score(inputs)
    monkeypatch.setattr("hypersharp.backend.metrics.joint.CHUNK_VALUES", 6 * 48 * 3 * 7)
    monkeypatch.setattr("hypersharp.backend.metrics.windows.CHUNK_VALUES", 20000)
    for key, value in score(inputs).items():
        assert value.value == pytest.approx(expected[key].value, rel=1e-9), key


@pytest.mark.parametrize("garbage", [0.0, -32768.0, 3e38, float("nan"), float("inf")])
def test_what_lies_under_the_mask_changes_nothing(scene, holes, garbage):
    inputs = punch(make(scene), holes)
    expected = score(inputs)
    for key in ("fused", "guide", "fused_lr", "hs", "guide_lr"):
        mask = inputs["mask" if key in ("fused", "guide") else "mask_lr"]
        spoilt = {**inputs, key: torch.where(mask, inputs[key], torch.tensor(garbage))}
        assert score(spoilt) == expected, key


def test_an_index_alone_equals_the_set(scene, holes):
    inputs = punch(make(scene, guide_bands=2), holes)
    assignment = torch.tensor([0, 1, 1, 0, 1])
    expected = score(inputs, 3, assignment)
    for key, cls in NO_REFERENCE.items():
        metric = cls(3, assignment)
        metric.update(**inputs)
        assert metric.compute().value == pytest.approx(expected[key].value, rel=1e-12), key
        subset = score(inputs, 3, assignment, [key])
        assert list(subset) == [key]
        assert subset[key].value == pytest.approx(expected[key].value, rel=1e-12), key


def test_reset_forgets(scene):
    inputs = make(scene)
    metrics = NoReferenceSet(3)
    metrics.update(**{**inputs, "fused": inputs["fused"] * 2})
    metrics.reset()
    assert all(v.value is None and v.reason for v in metrics.compute().values())
    metrics.update(**inputs)
    assert metrics.compute() == score(inputs)


# ---------------------------------------------------------------- behaviour


def test_values_do_not_depend_on_the_unit(scene):
    inputs = make(scene)
    expected = score(inputs)
    scaled = {k: v * 1e-4 if v.is_floating_point() else v for k, v in inputs.items()}
    for key, value in score(scaled).items():
        assert value.value == pytest.approx(expected[key].value, rel=1e-4), key


def test_spectral_error_shows_in_d_lambda_and_spatial_error_in_d_s(scene):
    inputs = make(scene, rows=64, cols=64)
    _, truth, _ = scene(bands=5, rows=192, cols=192, seed=0)
    inputs |= {"fused": truth, "fused_lr": inputs["hs"]}
    clean = score(inputs)
    assert clean["D_lambda_K"].value == pytest.approx(0, abs=1e-6)
    tilted = truth * torch.linspace(0.7, 1.3, 5)[:, None, None]
    spectral = score({**inputs, "fused": tilted, "fused_lr": down(tilted, 3)})
    assert spectral["D_lambda_K"].value > clean["D_lambda_K"].value + 0.05
    assert spectral["D_lambda"].value > clean["D_lambda"].value + 0.01
    blurred = up(inputs["hs"], 3)
    spatial = score({**inputs, "fused": blurred})
    for key in ("D_s", "D_s_R", "D_rho"):
        assert spatial[key].value > clean[key].value, key


# ---------------------------------------------------------------- bad input


def test_nothing_valid(scene):
    inputs = make(scene)
    for mask, mask_lr in ((False, False), (True, False), (False, True)):
        empty = {**inputs, "mask": inputs["mask"] & mask, "mask_lr": inputs["mask_lr"] & mask_lr}
        values = score(empty)
        finite(values)
        assert values["D_s"].value is None and values["HQNR"].value is None
    values = NoReferenceSet(3).compute()
    finite(values)
    assert all(v.value is None for v in values.values())


def test_a_constant_hs_band_is_left_out_and_named(scene):
    inputs = make(scene)
    good = [0, 1, 3, 4]
    cubes = ("fused", "fused_lr", "hs")
    expected = score({**inputs, **{k: inputs[k][good] for k in cubes}})
    inputs = {**inputs, **{k: inputs[k].clone() for k in cubes}}
    inputs["hs"][2], inputs["fused"][2], inputs["fused_lr"][2] = 5.0, 6.0, 6.0
    values = score(inputs)
    finite(values)
    for key in KEYS:
        # In Q2n the other bands keep their places among the components, which matters a little (as their order).
        rel = 1e-4 if key in ("D_lambda_K", "HQNR", "RQNR") else 1e-9
        assert values[key].value == pytest.approx(expected[key].value, rel=rel), key
        if key != "D_lambda_K":
            assert "band 3 left out" in values[key].reason, key


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["fused", "fused_lr", "hs", "guide", "guide_lr"])
def test_nan_under_valid_pixels(scene, bad, where):
    inputs = make(scene)
    inputs[where] = inputs[where].clone()
    inputs[where][0, 9, 9] = bad
    values = score(inputs)
    finite(values)
    spoilt = {
        "fused": ["D_lambda", "D_s", "D_s_R", "D_rho", "QNR", "HQNR", "RQNR"],
        "fused_lr": ["D_lambda_K", "HQNR", "RQNR"],
        "hs": ["D_lambda_K", "HQNR", "RQNR"],
        "guide": ["D_s", "D_s_R", "D_rho", "QNR", "HQNR", "RQNR"],
        "guide_lr": ["D_s", "QNR", "HQNR"],
    }[where]
    for key in KEYS:
        if key in spoilt:
            assert values[key].value is None and values[key].reason, key
        else:
            assert values[key].value is not None, (key, values[key])
    if where == "hs":
        assert "band 1 left out" in values["D_s"].reason


def test_a_constant_guide(scene):
    inputs = make(scene)
    values = score({**inputs, "guide": torch.full_like(inputs["guide"], 9.0)})
    finite(values)
    assert values["D_rho"].value is None and "guide" in values["D_rho"].reason
    assert values["D_s_R"].value is None and "guide" in values["D_s_R"].reason


def test_a_tiny_scene_is_one_block(scene):
    finite(score(make(scene, rows=9, cols=9)))
    assert score(make(scene, rows=9, cols=9))["HQNR"].value is not None
    values = score(make(scene, rows=5, cols=5))
    finite(values)
    assert values["HQNR"].value is None and "64 valid pixels" in values["HQNR"].reason


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hs": lambda t: t[:-1]}, "bands"),
        ({"mask": lambda t: t[:-1]}, "mask"),
        ({"mask_lr": lambda t: t.float()}, "mask"),
        ({"guide_lr": lambda t: torch.cat([t, t])}, "guide"),
        ({"fused_lr": lambda t: t[:, 1:], "hs": lambda t: t[:, 1:], "guide_lr": lambda t: t[:, 1:],
          "mask_lr": lambda t: t[1:]}, "coarse"),
        ({"fused": lambda t: t.to(torch.int16)}, "int16"),
    ],
)  # fmt: skip
def test_input_that_does_not_fit_is_refused(scene, change, words):
    inputs = make(scene)
    for key, edit in change.items():
        inputs[key] = edit(inputs[key])
    with pytest.raises(HyperSharpError, match=words):
        score(inputs)


def test_a_guide_of_several_bands_wants_an_assignment(scene):
    inputs = make(scene, guide_bands=2)
    with pytest.raises(HyperSharpError, match="assignment"):
        score(inputs)
    with pytest.raises(HyperSharpError, match="assignment"):
        score(inputs, 3, torch.tensor([0, 1, 2, 0, 0]))
    with pytest.raises(HyperSharpError, match="ratio"):
        NoReferenceSet(1)


def test_every_value_is_in_its_range(scene):
    for seed in range(3):
        values = score(make(scene, seed=seed))
        for key in KEYS:
            assert math.isfinite(values[key].value)
            assert -1e-12 <= values[key].value <= (2 if key.startswith("D_") else 1), key


@pytest.mark.gpu
def test_cuda_equals_cpu(scene, holes):
    inputs = punch(make(scene), holes)
    expected = score(inputs)
    values = score({k: v.cuda() for k, v in inputs.items()})
    for key in KEYS:
        assert values[key].value == pytest.approx(expected[key].value, rel=1e-7), key
