"""Comparing methods: files, ranking, resuming, failures, cancelling, simulated pairs, and the command line."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypersharp.backend import cli, comparison, comparison_table, ranking, registry
from hypersharp.backend.control import Control
from hypersharp.backend.errors import Cancelled, HyperSharpError
from hypersharp.backend.job import CompareJob, job_from_dict, job_to_dict
from hypersharp.backend.methods.sfim import SFIM
from hypersharp.backend.pipeline import fuse
from hypersharp.backend.protocol import Log, Progress, encode

METHODS = ["bicubic", "gsa", "sfim"]


def compare(*args, **options):
    """Compare without the report, which is tested where it matters."""
    return comparison.compare(*args, **{"report": False, **options})


@pytest.fixture
def pair(pair_files):
    hs, guide, _ = pair_files()
    return hs, guide


@pytest.fixture
def compared(pair, tmp_path):
    return comparison.compare(*pair, tmp_path / "out", METHODS), tmp_path / "out"


def test_files_and_table(compared):
    result, folder = compared
    names = {p.name for p in folder.iterdir()}
    assert names == {*METHODS, "compare.json", "compare.csv", "compare.html"}
    table = json.loads((folder / "compare.json").read_text())
    assert table == json.loads(json.dumps(result.metrics))
    assert encode(result)  # crosses the process boundary
    assert {r["method"] for r in table["methods"]} == set(METHODS)
    for method in METHODS:
        own = json.loads((folder / method / "metrics.json").read_text())
        row = comparison_table.row_of(table, method)
        assert own["method"] == method
        assert own["peak_memory_bytes"] > 50e6
        assert row["seconds"] == own["seconds"] > 0
        assert row["score"] == pytest.approx(ranking.score(own, table["ranking"]["basis"]))
        for section in ("reduced_resolution", "full_resolution"):
            assert row[section] == own[section]["fused"]
        with rasterio.open(folder / row["fused"]) as fused:
            assert fused.count == 8
            assert fused.tags()["HYPERSHARP_METHOD"] == method
    scores = [r["score"] for r in table["methods"]]
    assert scores == sorted(scores, reverse=True)
    assert [r["rank"] for r in table["methods"]] == [1, 2, 3]
    best = table["methods"][0]
    assert best["method"] in ("gsa", "sfim")  # the guide is the mean of the truth's bands: detail is real
    assert best["factor"] > 1.2
    assert result.outputs["BEST"] == str(folder / best["fused"])
    assert comparison_table.row_of(table, "bicubic")["factor"] == pytest.approx(1.0, abs=0.02)
    assert table["recommendation"]["method"] == best["method"]
    assert best["title"].split(" (")[0] in table["recommendation"]["text"]
    assert "times smaller" in table["recommendation"]["text"]


def test_scored_together_as_alone(compared, pair, tmp_path):
    """Interpolation's indices are computed once for all methods; every number is the same as in a run of its own."""
    _, folder = compared
    alone = fuse(*pair, tmp_path / "alone.tif", method="sfim").metrics
    together = json.loads((folder / "sfim" / "metrics.json").read_text())
    for section in ("reduced_resolution", "full_resolution"):
        for column in ("fused", "interpolated"):
            assert together[section][column] == pytest.approx(alone[section][column], rel=1e-6, abs=1e-9)
    assert together["per_band"]["PSNR"] == pytest.approx(alone["per_band"]["PSNR"])
    assert together["per_band"]["interpolated"]["PSNR"] == pytest.approx(
        alone["per_band"]["interpolated"]["PSNR"]
    )


def test_of_all_only_those_that_take_the_guide(pair, tmp_path, monkeypatch):
    picky = {m: replace(i, guide_kinds=("msi",)) if m == "sfim" else i for m, i in registry.METHODS.items()}
    few = {m: picky[m] for m in ("gsa", "sfim")}
    monkeypatch.setattr(registry, "METHODS", few)
    monkeypatch.setattr(comparison, "METHODS", few)
    table = compare(*pair, tmp_path / "out", ["all"]).metrics
    assert [r["method"] for r in table["methods"]] == ["gsa", "interpolation"]


def test_csv_is_the_same_table(compared):
    result, folder = compared
    lines = list(csv.DictReader(io.StringIO((folder / "compare.csv").read_text())))
    assert [line["method"] for line in lines] == [r["method"] for r in result.metrics["methods"]]
    for line, row in zip(lines, result.metrics["methods"]):
        assert float(line["reduced_resolution.SAM"]) == row["reduced_resolution"]["SAM"]
        assert float(line["full_resolution.D_lambda_K"]) == row["full_resolution"]["D_lambda_K"]
        assert int(line["rank"]) == row["rank"]
        assert line["error"] == ""


def test_the_report_needs_nothing_else(compared):
    result, folder = compared
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    for row in result.metrics["methods"]:
        assert row["title"].split(" (")[0] in page
    assert page.count("<img") >= 3 + 2 + 3 + 4  # overview, HS and guide, methods, plots
    assert "Recommendation" in page


def test_the_control_stands_in_the_table_without_being_asked_for(pair, tmp_path):
    table = compare(*pair, tmp_path / "out", ["gsa"]).metrics
    control = comparison_table.row_of(table, "interpolation")
    assert control["score"] == 0
    own = json.loads((tmp_path / "out" / "gsa" / "metrics.json").read_text())
    assert control["reduced_resolution"] == own["reduced_resolution"]["interpolated"]
    assert control["fused"] is None
    assert not (tmp_path / "out" / "interpolation").exists()


def test_what_is_finished_is_not_run_again(compared, pair, monkeypatch):
    first, folder = compared
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/*")}
    monkeypatch.setattr(comparison, "run_fuse", lambda *a: pytest.fail("ran again"))
    again = compare(*pair, folder, METHODS)
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*")} == before
    assert all(r["reused"] for r in again.metrics["methods"])
    assert [r["score"] for r in again.metrics["methods"]] == [r["score"] for r in first.metrics["methods"]]


def test_only_the_new_method_is_run(compared, pair, monkeypatch):
    _, folder = compared
    ran = []
    real = comparison.run_fuse
    monkeypatch.setattr(comparison, "run_fuse", lambda job, c: ran.append(job.method) or real(job, c))
    table = compare(*pair, folder, [*METHODS, "brovey"]).metrics
    assert ran == ["brovey"]
    assert len(table["methods"]) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"mtf_hs": 0.25},
        {"dtype": "float32"},
        {"extent": (450000.0, 5398700.0, 451200.0, 5400000.0)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_run_again(pair, tmp_path, change):
    plain = comparison.job_key(CompareJob(*pair, str(tmp_path)), "gsa")
    assert comparison.job_key(CompareJob(*pair, str(tmp_path), **change), "gsa") != plain
    assert comparison.job_key(CompareJob(*pair, str(tmp_path)), "sfim") != plain
    assert comparison.job_key(CompareJob(*pair, str(tmp_path / "x"), methods=["gsa"]), "gsa") == plain


def test_a_changed_input_runs_again(compared, pair, monkeypatch):
    _, folder = compared
    with rasterio.open(pair[1], "r+") as guide:
        guide.write(np.flip(guide.read(), axis=2))
    ran = []
    real = comparison.run_fuse
    monkeypatch.setattr(comparison, "run_fuse", lambda job, c: ran.append(job.method) or real(job, c))
    compare(*pair, folder, ["gsa"])
    assert ran == ["gsa"]


@pytest.mark.parametrize("how", ["told", "bug", "memory"])
def test_one_failing_method_loses_nothing(pair, tmp_path, monkeypatch, how):
    errors = {
        "told": HyperSharpError("no luck", "try again"),
        "bug": ZeroDivisionError("oh"),
        "memory": MemoryError(),
    }

    def fail(*_):
        raise errors[how]

    monkeypatch.setattr(SFIM, "fit", fail)
    result = comparison.compare(*pair, tmp_path / "out", METHODS)
    failed = comparison_table.row_of(result.metrics, "sfim")
    words = {"told": "no luck", "bug": "ZeroDivisionError", "memory": "memory ran out"}[how]
    assert words in failed["error"]["message"]
    assert failed["rank"] is None
    assert {r["method"] for r in result.metrics["methods"] if r["rank"]} == {"bicubic", "gsa"}
    assert any("sfim" in w and words in w for w in result.warnings)
    assert words in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert words in (tmp_path / "out" / "compare.csv").read_text()
    assert words in comparison_table.terminal_text(result.metrics)
    assert list((tmp_path / "out" / "sfim").iterdir()) == []
    monkeypatch.undo()
    mended = comparison.compare(*pair, tmp_path / "out", METHODS).metrics
    assert [r["reused"] for r in mended["methods"] if r["method"] != "sfim"] == [True, True]
    assert comparison_table.row_of(mended, "sfim")["rank"]


def test_a_failure_does_not_leave_an_older_result_behind(compared, pair, monkeypatch):
    _, folder = compared

    def fail(*_):
        raise HyperSharpError("no luck")

    monkeypatch.setattr(SFIM, "fit", fail)
    table = compare(*pair, folder, METHODS, seed=5).metrics
    assert comparison_table.row_of(table, "sfim")["fused"] is None
    assert not (folder / "sfim" / "metrics.json").exists()


def test_all_failing_is_an_error(pair, tmp_path, monkeypatch):
    def fail(*_):
        raise HyperSharpError("no luck", "none")

    monkeypatch.setattr(SFIM, "fit", fail)
    with pytest.raises(HyperSharpError, match="no method succeeded: no luck"):
        compare(*pair, tmp_path / "out", ["sfim"])
    assert not (tmp_path / "out" / "compare.json").exists()


def test_cancel_keeps_what_is_finished(pair, tmp_path, monkeypatch):
    said = []

    def cancelled():
        return any(isinstance(m, Progress) and m.stage.startswith("sfim") for m in said)

    with pytest.raises(Cancelled) as stopped:
        compare(*pair, tmp_path / "out", METHODS, control=Control(said.append, cancelled))
    assert "same folder" in stopped.value.hint  # and not "nothing was written"
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["bicubic", "gsa", "sfim"]
    assert list((tmp_path / "out" / "sfim").iterdir()) == []
    monkeypatch.setattr(comparison, "SAMPLE_S", 0.01)
    table = compare(*pair, tmp_path / "out", METHODS).metrics
    assert [comparison_table.row_of(table, m)["reused"] for m in METHODS] == [True, True, False]


def test_progress_rises_to_the_end_and_names_the_method(pair, tmp_path):
    said = []
    compare(*pair, tmp_path / "out", METHODS, control=Control(said.append), report=True)
    fractions = [m.fraction for m in said if isinstance(m, Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0, abs=1e-3)
    stages = {m.stage for m in said if isinstance(m, Progress)}
    assert {"gsa: fusing", "sfim: assessing"} <= stages
    warned = [m.text for m in said if isinstance(m, Log) and m.level == "warning"]
    assert len(warned) == len(set(warned))  # once, not once a method


def test_a_guide_that_does_not_belong_is_not_recommended(pair, make_raster, tmp_path):
    hs, guide = pair
    with rasterio.open(guide) as dataset:
        noise = np.random.default_rng(3).integers(500, 4000, dataset.read().shape).astype("uint16")
    table = compare(
        hs, make_raster("noise.tif", noise), tmp_path / "out", ["bicubic", "brovey", "sfim"]
    ).metrics
    assert table["recommendation"]["method"] == "bicubic"
    assert table["recommendation"]["text"].startswith("Keep plain interpolation")
    assert all(r["factor"] < 1.012 for r in table["methods"] if r["method"] != "bicubic")


def some_table(**more):
    rows = [
        ("gsa", "GSA (x)", 0.5, 10.0),
        ("sfim", "SFIM", 0.495, 2.0),
        ("gs", "GS", 0.494, 9.0),
        ("bt-h", "BT-H", 0.493, 9.0),
        ("awlp", "AWLP", 0.492, 9.0),
        ("pca", "PCA", 0.4, 1.0),
    ]
    methods = [
        {"method": m, "title": t, "score": s, "factor": np.exp(s), "seconds": seconds}
        for m, t, s, seconds in rows
    ]
    return {"methods": methods, "ranking": {"basis": "reduced_resolution"}, **more}


def test_equals_are_named_and_the_fastest_of_them():
    text = comparison_table.recommend(some_table())["text"]
    assert text.startswith("Use GSA: its errors are 1.65 times smaller")
    assert text.endswith("; SFIM, GS and 2 more are as good to 1 % and SFIM 5.0 times faster.")
    assert text.count(". ") == 0  # one sentence
    alone = some_table()
    alone["methods"] = [alone["methods"][i] for i in (0, 1, 5)]
    assert comparison_table.recommend(alone)["text"].endswith(
        "; SFIM is as good to 1 % and 5.0 times faster."
    )
    alone["methods"][1]["seconds"] = 9.0
    assert comparison_table.recommend(alone)["text"].endswith("; SFIM is as good to 1 %.")


def test_a_handful_of_pixels_is_a_hint():
    assert (
        "only a hint, since 5 × 7 pixels"
        in comparison_table.recommend(some_table(reduced_pixels=(7, 5)))["text"]
    )
    assert "hint" not in comparison_table.recommend(some_table(reduced_pixels=(8, 8)))["text"]
    by_truth = some_table(reduced_pixels=(4, 4)) | {"ranking": {"basis": "reference"}}
    assert "hint" not in comparison_table.recommend(by_truth)["text"]


def test_methods_that_belong_to_all(tmp_path, monkeypatch):
    job = CompareJob("a", "b", "c")
    everything = comparison.check_job(job)
    assert set(everything) <= set(registry.METHODS)
    assert {"bicubic", "gsa", "mtf-glp-hpm"} <= set(everything)
    learned = [m for m, info in registry.METHODS.items() if info.needs_weights]
    assert all((m in everything) == comparison.default_weights(m) for m in learned)
    monkeypatch.setattr(comparison, "shipped_names", lambda: ["s3rnet"])
    monkeypatch.setitem(
        registry.METHODS, "s3rnet", replace(registry.METHODS["gsa"], id="s3rnet", needs_weights=True)
    )
    assert "s3rnet" in comparison.check_job(job)
    monkeypatch.setattr(comparison, "shipped_names", list)
    assert "s3rnet" not in comparison.check_job(job)
    assert "s3rnet" in comparison.check_job(replace(job, weights={"s3rnet": "mine"}))
    assert "s3rnet" in comparison.check_job(replace(job, methods=["s3rnet"]))
    assert comparison.check_job(CompareJob("a", "b", "c", ["sfim", "gsa", "sfim"])) == ["gsa", "sfim"]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (CompareJob("a", "b", "c", ["magic"]), "unknown method"),
        (CompareJob("a", "b", "c", []), "no method"),
        (CompareJob("a", "", "c"), "HS raster and a guide"),
        (CompareJob("a", "b", "c", cubes="d"), "HS raster and a guide"),
        (CompareJob("", "", "c"), "HS raster and a guide"),
        (CompareJob("a", "b", ""), "no folder"),
        (CompareJob("", "", "c", cubes="d", extent=(0, 0, 1, 1)), "extent"),
        (CompareJob("a", "b", "c", dtype="int3"), "dtype"),
        (CompareJob("a", "b", "c", memory_gb=0), "memory"),
        (CompareJob("a", "b", "c", parameters={"magic": {}}), "unknown method"),
    ],
)
def test_bad_jobs(job, words):
    with pytest.raises(HyperSharpError, match=words):
        comparison.check_job(job)


def test_bad_inputs_leave_no_table(pair, tmp_path):
    with pytest.raises(HyperSharpError):
        compare(pair[0], tmp_path / "none.tif", tmp_path / "out", METHODS)
    assert list((tmp_path / "out").iterdir()) == []
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(HyperSharpError, match="cannot write into the folder"):
        compare(*pair, blocked / "out", METHODS)


def test_a_method_option_reaches_its_method_alone(pair, tmp_path):
    table = compare(*pair, tmp_path / "out", METHODS, parameters={"gsa": {"nothing": 1}}).metrics
    assert "nothing" in comparison_table.row_of(table, "gsa")["error"]["message"]
    assert comparison_table.row_of(table, "sfim")["error"] is None


def test_job_round_trip():
    job = CompareJob("a", "b", "c", ["gsa"], extent=(0.0, 1.0, 2.0, 3.0), parameters={"gsa": {"x": 1}})
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job)))) == job


@pytest.fixture
def cubes(tmp_path, make_raster):
    from scenes import smooth_scene

    folder = tmp_path / "cubes"
    folder.mkdir()
    for seed in (1, 2):
        cube = smooth_scene(12, 96, 96, seed).astype("float32")
        path = make_raster(
            f"cube{seed}.tif",
            cube,
            transform=Affine(5, 0, 4e5, 0, -5, 5e6),
            wavelengths=list(np.linspace(420, 900, 12)),
        )
        (folder / f"cube{seed}.tif").write_bytes(open(path, "rb").read())
    make_raster("tiny.tif", np.ones((12, 6, 6), "float32"))
    (tmp_path / "tiny.tif").rename(folder / "tiny.tif")
    (folder / "notes.txt").write_text("no cube")
    return folder


def test_simulated_pairs(cubes, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    job = CompareJob(folder=str(folder), cubes=str(cubes), methods=METHODS, ratio=4, simulated_guide="pan")
    result = comparison.run_compare(job, Control())
    table = result.metrics
    assert table["ranking"]["basis"] == "reference"
    assert set(table["cubes"]) == {"cube1", "cube2"}
    assert "tiny" in table["failed_cubes"]
    assert any(w.startswith("every pair: the reduced-resolution indices rest on") for w in table["warnings"])
    own = [json.loads((folder / c / "compare.json").read_text()) for c in ("cube1", "cube2")]
    for row in table["methods"]:
        parts = [comparison_table.row_of(t, row["method"]) for t in own]
        assert row["reference"]["SAM"] == pytest.approx(np.mean([p["reference"]["SAM"] for p in parts]))
        assert row["mean_rank"] == np.mean([p["rank"] for p in parts])
        assert row["score"] == pytest.approx(np.mean([p["score"] for p in parts]))
    assert table["recommendation"]["method"] in ("gsa", "sfim")
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert 'href="cube1/compare.html"' in page
    assert "tiny was left out" in page
    assert "BEST" not in result.outputs
    monkeypatch.setattr(comparison, "run_fuse", lambda *a: pytest.fail("ran again"))
    monkeypatch.setattr(comparison, "run_simulate", lambda *a: pytest.fail("simulated again"))
    monkeypatch.setattr("shutil.disk_usage", lambda *a: pytest.fail("not needed"))
    (cubes / "tiny.tif").unlink()
    again = comparison.run_compare(job, Control()).metrics
    assert [r["score"] for r in again["methods"]] == [r["score"] for r in table["methods"]]


def test_no_cubes(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, words in ((tmp_path / "empty", "no cube"), (tmp_path / "none", "no such folder")):
        with pytest.raises(HyperSharpError, match=words):
            comparison.run_compare(CompareJob(folder=str(tmp_path / "out"), cubes=str(source)), Control())


def test_command_line(pair, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["compare", *pair, "--methods", "gsa,sfim", "-o", out, "--no-report"]) == 0
    said = capsys.readouterr()
    assert said.out.isascii()
    assert "gsa" in said.out and "sfim" in said.out and "interpolation" in said.out
    assert re.search(r"^Use ", said.out, re.M)
    assert out + "/compare.csv" in said.out
    assert not (tmp_path / "out" / "compare.html").exists()
    assert cli.main(["compare", *pair, "--methods", "gsaa", "-o", out]) == 2
    assert "did you mean gsa" in capsys.readouterr().err
    assert cli.main(["compare", "-o", out]) == 2
    assert cli.main(["compare", *pair, "-o", out, "--option", "x=1"]) == 2
    assert "method.name=value" in capsys.readouterr().err
