"""Sources, headers and pairs as the plugin sees them before anything runs."""

import os

import pytest

pytest.importorskip("qgis.core")

from hypersharp.backend.errors import HyperSharpError
from hypersharp.plugin.pair import output_problem, read_pair
from hypersharp.plugin.rasters import read_facts, source_path
from osgeo import gdal
from qgis.core import QgsCoordinateReferenceSystem, QgsRasterLayer, QgsRectangle, QgsReferencedRectangle


@pytest.fixture
def hs_path(make_raster):
    return make_raster("hs.tif", bands=6, size=8, pixel=30, wavelengths=[450, 550, 650, 850, 1600, 2200])


@pytest.fixture
def pan_path(make_raster):
    return make_raster("pan.tif", bands=1, size=24, pixel=10)


def pair_of(hs, guide, extent=None):
    return read_pair(read_facts(hs), read_facts(guide), extent)


def test_source_path_of_layers_and_paths(qgis_app, hs_path, tmp_path, monkeypatch):
    assert source_path(QgsRasterLayer(hs_path, "x")) == hs_path
    monkeypatch.chdir(tmp_path)
    assert source_path("hs.tif") == hs_path
    assert source_path("/vsizip//a/b.zip/c.tif") == "/vsizip//a/b.zip/c.tif"
    assert source_path('NETCDF:"a.nc":v') == 'NETCDF:"a.nc":v'


@pytest.mark.parametrize(
    ("source", "words"),
    [("/a/b.tif|option:X=1", "options"), ("/vsimem/x.tif", "memory"), ("  ", "no raster")],
)
def test_sources_without_one_file(qgis_app, source, words):
    with pytest.raises(HyperSharpError, match=words) as caught:
        source_path(source)
    assert caught.value.hint


def test_services_are_refused(qgis_app):
    layer = QgsRasterLayer("type=xyz&url=file:///nowhere/{z}/{x}/{y}.png", "tiles", "wms")
    with pytest.raises(HyperSharpError, match="not a raster file"):
        source_path(layer)


def test_facts(qgis_app, hs_path):
    facts = read_facts(QgsRasterLayer(hs_path, "My layer"))
    assert (facts.name, facts.bands, facts.rows, facts.cols) == ("My layer", 6, 8, 8)
    assert facts.dtype == "float32"
    assert facts.pixel_size == (30, 30)
    assert facts.spectral_range_nm == (450, 2200)
    assert facts.extent == QgsRectangle(500000, 5400000 - 240, 500240, 5400000)


@pytest.mark.parametrize("missing", ["/no/such/file.tif", "text"])
def test_unreadable(qgis_app, tmp_path, missing):
    (tmp_path / "text").write_text("no raster")
    with pytest.raises(HyperSharpError):
        read_facts(missing if missing.startswith("/") else str(tmp_path / missing))


def test_wavelengths_in_micrometres_and_without_units(qgis_app, make_raster):
    metres = make_raster("um.tif", wavelengths=[0.45, 0.55, 0.65, 0.85, 1.6, 2.2], units="Micrometers")
    guessed = make_raster("guess.tif", wavelengths=[0.45, 0.55, 0.65, 0.85, 1.6, 2.2], units=None)
    nonsense = make_raster("bad.tif", wavelengths=[-1, 0, 3, 4, 5, 6])
    assert read_facts(metres).spectral_range_nm == (450, 2200)
    assert read_facts(guessed).spectral_range_nm == (450, 2200)
    assert read_facts(nonsense).spectral_range_nm is None


def test_pair(qgis_app, hs_path, pan_path):
    pair = pair_of(hs_path, pan_path)
    assert pair.problems == []
    assert (pair.ratio, pair.true_ratio) == (3, 3.0)
    assert (pair.rows, pair.cols, pair.overlap) == (24, 24, 1.0)
    needs = pair.estimate("gsa", "same", 2.0, True)
    assert needs.disk_bytes == 6 * 24 * 24 * 4


def test_pair_across_crs(qgis_app, hs_path, make_raster):
    # The neighbouring zone's coordinates of the same ground, 6 degrees further west.
    from qgis.core import QgsCoordinateTransform, QgsProject

    zone = QgsCoordinateReferenceSystem("EPSG:32632")
    source = QgsCoordinateReferenceSystem("EPSG:32631")
    point = QgsCoordinateTransform(source, zone, QgsProject.instance()).transform(500000, 5400000)
    pan = make_raster("pan32.tif", bands=1, size=60, pixel=5, origin=(point.x(), point.y()), epsg=32632)
    pair = pair_of(hs_path, pan)
    assert pair.problems == []
    assert pair.true_ratio == pytest.approx(6, rel=0.01)
    assert 0.5 < pair.overlap <= 1


def test_partial_overlap_and_extent(qgis_app, hs_path, make_raster):
    pan = make_raster("half.tif", bands=1, size=12, pixel=10)  # the upper left quarter
    pair = pair_of(hs_path, pan)
    assert pair.overlap == pytest.approx(0.25)
    assert (pair.rows, pair.cols) == (12, 12)
    assert any("25" in note for note in pair.notes)
    crs = QgsCoordinateReferenceSystem("EPSG:32631")
    inside = QgsReferencedRectangle(QgsRectangle(500030, 5399940, 500090, 5399970), crs)
    assert (pair_of(hs_path, pan, inside).rows, pair_of(hs_path, pan, inside).cols) == (3, 6)
    outside = QgsReferencedRectangle(QgsRectangle(0, 0, 10, 10), crs)
    assert "extent" in pair_of(hs_path, pan, outside).problems[0]


def test_without_georeference(qgis_app, make_raster):
    hs = make_raster("a.tif", size=8, epsg=None)
    assert pair_of(hs, make_raster("b.tif", bands=1, size=32, epsg=None)).ratio == 4
    assert pair_of(hs, make_raster("c.tif", bands=1, size=20, epsg=None)).problems


def bad_pairs(make_raster, hs, pan):
    """Every pair that must be refused, with a word of the reason."""
    return {
        "same": (hs, hs, "same file"),
        "far": (hs, make_raster("far.tif", bands=1, size=24, pixel=10, origin=(0, 0)), "overlap"),
        "coarse": (hs, make_raster("coarse.tif", bands=1, size=4, pixel=60), "not finer"),
        "equal": (hs, make_raster("equal.tif", bands=1, size=8, pixel=30), "not finer"),
        "many": (hs, make_raster("many.tif", bands=7, size=24, pixel=10), "more bands"),
        "few": (pan, make_raster("fine.tif", bands=1, size=48, pixel=5), "too few bands: 1"),
        "complex": (
            hs,
            make_raster("complex.tif", bands=1, size=24, pixel=10, dtype=gdal.GDT_CFloat32),
            "CFloat32",
        ),
    }


@pytest.mark.parametrize("which", ["same", "far", "coarse", "equal", "many", "few", "complex"])
def test_refused_pairs(qgis_app, make_raster, hs_path, pan_path, which):
    hs, guide, words = bad_pairs(make_raster, hs_path, pan_path)[which]
    problems = pair_of(hs, guide).problems
    assert words in problems[0]
    assert problems[0].endswith((".", "?"))


def test_output_problems(qgis_app, hs_path, pan_path, tmp_path):
    pair = pair_of(hs_path, pan_path)
    assert output_problem(str(tmp_path / "out.tif"), pair) is None
    assert "GeoTIFF" in output_problem(str(tmp_path / "out.img"), pair)
    assert "inputs" in output_problem(hs_path, pair)
    assert "does not exist" in output_problem(str(tmp_path / "no" / "out.tif"), pair)
    assert "disk" in output_problem(str(tmp_path / "out.tif"), pair, 10**18)
    os.mkdir(tmp_path / "folder.tif")
    assert "folder" in output_problem(str(tmp_path / "folder.tif"), pair)


def test_wavelengths_of_a_product_lie_beside_its_image(qgis_app, make_raster, tmp_path):
    path = make_raster("E-SPECTRAL_IMAGE.TIF", bands=4)
    entries = "".join(
        f'<bandID number="{n}"><wavelengthCenterOfBand>{nm}</wavelengthCenterOfBand></bandID>'
        for n, nm in enumerate((450.0, 550.5, 650.0, 2200.0), 1)
    )
    assert read_facts(path).spectral_range_nm is None
    (tmp_path / "E-METADATA.XML").write_text(f"<bandCharacterisation>{entries}</bandCharacterisation>")
    assert read_facts(path).wavelengths_nm == (450.0, 550.5, 650.0, 2200.0)
