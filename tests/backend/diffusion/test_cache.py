# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of priors: used when nothing has changed, missed when anything has, never in the way."""

import dataclasses
import errno
import json
import os
import time
from pathlib import Path

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.diffusion import cache, cache_folder
from hypersharp.backend.diffusion.cache import cached_prior, load_prior
from hypersharp.backend.diffusion.prior import PriorSettings
from hypersharp.backend.errors import Cancelled
from hypersharp.backend.io.source import TensorSource

from .conftest import low_rank_cube, make_scene, tiny_unet


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERSHARP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "priors"


@pytest.fixture
def settings(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "denoiser")
    return PriorSettings(steps=2, weights=str(tmp_path / "denoiser"))


@pytest.fixture
def drawn(monkeypatch):
    """Counts how often a prior is really drawn."""
    calls = []
    real = cache.sample_prior

    def sample(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(cache, "sample_prior", sample)
    return calls


def same(one, two):
    rows, cols = (0, one.base.shape[1]), (0, one.base.shape[2])
    image = torch.full((len(one.loadings), *one.base.shape[1:]), 1000.0)
    return torch.equal(one.base, two.base) and torch.equal(
        one.refine(image, rows, cols), two.refine(image, rows, cols)
    )


def test_a_second_run_does_not_draw_again_and_finds_the_same(folder, settings, scene, drawn):
    first, known = cached_prior(scene, settings, Control())
    assert not known and len(drawn) == 1
    again, known = cached_prior(scene, settings, Control())
    assert known and len(drawn) == 1 and same(first, again)
    assert again.curves == first.curves and again.bands == first.bands
    assert json.dumps(again.facts) == json.dumps(json.loads(json.dumps(first.facts)))
    assert [p.suffix for p in folder.iterdir()] == [".safetensors"]


def another_pixel(truth, image):
    changed = make_scene(truth)
    values = getattr(changed, image).read(
        (0, getattr(changed, image).rows), (0, getattr(changed, image).cols)
    )[0]
    values = values.clone()
    values[0, 3, 3] += 1e-3 * abs(values[0, 3, 3])
    setattr(changed, image, TensorSource(values))
    return changed


@pytest.mark.parametrize(
    "what", ["hs pixel", "guide pixel", "nodata", "seed", "steps", "rank", "weights", "configuration", "mtf"]
)
def test_anything_else_is_drawn_anew(folder, settings, cube, scene, drawn, tmp_path, what):
    cached_prior(scene, settings, Control())
    if what == "weights":
        tiny_unet(seed=5).save_pretrained(settings.weights)
    if what == "configuration":
        path = Path(settings.weights) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": 1}))
    if what == "nodata":
        mask = torch.ones(cube.shape[1:], dtype=torch.bool)
        mask[:8, :8] = False
        scene = make_scene(cube, mask=mask)
    elif what == "mtf":
        scene = make_scene(cube)
        scene.mtf_guide = 0.25
    elif what.endswith("pixel"):
        scene = another_pixel(cube, what.split()[0])
    change = {"seed": {"seed": 1}, "steps": {"steps": 3}, "rank": {"rank": 2}}.get(what, {})
    _, known = cached_prior(scene, dataclasses.replace(settings, **change), Control())
    assert not known and len(drawn) == 2


def test_weights_are_known_by_what_is_in_them(folder, settings, scene, drawn, tmp_path):
    cached_prior(scene, settings, Control())
    tiny_unet().save_pretrained(tmp_path / "moved", card="# another card\n")
    _, known = cached_prior(scene, dataclasses.replace(settings, weights=str(tmp_path / "moved")), Control())
    assert known and len(drawn) == 1
    # A preset is its number of steps.
    _, known = cached_prior(scene, dataclasses.replace(settings, preset="fine"), Control())
    assert known


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped", "another scene", "not finite"])
def test_a_damaged_file_is_ignored_and_replaced(folder, settings, scene, drawn, damage):
    first, _ = cached_prior(scene, settings, Control())
    (path,) = folder.iterdir()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no prior")
    elif damage == "flipped":
        path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])
    elif damage == "another scene":
        small = make_scene(low_rank_cube(rows=32, cols=32))
        cached_prior(small, settings, Control())
        (other,) = set(folder.iterdir()) - {path}
        os.replace(other, path)
        drawn.pop()
    else:
        broken = dataclasses.replace(first, base=first.base * float("nan"))
        cache.save_prior(broken, path)
    again, known = cached_prior(scene, settings, Control())
    assert not known and len(drawn) == 2 and same(first, again)
    assert load_prior(path, scene) is not None


def test_the_oldest_go_when_the_limit_is_reached(folder, settings, scene, monkeypatch):
    cached_prior(scene, settings, Control())
    (first,) = folder.iterdir()
    size = first.stat().st_size
    monkeypatch.setattr(cache_folder, "MOST_BYTES", int(2.5 * size))
    for seed in (1, 2):
        for path in folder.iterdir():  # a tenth of a second apart, whatever the clock's grain
            facts = path.stat()
            os.utime(path, (facts.st_atime - 10, facts.st_mtime - 10))
        if seed == 2:
            assert cached_prior(scene, settings, Control())[1]  # the first is in use: the second goes
        cached_prior(scene, dataclasses.replace(settings, seed=seed), Control())
    assert len(list(folder.iterdir())) == 2 and first.exists()
    assert cache_folder.cache_use().size <= 2.5 * size
    # One that is larger than the whole cache is not kept, and nothing makes way for it.
    monkeypatch.setattr(cache_folder, "MOST_BYTES", 1000)
    control = Control()
    cached_prior(scene, dataclasses.replace(settings, seed=3), control)
    assert len(list(folder.iterdir())) == 2 and not control.warnings


def test_what_a_run_that_died_left_goes_after_a_day(folder, settings, scene):
    folder.mkdir(parents=True)
    old, new = folder / "a.part", folder / "b.part"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    past = time.time() - 2 * 86400
    os.utime(old, (past, past))
    cached_prior(scene, settings, Control())
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("how", ["a file", "full", "read-only"])
def test_a_cache_that_cannot_be_written_costs_a_warning(folder, settings, scene, tmp_path, monkeypatch, how):
    if how == "a file":
        folder.parent.mkdir()
        folder.write_text("in the way")
    else:
        where, name, number = (
            (cache, "save_file", errno.ENOSPC) if how == "full" else (cache.tempfile, "mkstemp", errno.EROFS)
        )

        def refuse(*_args, **_options):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(where, name, refuse)
    control = Control()
    prior, known = cached_prior(scene, settings, control)
    assert not known and bool(torch.isfinite(prior.base).all())
    assert len(control.warnings) == 1 and "could not be kept" in control.warnings[0]
    if folder.is_dir():
        assert list(folder.iterdir()) == []


def test_a_read_only_cache_serves_all_the_same(folder, settings, scene, monkeypatch, drawn):
    cached_prior(scene, settings, Control())

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(cache.os, "utime", refuse)
    assert cached_prior(scene, settings, Control())[1] and len(drawn) == 1


def test_no_cache_at_all(settings, scene, monkeypatch, tmp_path, drawn):
    monkeypatch.setenv("HYPERSHARP_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        assert not cached_prior(scene, settings, Control())[1]
    assert len(drawn) == 2 and cache_folder.cache_use().folder is None
    assert not (tmp_path / ".cache").exists()


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("HYPERSHARP_CACHE")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder.cache_folder() == tmp_path / "hypersharp" / "priors"
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError

    monkeypatch.setattr(cache_folder.Path, "home", homeless)
    assert cache_folder.cache_folder() is None


def test_a_cancel_while_the_pair_is_read(folder, settings, scene):
    with pytest.raises(Cancelled):
        cached_prior(scene, settings, Control(is_cancelled=lambda: True))
    assert not folder.exists()


def test_tests_do_not_write_into_the_users_cache(own_cache):
    assert cache_folder.cache_folder() == own_cache / "priors"
