"""Error maps: their values, place and nodata, their names, and that nothing is left of a run that ends early."""

import csv
import os

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypersharp.backend import cli, maps
from hypersharp.backend.assessment import assess
from hypersharp.backend.control import Control
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.backend.job import MAP_NAMES
from hypersharp.backend.maps import KINDS, MapPicture, Thumbnail, style
from hypersharp.backend.pipeline import fuse
from matplotlib import colormaps
from matplotlib.colors import to_hex

FINE = Affine(10.0, 0.0, 450000.0, 0.0, -10.0, 5400000.0)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1), file.profile, file.descriptions[0], file.units[0]


def angle(a, b):
    """The textbook's spectral angle in degrees of `[bands, rows, cols]`, float64."""
    a, b = a.astype(float), b.astype(float)
    product = (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.degrees(np.arccos(np.clip(product, -1, 1)))


def rmse(a, b):
    return np.sqrt(((a.astype(float) - b.astype(float)) ** 2).mean(0))


@pytest.fixture
def truth_files(pair_files, make_raster):
    """A pair of 8 bands with a hole, its truth, and a fused image: the truth with errors and the same hole."""
    hs, guide, truth = pair_files(rows=38, cols=37, dtype="float32", nodata=-1.0)
    with rasterio.open(hs, "r+") as file:
        image = file.read()
        image[:, 4:7, 9:12] = -1.0
        file.write(image)
    rng = np.random.default_rng(0)
    noisy = truth * (1 + 0.05 * rng.standard_normal(truth.shape))
    reference = make_raster("truth.tif", truth.astype("float32"))
    noisy[:, 16:28, 36:48] = np.nan
    fused = make_raster("noisy.tif", noisy.astype("float32"), nodata=np.nan)
    return {"hs": hs, "guide": guide, "reference": reference, "fused": fused}


# ------------------------------------------------------------------ values and places


def test_maps_against_a_truth_are_the_definitions(truth_files, tmp_path):
    """On the fine grid: the angle and the error of each pixel; nodata where the HS image has a hole."""
    f = truth_files
    result = assess(f["fused"], f["hs"], f["guide"], reference=f["reference"], maps=str(tmp_path / "m"))
    assert {k: os.path.basename(v) for k, v in result.outputs.items() if k.startswith("MAP_")} == {
        "MAP_D_RHO": "d_rho.tif",
        "MAP_SAM_REFERENCE": "sam_reference.tif",
        "MAP_RMSE_REFERENCE": "rmse_reference.tif",
    }  # none at reduced resolution: the method is not known
    truth, fused = (rasterio.open(f[name]).read() for name in ("reference", "fused"))
    hole = np.zeros(truth.shape[1:], bool)
    hole[16:28, 36:48] = True
    for name, wanted, tolerance in (("sam", angle(fused, truth), 1e-4), ("rmse", rmse(fused, truth), 1e-3)):
        found, profile, description, unit = read(tmp_path / "m" / f"{name}_reference.tif")
        assert profile["transform"] == FINE and profile["crs"] == "EPSG:32631"
        assert (
            profile["dtype"] == "float32" and np.isnan(profile["nodata"]) and profile["compress"] == "deflate"
        )
        assert np.isnan(found[hole]).all() and np.isfinite(found[~hole]).all()
        np.testing.assert_allclose(found[~hole], wanted[~hole], atol=tolerance)
        assert name.upper() in description and unit in description
    assert unit == "data units"
    sam = read(tmp_path / "m" / "sam_reference.tif")[0]
    assert np.nanmean(sam, dtype=float) == pytest.approx(
        result.metrics["reference"]["fused"]["SAM"], rel=1e-5
    )


def test_maps_at_reduced_resolution(truth_files, tmp_path):
    """On the HS grid, in whole groups of ratio x ratio pixels; their mean is the index."""
    f = truth_files
    result = fuse(f["hs"], f["guide"], tmp_path / "o.tif", maps=str(tmp_path / "m"))
    found, profile, description, unit = read(result.outputs["MAP_SAM"])
    assert found.shape == (36, 36)  # of 38 x 37
    assert profile["transform"] == FINE * Affine.scale(4) and profile["crs"] == "EPSG:32631"
    assert np.isnan(found[4:7, 9:12]).all() and unit == "degrees" and "reduced" in description
    assert np.nanmean(found, dtype=float) == pytest.approx(
        result.metrics["reduced_resolution"]["fused"]["SAM"], rel=1e-5
    )
    errors = read(result.outputs["MAP_RMSE"])[0]
    valid = np.isfinite(errors)
    np.testing.assert_array_equal(valid, np.isfinite(found))
    per_band = np.array(result.metrics["per_band"]["RMSE"])
    assert np.sqrt((errors[valid].astype(float) ** 2).mean()) == pytest.approx(
        np.sqrt((per_band**2).mean()), rel=1e-5
    )


def test_the_map_of_d_rho_is_the_local_correlation(truth_files, tmp_path):
    f = truth_files
    result = assess(f["fused"], f["hs"], f["guide"], maps=str(tmp_path / "m"))
    found, profile, _, _ = read(result.outputs["MAP_D_RHO"])
    fused, guide = (rasterio.open(f[name]).read().astype(float) for name in ("fused", "guide"))
    assert found.shape == fused.shape[1:] and profile["transform"] == FINE
    for row, col in ((50, 60), (2, 2), (100, 7)):
        window = (slice(row - 2, row + 2), slice(col - 2, col + 2))
        rho = [np.corrcoef(band[window].ravel(), guide[0][window].ravel())[0, 1] for band in fused]
        assert found[row, col] == pytest.approx(1 - np.mean(rho), abs=1e-5)
    assert np.isnan(found[15:30, 35:50]).all()  # every window that touches the hole
    assert np.isfinite(found[[14, 30], 40]).all() and np.isfinite(found[20, [34, 50]]).all()
    assert np.isnan(found[:2]).all() and np.isnan(found[:, -1]).all()  # no whole window
    assert np.nanmean(found, dtype=float) == pytest.approx(
        result.metrics["full_resolution"]["fused"]["D_rho"], rel=1e-5
    )


def test_tiles_and_an_extent_do_not_show(pair_files, tmp_path, monkeypatch):
    """The maps of an extent lie where the fused raster lies, and many small tiles give the map of one."""
    hs, guide, _ = pair_files(rows=70, cols=66, dtype="float32")
    options = {"extent": (450100.0, 5398000.0, 452000.0, 5399700.0), "seed": 0}
    fuse(hs, guide, tmp_path / "a.tif", maps=str(tmp_path / "a"), **options)
    monkeypatch.setattr("hypersharp.backend.assessment.TILE_VALUES", 1)
    monkeypatch.setattr(maps, "PICTURE_PIXELS", 10)
    result = fuse(hs, guide, tmp_path / "b.tif", maps=str(tmp_path / "b"), **options)
    for kind in ("sam", "rmse", "d_rho"):
        one, many = (read(tmp_path / folder / f"{kind}.tif") for folder in "ab")
        np.testing.assert_allclose(one[0], many[0], rtol=1e-4, atol=1e-4)
        assert one[1]["transform"] == many[1]["transform"]
    with (
        rasterio.open(result.outputs["OUTPUT"]) as fused,
        rasterio.open(tmp_path / "b" / "d_rho.tif") as file,
    ):
        assert file.shape == fused.shape and file.transform == fused.transform and file.crs == fused.crs


@pytest.mark.gpu
def test_cuda_gives_the_same_maps(truth_files, tmp_path):
    f = truth_files
    for device in ("cpu", "cuda"):
        options = {"method": "gsa", "reference": f["reference"], "maps": str(tmp_path / device)}
        assess(f["fused"], f["hs"], f["guide"], device=device, **options)
    for name in MAP_NAMES:
        one, other = (read(tmp_path / device / f"{name}.tif")[0] for device in ("cpu", "cuda"))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3, err_msg=name)


# ------------------------------------------------------------------ files


def test_no_maps_no_folder_no_cost(pair_files, tmp_path, monkeypatch):
    """Without --maps and report nothing is collected."""
    hs, guide, _ = pair_files()
    monkeypatch.setattr(maps.ErrorMaps, "add", lambda *_: pytest.fail("collected"))
    result = fuse(hs, guide, tmp_path / "o.tif")
    assert set(result.outputs) == {"OUTPUT"}


@pytest.mark.parametrize("made_before", [False, True])
def test_cancel_leaves_no_map(pair_files, tmp_path, made_before):
    """Cancelled when maps are half written: no file, no folder of ours, and an older map as it was."""
    hs, guide, _ = pair_files(rows=64, cols=64)
    folder = tmp_path / "m"
    if made_before:
        folder.mkdir()
        (folder / "sam.tif").write_bytes(b"older")
    before = sorted(os.listdir(tmp_path))
    begun = []

    def listen(message):
        if getattr(message, "stage", "") == "assessing" and message.done >= 1:
            begun.append(sorted(os.listdir(folder)))

    with pytest.raises(Cancelled):
        fuse(hs, guide, tmp_path / "o.tif", maps=str(folder), control=Control(listen, lambda: bool(begun)))
    assert "sam.part.tif" in begun[0]  # it was on its way
    assert sorted(os.listdir(tmp_path)) == before
    if made_before:
        assert os.listdir(folder) == ["sam.tif"] and (folder / "sam.tif").read_bytes() == b"older"


def test_a_full_disk_is_told_and_leaves_nothing(pair_files, tmp_path, monkeypatch):
    hs, guide, _ = pair_files(rows=64, cols=64)

    def full(*_):
        raise HyperSharpError("the disk is full", code=ErrorCode.DISK_FULL)

    monkeypatch.setattr(maps.FusedWriter, "_raise_error", full)
    fused = tmp_path / "o.tif"
    with pytest.raises(HyperSharpError, match="disk is full"):
        assess(hs_as_fused(hs, guide, tmp_path), hs, guide, maps=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists() and not fused.exists()


def hs_as_fused(hs, guide, folder):
    """Write something on the guide's grid with as many bands as the HS image; return its path."""
    with rasterio.open(hs) as coarse, rasterio.open(guide) as fine:
        image = coarse.read().repeat(4, axis=1).repeat(4, axis=2)
        profile = {**fine.profile, "count": coarse.count, "dtype": image.dtype}
    with rasterio.open(folder / "any.tif", "w", **profile) as file:
        file.write(image)
    return str(folder / "any.tif")


def test_bad_folders_are_refused_before_any_work(pair_files, tmp_path):
    hs, guide, _ = pair_files()
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "absent" / "m", tmp_path / "file" / "m"):
        with pytest.raises(HyperSharpError, match="cannot be written") as error:
            fuse(hs, guide, tmp_path / "o.tif", maps=str(folder))
        assert error.value.code is ErrorCode.OUTPUT
    with pytest.raises(HyperSharpError, match="take the place"):
        fuse(hs, guide, tmp_path / "sam.tif", maps=str(tmp_path))
    with pytest.raises(HyperSharpError, match="switched off"):
        fuse(hs, guide, tmp_path / "o.tif", maps=str(tmp_path / "m"), assess=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "guide.tif", "hs.tif"]


def test_command_line_writes_maps_and_the_csv_twin(pair_files, tmp_path, capsys):
    hs, guide, _ = pair_files(rows=40, cols=40)
    paths = {name: str(tmp_path / name) for name in ("o.tif", "m.json", "maps", "m.csv")}
    options = ["--metrics", paths["m.json"], "--maps", paths["maps"], "--progress", "none"]
    assert cli.main(["fuse", hs, guide, "-o", paths["o.tif"], *options]) == 0
    printed = capsys.readouterr().out
    assert paths["m.csv"] in printed and os.path.join(paths["maps"], "d_rho.tif") in printed
    assert sorted(os.listdir(paths["maps"])) == [
        "d_rho.qml",
        "d_rho.tif",
        "rmse.qml",
        "rmse.tif",
        "sam.qml",
        "sam.tif",
    ]
    with open(paths["m.csv"], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {r["band"] for r in rows if r["index"] == "PSNR"} == {"", *map(str, range(1, 9))}
    assert {r["protocol"] for r in rows} == {"reduced_resolution", "full_resolution"}
    assert cli.main(["fuse", hs, guide, "-o", paths["o.tif"], "--metrics", paths["m.csv"]]) == 2
    assert "JSON" in capsys.readouterr().err


def test_the_names_are_those_that_qgis_clears_up_after_a_crash():
    assert [kind.file for kind in KINDS.values()] == [f"{name}.tif" for name in MAP_NAMES]


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", [(7, 5), (64, 23), (100, 100)])
def test_a_thumbnail_is_the_mean_of_blocks_however_the_raster_is_cut(shape, power):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    values[1:3, 2:4] = float("nan")
    thumbnail = Thumbnail(shape, longest=10, squares=power == 2)
    factor = -(-max(shape) // 10)
    for row in range(0, shape[0], 13):
        for col in range(0, shape[1], 17):
            thumbnail.add(row, col, values[row : row + 13, col : col + 17])
    found = thumbnail.values()
    assert thumbnail.factor == factor and max(found.shape) <= 10
    blocks = values.double().numpy() ** power
    with np.errstate(invalid="ignore"):
        for (r, c), value in np.ndenumerate(found):
            block = blocks[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor]
            good = block[np.isfinite(block)]
            assert (
                value == pytest.approx(good.mean() ** (1 / power), rel=1e-6) if good.size else np.isnan(value)
            )
    assert thumbnail.mean == pytest.approx(np.nanmean(blocks) ** (1 / power), rel=1e-12)


def test_the_report_gets_the_same_figures_as_the_table(pair_files, tmp_path, monkeypatch):
    """The maps' overall values are the indices, and the report shows them whether or not maps were asked for."""
    hs, guide, _ = pair_files(rows=64, cols=64)
    seen = {}
    collect = maps.ErrorMaps.pictures
    monkeypatch.setattr(
        maps.ErrorMaps, "pictures", lambda self: seen.setdefault("maps", collect(self)) or seen["maps"]
    )
    result = fuse(hs, guide, tmp_path / "o.tif", report=str(tmp_path / "r.html"))
    found = {p.kind.key: p for p in seen["maps"]}
    assert list(found) == ["SAM", "RMSE", "D_rho"]
    reduced, full = (result.metrics[k]["fused"] for k in ("reduced_resolution", "full_resolution"))
    for key, value in (("SAM", reduced["SAM"]), ("RMSE", reduced["RMSE"]), ("D_rho", full["D_rho"])):
        assert found[key].mean == pytest.approx(value, rel=1e-5), key
        assert 0 < found[key].top <= np.nanmax(found[key].values)
    page = (tmp_path / "r.html").read_text()
    assert "Where the errors are" in page and page.count("Map of ") == 3
    assert sorted(os.listdir(tmp_path)) == ["guide.tif", "hs.tif", "o.tif", "r.html"]


def test_the_colours_are_perceptually_uniform():
    """Matplotlib's magma at even steps: its lightness rises evenly, so grey and colour-blind readers see the order."""
    wanted = [to_hex(colormaps["magma"](i / (len(maps.COLOURS) - 1))) for i in range(len(maps.COLOURS))]
    assert list(maps.COLOURS) == wanted


@pytest.mark.parametrize(("values", "top"), [(np.zeros((3, 3)), 1.0), (np.full((3, 3), np.nan), 1.0)])
def test_a_map_without_errors_or_values_has_a_scale(values, top):
    one = maps._Map(KINDS["SAM"], "degrees", (3, 3), (0, 0), None, None, Affine.identity())
    one.add(0, 0, torch.from_numpy(values.astype("float32")))
    assert one.picture().top == top


def test_the_style_names_the_range():
    text = style(MapPicture(KINDS["SAM"], "degrees", np.ones((2, 2), "float32"), 1, 1.0, 2.5))
    assert 'classificationMax="2.5"' in text and "$" not in text and text.count("<item ") == len(maps.COLOURS)
