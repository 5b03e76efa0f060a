"""metrics.json, the table and the verdict: nothing invented, nothing lost."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.report import summary_table, verdict, write_csv, write_metrics
from hypersharp.backend.report.indices import index_rows, show, with_below
from hypersharp.backend.report.verdict import GOOD, MIXED, POOR, UNKNOWN, judge


def metrics(fused, control, section="reduced_resolution", **more):
    return {
        "method": "gsa",
        "title": "GSA (adaptive Gram-Schmidt)",
        section: {"fused": fused, "interpolated": control},
        **more,
    }


GOOD_VALUES = {"PSNR": 34.0, "SAM": 2.0, "ERGAS": 3.0, "Q2n": 0.9}
CONTROL = {"PSNR": 30.0, "SAM": 2.5, "ERGAS": 5.0, "Q2n": 0.7}


def test_metrics_are_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "metrics.json"
    write_metrics(
        {"a": np.float32(0.5), "b": [1, None, True], "c": Path("x"), "d": np.arange(2), "e": (1,)}, target
    )
    before = target.read_text()
    assert json.loads(before) == {"a": 0.5, "b": [1, None, True], "c": "x", "d": [0, 1], "e": [1]}
    for bad in (math.nan, math.inf, np.float64("nan"), [1.0, -math.inf]):
        with pytest.raises(ValueError, match=r"metrics\.x\.y"):
            write_metrics({"x": {"y": bad}}, target)
    with pytest.raises(ValueError, match=r"metrics\.x"):
        write_metrics({"x": object()}, target)
    assert target.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_unwritable_place_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(HyperSharpError) as error:
        write_metrics({}, tmp_path / "absent" / "metrics.json")
    assert error.value.code is ErrorCode.OUTPUT and error.value.hint


def test_rows_say_which_is_better_to_the_digits_shown():
    rows = {
        r.key: r
        for r in index_rows(
            metrics(
                {"PSNR": 34.0, "SAM": 2.5004, "ERGAS": 6.0, "CC": None, "Made_up": 1.0},
                {"PSNR": 30.0, "SAM": 2.5, "ERGAS": 5.0, "CC": 0.9, "Made_up": 2.0},
                reasons={"reduced_resolution.CC": "constant band"},
                better={"Made_up": "lower"},
                variants={"PSNR": "peak = band maximum"},
            )
        )
    }
    assert [rows[k].gain for k in ("PSNR", "SAM", "ERGAS", "CC", "Made_up")] == [1, 0, -1, None, 1]
    assert rows["CC"].reason == "constant band" and rows["PSNR"].variant == "peak = band maximum"


@pytest.mark.parametrize("reasons", [{"CC": "why"}, {"reduced_resolution": {"CC": "why"}}])
def test_reasons_in_any_form(reasons):
    (row,) = index_rows(metrics({"CC": None}, {}, reasons=reasons))
    assert row.reason == "why" and row.fused is None


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("PSNR", 34.5678, "34.57"),
        ("SAM", 2.0, "2.000"),
        ("Q2n", 0.98765, "0.9877"),
        ("RMSE", 276.61, "276.6"),
        ("RMSE", 0.0340212, "0.03402"),
        ("RMSE", 0.0, "0"),
        ("CC", None, "–"),
    ],
)
def test_digits(key, value, text):
    assert show(key, value) == text


def test_not_a_number_is_shown_as_missing():
    (row,) = index_rows(metrics({"SAM": math.nan}, {"SAM": 2.0}))
    assert row.fused is None and row.gain is None


def test_summary_table_is_short_and_ascii():
    table = summary_table(metrics(GOOD_VALUES, CONTROL, full_resolution={"fused": {"D_lambda_K": 0.01}}))
    assert table.isascii()
    line = next(x for x in table.splitlines() if x.startswith("PSNR"))
    assert line.split() == ["PSNR", "(dB)", "34.00", "30.00", "higher", "+"]
    assert "D_lambda_K" in table and len(table.splitlines()) < 30
    assert summary_table({}) == "no quality indices were computed"


def test_csv(tmp_path):
    write_csv(
        metrics(
            {"SAM": 2.0, "CC": None, "PSNR": 30.0},
            {"SAM": 2.5},
            reasons={"CC": "constant, band"},
            per_band={
                "band": [1, 4],
                "wavelength_nm": [450.5, None],
                "PSNR": [31.0, None],
                "interpolated": {"PSNR": [28.0, 29.0]},
            },
        ),
        tmp_path / "m.csv",
    )
    with open(tmp_path / "m.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)  # as many values as columns
    by_place = {(row["protocol"], row["index"], row["band"]): row for row in rows}
    assert list(by_place) == [
        ("reduced_resolution", "PSNR", ""),
        ("reduced_resolution", "SAM", ""),
        ("reduced_resolution", "CC", ""),
        ("reduced_resolution", "PSNR", "1"),
        ("reduced_resolution", "PSNR", "4"),
    ]
    sam, cc = (by_place["reduced_resolution", key, ""] for key in ("SAM", "CC"))
    assert (sam["method"], sam["interpolation"], sam["better"]) == ("2.0", "2.5", "lower")
    assert (cc["method"], cc["reason"]) == ("", "constant, band")
    first, second = (by_place["reduced_resolution", "PSNR", band] for band in "14")
    assert (first["wavelength_nm"], first["method"], first["interpolation"]) == ("450.5", "31.0", "28.0")
    assert (second["wavelength_nm"], second["method"], second["interpolation"]) == ("", "", "29.0")


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({}, GOOD),
        ({"SAM": 2.53}, GOOD),  # within the tolerance on spectral angle
        ({"SAM": 2.7}, MIXED),
        ({"SAM": 2.7, "ERGAS": 5.5}, MIXED),
        ({"SAM": 2.7, "ERGAS": 5.5, "Q2n": 0.6, "PSNR": 29.0}, POOR),
        ({"SAM": 2.7, "ERGAS": 5.5, "Q2n": 0.6}, MIXED),  # PSNR, which ranks best, says otherwise
        ({"PSNR": 24.0}, MIXED),
        (CONTROL, POOR),
    ],
)
def test_levels(change, level):
    judged = judge(metrics({**GOOD_VALUES, **change}, CONTROL))
    assert judged.level == level
    assert judged.headline and judged.sentences


def test_verdict_says_the_score_and_what_it_rests_on():
    """The score is the mean of ln(control / fused): twice PSNR's amplitude, SAM and 1 - Q2n; D_λ,K is missing."""
    sentence = judge(metrics(GOOD_VALUES, CONTROL)).sentences[1]
    assert f"errors are {(10**0.4 * 1.25 * 3) ** (1 / 4):.2f} times smaller" in sentence
    assert "tau" in sentence and "Wald" in sentence
    assert "times as large" in " ".join(judge(metrics(CONTROL, GOOD_VALUES)).sentences)


def test_verdict_names_the_numbers():
    text = verdict(metrics(GOOD_VALUES, CONTROL, full_resolution={"fused": {"D_lambda_K": 0.2, "HQNR": 0.7}}))
    assert text.startswith("GSA restores") and text.isascii()
    for part in ("34.00 dB", "+4.00 dB", "-40 %", "departs clearly", "HQNR at full resolution is 0.7000"):
        assert part in text


def test_a_true_image_decides_over_the_reduced_resolution():
    both = metrics(GOOD_VALUES, CONTROL)
    both["reference"] = {"fused": CONTROL, "interpolated": GOOD_VALUES}
    judged = judge(both)
    assert judged.level == POOR and "true image" in judged.sentences[0]


def test_what_cannot_be_judged_is_not_judged():
    assert judge({}).level == UNKNOWN
    assert "full-resolution" in judge({"full_resolution": {"fused": {"HQNR": 0.9}}}).headline
    assert "control" in judge({**metrics(GOOD_VALUES, CONTROL), "method": "bicubic"}).headline
    alone = judge({"reference": {"fused": {"SAM": 2.0}}})
    assert alone.level == UNKNOWN and "without a control" in alone.headline
    nulls = dict.fromkeys(GOOD_VALUES)
    assert judge(metrics(nulls, nulls, reduced_resolution=None)).level == UNKNOWN


def test_no_verdict_from_a_handful_of_pixels():
    small = metrics(GOOD_VALUES, CONTROL, ratio=10, inputs={"hs": {"rows": 40, "cols": 40}})
    judged = judge(small)
    assert judged.level == UNKNOWN and "4 × 4 pixels" in judged.headline
    assert judge({**small, "ratio": 4}).level == GOOD


def test_what_stands_below_the_line():
    assert with_below("1 - D_λ,K and D_s; D_x") == [("1 - D", "λ,K"), (" and D", "s"), ("; D_x", "")]
