"""The score by which fused images are ranked: closed-form cases, what it must not depend on, missing values."""

import math

import pytest
from hypersharp.backend import ranking


def metrics(scale=1.0, reference=False, reduced=True, full=True):
    """Return metrics whose fused errors are `scale` times interpolation's in every index."""
    control = {
        "PSNR": 30.0,
        "SAM": 4.0,
        "Q2n": 0.6,
        "D_lambda_K": 0.1,
        "D_rho": 0.5,
        "RQNR": 0.7,
        "ERGAS": 3.0,
    }
    fused = {
        "PSNR": 30.0 - 20 * math.log10(scale),
        "SAM": 4.0 * scale,
        "Q2n": 1 - 0.4 * scale,
        "D_lambda_K": 0.1 * scale,
        "D_rho": 0.5 * scale,
        "D_s_R": 0.3 * scale,
        "ERGAS": 3.0 * scale,
    }
    part = {"fused": fused, "interpolated": control}
    found = {"reduced_resolution": part if reduced else None, "full_resolution": part if full else None}
    return found | ({"reference": part} if reference else {})


@pytest.mark.parametrize("basis", list(ranking.BASES))
@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 2.0])
def test_errors_halved_score_ln_2_on_every_basis(basis, scale):
    got = ranking.score(metrics(scale, reference=True), basis)
    assert got == pytest.approx(-math.log(scale), abs=1e-12)
    assert ranking.factor(got) == pytest.approx(1 / scale)


def test_the_best_basis_that_is_there():
    assert ranking.basis_of(metrics(reference=True)) == "reference"
    assert ranking.basis_of(metrics()) == "reduced_resolution"
    assert ranking.basis_of(metrics(reduced=False)) == "full_resolution"
    assert ranking.basis_of(metrics(reduced=False, full=False)) is None
    assert ranking.score({}) is None
    assert ranking.score({"reduced_resolution": {"fused": None, "interpolated": None}}) is None


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("PSNR", 20.0, 0.1),
        ("SAM", 2.5, 2.5),
        ("Q2n", 0.9, 0.1),
        ("HQNR", 0.75, 0.25),
        ("D_rho", 0.3, 0.3),
        ("SAM", None, None),
        ("SAM", math.nan, None),
        ("PSNR", math.inf, None),
        ("SAM", True, None),
    ],
)
def test_distance_from_perfect(key, value, error):
    got = ranking.error_of(key, value)
    assert got is None if error is None else got == pytest.approx(error)


@pytest.mark.parametrize("key", ["PSNR", "SAM", "Q2n", "D_lambda_K"])
def test_improving_any_index_raises_the_score(key):
    better = metrics()
    section = "full_resolution" if key == "D_lambda_K" else "reduced_resolution"
    step = {"PSNR": 1.0, "SAM": -0.5, "Q2n": 0.05, "D_lambda_K": -0.02}[key]
    fused = dict(better[section]["fused"])
    fused[key] += step
    better[section] = {**better[section], "fused": fused}
    assert ranking.score(better) > ranking.score(metrics())


def test_consistency_to_the_last_digit_wins_nothing():
    def with_khan(value):
        found = metrics()
        found["full_resolution"] = {
            "fused": {**found["full_resolution"]["fused"], "D_lambda_K": value},
            "interpolated": found["full_resolution"]["interpolated"],
        }
        return ranking.score(found)

    assert with_khan(1e-9) == with_khan(0.009) == with_khan(0.0)
    assert with_khan(0.009) > with_khan(0.02)


def test_ranked_on_what_all_have():
    """One image lacks SAM: then none is judged by it, or the others would be compared with something else."""
    lacking = metrics(0.5)
    fused = {k: v for k, v in lacking["reduced_resolution"]["fused"].items() if k != "SAM"}
    lacking["reduced_resolution"] = {**lacking["reduced_resolution"], "fused": fused}
    other = metrics(0.6)
    other["reduced_resolution"]["fused"]["SAM"] = 0.001  # would win by this one alone
    ranked = ranking.rank({"lacking": lacking, "other": other})
    assert "reduced_resolution.SAM" not in ranked.names
    assert ranked.order == ["lacking", "other"]
    assert ranked.place("lacking") == 1
    without = ranking.rank({"a": metrics(0.5), "b": metrics(0.4, reduced=False)})
    assert without.basis == "full_resolution"
    assert without.order == ["b", "a"]


def test_nothing_to_rank_by():
    ranked = ranking.rank({"a": {}, "b": {}})
    assert ranked.basis is None
    assert ranked.scores == {"a": None, "b": None}
    assert ranked.place("a") is None
    assert ranking.rank({}).order == []
    assert "No ranking" in ranking.explain(None)


def test_the_explanation_names_what_it_rests_on_and_how_well():
    assert "PSNR" in ranking.explain("reduced_resolution")
    assert "tau" in ranking.explain("reduced_resolution")
    assert "weak" in ranking.explain("full_resolution")
    for basis, (tau, loss) in ranking.MEASURED.items():
        assert 0 < tau < 1, basis
        assert 0 < loss < 0.5
    assert ranking.MEASURED["reduced_resolution"][0] > ranking.MEASURED["full_resolution"][0]


def test_the_numbers_said_are_those_of_the_docs(root):
    """docs/metrics.md is written by `make ranking`; what the report says must be what was measured."""
    page = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    used = next(line for line in page.splitlines() if "used by `compare`" in line).split("|")
    weak = next(line for line in page.splitlines() if "used without the protocol" in line).split("|")
    for cells, basis in ((used, "reduced_resolution"), (weak, "full_resolution")):
        assert float(cells[5]) == pytest.approx(ranking.MEASURED[basis][0], abs=0.005)
        assert float(cells[7].strip(" %")) == pytest.approx(100 * ranking.MEASURED[basis][1], abs=0.5)
