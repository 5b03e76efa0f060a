"""Opening rasters, wavelengths as people write them, masks, and the file that comes out."""

import math

import numpy as np
import pytest
import rasterio
import torch
from hypersharp.backend import fuse
from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.io import raster, writer
from hypersharp.backend.io.source import RasterSource
from hypersharp.backend.io.wavelengths import read_band_table
from hypothesis import given, settings
from hypothesis import strategies as st

IMAGE = np.arange(4 * 12 * 12, dtype="uint16").reshape(4, 12, 12)


def table_of(path):
    with rasterio.open(path) as dataset:
        return read_band_table(dataset)


def test_wavelengths_in_every_usual_place(make_raster):
    nm = [450.0, 550.0, 650.0, 850.0]
    by_band = make_raster("a.tif", IMAGE, wavelengths=nm)
    assert table_of(by_band).wavelength_nm == nm

    imagery = make_raster("b.tif", IMAGE)
    with rasterio.open(imagery, "r+") as dataset:
        for index, value in enumerate(nm, 1):
            dataset.update_tags(index, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=value / 1000, FWHM_UM=0.01)
    assert table_of(imagery).wavelength_nm == nm
    assert table_of(imagery).fwhm_nm == [10.0] * 4

    listed = make_raster(
        "c.tif", IMAGE, tags={"wavelength": "{450, 550, 650, 850}", "wavelength_units": "nm"}
    )
    assert table_of(listed).wavelength_nm == nm

    named = make_raster("d.tif", IMAGE)
    with rasterio.open(named, "r+") as dataset:
        dataset.descriptions = [f"Band {i} ({w} nm)" for i, w in enumerate(nm, 1)]
    assert table_of(named).wavelength_nm == nm


@pytest.mark.parametrize(
    ("values", "units", "expected", "warning"),
    [
        ([0.45, 0.55, 0.65, 0.85], "Micrometers", [450, 550, 650, 850], None),
        ([0.45, 0.55, 0.65, 0.85], None, [450, 550, 650, 850], "um assumed"),
        ([450, 550, 650, 850], None, [450, 550, 650, 850], "nm assumed"),
        ([450, None, 650, 850], "nm", [450, None, 650, 850], "1 of 4 bands"),
        ([450, "junk", 650, 850], "nm", [450, None, 650, 850], "1 of 4 bands"),
        ([-1, 550, 650, 850], "nm", [None] * 4, "make no sense"),
        ([1, 2, 3, 4], "index", [None] * 4, "make no sense"),
        ([1e9, 2e9, 3e9, 4e9], "nm", [None] * 4, "make no sense"),
        ([None] * 4, None, [None] * 4, "no wavelengths"),
    ],
)
def test_odd_wavelength_tags(make_raster, values, units, expected, warning):
    """Missing, partial, in micrometres or nonsense: never an error, always said."""
    path = make_raster("w.tif", IMAGE)
    with rasterio.open(path, "r+") as dataset:
        for index, value in enumerate(values, 1):
            if value is not None:
                dataset.update_tags(index, wavelength=value, **({"wavelength_units": units} if units else {}))
    table = table_of(path)
    assert table.wavelength_nm == pytest.approx(expected)
    assert any(warning in w for w in table.warnings) if warning else not table.warnings


def test_bad_band_flags(make_raster):
    path = make_raster("bbl.tif", IMAGE, tags={"bbl": "{1, 0, 1, 1}"})
    assert table_of(path).good == [True, False, True, True]


ENMAP = """<?xml version="1.0" encoding="UTF-8"?>
<level_X><specific>
 <vnirDeadPixels><bandID number="7">12 14</bandID></vnirDeadPixels>
 <bandCharacterisation>
  <bandID number="1"><wavelengthCenterOfBand>418.416</wavelengthCenterOfBand>
   <FWHMOfBand>6.9956</FWHMOfBand><GainOfBand>0.0001</GainOfBand></bandID>
  <bandID number="2"><wavelengthCenterOfBand>1045.1</wavelengthCenterOfBand></bandID>
  <bandID number="3"><wavelengthCenterOfBand>2445.53</wavelengthCenterOfBand><FWHMOfBand>7.6</FWHMOfBand></bandID>
 </bandCharacterisation>
</specific></level_X>
"""
DESIS = """<hsi_doc><specific><bandCharacterisation>
 <band><bandNumber>1</bandNumber><wavelengthCenterOfBand unit="nm">401.9</wavelengthCenterOfBand>
  <wavelengthWidthOfBand unit="nm">3.5</wavelengthWidthOfBand></band>
 <band><bandNumber>2</bandNumber><wavelengthCenterOfBand unit="nm">404.6</wavelengthCenterOfBand></band>
 <band><bandNumber>3</bandNumber><wavelengthCenterOfBand unit="nm">999.1</wavelengthCenterOfBand></band>
</bandCharacterisation></specific></hsi_doc>
"""


@pytest.mark.parametrize(
    ("text", "image", "beside", "expected"),
    [
        (ENMAP, "E-SPECTRAL_IMAGE.TIF", "E-METADATA.XML", ([418.416, 1045.1, 2445.53], [6.9956, None, 7.6])),
        (
            ENMAP,
            "E-SPECTRAL_IMAGE_COG.tiff",
            "E-metadata.xml",
            ([418.416, 1045.1, 2445.53], [6.9956, None, 7.6]),
        ),
        (DESIS, "D-SPECTRAL_IMAGE.tif", "D-METADATA.xml", ([401.9, 404.6, 999.1], [3.5, None, None])),
        (ENMAP, "scene.tif", "scene-METADATA.XML", None),
        (ENMAP, "E-SPECTRAL_IMAGE.TIF", "F-METADATA.XML", None),
        (ENMAP.replace("1045.1", "none"), "E-SPECTRAL_IMAGE.TIF", "E-METADATA.XML", None),
        ("no XML at all", "E-SPECTRAL_IMAGE.TIF", "E-METADATA.XML", None),
    ],
    ids=["EnMAP", "EnMAP COG", "DESIS", "other name", "other product", "a band less", "damaged"],
)
def test_wavelengths_of_products_lie_beside_the_image(make_raster, tmp_path, text, image, beside, expected):
    path = make_raster(image, np.ones((3, 4, 4), "int16"))
    (tmp_path / beside).write_text(text)
    with rasterio.open(path) as dataset:
        table = read_band_table(dataset)
    assert (table.wavelength_nm, table.fwhm_nm) == (expected or ([None] * 3, [None] * 3))
    assert bool(table.warnings) == (expected is None)


def test_wavelengths_in_the_image_go_before_those_beside_it(make_raster, tmp_path):
    path = make_raster("E-SPECTRAL_IMAGE.TIF", np.ones((3, 4, 4), "int16"), wavelengths=[500, 600, 700])
    (tmp_path / "E-METADATA.XML").write_text(ENMAP)
    with rasterio.open(path) as dataset:
        assert read_band_table(dataset).wavelength_nm == [500.0, 600.0, 700.0]


@pytest.mark.parametrize(
    ("uri", "path"),
    [("/a/b.tif", "/a/b.tif"), ("/a/b.tif|option:X=1", "/a/b.tif"), ("file:///a/b.tif", "/a/b.tif")],
)
def test_a_source_uri_gives_its_file(uri, path):
    assert raster.source_path(uri) == path


@pytest.mark.parametrize(
    "uri", ["", "type=xyz&url=https://example.org", "https://example.org/a.tif", "url=x&layers=y"]
)
def test_a_service_is_refused(uri):
    with pytest.raises(HyperSharpError):
        raster.source_path(uri)


def test_masks_of_every_kind(make_raster, tmp_path):
    """Nodata value, NaN, mask band and alpha band all mean the same."""
    image = np.full((3, 8, 8), 5.0, dtype="float32")
    hole = np.zeros((8, 8), bool)
    hole[2:4, 5:7] = True
    nodata, nan = image.copy(), image.copy()
    nodata[:, hole], nan[:, hole] = -9999, np.nan
    files = [make_raster("nodata.tif", nodata, nodata=-9999), make_raster("nan.tif", nan)]
    masked = make_raster("mask.tif", image)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as dataset:
        dataset.write_mask(~hole)
    files.append(masked)
    for path in files:
        dataset, info = raster.open_input(path, "HS image")
        with dataset:
            values, mask = RasterSource(dataset, info, 0, 0, (8, 8)).read((0, 8), (0, 8))
        np.testing.assert_array_equal(mask.numpy(), ~hole)
        assert torch.isfinite(values).all()
        assert (values[:, mask] == 5).all()


def test_a_window_beyond_the_raster_is_invalid_there(make_raster):
    path = make_raster("a.tif", IMAGE)
    dataset, info = raster.open_input(path, "guide")
    with dataset:
        values, mask = RasterSource(dataset, info, -3, 2, (20, 20)).read((0, 20), (0, 20))
    assert not mask[:3].any() and not mask[15:].any() and not mask[:, 10:].any()
    assert mask[3:15, :10].all()
    np.testing.assert_array_equal(values[:, 3:15, :10].numpy(), IMAGE[:, :, 2:12])


def test_an_impossible_nodata_tag_masks_nothing(make_raster):
    """-9999 in an unsigned raster: numpy would wrap it round to a real value."""
    path = make_raster("a.tif", np.full((4, 8, 8), 55537, dtype="uint16"))
    dataset, info = raster.open_input(path, "HS image")
    with dataset:
        source = RasterSource(dataset, info, 0, 0, (8, 8))
        from hypersharp.backend.io.source import _representable

        assert _representable(-9999.0, "uint16") is None
        assert _representable(-9999.0, "int16") == -9999.0
        assert source.read((0, 8), (0, 8))[1].all()


@given(
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "uint32", "float32"]),
    nodata=st.sampled_from([None, 0.0, 7.0, "min", "max"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_pixels_are_rounded_clipped_and_never_turn_into_nodata(dtype, nodata, seed):
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        nodata = math.nan if nodata in ("min", "max") else nodata
        image = rng.normal(0, 1e5, (2, 5, 5)).astype("float32")
    else:
        limits = np.iinfo(kind)
        nodata = {"min": float(limits.min), "max": float(limits.max)}.get(nodata, nodata)
        image = rng.uniform(1.2 * limits.min - 20, 1.2 * limits.max + 20, (2, 5, 5)).astype("float32")
        image[0, 0, :3] = (7.2, 0.4, limits.max)
    mask = torch.from_numpy(rng.random((5, 5)) > 0.3)
    if nodata is None:
        mask[:] = True
    pixels = writer.to_pixels(torch.from_numpy(image.copy()), mask, kind, nodata)
    assert pixels.dtype == kind
    valid = np.broadcast_to(mask.numpy(), pixels.shape)
    if nodata is not None:
        is_nodata = (
            np.isnan(pixels)
            if isinstance(nodata, float) and math.isnan(nodata)
            else pixels == kind.type(nodata)
        )
        np.testing.assert_array_equal(is_nodata[~valid], True)
        if kind.kind != "f":
            assert not is_nodata[valid].any()
    if kind.kind != "f":
        limits = np.iinfo(kind)
        expected = np.clip(np.rint(image.astype("float64")), limits.min, limits.max)
        # One for the nodata value avoided; 4-byte integers are clipped at float32's last integer below 2^31 (2^32).
        slack = 1 if kind.itemsize < 4 else 512
        assert np.abs(pixels[valid].astype("float64") - expected[valid]).max(initial=0) <= slack
    else:
        np.testing.assert_array_equal(pixels[valid], image[valid])


def test_what_comes_out(pair_files, tmp_path):
    """Grid, dtype, wavelengths, names, scale, nodata, blocks, compression and provenance of the fused file."""
    hs, guide, _ = pair_files(bands=6)
    with rasterio.open(hs, "r+") as dataset:
        dataset.descriptions = [f"b{i}" for i in range(6)]
        dataset.scales, dataset.offsets = (1e-4,) * 6, (0.1,) * 6
        dataset.update_tags(2, fwhm="12.5")
        dataset.update_tags(5, bbl="0")
    out = tmp_path / "out.tif"
    result = fuse(hs, guide, out, method="gsa", assess=False)
    with rasterio.open(hs) as h, rasterio.open(guide) as g, rasterio.open(out) as fused:
        assert (fused.crs, fused.transform, fused.shape) == (g.crs, g.transform, g.shape)
        assert (fused.count, fused.dtypes) == (h.count, h.dtypes)
        assert fused.descriptions == h.descriptions
        assert fused.scales == h.scales and fused.offsets == h.offsets
        assert fused.profile["tiled"] and fused.profile["compress"] == "deflate"
        assert table_of(out).wavelength_nm == pytest.approx(table_of(hs).wavelength_nm, abs=1e-2)
        assert fused.tags(2)["fwhm"] == "12.5"
        assert float(fused.tags(2, ns="IMAGERY")["FWHM_UM"]) == pytest.approx(0.0125)
        assert fused.tags()["HYPERSHARP_METHOD"] == "gsa"
        assert table_of(out).good[4] is False
    assert result.metrics["bands"]["bad"] == [5]
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_dtype_is_the_inputs_or_float32(pair_files, tmp_path, dtype):
    hs, guide, _ = pair_files(bands=5, rows=16, cols=16, dtype="uint16" if dtype == "uint8" else dtype)
    if dtype == "uint8":
        for path in (hs, guide):
            with rasterio.open(path) as dataset:
                image, profile = dataset.read() // 20, dataset.profile
            with rasterio.open(path, "w", **{**profile, "dtype": "uint8"}) as dataset:
                dataset.write(image.astype("uint8"))
    for wanted, expected in (("same", dtype), ("float32", "float32")):
        fuse(hs, guide, tmp_path / "o.tif", dtype=wanted, assess=False)
        with rasterio.open(tmp_path / "o.tif") as fused:
            assert set(fused.dtypes) == {expected}


def test_a_full_disk_is_said_before_the_work(pair_files, tmp_path, monkeypatch):
    hs, guide, _ = pair_files()
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(HyperSharpError) as caught:
        fuse(hs, guide, tmp_path / "o.tif")
    assert caught.value.code is ErrorCode.DISK_FULL
    assert not (tmp_path / "o.tif").exists()


def test_a_disk_that_fills_up_leaves_nothing(pair_files, tmp_path, monkeypatch):
    hs, guide, _ = pair_files()
    real = rasterio.io.DatasetWriter.write

    def fail(self, *args, **kwargs):
        if self.name.endswith(".part.tif"):
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(rasterio.io.DatasetWriter, "write", fail)
    with pytest.raises(HyperSharpError) as caught:
        fuse(hs, guide, tmp_path / "o.tif", assess=False)
    assert caught.value.code is ErrorCode.DISK_FULL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["guide.tif", "hs.tif"]
