"""The main job on files: real pairs, holes, bad input, cancel, memory, reproducibility."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypersharp.backend import assess, fuse
from hypersharp.backend import pipeline as engine
from hypersharp.backend.control import Control
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.backend.job import DEFAULT_METHOD
from hypersharp.backend.registry import METHODS
from hypothesis import given, settings
from hypothesis import strategies as st

FINE = Affine(10.0, 0.0, 450000.0, 0.0, -10.0, 5400000.0)
FIRST_METHODS = ("bicubic", "brovey", "gsa", "sfim", "mtf-glp-hpm")


def pair(data, hs, guide):
    return str(data / "pairs" / f"{hs}.tif"), str(data / "pairs" / f"{guide}.tif")


@pytest.fixture
def paris(data):
    return pair(data, "paris_hyperion_hs_30m", "paris_ali_pan_10m")


@pytest.fixture
def berlin(data):
    return pair(data, "berlin_enmapsim_hs_30m", "berlin_hymap_msi_3p6m")


@pytest.fixture
def harvard(data):
    return pair(data, "harvard_forest_neon_hs_1m", "harvard_forest_neon_rgb_0p1m")


# ------------------------------------------------------------------ real pairs


@pytest.mark.parametrize("method", FIRST_METHODS)
def test_paris(paris, tmp_path, method):
    """The grid is the guide's, the HS image comes back when the result is degraded, indices beat the control."""
    out = tmp_path / "fused.tif"
    result = fuse(*paris, out, method=method)
    with rasterio.open(out) as fused, rasterio.open(paris[1]) as guide, rasterio.open(paris[0]) as hs:
        assert (fused.transform, fused.shape, fused.crs) == (guide.transform, guide.shape, guide.crs)
        assert fused.count == hs.count
        image, coarse = fused.read(), hs.read()
    block = image.reshape(128, 72, 3, 58, 3).mean(axis=(2, 4))
    # Block means of the fused image are close to the HS values, and there is no radiometric shift.
    assert np.abs(block - coarse).mean() < 0.06 * coarse.mean()
    assert abs((block - coarse).mean()) < 0.002 * coarse.mean()
    reduced = result.metrics["reduced_resolution"]
    assert result.metrics["ratio"] == 3
    if method != "bicubic":
        assert reduced["fused"]["PSNR"] > reduced["interpolated"]["PSNR"] + 1
        assert reduced["fused"]["SAM"] < reduced["interpolated"]["SAM"]


def test_the_reduced_pair_says_nothing_of_its_own(paris, tmp_path):
    """A shift of the pair is said once, in the pair's own pixels."""
    result = fuse(*paris, tmp_path / "fused.tif", method="lmmse")
    assert sum("off the HS image" in w for w in result.warnings) == 1


def test_berlin_is_resampled_once_to_ratio_8(berlin, tmp_path):
    out = tmp_path / "fused.tif"
    result = fuse(*berlin, out)
    assert result.metrics["inputs"]["grid"]["ratio"] == 8
    assert result.metrics["inputs"]["grid"]["resampled"] is True
    assert any("resampled" in w for w in result.warnings)
    with rasterio.open(out) as fused, rasterio.open(berlin[1]) as guide, rasterio.open(berlin[0]) as hs:
        assert fused.nodata == hs.nodata == -99
        col, row = ~guide.transform * (fused.transform * (0, 0))
        assert abs(col - round(col)) < 1e-6 and abs(row - round(row)) < 1e-6
        # The common area: everything inside both bounds.
        assert fused.bounds.right <= min(guide.bounds.right, hs.bounds.right) + 1.8
        assert fused.bounds.right >= min(guide.bounds.right, hs.bounds.right) - 1.8
        valid = fused.read(20) != -99
        assert valid.mean() > 0.9
    assert result.metrics["reduced_resolution"]["fused"]["PSNR"] > 25


def test_harvard_forest_ratio_10_and_clipped_bands(harvard, tmp_path):
    result = fuse(*harvard, tmp_path / "fused.tif", assess=False)
    assert result.metrics["inputs"]["grid"]["ratio"] == 10
    clipped = result.metrics["bands"]["clipped"]
    assert {292, 296, 300} <= set(clipped) and len(clipped) < 60
    with rasterio.open(tmp_path / "fused.tif") as fused, rasterio.open(harvard[0]) as hs:
        assert fused.shape == (400, 400) and fused.dtypes[0] == "int16"
        # A clipped band is interpolated: its block means are those of cubic interpolation, not of the guide.
        block = fused.read(296).reshape(40, 10, 40, 10).mean(axis=(1, 3))
        assert np.corrcoef(block.ravel(), hs.read(296).ravel())[0, 1] > 0.95


def test_enmap_potsdam_nodata(data, tmp_path, make_raster):
    """A quarter of the area is nodata and six bands are empty: both come out as they went in."""
    cube = str(data / "cubes" / "enmap_potsdam.tif")
    with rasterio.open(cube) as hs:
        transform, crs, image = hs.transform, hs.crs, hs.read()
        assert hs.nodata == -32768
    rng = np.random.default_rng(0)
    valid = image[0] != -32768
    base = np.where(valid, image[40:60].mean(axis=0), 1000).astype("float32")
    pan = np.kron(base, np.ones((2, 2), "float32")) + rng.normal(0, 30, (256, 256))
    guide = make_raster(
        "pan.tif", pan[None].astype("float32"), transform=transform * Affine.scale(0.5), crs=crs
    )
    result = fuse(cube, guide, tmp_path / "o.tif")
    assert len(result.metrics["bands"]["empty"]) == 6
    with rasterio.open(tmp_path / "o.tif") as fused:
        out = fused.read()
    expected = np.kron(valid, np.ones((2, 2), bool))
    np.testing.assert_array_equal(out[10] != -32768, expected)
    for band in result.metrics["bands"]["empty"]:
        assert (out[band - 1] == -32768).all()
    good = [b for b in range(224) if b + 1 not in result.metrics["bands"]["empty"]]
    # No -32768 leaked into a filter: valid values stay near the input's range.
    assert out[good][:, expected].min() > image[good][:, valid].min() - 3000
    assert all(v is None or np.isfinite(v) for v in result.metrics["full_resolution"]["fused"].values())
    assert result.metrics["reduced_resolution"]["fused"]["PSNR"] is not None


def test_the_rotated_aviris_grid(data, tmp_path, make_raster):
    cube = str(data / "cubes" / "aviris_rotated_grid.tif")
    with rasterio.open(cube) as hs:
        transform, crs, image = hs.transform, hs.crs, hs.read(masked=True)
    pan = np.kron(image[20:60].mean(axis=0).filled(0), np.ones((4, 4)))[None].astype("float32")
    guide = make_raster("pan.tif", pan, transform=transform * Affine.scale(0.25), crs=crs)
    fuse(cube, guide, tmp_path / "o.tif", assess=False)
    with rasterio.open(tmp_path / "o.tif") as fused:
        assert fused.shape == (200, 200)
        assert fused.transform.almost_equals(transform * Affine.scale(0.25), 1e-6)
        assert fused.transform.b != 0


# ------------------------------------------------------------------ properties


def test_tiles_do_not_show_in_the_file(pair_files, tmp_path):
    hs, guide, _ = pair_files(bands=7, rows=70, cols=75, ratio=4, dtype="float32")
    for side in (64, 100, 1000):
        fuse(hs, guide, tmp_path / f"{side}.tif", tile=side, assess=False)
    images = [rasterio.open(tmp_path / f"{s}.tif").read() for s in (64, 100, 1000)]
    np.testing.assert_allclose(images[0], images[2], rtol=2e-5, atol=0.05)
    np.testing.assert_allclose(images[1], images[2], rtol=2e-5, atol=0.05)


def test_the_same_job_gives_the_same_file(pair_files, tmp_path):
    hs, guide, _ = pair_files()
    results = [fuse(hs, guide, tmp_path / f"{i}.tif", method="mtf-glp-hpm") for i in (0, 1)]
    first, second = (rasterio.open(tmp_path / f"{i}.tif").read() for i in (0, 1))
    np.testing.assert_array_equal(first, second)
    for section in ("reduced_resolution", "full_resolution", "per_band"):
        assert results[0].metrics[section] == results[1].metrics[section]


def test_an_extent_is_a_cut_of_the_whole_grid(pair_files, tmp_path):
    hs, guide, _ = pair_files(rows=60, cols=60)
    extent = (450403.0, 5398703.0, 451204.0, 5399501.0)
    fuse(hs, guide, tmp_path / "o.tif", extent=extent, assess=False)
    with rasterio.open(tmp_path / "o.tif") as fused:
        assert fused.bounds == (450400.0, 5398700.0, 451210.0, 5399510.0)
        np.testing.assert_allclose((~FINE * (fused.transform * (0, 0)))[0] % 1, 0, atol=1e-9)


def test_constant_and_empty_bands_pass_through(pair_files, tmp_path):
    hs, guide, _ = pair_files(bands=8, nodata=0)
    with rasterio.open(hs, "r+") as dataset:
        dataset.write(np.full(dataset.shape, 777, "uint16"), 3)
        dataset.write(np.zeros(dataset.shape, "uint16"), 6)
    result = fuse(hs, guide, tmp_path / "o.tif")
    assert result.metrics["bands"]["constant"] == [3]
    assert result.metrics["bands"]["empty"] == [6]
    assert any("band 3" in w for w in result.warnings) and any("band 6" in w for w in result.warnings)
    with rasterio.open(tmp_path / "o.tif") as fused:
        assert (fused.read(3) == 777).all()
        assert (fused.read(6) == 0).all()
    for column in result.metrics["reduced_resolution"].values():
        assert all(v is not None and np.isfinite(v) for v in column.values())
    assert len(result.metrics["per_band"]["PSNR"]) == 6


def test_metrics_json_and_report(pair_files, tmp_path):
    """The contract's keys; numbers or null, never NaN; the report needs no network."""
    hs, guide, _ = pair_files(rows=64, cols=64)
    result = fuse(
        hs, guide, tmp_path / "o.tif", report=str(tmp_path / "r.html"), metrics=str(tmp_path / "m.json")
    )
    metrics = json.loads((tmp_path / "m.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    for key in ("method", "weights", "ratio", "device", "seconds", "versions", "parameters", "warnings"):
        assert key in metrics
    for section, keys in (
        ("reduced_resolution", "PSNR SAM ERGAS RMSE CC SSIM UIQI Q2n"),
        ("full_resolution", "D_lambda D_lambda_K D_s D_s_R D_rho QNR HQNR RQNR"),
    ):
        for column in ("fused", "interpolated"):
            assert set(keys.split()) <= set(metrics[section][column])
    assert len(metrics["per_band"]["wavelength_nm"]) == len(metrics["per_band"]["CC"]) == 8
    page = (tmp_path / "r.html").read_text()
    assert METHODS[DEFAULT_METHOD].title.split(" ")[0] in page and "data:image/png;base64," in page
    for needs_network in ('src="http', 'href="http://', "<script src", "@import"):
        assert needs_network not in page
    assert set(result.outputs) == {"OUTPUT", "REPORT", "METRICS", "METRICS_CSV"}


def test_assess_gives_what_fuse_gave(pair_files, tmp_path):
    hs, guide, _ = pair_files(rows=64, cols=64, dtype="float32")
    fused = fuse(hs, guide, tmp_path / "o.tif").metrics
    again = assess(tmp_path / "o.tif", hs, guide).metrics
    assert again["method"] == DEFAULT_METHOD
    for section in ("reduced_resolution", "full_resolution"):
        for column in ("fused", "interpolated"):
            assert again[section][column] == pytest.approx(fused[section][column], rel=1e-6)


def test_assess_with_the_truth_and_without_a_known_method(pair_files, make_raster, tmp_path):
    hs, guide, truth = pair_files(rows=48, cols=48, dtype="float32")
    stranger = make_raster("stranger.tif", truth.astype("float32"))
    reference = make_raster("truth.tif", truth.astype("float32"))
    metrics = assess(stranger, hs, guide, reference=reference).metrics
    assert metrics["reduced_resolution"] is None
    assert "method" in metrics["reasons"]["reduced_resolution"]
    assert metrics["reference"]["fused"]["SAM"] == pytest.approx(0, abs=1e-3)
    assert metrics["reference"]["interpolated"]["PSNR"] < 60
    # Degrading the truth gives the HS image: no spectral distortion beyond float32 and 32-pixel blocks.
    assert metrics["full_resolution"]["fused"]["D_lambda_K"] < 1e-3


def test_assess_aligns_another_grid(pair_files, make_raster):
    hs, guide, truth = pair_files(rows=48, cols=48, dtype="float32")
    shifted = make_raster("s.tif", truth.astype("float32"), transform=FINE * Affine.translation(0.4, 0.3))
    result = assess(shifted, hs, guide)
    assert any("resampled" in w for w in result.warnings)
    assert result.metrics["full_resolution"]["fused"]["HQNR"] is not None


def test_assess_refuses_other_bands(pair_files, make_raster):
    hs, guide, truth = pair_files(rows=48, cols=48, dtype="float32")
    fewer = make_raster("f.tif", truth[:5].astype("float32"))
    with pytest.raises(HyperSharpError, match="5 bands"):
        assess(fewer, hs, guide)


# ------------------------------------------------------------------ cancel, memory


def test_cancel_leaves_nothing(pair_files, tmp_path):
    hs, guide, _ = pair_files(rows=70, cols=70)
    for stage in ("learning", "fusing", "assessing"):
        seen = []

        def cancelled(seen=seen, stage=stage):
            return any(getattr(m, "stage", "") == stage for m in seen)

        with pytest.raises(Cancelled):
            fuse(hs, guide, tmp_path / "o.tif", tile=64, control=Control(seen.append, cancelled))
        assert not any(getattr(m, "stage", "") == "report" for m in seen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["guide.tif", "hs.tif"]


def test_an_old_result_survives_a_cancelled_run(pair_files, tmp_path):
    hs, guide, _ = pair_files()
    out = tmp_path / "o.tif"
    out.write_bytes(b"old")
    with pytest.raises(Cancelled):
        fuse(hs, guide, out, control=Control(is_cancelled=lambda: True))
    assert out.read_bytes() == b"old"


def test_out_of_memory_halves_the_tile_and_says_so(pair_files, tmp_path, monkeypatch):
    hs, guide, _ = pair_files(rows=64, cols=64, dtype="float32")
    fuse(hs, guide, tmp_path / "plain.tif", assess=False)
    real = engine.fuse_bands

    def small_only(pair, method, rows, cols):
        if rows[1] - rows[0] > 130:
            raise MemoryError
        return real(pair, method, rows, cols)

    monkeypatch.setattr(engine, "fuse_bands", small_only)
    result = fuse(hs, guide, tmp_path / "o.tif", assess=False)
    assert any("halved" in w for w in result.warnings)
    np.testing.assert_allclose(
        rasterio.open(tmp_path / "o.tif").read(), rasterio.open(tmp_path / "plain.tif").read(), atol=0.05
    )


def test_memory_that_never_suffices_is_an_error(pair_files, tmp_path, monkeypatch):
    hs, guide, _ = pair_files()

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "fuse_bands", never)
    with pytest.raises(HyperSharpError) as caught:
        fuse(hs, guide, tmp_path / "o.tif", assess=False)
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY and caught.value.exit_code == 4
    assert not list(tmp_path.glob("o*"))


# ------------------------------------------------------------------ bad input


def bad_inputs():
    """Return name -> function (hs, guide, folder, make_raster) -> arguments of fuse."""
    image = np.arange(5 * 16 * 16, dtype="uint16").reshape(5, 16, 16)
    coarse = FINE * Affine.scale(4)

    def not_a_raster(h, g, f, m):
        (f / "text.tif").write_text("hello")
        return {"hs": f / "text.tif"}

    def truncated(h, g, f, m):
        whole = m(
            "whole.tif",
            np.random.default_rng(0).integers(0, 4000, (8, 300, 300)).astype("uint16"),
            transform=coarse,
        )
        content = Path(whole).read_bytes()
        (f / "cut.tif").write_bytes(content[: len(content) // 2])
        return {"hs": f / "cut.tif"}

    def complex_values(h, g, f, m):
        return {"hs": m("c.tif", image.astype("complex64"), transform=coarse)}

    def all_nodata(h, g, f, m):
        return {"hs": m("n.tif", np.full((5, 16, 16), 9, "uint16"), transform=coarse, nodata=9)}

    def guide_nodata(h, g, f, m):
        return {"guide": m("n.tif", np.full((1, 160, 144), 9, "uint16"), nodata=9)}

    def same_twice(h, g, f, m):
        return {"hs": g, "guide": g}

    def same_by_link(h, g, f, m):
        os.symlink(h, f / "link.tif")
        return {"guide": f / "link.tif"}

    def rgb_as_hs(h, g, f, m):
        return {"hs": m("rgb.tif", image[:3], transform=coarse)}

    def more_guide_bands(h, g, f, m):
        return {"guide": m("many.tif", np.ones((30, 160, 144), "uint16"))}

    def empty_file(h, g, f, m):
        (f / "empty.tif").write_bytes(b"")
        return {"guide": f / "empty.tif"}

    def output_is_input(h, g, f, m):
        return {"output": h}

    def output_is_linked_input(h, g, f, m):
        os.symlink(g, f / "o.tif")
        return {"output": f / "o.tif"}

    def no_folder(h, g, f, m):
        return {"output": f / "nowhere" / "o.tif"}

    def folder_is_a_file(h, g, f, m):
        (f / "file").write_text("x")
        return {"output": f / "file" / "o.tif"}

    def output_is_a_folder(h, g, f, m):
        (f / "o.tif").mkdir()
        return {"output": f / "o.tif"}

    def coarser_guide(h, g, f, m):
        return {"guide": m("big.tif", image[:1], transform=FINE * Affine.scale(8))}

    def elsewhere(h, g, f, m):
        return {"guide": m("away.tif", image[:1], transform=Affine(10, 0, 900000, 0, -10, 100000))}

    return {
        "missing file": (lambda h, g, f, m: {"hs": f / "none.tif"}, "not found", "bad_input"),
        "missing guide": (lambda h, g, f, m: {"guide": f / "none.tif"}, "guide not found", "bad_input"),
        "not a raster": (not_a_raster, "not a raster", "bad_input"),
        "empty file": (empty_file, "not a raster", "bad_input"),
        "truncated": (truncated, "truncated|not a raster", "bad_input"),
        "complex": (complex_values, "complex", "bad_input"),
        "all nodata": (all_nodata, "no valid pixel", "bad_input"),
        "guide all nodata": (guide_nodata, "no pixel is valid", "bad_input"),
        "same twice": (same_twice, "same file", "bad_input"),
        "same by link": (same_by_link, "same file", "bad_input"),
        "rgb as hs": (rgb_as_hs, "only 3 bands", "bad_input"),
        "more guide bands": (more_guide_bands, "more bands", "bad_input"),
        "coarser guide": (coarser_guide, "not finer", "bad_input"),
        "elsewhere": (elsewhere, "do not overlap", "no_overlap"),
        "unknown method": (lambda h, g, f, m: {"method": "gssa"}, "unknown method", "unknown_method"),
        "unknown option": (lambda h, g, f, m: {"parameters": {"x": 1}}, "unknown method option", "usage"),
        "weights for a classical": (lambda h, g, f, m: {"weights": "w"}, "no weights", "usage"),
        "extent outside": (lambda h, g, f, m: {"extent": (0.0, 0.0, 9.0, 9.0)}, "outside", "no_overlap"),
        "extent inside out": (lambda h, g, f, m: {"extent": (9.0, 0.0, 0.0, 9.0)}, "empty", "bad_input"),
        "extent crs": (
            lambda h, g, f, m: {"extent": (0.0, 0.0, 9.0, 9.0), "extent_crs": "EPSG:0"},
            "CRS is not known",
            "bad_input",
        ),
        "output is input": (output_is_input, "one of the inputs", "output"),
        "output is linked input": (output_is_linked_input, "one of the inputs", "output"),
        "no output folder": (no_folder, "does not exist", "output"),
        "output below a file": (folder_is_a_file, "does not exist", "output"),
        "output is a folder": (output_is_a_folder, "cannot be written", "output"),
        "not a tif": (lambda h, g, f, m: {"output": f / "o.png"}, "GeoTIFF", "output"),
        "report nowhere": (lambda h, g, f, m: {"report": str(f / "no" / "r.html")}, "cannot write", "output"),
        "bad mtf": (lambda h, g, f, m: {"mtf_hs": 1.5}, "MTF gain", "bad_input"),
        "bad memory": (lambda h, g, f, m: {"memory_gb": 0}, "memory bound", "usage"),
        "tiny tile": (lambda h, g, f, m: {"tile": 3}, "too small", "usage"),
        "bad device": (lambda h, g, f, m: {"device": "tpu"}, "unknown device", "usage"),
        "service": (lambda h, g, f, m: {"guide": "type=xyz&url=x"}, "service", "bad_input"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input(name, pair_files, make_raster, tmp_path):
    """One line that says what is wrong, one that says what to do; the inputs and the folder stay as they were."""
    hs, guide, _ = pair_files(rows=40, cols=36)
    change, message, code = bad_inputs()[name]
    arguments = {"hs": hs, "guide": guide, "output": tmp_path / "o.tif"}
    arguments |= change(hs, guide, tmp_path, make_raster)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with pytest.raises(HyperSharpError, match=message) as caught:
        fuse(**arguments)
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint
    assert caught.value.code.value == code and caught.value.exit_code == 2
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_every_method_is_listed_with_what_a_person_needs():
    for info in METHODS.values():
        assert info.id == info.id.lower() and info.title and info.citation
        assert info.summary.endswith(".") and set(info.guide_kinds) <= {"pan", "msi"}


@given(
    ratio=st.integers(2, 10),
    rows=st.integers(5, 20),
    cols=st.integers(5, 20),
    bands=st.integers(4, 9),
    guide_bands=st.integers(1, 4),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    method=st.sampled_from(FIRST_METHODS),
)
@settings(max_examples=25, deadline=None)
def test_any_size_ratio_and_dtype(tmp_path_factory, ratio, rows, cols, bands, guide_bands, dtype, method):
    """Whatever the pair, the file has the guide's grid, the HS image's bands and dtype, and sane values."""
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(rows * 100 + cols)
    base = rng.uniform(40, 220, (rows, cols))
    hs_image = (base * rng.uniform(0.5, 1, (bands, 1, 1)) + rng.normal(0, 2, (bands, rows, cols))).astype(
        dtype
    )
    fine = np.kron(hs_image.mean(axis=0), np.ones((ratio, ratio)))
    guide_image = (fine[None] + rng.normal(0, 5, (guide_bands, *fine.shape))).clip(1, 250).astype(dtype)
    paths = []
    for name, image, transform in (
        ("hs", hs_image, FINE * Affine.scale(ratio)),
        ("guide", guide_image, FINE),
    ):
        profile = {"driver": "GTiff", "dtype": dtype, "crs": "EPSG:32631", "transform": transform}
        count, height, width = image.shape
        with rasterio.open(
            folder / f"{name}.tif", "w", count=count, height=height, width=width, **profile
        ) as file:
            file.write(image)
        paths.append(folder / f"{name}.tif")
    result = fuse(*paths, folder / "o.tif", method=method, assess=False)
    assert result.metrics["ratio"] == ratio
    with rasterio.open(folder / "o.tif") as fused:
        assert (fused.count, fused.shape, fused.dtypes[0]) == (bands, fine.shape, dtype)
        assert fused.transform == FINE
        image = fused.read().astype("float64")
    assert np.isfinite(image).all()
    # Block means stay near the HS values: nothing overflowed, wrapped round or moved.
    block = image.reshape(bands, rows, ratio, cols, ratio).mean(axis=(2, 4))
    assert np.abs(block - hs_image).mean() < 60
