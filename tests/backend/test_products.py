"""Products of PRISMA and EMIT made into rasters."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from hypersharp.backend import cli
from hypersharp.backend.control import Control
from hypersharp.backend.errors import Cancelled, HyperSharpError
from hypersharp.backend.io.wavelengths import read_band_table
from hypersharp.backend.job import ImportJob
from hypersharp.backend.products import emit, importing, run_import

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from made_products import (
    DARK,
    EMIT_BAD,
    EMIT_CENTRES,
    EMIT_TRANSFORM,
    EPSG,
    LEFT,
    LIMITS,
    SWIR,
    TOP,
    VNIR,
    write_emit,
    write_product,
)


def imported(product, folder, pan=True):
    """Import a product; return the job and its result."""
    job = ImportJob(str(product), str(folder / "hs.tif"), str(folder / "pan.tif") if pan else None)
    return job, run_import(job)


def test_bands_place_and_reflectances(tmp_path):
    truth = write_product(tmp_path / "p.he5")
    job, result = imported(tmp_path / "p.he5", tmp_path / "new" / "folder")
    assert result.outputs == {"HS": job.hs, "PAN": job.pan} and result.warnings == []
    with rasterio.open(job.hs) as dataset:
        table = read_band_table(dataset)
        image = dataset.read(masked=True) / 10_000
        assert dataset.crs.to_epsg() == EPSG and dataset.res == (30.0, 30.0)
        assert (dataset.transform.c, dataset.transform.f) == (LEFT, TOP)
        assert dataset.tags()["ACQUISITION_TIME"].startswith("2024-06-01")
        assert dataset.tags()["reflectance_scale"] == "10000" and set(dataset.scales) == {1.0}
    centres = np.array(table.wavelength_nm)
    assert (np.diff(centres) > 0).all() and 0 < centres[0] < 403 and centres[-1] > 2490
    # Of the wavelengths that both see, each has the half on its own side: none twice.
    middle = (VNIR.max() + SWIR[SWIR > 0].min()) / 2
    expected = [(c, "Vnir", i) for i, c in enumerate(VNIR) if 0 < c < middle]
    expected += [(c, "Swir", i) for i, c in enumerate(SWIR) if c >= middle]
    expected.sort()
    assert len(expected) == len(centres) < 24 + 40
    assert np.allclose(centres, [c for c, _, _ in expected], atol=0.01)
    assert table.fwhm_nm == [11.5] * len(centres)
    for band, (_, name, index) in enumerate(expected):
        bad = name == "Swir" and index == DARK
        assert table.good[band] == (not bad)
        if not bad:
            assert np.abs(image[band, 2:] - truth[name][2:, index]).max() < 1e-4
    assert image.mask[:, :2].all() and not image.mask[:, 2:].any()
    with rasterio.open(job.pan) as dataset:
        pan = dataset.read(1, masked=True) / 10_000
        assert dataset.res == (5.0, 5.0) and (dataset.transform.c, dataset.transform.f) == (LEFT, TOP)
    assert np.abs(pan[12:] - truth["Pan"][12:]).max() < 1e-4 and pan.mask[:12].all()


def test_a_scene_larger_than_a_window(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "BLOCK", 16)
    monkeypatch.setattr(importing, "WINDOW_BYTES", 1)
    truth = write_product(tmp_path / "p.he5", rows=40, cols=36)
    job, _ = imported(tmp_path / "p.he5", tmp_path, pan=False)
    with rasterio.open(job.hs) as dataset:
        image = dataset.read(1) / 10_000
    assert np.abs(image[2:] - truth["Vnir"][2:, 23]).max() < 1e-4


def test_imported_rasters_fuse(tmp_path, capsys):
    write_product(tmp_path / "p.he5", rows=40, cols=36)
    assert cli.main(["import", str(tmp_path / "p.he5"), "-o", str(tmp_path / "scene")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "scene" / n) for n in ("hs.tif", "pan.tif")]
    pair = [str(tmp_path / "scene" / name) for name in ("hs.tif", "pan.tif")]
    assert (
        cli.main(["fuse", *pair, "-o", str(tmp_path / "f.tif"), "--metrics", str(tmp_path / "m.json")]) == 0
    )
    with rasterio.open(tmp_path / "f.tif") as dataset, rasterio.open(pair[0]) as hs:
        assert dataset.shape == (240, 216) and dataset.count == hs.count and dataset.dtypes == hs.dtypes


def test_a_product_without_place_or_pan_says_so(tmp_path):
    write_product(tmp_path / "p.he5", level="2C", pan=False)
    job, result = imported(tmp_path / "p.he5", tmp_path)
    assert list(result.outputs) == ["HS"] and not Path(job.pan).exists()
    assert len(result.warnings) == 2
    assert "no place on the map" in result.warnings[0] and "no panchromatic" in result.warnings[1]
    with rasterio.open(job.hs) as dataset:
        assert dataset.crs is None and dataset.transform.is_identity


def test_corners_that_do_not_fit_are_warned_of(tmp_path):
    write_product(tmp_path / "p.he5")
    with h5py.File(tmp_path / "p.he5", "r+") as file:
        file.attrs["Product_LRcorner_easting"] = np.float32(LEFT + 90 * 24)
    _, result = imported(tmp_path / "p.he5", tmp_path)
    assert ["upper left corner is believed" in w for w in result.warnings] == [True]


def refused(product, word, capsys):
    """Check that a product is refused in two lines, the first with this word, and that nothing is left."""
    code = cli.main(["import", str(product), "-o", str(product.parent / "o")])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and word in lines[0] and lines[1].startswith("hint: ") and len(lines) == 2
    assert not list(product.parent.rglob("*.tif"))


def damage(how, path):
    """Spoil a product."""
    if how == "text":
        path.write_text("no HDF5")
        return
    if how == "cut":
        path.write_bytes(path.read_bytes()[:4000])
        return
    with h5py.File(path, "r+") as file:
        swaths, data = file["HDFEOS/SWATHS"], "PRS_L2D_HCO/Data Fields"
        if how == "other":
            del file["HDFEOS"]
        elif how == "level":
            swaths.move("PRS_L2D_HCO", "PRS_L1_HCO")
        elif how == "cube":
            del swaths[f"{data}/SWIR_Cube"]
        elif how == "sizes":
            del swaths[f"{data}/SWIR_Cube"]
            swaths[f"{data}/SWIR_Cube"] = np.ones((9, 41, 9), np.uint16)
        elif how == "wavelengths":
            file.attrs["List_Cw_Vnir"] = np.ones(5)
        elif how == "words":
            file.attrs["List_Cw_Vnir"] = "none"
        elif how == "scale":
            file.attrs["L2ScaleVnirMax"] = np.float32(LIMITS["Vnir"][0])
        elif how == "crs":
            file.attrs["Epsg_Code"] = 1
        elif how == "corner":
            del file.attrs["Product_ULcorner_easting"]
        elif how == "empty":
            for name in ("VNIR", "SWIR"):
                swaths[f"{data}/{name}_Cube"][:] = 0


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("text", "no HDF5"),
        ("cut", "damaged"),
        ("other", "no product that can be imported"),
        ("level", "level 1"),
        ("cube", "SWIR_Cube"),
        ("sizes", "differ in size"),
        ("wavelengths", "5 wavelengths for 26"),
        ("words", "List_Cw_Vnir"),
        ("scale", "scale of its VNIR"),
        ("crs", "EPSG:1"),
        ("corner", "Product_ULcorner_easting"),
        ("empty", "nothing but nodata"),
    ],
)
def test_a_spoilt_product_is_refused(tmp_path, capsys, how, word):
    product = tmp_path / "p.he5"
    write_product(product)
    damage(how, product)
    refused(product, word, capsys)


def test_what_is_there_stays_when_an_import_fails(tmp_path):
    write_product(tmp_path / "p.he5")
    damage("empty", tmp_path / "p.he5")
    (tmp_path / "hs.tif").write_bytes(b"older")
    with pytest.raises(HyperSharpError):
        imported(tmp_path / "p.he5", tmp_path)
    assert (tmp_path / "hs.tif").read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hs.tif", "p.he5"]


def test_cancel_leaves_nothing(tmp_path):
    write_product(tmp_path / "p.he5")
    heard = []

    def cancelled():
        return any(getattr(m, "stage", "") == "PAN image" for m in heard)

    job = ImportJob(str(tmp_path / "p.he5"), str(tmp_path / "hs.tif"), str(tmp_path / "pan.tif"))
    with pytest.raises(Cancelled):
        run_import(job, Control(heard.append, cancelled))
    assert [p.name for p in tmp_path.iterdir()] == ["p.he5"]


def test_wrong_outputs(tmp_path):
    write_product(tmp_path / "p.he5")
    same = str(tmp_path / "a.tif")
    for job, word in (
        (ImportJob(str(tmp_path / "none.he5"), same), "not found"),
        (ImportJob(str(tmp_path / "p.he5"), same, same), "same file"),
        (ImportJob(str(tmp_path / "p.he5"), str(tmp_path / "a.jpg")), "GeoTIFF"),
        (ImportJob(str(tmp_path / "p.he5"), str(tmp_path / "p.he5" / "a.tif")), "cannot write into"),
    ):
        with pytest.raises(HyperSharpError, match=word):
            run_import(job)


@pytest.mark.parametrize("name", ["p.he5", "EMIT_L2A_RFL_001.nc"])
def test_fusing_a_product_itself_says_what_to_do(tmp_path, capsys, name):
    (write_product if name.endswith("he5") else write_emit)(tmp_path / name)
    product = str(tmp_path / name)
    assert cli.main(["fuse", product, product, "-o", str(tmp_path / "f.tif")]) == 2
    assert "hypersharp import" in capsys.readouterr().err


def test_emit_is_laid_on_its_geographic_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(emit, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(importing, "BLOCK", 32)  # several windows, several reads of each
    monkeypatch.setattr(importing, "WINDOW_BYTES", 1)
    seen = write_emit(tmp_path / "e.nc")
    job, result = imported(tmp_path / "e.nc", tmp_path)
    assert list(result.outputs) == ["HS"] and result.warnings == [] and not Path(job.pan).exists()
    with rasterio.open(job.hs) as dataset:
        image = dataset.read(masked=True) / 10_000
        table = read_band_table(dataset)
        assert dataset.crs.to_epsg() == 4326
        assert dataset.transform.to_gdal() == pytest.approx(EMIT_TRANSFORM)
    assert np.allclose(table.wavelength_nm, EMIT_CENTRES, atol=0.01) and set(table.fwhm_nm) == {8.5}
    assert [i for i, good in enumerate(table.good) if not good] == list(EMIT_BAD)
    nothing = np.isnan(seen)
    assert nothing[0].mean() > 0.1 and (image.mask == nothing).all()
    assert np.abs(image - seen).max() < 1e-4


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("radiance", "radiance of EMIT"),
        ("mask", "mask of EMIT"),
        ("none", "something of EMIT"),
        ("table", "glt_y"),
        ("sizes", "differ in size"),
        ("wavelengths", "wavelengths of its 40 bands"),
        ("place", "place on the map"),
        ("crs", "no CRS"),
        ("outside", "nothing but nodata"),
    ],
)
def test_a_spoilt_emit_file_is_refused(tmp_path, capsys, how, word):
    product = tmp_path / "e.nc"
    write_emit(product)
    with h5py.File(product, "r+") as file:
        if how in ("radiance", "mask"):
            file.move("reflectance", how)
        elif how == "none":
            del file["reflectance"]
        elif how == "table":
            del file["location/glt_y"]
        elif how == "sizes":
            del file["location/glt_y"]
            file["location/glt_y"] = np.zeros((4, 4), np.int32)
        elif how == "wavelengths":
            del file["sensor_band_parameters/wavelengths"]
        elif how == "place":
            file.attrs["geotransform"] = np.zeros(6)
        elif how == "crs":
            file.attrs["spatial_ref"] = "nowhere"
        elif how == "outside":
            file["location/glt_y"][:] = 5000
    refused(product, word, capsys)
