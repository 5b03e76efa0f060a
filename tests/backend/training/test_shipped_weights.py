# SPDX-License-Identifier: GPL-2.0-or-later
"""Every learned method of the registry works with what ships, out of the box, and does not lie about its training."""

import json

import pytest
import torch
from hypersharp.backend.registry import METHODS, load_method
from hypersharp.backend.weights import SHIPPED, shipped_for, shipped_names

from .test_learned_method import fused, make_scene

LEARNED = [m for m, info in METHODS.items() if info.needs_weights]
MOST_BYTES = 20 * 2**20
KEPT_OUT = ("aviris_abu_urban-4", "aviris_jasper_ridge", "aviris_moffett", "rosis_", "enmap_", "neon_")


@pytest.mark.parametrize("method", LEARNED)
def test_a_learned_method_works_out_of_the_box_on_a_sensor_that_it_never_saw(method, monkeypatch):
    monkeypatch.setenv("HYPERSHARP_CACHE", "")
    truth, scene = make_scene(rows=64, ratio=4, guide_bands=3)
    engine = load_method(method)({})
    image = fused(engine, scene)
    closed = fused(load_method("lmmse")({}), scene)
    assert image.shape == truth.shape and bool(torch.isfinite(image).all())
    assert not torch.equal(image, closed)
    error, base = ((x - truth).square().mean(dim=(1, 2)) for x in (image, closed))
    assert float(10 * torch.log10(error / base).mean()) < 0.3
    assert engine.describe()["weights"] in shipped_names()


@pytest.mark.parametrize("method", LEARNED)
def test_its_weights_are_offered_and_say_what_they_were_trained_on(method):
    offered = shipped_for(method)
    assert offered
    folder = SHIPPED / offered[0]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data = config["training"]["data"]
    used = data["cubes"] + data["validated_on"]
    assert used and not [name for name in used if name.startswith(KEPT_OUT)]
    assert (folder / "card.md").stat().st_size > 200


def test_all_weights_together_stay_small():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*.safetensors")) < MOST_BYTES
