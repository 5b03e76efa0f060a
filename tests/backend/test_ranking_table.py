"""The measurement behind the ranking (.ci/ranking_table.py): Kendall's tau, the judges, the scenes."""

import math

import pytest
import torch


@pytest.fixture
def table(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / ".ci"))
    import ranking_table

    return ranking_table


def test_tau_in_closed_form(table):
    true = {"a": 0.0, "b": 1.0, "c": 2.0}
    assert table.tau(true, {"a": 1, "b": 2, "c": 3}) == 1
    assert table.tau(true, {"a": 3, "b": 2, "c": 1}) == -1
    assert table.tau(true, {"a": 1, "b": 3, "c": 2}) == pytest.approx(1 / 3)
    assert table.tau(true, {"a": 1, "b": 1, "c": 1}) == 0
    assert table.tau(true, {"a": 1, "b": None, "c": 3}) == 1
    assert table.tau({"a": 0.0, "b": 0.01}, {"a": 2, "b": 1}) is None  # 1 % apart: no order to get wrong


def test_judges_read_errors(table):
    values = {
        "(interpolation)": {
            "full": {"D_lambda_K": 0.2, "D_s_R": 0.5},
            "reduced": {"PSNR": 20.0, "SAM": 4.0, "Q2n": 0.5},
        },
        "gsa": {"full": {"D_lambda_K": 0.1, "D_s_R": 0.1}, "reduced": {"PSNR": 26.0, "SAM": 2.0, "Q2n": 0.8}},
    }
    psnr = table.single("reduced", "PSNR")
    assert psnr("gsa", values) == pytest.approx(math.log(10 ** (-26 / 20)))
    for basis in ("reduced_resolution", "full_resolution"):
        judge = table.chosen(basis)
        assert judge("gsa", values) < judge("(interpolation)", values)
        # What the table measures and what `compare` uses are the same: differences of judgements are scores.
        score = table.ranking.score(table.as_metrics("gsa", values), basis)
        weight = sum(p.weight for p in table.ranking.BASES[basis])
        assert judge("(interpolation)", values) - judge("gsa", values) == pytest.approx(weight * score)


def test_scenes_are_what_they_say(table):
    import ranking_scenes as scenes

    generator = torch.Generator().manual_seed(0)
    cube = 100 + 50 * torch.rand(24, 48, 48, generator=generator)
    wavelengths = [420.0 + 20 * i for i in range(24)]
    for case in scenes.CASES:
        scene, truth = scenes.make_scene((cube, wavelengths, [20.0] * 24), case)
        assert truth.shape[1:] == scene.shape == (scene.hs.rows * case.ratio, scene.hs.cols * case.ratio)
        assert scene.guide.bands == (1 if case.guide == "pan" else 4)
        own = [i for i in range(24) if 450 <= wavelengths[i] <= 750]
        if case.guide == "pan" and case.snr_db is None:
            rows, cols = scene.shape
            want = cube[own].mean(dim=0)[:rows, case.shift : case.shift + cols]
            assert torch.allclose(scene.guide.image[0], want, rtol=1e-5)
            assert torch.equal(truth, cube[: len(truth), case.shift : case.shift + rows, :cols])
        if case.snr_db is not None:
            clean = scenes.degrade(truth, case.ratio, case.mtf)[0]
            noise = (scene.hs.image - clean).square().mean()
            assert 10 * math.log10(clean.square().mean() / noise) == pytest.approx(case.snr_db, abs=0.3)
    assert not set(scenes.FINDING) & set(scenes.SHOWING)


def test_back_projection_makes_consistent(table):
    import ranking_scenes as scenes

    generator = torch.Generator().manual_seed(1)
    coarse = 100 + 50 * torch.rand(1, 12, 12, generator=generator)
    scene = scenes.Scene(scenes.TensorSource(coarse), scenes.TensorSource(torch.ones(1, 48, 48)), 4, 0.3, 0.3)
    before = scenes._fused(scene, scenes.INTERPOLATED).read((0, 48), (0, 48))[0]
    after = scenes._fused(scene, next(iter(scenes.CONSISTENT))).read((0, 48), (0, 48))[0]
    error = [(scenes.degrade(i, 4, 0.3)[0] - coarse).square().mean() for i in (before, after)]
    assert error[1] < 0.05 * error[0]
