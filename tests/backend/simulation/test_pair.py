"""Simulated pairs: Wald's protocol by strips, with everything that a raster carries."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.backend.simulation import pair, sample_pair, simulate

WAVELENGTHS = [450.0 + 30 * i for i in range(12)]


def write_cube(path, cube, nodata=None, wavelengths=WAVELENGTHS, transform=None, crs="EPSG:32632"):
    transform = transform or Affine(5, 0, 400000, 0, -5, 5400000)
    place = {"transform": transform, "crs": crs} if crs else {}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=cube.shape[0],
        height=cube.shape[1],
        width=cube.shape[2],
        dtype=cube.dtype,
        nodata=nodata,
        **place,
    ) as file:
        file.write(cube)
        for i, w in enumerate(wavelengths or []):
            file.update_tags(i + 1, wavelength=str(w), wavelength_units="nm", fwhm="30")
    return path


def read(path):
    with rasterio.open(path) as file:
        return (
            file.read(),
            file.profile,
            [file.tags(i) for i in file.indexes],
            [file.tags(i, ns="IMAGERY") for i in file.indexes],
        )


@pytest.fixture
def cube():
    generator = np.random.default_rng(1)
    return generator.uniform(100, 4000, (12, 50, 41)).astype(np.float32)


def test_hs_is_the_degraded_reference_and_the_grid_nests(tmp_path, cube):
    source = write_cube(tmp_path / "cube.tif", cube)
    result = simulate(source, tmp_path / "out", ratio=4)
    hs, profile, tags, imagery = read(result.outputs["HS"])
    reference, fine, _, _ = read(result.outputs["REFERENCE"])
    guide, guide_profile, guide_tags, _ = read(result.outputs["GUIDE"])
    assert reference.shape == (12, 48, 40) and np.array_equal(reference, cube[:, :48, :40])
    expected, mask = degrade(torch.from_numpy(reference), 4, 0.3)
    assert mask.all()
    np.testing.assert_allclose(hs, expected.numpy(), rtol=1e-5)  # float32 sums in another order
    assert profile["transform"] == Affine(20, 0, 400000, 0, -20, 5400000)
    assert profile["crs"] == fine["crs"] == guide_profile["crs"] and fine["transform"].a == 5
    assert float(tags[3]["wavelength"]) == 540 and tags[3]["wavelength_units"] == "nm"
    assert float(imagery[3]["CENTRAL_WAVELENGTH_UM"]) == pytest.approx(0.54)
    assert float(imagery[3]["FWHM_UM"]) == pytest.approx(0.03)
    inside = [i for i, w in enumerate(WAVELENGTHS) if w <= 750]
    np.testing.assert_allclose(guide[0], reference[inside].mean(axis=0), rtol=1e-5)
    assert 590 < float(guide_tags[0]["wavelength"]) < 610
    assert not list((tmp_path / "out").glob("*.part*"))


def test_strips_and_chunks_make_no_difference(tmp_path, cube, monkeypatch):
    cube[3, 5:9, 20:30] = np.nan
    source = write_cube(tmp_path / "cube.tif", cube)
    whole = simulate(source, tmp_path / "whole", ratio=3, guide="3")
    make_plan = pair._plan

    def small_steps(job, info):
        plan = make_plan(job, info)
        plan.strip, plan.chunk = 3, 2
        return plan

    monkeypatch.setattr(pair, "_plan", small_steps)
    parts = simulate(source, tmp_path / "parts", ratio=3, guide="3")
    for key, path in whole.outputs.items():
        np.testing.assert_allclose(read(parts.outputs[key])[0], read(path)[0], rtol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("ratio", "rows"), [(2, 256), (3, 240), (4, 256), (5, 240), (6, 240), (7, 224), (10, 240)]
)
def test_blocks_hold_whole_coarse_pixels(ratio, rows):
    assert pair.block_rows(ratio) == rows
    assert pair.block_rows(ratio) % 16 == pair.block_rows(ratio) % ratio == 0


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_dtype_is_kept(tmp_path, cube, dtype):
    values = (cube / 16.0).astype(dtype)
    result = simulate(write_cube(tmp_path / "cube.tif", values), tmp_path / "out", ratio=2, guide="3")
    for path in result.outputs.values():
        array, profile, _, _ = read(path)
        assert profile["dtype"] == dtype
        assert array.min() > 5 and array.max() < 251


def test_nodata_leaks_nowhere(tmp_path, cube):
    cube[:, 10:30, 12:25] = -9999
    cube[4] = -9999  # an empty band
    source = write_cube(tmp_path / "cube.tif", cube, nodata=-9999)
    result = simulate(source, tmp_path / "out", ratio=4)
    hs, profile, _, _ = read(result.outputs["HS"])
    guide, _, _, _ = read(result.outputs["GUIDE"])
    assert profile["nodata"] == -9999
    assert (hs[4] == -9999).all()
    kept = np.delete(hs, 4, axis=0)
    assert ((kept == -9999) | (kept > 90)).all()
    assert (kept[:, 4, 4] == -9999).all() and (kept[:, 0] > 0).all()
    assert (guide[0, 10:30, 12:25] == -9999).all() and (guide[0, :10] > 0).all()
    # The rest is what the sensor would have seen of the valid pixels.
    masked, _ = degrade(
        torch.from_numpy(np.delete(cube, 4, axis=0)), 4, 0.3, torch.from_numpy(cube[0] != -9999)
    )
    valid = kept > 0
    np.testing.assert_allclose(kept[valid], masked.numpy()[valid], rtol=1e-4)


def test_a_hole_in_one_band_stays_in_that_band(tmp_path, cube):
    cube[7, 20:30, 20:30] = np.nan
    hs, profile, _, _ = read(
        simulate(write_cube(tmp_path / "c.tif", cube), tmp_path / "o", ratio=2).outputs["HS"]
    )
    assert np.isnan(profile["nodata"])
    assert np.isnan(hs[7]).any() and not np.isnan(np.delete(hs, 7, axis=0)).any()


def test_valid_values_never_become_nodata(tmp_path):
    cube = np.zeros((12, 16, 16), np.uint16)
    cube[:, :8] = 1
    cube[:, 0, 0] = 7
    hs, profile, _, _ = read(
        simulate(write_cube(tmp_path / "c.tif", cube, nodata=7), tmp_path / "o", ratio=2).outputs["HS"]
    )
    assert profile["nodata"] == 7 and (hs < 7).any()


def test_noise_has_the_stated_power_and_comes_from_the_seed(tmp_path):
    cube = np.full((12, 240, 240), 1000, np.float32)
    source = write_cube(tmp_path / "cube.tif", cube)
    noisy = read(simulate(source, tmp_path / "a", ratio=2, snr_db=20, seed=5).outputs["HS"])[0]
    assert noisy.std(axis=(1, 2)) == pytest.approx(100, rel=0.05)  # 14400 samples: 0.6 % standard error
    again = read(simulate(source, tmp_path / "b", ratio=2, snr_db=20, seed=5).outputs["HS"])[0]
    other = read(simulate(source, tmp_path / "c", ratio=2, snr_db=20, seed=6).outputs["HS"])[0]
    assert np.array_equal(noisy, again) and not np.array_equal(noisy, other)
    np.testing.assert_allclose(read(tmp_path / "a" / "guide.tif")[0], 1000, rtol=1e-6)  # a weighted sum


def test_no_wavelengths_and_no_georeference(tmp_path, cube, recwarn):
    source = write_cube(tmp_path / "cube.tif", cube, wavelengths=None, crs=None)
    recwarn.clear()
    result = simulate(source, tmp_path / "out", ratio=4)
    assert not [w for w in recwarn if "Georeferenced" in w.category.__name__]
    assert any("states no wavelengths" in text for text in result.warnings)
    with rasterio.open(result.outputs["HS"]) as file:
        assert file.transform.is_identity and file.crs is None
        assert "wavelength" not in file.tags(1)


def test_rotated_grid(tmp_path, cube):
    turned = Affine.translation(5e5, 4e6) * Affine.rotation(30) * Affine.scale(5, -5)
    result = simulate(write_cube(tmp_path / "cube.tif", cube, transform=turned), tmp_path / "out", ratio=4)
    transform = read(result.outputs["HS"])[1]["transform"]
    assert transform.almost_equals(turned * Affine.scale(4), precision=1e-6)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ratio": 1}, "ratio"),
        ({"ratio": 20}, "too small"),
        ({"guide": "7"}, "no simulated guide"),
        ({"guide": "missing.csv"}, "cannot read"),
        ({"mtf_hs": 1.5}, "MTF"),
        ({"snr_db": float("nan")}, "signal-to-noise"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(tmp_path, cube, options, word):
    source = write_cube(tmp_path / "cube.tif", cube)
    with pytest.raises(HyperSharpError, match=word) as error:
        simulate(source, tmp_path / "out", **options)
    assert error.value.hint
    assert not list((tmp_path / "out").glob("*"))


def test_bad_reference(tmp_path, cube):
    with pytest.raises(HyperSharpError):
        simulate(tmp_path / "absent.tif", tmp_path / "out")
    with pytest.raises(HyperSharpError, match="bands"):
        simulate(write_cube(tmp_path / "rgb.tif", cube[:3], wavelengths=None), tmp_path / "out")
    empty = write_cube(tmp_path / "empty.tif", np.full((12, 40, 40), -1, np.int16), nodata=-1)
    with pytest.raises(HyperSharpError, match="nodata only"):
        simulate(empty, tmp_path / "out")


def test_the_reference_is_not_overwritten(tmp_path, cube):
    source = write_cube(tmp_path / "reference.tif", cube)
    before = source.read_bytes()
    with pytest.raises(HyperSharpError) as error:
        simulate(source, tmp_path)
    assert error.value.code is ErrorCode.OUTPUT
    assert source.read_bytes() == before


def test_cancel_leaves_nothing(tmp_path, cube):
    source = write_cube(tmp_path / "cube.tif", cube)
    asked = iter([False, False, False, False, True, True, True, True, True, True])
    with pytest.raises(Cancelled):
        simulate(source, tmp_path / "out", control=Control(is_cancelled=lambda: next(asked, True)))
    assert not list((tmp_path / "out").glob("*.tif"))


def test_sample_pair(tmp_path):
    paths = sample_pair(tmp_path / "sample", guide="4", ratio=4, size=64)
    hs, profile, _, _ = read(paths["hs"])
    guide, fine, _, _ = read(paths["guide"])
    assert (
        hs.shape[1:] == (16, 16)
        and guide.shape == (4, 64, 64)
        and read(paths["reference"])[0].shape[1:] == (64, 64)
    )
    assert profile["dtype"] == "int16" and profile["crs"].to_epsg() == 32632
    assert profile["transform"].a == 16 and fine["transform"].a == 4


@pytest.mark.data
def test_real_cubes(data, tmp_path):
    result = simulate(data / "cubes" / "enmap_potsdam.tif", tmp_path / "enmap", ratio=4)
    hs, profile, _, _ = read(result.outputs["HS"])
    assert profile["nodata"] == -32768
    empty = (hs == -32768).all(axis=(1, 2))
    assert empty.sum() == 6
    assert hs[~empty][hs[~empty] != -32768].min() > -2000
    guide = read(result.outputs["GUIDE"])[0]
    assert 0.15 < (guide == -32768).mean() < 0.35
