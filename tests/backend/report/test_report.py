"""The report's page and pictures: the same stretch, the right place, nothing from outside, every gap explained."""

import base64
import io
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.io.wavelengths import BandTable
from hypersharp.backend.maps import COLOURS, KINDS, PICTURE_PIXELS, MapPicture
from hypersharp.backend.report import build_report, quicklook
from hypersharp.backend.report.page import pair_name
from hypersharp.backend.report.pictures import (
    OVERVIEW_PIXELS,
    guide_ranges,
    load_views,
    stretch_limits,
    to_rgb,
)
from hypersharp.backend.report.plots import LIGHT, axis_of, curve, map_png, per_band_plot
from matplotlib.image import imread

RATIO = 4
WAVELENGTHS = [450.0, 500.0, 550.0, 600.0, 650.0, 700.0, 800.0, 850.0, 1600.0, 2200.0]
PLANT = np.array([300, 400, 800, 500, 350, 1500, 4500, 4600, 2000, 900], float)
SOIL = np.array([800, 1000, 1300, 1600, 1900, 2100, 2500, 2600, 3200, 3000], float)
WATER = np.array([500, 450, 400, 200, 100, 60, 20, 15, 5, 5], float)
ROOF = np.full(10, 5000.0)


def write(
    path, array, pixel, wavelengths=None, nodata=None, crs="EPSG:32631", origin=(450000, 5400000), dtype=None
):
    place = {"crs": crs, "transform": Affine(pixel, 0, origin[0], 0, -pixel, origin[1])} if crs else {}
    array = array.astype(dtype or array.dtype)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=array.shape[0],
        height=array.shape[1],
        width=array.shape[2],
        dtype=array.dtype,
        nodata=nodata,
        **place,
    ) as file:
        file.write(array)
        for i, w in enumerate(wavelengths or []):
            file.update_tags(i + 1, wavelength=str(w), wavelength_units="nm", fwhm="20")
    return path


@pytest.fixture
def scene():
    """Plants on the left, soil on the right, water below, a bright roof in the upper right: `[10, 80, 96]`."""
    kind = np.zeros((80, 96), int)
    kind[:, 48:] = 1
    kind[60:] = 2
    kind[10:26, 64:84] = 3
    cube = np.stack([PLANT, SOIL, WATER, ROOF])[kind].transpose(2, 0, 1)
    return cube * np.random.default_rng(0).uniform(0.99, 1.01, cube.shape[1:])


@pytest.fixture
def files(tmp_path, scene):
    coarse = scene.reshape(10, 20, RATIO, 24, RATIO).mean(axis=(2, 4))
    return {
        "fused": write(tmp_path / "fused.tif", scene, 5, WAVELENGTHS, dtype="int16"),
        "hs": write(tmp_path / "scene_hs.tif", coarse, 20, WAVELENGTHS, dtype="int16"),
        "guide": write(tmp_path / "scene_pan.tif", scene[:5].mean(axis=0, keepdims=True), 5, dtype="uint16"),
    }


METRICS = {
    "method": "gsa",
    "title": "GSA (adaptive Gram-Schmidt)",
    "citation": "Aiazzi et al., 2007",
    "ratio": 4,
    "seed": 3,
    "seconds": 1.25,
    "device": "cpu",
    "versions": {"hypersharp": "0.1.0", "torch": "2.13.0"},
    "parameters": {"haze": False},
    "mtf": {"hs": 0.3, "guide": 0.2},
    "method_details": {"intensity_r2": [0.98]},
    "inputs": {
        "hs": {"name": "scene_hs.tif", "bands": 10, "rows": 200, "cols": 240, "pixel_size": [20, 20],
               "crs": "EPSG:32631", "dtype": "int16", "nodata": None},
        "guide": {"name": "scene_pan.tif", "bands": 1, "rows": 800, "cols": 960, "pixel_size": [5, 5],
                  "crs": "EPSG:32631", "dtype": "uint16", "nodata": 0.0},
        "grid": {"ratio": 4, "true_ratio": 4.1667, "resampled": True, "note": "resampled once (cubic)",
                 "hs_moved_pixels": [9, -12]},
    },
    "bands": {"usable": 9, "empty": [4], "constant": [], "bad": []},
    "reduced_resolution": {
        "fused": {"PSNR": 34.0, "SAM": 2.0, "ERGAS": 3.0, "RMSE": 12.0, "CC": None, "Q2n": 0.9},
        "interpolated": {"PSNR": 30.0, "SAM": 2.5, "ERGAS": 5.0, "RMSE": 20.0, "CC": None, "Q2n": 0.7},
    },
    "full_resolution": {
        "fused": {"D_lambda_K": 0.02, "HQNR": 0.93},
        "interpolated": {"D_lambda_K": 0.04, "HQNR": 0.91},
    },
    "per_band": {"wavelength_nm": WAVELENGTHS, "PSNR": [30.0 + i for i in range(9)] + [None], "RMSE": [1.0] * 10,
                 "CC": [0.9] * 10, "interpolated": {"PSNR": [25.0] * 10}},
    "reasons": {"reduced_resolution.CC": "every band is constant"},
    "variants": {"SAM": "degrees, zero pixels skipped", "HQNR": "(1 - D_lambda_K)(1 - D_s)"},
    "better": {"SAM": "lower"},
    "warnings": ["band 4 is empty"],
}  # fmt: skip


class Page(HTMLParser):
    """Collects what a page refers to, its text, and whether its tags close."""

    VOID = {"meta", "img", "br", "source", "link", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.refs, self.tags, self.headings, self.text = [], [], set(), [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.refs += [v for k, v in attributes if k in ("src", "srcset", "href", "action", "data") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)
            if self.open[-1] == "h2":
                self.headings.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def report(tmp_path, files, metrics, **more):
    target = tmp_path / "report.html"
    build_report(metrics, output=target, **files, **more)
    text = target.read_text(encoding="utf-8")
    return text, Page(text)


def test_report_needs_nothing_else_and_keeps_its_order(tmp_path, files):
    text, page = report(tmp_path, files, METRICS)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.refs and all(ref.startswith("data:image/png;base64,") for ref in page.refs)
    assert not re.search(r"https?://|url\((?!\"data:)|@import", text)
    assert page.headings == [
        "Pictures", "Quality indices", "Band by band", "Spectra before and after",
        "What was done to the inputs", "How it was made", "How to cite",
    ]  # fmt: skip
    assert text.index('class="verdict"') < text.index("<h2>Pictures")
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    for ref in page.refs:
        image = imread(io.BytesIO(base64.b64decode(ref.split(",")[1])))
        assert min(image.shape[:2]) > 100


def test_report_says_everything(tmp_path, files):
    _, page = report(tmp_path, files, METRICS, notes={"season": "same day"})
    for part in (
        "GSA: scene_hs + scene_pan", "Better than interpolation", "band 4 is empty", "34.00", "2.500",
        "degrees, zero pixels skipped", "every band is constant", "HS image resampled once", "true ratio 4.167",
        "moved by 9 rows and -12 columns of the guide",
        "empty: 4", "0.3", "haze no", "1.2 s", "Aiazzi et al., 2007", "HyperSharp 0.1.0", "torch 2.13.0",
        "same stretch", "bands 5, 3, 1 (650, 550, 450 nm)", "season", "same day", "EPSG:32631",
    ):  # fmt: skip
        assert part in page.words, part


def map_picture(key, values, top=2.0, unit="degrees", factor=1, mean=1.25):
    return MapPicture(KINDS[key], unit, np.asarray(values, "float32"), factor, mean, top)


def test_error_maps_stand_between_spectra_and_inputs(tmp_path, files):
    """The colours are the values': dark 0, bright from the top on, grey where there is none; labels say the range."""
    ramp = np.linspace(0, 4, 600, dtype="float32").reshape(20, 30)
    ramp[3, 4] = np.nan
    _, without = report(tmp_path, files, METRICS)
    text, page = report(
        tmp_path,
        files,
        METRICS,
        maps=[
            map_picture("SAM", ramp, factor=7),
            map_picture("RMSE", ramp, unit="W/m2 <b>", mean=88.5),
            map_picture("D_rho", ramp, unit=""),
            map_picture("SAM_reference", ramp),
            map_picture("RMSE_reference", np.full((4, 4), np.nan), mean=None),  # nothing valid: left out
        ],
    )
    headings = list(without.headings)
    headings.insert(headings.index("What was done to the inputs"), "Where the errors are")
    assert page.headings == headings and "script" not in page.tags
    assert text.count("Map of ") == 4 and page.words.count("overall 1.250°") == 2
    for part in ("7 × 7 pixels", "88.5 W/m2 <b>", "2° and more", "Bright is worse"):
        assert part in page.words, part
    image = imread(
        io.BytesIO(
            base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"[^>]*Map of SAM', text)[1])
        )
    )
    factor = image.shape[0] // 20
    assert image.shape[:2] == (20 * factor, 30 * factor) and factor > 1
    small = image[::factor, ::factor, :3]
    colours = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in COLOURS]
    np.testing.assert_allclose(small[0, 0], colours[0], atol=0.01)
    np.testing.assert_allclose(small[10:], np.broadcast_to(colours[-1], (10, 30, 3)), atol=0.03)
    assert np.ptp(small[3, 4]) == 0  # grey
    light = small[:10].reshape(-1, 3) @ [0.2126, 0.7152, 0.0722]
    light = np.delete(light, 3 * 30 + 4)
    assert (np.diff(light) > -0.01).all() and light[-1] > 0.8


def test_a_large_map_is_a_small_picture():
    values = np.random.default_rng(0).random((PICTURE_PIXELS, PICTURE_PIXELS)).astype("float32")
    assert len(map_png(values, 1.0)) < PICTURE_PIXELS**2 + 5000  # a byte a pixel at most, even for noise


def test_nothing_that_a_user_typed_becomes_markup(tmp_path, files):
    evil = "<script>alert(1)</script>&<b>"
    metrics = {**METRICS, "title": evil, "citation": evil, "warnings": [evil], "parameters": {evil: evil},
               "versions": {evil: evil}, "variants": {"SAM": evil}, "method_details": {evil: evil}}  # fmt: skip
    text, page = report(tmp_path, files, metrics, notes={evil: evil})
    assert "<script" not in text and "script" not in page.tags
    assert evil in page.words


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"method": None, "full_resolution": {"fused": {"HQNR": 0.9}, "interpolated": {}}, "per_band": None},
        {"reference": {"fused": {"SAM": 1.0}}, "reduced_resolution": None, "full_resolution": None},
        {"reasons": {"reduced_resolution": "the scene is too small"}, "warnings": None, "inputs": {}},
        {"per_band": {"wavelength_nm": [None] * 10, "PSNR": [None] * 10, "RMSE": [1.0] * 10, "CC": []}},
    ],
)
def test_missing_pieces_render_too(tmp_path, files, metrics):
    text, page = report(tmp_path, files, metrics)
    assert len(page.headings) == 7
    assert ">nan<" not in text.lower() and ">None<" not in text
    if "reasons" in metrics:
        assert "the scene is too small" in page.words


def test_rasters_that_cannot_be_read_cost_only_the_pictures(tmp_path, files):
    files["guide"] = tmp_path / "gone.tif"
    _, page = report(tmp_path, files, METRICS)
    assert "No pictures and spectra" in page.words and "34.00" in page.words


def test_an_existing_report_survives_a_failure(tmp_path, files):
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(HyperSharpError):
        build_report(METRICS, output=tmp_path / "absent" / "report.html", **files)
    assert target.read_text() == "old"
    build_report(METRICS, output=target, **files)
    assert target.read_text(encoding="utf-8") != "old"
    assert not list(tmp_path.glob(".report*"))


def test_hs_and_fused_share_one_stretch(files):
    views = load_views(**files)
    # In the middle of each field the fused image equals the HS image: so must their colours (1 % noise).
    for row, col in ((30, 20), (40, 70), (70, 50), (18, 74)):
        hs, fused = (views.overview[k][row, col].astype(int) for k in ("hs", "fused"))
        assert np.abs(hs - fused).max() <= 12
    assert (
        views.overview["hs"].shape
        == views.overview["fused"].shape
        == views.overview["guide"].shape
        == (80, 96, 3)
    )
    guide = views.overview["guide"]
    assert (guide[..., 0] == guide[..., 1]).all()


def test_stretch_is_by_percentiles_of_what_is_valid():
    band = np.arange(1000, dtype=np.float32).reshape(1, 20, 50)
    band[0, 0, 0] = np.nan
    ((low, high),) = stretch_limits(band)
    assert 15 < low < 25 and 975 < high < 985
    image = to_rgb(band, [(low, high)])
    assert tuple(image[0, 0]) == (200, 200, 200) and image[-1, -1, 0] == 255 and image[0, 1, 0] == 0
    assert stretch_limits(np.full((1, 4, 4), np.nan)) == [(0.0, 1.0)]
    assert stretch_limits(np.full((1, 4, 4), 7.0)) == [(7.0, 8.0)]


def test_spots_are_what_they_are_called_and_show_the_files_values(files, scene):
    spots = {s.name: s for s in load_views(**files).spots}
    assert set(spots) == {"bright", "dark", "vegetation", "edge"}
    for name, spectrum in (("bright", ROOF), ("dark", WATER), ("vegetation", PLANT)):
        spot = spots[name]
        np.testing.assert_allclose(spot.fused, spectrum, rtol=0.03, atol=2)
        np.testing.assert_array_equal(spot.fused, scene[:, spot.row, spot.col].astype(np.int16))
        np.testing.assert_allclose(spot.hs, spectrum, rtol=0.03, atol=2)
    edge = spots["edge"]
    window = scene[4, edge.row - 2 : edge.row + 3, edge.col - 2 : edge.col + 3]
    assert window.max() > 2 * window.min()


def test_hs_in_another_crs_lies_in_the_right_place(tmp_path, files, scene):
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    with rasterio.open(files["hs"]) as source:
        transform, width, height = calculate_default_transform(
            source.crs, "EPSG:4326", source.width, source.height, *source.bounds
        )
        array = np.full((10, height, width), -1, np.int16)
        reproject(
            source.read(), array, src_transform=source.transform, src_crs=source.crs, dst_transform=transform,
            dst_crs="EPSG:4326", dst_nodata=-1, resampling=Resampling.nearest,
        )  # fmt: skip
    with rasterio.open(
        tmp_path / "geographic.tif", "w", driver="GTiff", count=10, height=height, width=width, dtype="int16",
        nodata=-1, crs="EPSG:4326", transform=transform,
    ) as file:  # fmt: skip
        file.write(array)
        for i, w in enumerate(WAVELENGTHS):
            file.update_tags(i + 1, wavelength=str(w), wavelength_units="nm")
    straight, turned = load_views(**files), load_views(**{**files, "hs": tmp_path / "geographic.tif"})
    inner = (slice(8, -8), slice(8, -8))
    difference = np.abs(straight.overview["hs"][inner].astype(int) - turned.overview["hs"][inner].astype(int))
    # Nearest-neighbour resampling of the test's own moves edges by up to half an HS pixel; areas must agree.
    assert np.median(difference) <= 3
    spot = next(s for s in turned.spots if s.name == "bright")
    np.testing.assert_allclose(spot.hs, ROOF, rtol=0.03)


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
def test_without_georeference_the_hs_covers_the_fused_image(tmp_path, files, scene):
    plain = {}
    for key, path in files.items():
        with rasterio.open(path) as source:
            array = source.read()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain[key] = write(
                tmp_path / f"plain_{key}.tif", array, 1, None if key == "guide" else WAVELENGTHS, crs=None
            )
    views, same = load_views(**plain), load_views(**files)
    np.testing.assert_allclose(views.overview["hs"].astype(int), same.overview["hs"].astype(int), atol=1)
    assert {s.name for s in views.spots} == {"bright", "dark", "vegetation", "edge"}


def test_nodata_is_neutral_and_no_spot(tmp_path, scene):
    scene[:, :, :40] = -999
    coarse = scene[:, ::RATIO, ::RATIO]
    files = {
        "fused": write(tmp_path / "f.tif", scene, 5, WAVELENGTHS, nodata=-999, dtype="int16"),
        "hs": write(tmp_path / "h.tif", coarse, 20, WAVELENGTHS, nodata=-999, dtype="int16"),
        "guide": write(tmp_path / "g.tif", scene[:1], 5, nodata=-999, dtype="int16"),
    }
    views = load_views(**files)
    assert (views.overview["fused"][:, :40] == 200).all()
    assert (views.overview["fused"][40, 60] != 200).any()
    assert views.spots and all(s.col >= 42 for s in views.spots)


def test_no_wavelengths(tmp_path, scene):
    coarse = scene.reshape(10, 20, RATIO, 24, RATIO).mean(axis=(2, 4))
    files = {
        "fused": write(tmp_path / "f.tif", scene, 5, dtype="float32"),
        "hs": write(tmp_path / "h.tif", coarse, 20, dtype="float32"),
        "guide": write(tmp_path / "g.tif", scene[:3], 5, dtype="float32"),
    }
    views = load_views(**files)
    assert "wavelengths unknown" in views.colours
    assert {s.name for s in views.spots} == {"bright", "dark", "edge"}
    assert any("vegetation" in note for note in views.notes)
    report(tmp_path, files, METRICS)


def test_large_rasters_are_decimated(tmp_path):
    rows, cols = 1500, 2100
    pattern = np.add.outer(np.arange(rows), np.arange(cols)).astype(np.int16)[None].repeat(4, axis=0)
    files = {
        "fused": write(tmp_path / "f.tif", pattern, 5, WAVELENGTHS[:4]),
        "hs": write(tmp_path / "h.tif", pattern[:, ::4, ::4], 20, WAVELENGTHS[:4]),
        "guide": write(tmp_path / "g.tif", pattern[:1], 5),
    }
    views = load_views(**files)
    assert max(views.overview["fused"].shape[:2]) == OVERVIEW_PIXELS
    assert views.detail["fused"].shape[:2] == (120, 120)
    assert views.shape == (rows, cols)


def test_fused_by_another_program_with_other_bands(tmp_path, files, scene):
    files["fused"] = write(tmp_path / "other.tif", scene[1:8], 5, WAVELENGTHS[1:8], dtype="float32")
    views = load_views(**files)
    assert all(len(s.fused) == 7 and len(s.hs) == 10 for s in views.spots)
    report(tmp_path, files, METRICS)


def test_quicklook(tmp_path, files):
    quicklook(**files, output_png=tmp_path / "quick.png", title="A pair", method="gsa")
    image = imread(tmp_path / "quick.png")
    assert image.shape[1] > 1000 and image.std() > 0.05
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(HyperSharpError):
        quicklook(**{**files, "hs": tmp_path / "gone.tif"}, output_png=tmp_path / "no.png")


def test_curves_break_over_gaps_and_missing_values():
    x, y = curve([700.0, 500.0, 510.0, 520.0, None], [4, 1, None, 3, 9])
    np.testing.assert_array_equal(x, [500, 510, 520, np.nan, 700])
    np.testing.assert_array_equal(y, [1, np.nan, 3, np.nan, 4])
    assert axis_of([None] * 3, 3) == ([1.0, 2.0, 3.0], "band")
    assert per_band_plot({"PSNR": [None, None]}, [], "GSA", LIGHT) is None


def test_guide_ranges():
    def table(wavelength, fwhm, names):
        return BandTable(wavelength, fwhm, [True] * len(names), names)

    assert guide_ranges(table([600.0], [300.0], [None])) == [(450.0, 750.0)]
    assert guide_ranges(table([None, None], [None, None], ["MSI 1 (450-515 nm)", "525–600 nm"])) == [
        (450.0, 515.0), (525.0, 600.0),
    ]  # fmt: skip
    assert guide_ranges(table([None], [None], [None]), {"about": "ALI PAN 480-690 nm"}) == [(480.0, 690.0)]
    assert guide_ranges(table([None], [None], [None]), {"date": "2001-2002"}) == []


def test_pair_name():
    assert pair_name("/a/paris_hs.tif", "/b/paris_pan.tif") == "paris_hs + paris_pan"
    assert pair_name("/a/sample/hs.tif", "/a/sample/guide.tif") == "sample (hs + guide)"
