# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenes drawn in blocks: the same data, no seam, bounded memory, and small scenes as ever."""

import errno
import tempfile
from dataclasses import replace

import pytest
import torch
from hypersharp.backend import degradation
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import Range
from hypersharp.backend.diffusion import blocks, cache, prior, scene_model, store
from hypersharp.backend.diffusion.blocks import PlacedNoise, block_layout, one_block
from hypersharp.backend.diffusion.cache import load_prior, save_prior
from hypersharp.backend.diffusion.prior import STAGE, PriorSettings, sample_prior
from hypersharp.backend.diffusion.problem import block_problem
from hypersharp.backend.diffusion.sampling import SamplerSettings
from hypersharp.backend.diffusion.scene_model import learn_scene
from hypersharp.backend.diffusion.terms import DataTerms
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.backend.io.source import Source
from hypersharp.backend.protocol import Progress
from hypersharp.backend.response_estimation import shifted_decimation
from hypersharp.backend.scene import Scene
from memory import MemoryWatch

from .conftest import White, low_rank_cube, make_scene, tiny_unet

QUICK = PriorSettings(steps=4, half=False)
SMALL = replace(QUICK, block=96)
BEFORE = [
    [[0.55954, 0.23836], [0.59635, 0.92089], [0.70325, 0.14188]],
    [[0.61829, 0.44653], [0.00143, 1.07589], [0.38143, -0.04681]],
    [[0.42051, -0.01829], [0.47206, 0.71328], [0.63752, 0.47644]],
]
"""Every twentieth value of the base that the version before blocks drew of the small scene."""


@pytest.fixture
def narrow(monkeypatch):
    """Blocks of 96 pixels are possible: they blend over 16."""
    monkeypatch.setattr(blocks, "BLEND", 16)
    monkeypatch.setattr(blocks, "CELL", 24)
    monkeypatch.setattr(prior, "LEAST_BLOCK", 48)


@pytest.fixture(scope="module")
def large():
    return make_scene(low_rank_cube(rows=208, cols=136))


@pytest.fixture
def placed(monkeypatch):
    """A scene that is drawn as a whole takes the noise of the place too, so that both can be compared."""
    real = prior._draw_block

    def draw(problem, settings, control, noise_of, noise=None):
        ratio = problem.model.registration.ratio
        area = [(a * ratio, b * ratio) for a, b in (problem.rows, problem.cols)]
        noise = noise or PlacedNoise(settings.seed, settings.rank, *area)
        return real(problem, settings, control, noise_of, noise)

    monkeypatch.setattr(prior, "_draw_block", draw)


class Smooth:
    """A network that looks around: it takes images for smooth. (One of random weights would make chaos.)"""

    multiple = 4

    def epsilon(self, x, alpha_bar):
        a = alpha_bar.to(x)[:, None, None, None]
        white = a.sqrt() * x / (a + (1 - a) / 0.25)
        clean = torch.nn.functional.avg_pool2d(white, 5, 1, 2, count_include_pad=False)
        return (x - a.sqrt() * (0.7 * clean + 0.3 * white)) / (1 - a).sqrt()


# ------------------------------------------------------------------ where blocks lie


@pytest.mark.parametrize("size", [50, 96, 97, 130, 257, 1000])
@pytest.mark.parametrize("ratio, guard", [(2, 0), (4, 2), (8, 3)])
def test_blocks_cover_the_scene_and_their_weights_sum_to_one(size, ratio, guard):
    layout = block_layout((size, 40), ratio, 384, guard)
    overlap = -(-blocks.BLEND // ratio) + 2 * guard
    most = max(384 // ratio, 3 * overlap)
    total = torch.zeros(size * ratio)
    for (start, stop), weight in zip(layout.rows, layout.weights()[0]):
        assert 0 <= start < stop <= size and stop - start <= most
        assert bool((weight >= 0).all())
        # What is not to be used is not: at borders within the scene.
        unused = guard * ratio
        assert start == 0 or bool((weight[:unused] == 0).all())
        assert stop == size or bool((weight[len(weight) - unused :] == 0).all())
        total[start * ratio : stop * ratio] += weight
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(a[1] - b[0] >= overlap for a, b in zip(layout.rows, layout.rows[1:]))
    assert layout.cols == [(0, 40)] or most < 40
    # A pixel more than fits does not make two blocks of nearly full size.
    assert (
        len(layout.rows) == 1 or max(b - a for a, b in layout.rows) <= size / len(layout.rows) + overlap + 1
    )


def test_a_scene_that_fits_is_one_block():
    assert block_layout((50, 60), 4, 768, 2) == replace(one_block((50, 60), 4), guard=2)
    assert len(one_block((50, 60), 4)) == 1 and one_block((50, 60), 4).largest == (200, 240)


def test_noise_is_a_function_of_seed_and_place():
    whole = PlacedNoise(3, 2, (0, 300), (0, 400))
    part = PlacedNoise(3, 2, (100, 230), (250, 390))
    for _ in range(3):
        everywhere, there = whole(), part()
        assert torch.equal(everywhere[:, 100:230, 250:390], there)
        assert abs(float(everywhere.mean())) < 0.02 and float(everywhere.std()) == pytest.approx(1, abs=0.02)
    # Neither cells, nor draws, nor bands, nor seeds repeat each other.
    first, second = (PlacedNoise(s, 2, (0, 256), (0, 256)) for s in (3, 4))
    one, two, other = first(), first(), second()
    images = [one[0], one[1], two[0], other[0], one[0].roll(blocks.CELL, 0), one[0].roll(blocks.CELL, 1)]
    together = torch.corrcoef(torch.stack([i.flatten() for i in images])) - torch.eye(len(images))
    assert float(together.abs().max()) < 0.02
    assert torch.equal(PlacedNoise(-1, 1, (0, 9), (0, 9))(), PlacedNoise(-1, 1, (0, 9), (0, 9))())


# ------------------------------------------------------------------ what a block sees


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("residual", ["lmmse", "itp"])
def test_a_blocks_terms_are_those_of_the_whole_scene(shifted, residual):
    """HS and guide residuals of any image are the same numbers, whether a block or the scene is looked at."""
    cube = low_rank_cube(rows=160, cols=136)
    scene = make_scene(cube[:, :, :-8])
    if shifted:
        scene = Scene(scene.hs, make_scene(cube[:, :, 2:-6]).guide, 4, 0.3, 0.3)
    model = learn_scene(scene, Control(), residual=residual, closed=True)
    assert (not model.pair.registration.still) == shifted
    (height, width), (rows, cols) = scene.coarse_shape, ((9, 31), (4, 26))
    whole = block_problem(scene, model, (0, height), (0, width), Control())
    part = block_problem(scene, model, rows, cols, Control())
    base = torch.rand(3, *scene.shape, generator=torch.Generator().manual_seed(1))
    fine = (slice(None), *(slice(a * 4, b * 4) for a, b in (rows, cols)))
    torch.testing.assert_close(part.interpolated, whole.interpolated[fine], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part.closed, whole.closed[fine], rtol=1e-3, atol=1e-3)
    guide = part.terms.guide_residual(base[fine]), whole.terms.guide_residual(base)[fine]
    torch.testing.assert_close(*guide, rtol=1e-3, atol=2e-3)
    psf = model.pair.registration.psf_pixels
    assert psf >= 1 and model.guard == psf + (2 if shifted else 0)
    inner = (slice(None), *(slice(a + psf, b - psf) for a, b in (rows, cols)))
    hs = part.terms.hs_residual(base[fine]), whole.terms.hs_residual(base)[inner]
    assert hs[0].shape == hs[1].shape
    torch.testing.assert_close(*hs, rtol=1e-3, atol=5e-3)


def test_what_is_learned_window_by_window_is_what_the_whole_scene_says(large):
    whole, windowed = (learn_scene(large, Control(), residual="lmmse", windowed=w) for w in (False, True))
    assert windowed.low_rank.bands == whole.low_rank.bands
    for name in ("low", "span", "loadings", "offset"):
        one, other = (getattr(m.low_rank, name) for m in (whole, windowed))
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(windowed.guide_scale, whole.guide_scale, rtol=1e-3, atol=0)
    variance, same = (torch.linalg.inv(m.precision).diagonal() for m in (whole, windowed))
    assert bool((same < 1.5 * variance).all()) and bool((variance < 1.5 * same).all())


# ------------------------------------------------------------------ drawing in blocks


def test_small_scenes_are_what_they_were_before_there_were_blocks():
    """Values of the version before: the networks that ship were trained with priors like these."""
    made = prior.BLOCK, sample_prior(make_scene(low_rank_cube()), QUICK, Control(), White(0.15))
    assert made[0] >= 512 and made[1].facts["blocks"] == 1
    found = made[1].base[:, ::20, ::20]
    torch.testing.assert_close(found, torch.tensor(BEFORE), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("sampler", [{}, {"anchor": 0.0}, {"guidance": "gradient"}])
def test_no_seam_shows(placed, monkeypatch, sampler):
    """Against the same scene drawn as one block: the difference is small everywhere, and no larger at borders."""
    monkeypatch.setattr(blocks, "BLEND", 32)
    net, scene = Smooth(), make_scene(low_rank_cube(rows=208, cols=200))
    settings = replace(QUICK, side=64, sampler=SamplerSettings(**sampler))
    whole = sample_prior(scene, settings, Control(), net)
    parts = sample_prior(scene, replace(settings, block=144), Control(), net)
    assert whole.facts["blocks"] == 1 and parts.facts["blocks"] == 4
    other = sample_prior(scene, replace(settings, seed=1), Control(), net)
    difference = parts.base - whole.base
    size = float(difference.square().mean().sqrt())
    assert size < 0.02 * float(whole.base.std())
    assert size < 0.05 * float((other.base - whole.base).square().mean().sqrt())
    layout = block_layout(scene.coarse_shape, 4, 144, 2)
    for axis, spans in ((1, layout.rows), (2, layout.cols)):
        own = float(whole.base.diff(dim=axis).square().mean().sqrt())
        step = difference.diff(dim=axis).square().mean(dim=(0, 3 - axis)).sqrt()
        # Where blocks end, and where they cease to be used.
        borders = torch.zeros(len(step), dtype=torch.bool)
        for border in [4 * (a + g) for a, _ in spans[1:] for g in (0, 2)] + [
            4 * (b - g) for _, b in spans[:-1] for g in (0, 2)
        ]:
            borders[border - 2 : border + 2] = True
        near, far = float(step[borders].max()), float(step[~borders].max())
        assert near < 1.2 * far and near < 0.1 * own, (axis, near, far, own)


def test_the_blend_hides_what_blocks_disagree_about(narrow, large, monkeypatch):
    """Blocks with noise of their own agree so little that a border would be seen if they were put side by side."""
    monkeypatch.setattr(prior, "PlacedNoise", lambda seed, bands, rows, cols: PlacedNoise(
        seed + 1000 * rows[0] + cols[0], bands, rows, cols
    ))  # fmt: skip
    settings = replace(SMALL, sampler=SamplerSettings(terms=()), residual="none")
    base = sample_prior(large, settings, Control(), tiny_unet(2).requires_grad_(False)).base
    step = base.diff(dim=1).square().mean(dim=(0, 2)).sqrt()
    assert float(step.max()) < 1.5 * float(step.mean())


def test_the_same_seed_gives_the_same_scene(narrow, large):
    net = tiny_unet().requires_grad_(False)
    first, second, other = (
        sample_prior(large, replace(SMALL, steps=2, seed=s), Control(), net) for s in (4, 4, 5)
    )
    assert torch.equal(first.base, second.base) and first.curves == second.curves
    assert float((first.base - other.base).abs().mean()) > 1e-3


def test_ddpm_in_blocks_is_the_same_process(narrow, placed):
    """Its noise comes from the place, through DDIM with all of the noise drawn anew."""
    from hypersharp.backend.diffusion.schedule import make_scheduler

    x, epsilon = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ancestral, implicit = make_scheduler("ddpm", 100), make_scheduler("ddim", 100)
    for scheduler in (ancestral, implicit):
        scheduler.set_timesteps(10)
    for time in [int(t) for t in ancestral.timesteps]:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        one = ancestral.step(epsilon, time, x, generator=torch.Generator().manual_seed(5)).prev_sample
        other = implicit.step(epsilon, time, x, eta=1.0, variance_noise=noise).prev_sample
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    scene = make_scene(low_rank_cube(rows=120, cols=64))
    settings = replace(SMALL, steps=8, sampler=SamplerSettings(sampler="ddpm"))
    whole = sample_prior(scene, replace(settings, block=768), Control(), White(0.15))
    parts = sample_prior(scene, settings, Control(), White(0.15))
    assert parts.facts["blocks"] == 2
    torch.testing.assert_close(parts.base, whole.base, rtol=0, atol=0.1 * float(whole.base.std()))


def test_windows_of_a_large_prior(narrow, large):
    drawn = sample_prior(large, SMALL, Control(), White(0.15))
    assert drawn.base.shape == (3, *large.shape) and bool(torch.isfinite(drawn.base).all())
    whole = drawn.image()
    torch.testing.assert_close(
        drawn.image((90, 140), (60, 136)), whole[:, 90:140, 60:136], rtol=1e-4, atol=0.05
    )
    assert drawn.curves["hs"][-1] < 0.7 * drawn.curves["hs"][0] and len(drawn.curves["guide"]) == 5
    assert drawn.facts["blocks"] == 6 and max(drawn.facts["block_pixels"]) <= 96
    assert drawn.facts["data_terms"]["hs"]["end"] == pytest.approx(drawn.curves["hs"][-1], abs=1e-4)


@pytest.mark.parametrize("residual", ["lmmse", "itp"])
def test_blocks_of_a_shifted_pair_lie_on_the_guides_ground(narrow, placed, residual):
    cube = low_rank_cube(rows=160, cols=136)
    truth, moved = cube[:, :, :-8], cube[:, :, 2:-6]
    scene = Scene(make_scene(truth).hs, make_scene(moved).guide, 4, 0.3, 0.3)
    settings = replace(SMALL, block=120, residual=residual)
    parts = sample_prior(scene, settings, Control(), White(0.15))
    whole = sample_prior(scene, replace(settings, block=768), Control(), White(0.15))
    assert parts.facts["blocks"] > 1
    inner = (slice(None), slice(8, -8), slice(8, -8))
    error = (parts.image()[inner] - whole.image()[inner]).square().mean().sqrt()
    assert float(error) < 0.03 * float(whole.image()[inner].std())
    assert float((whole.image()[inner] - truth[inner]).square().mean()) > 4 * float(
        (parts.image()[inner] - moved[inner]).square().mean()
    )


def test_a_block_without_data_is_not_drawn(narrow):
    cube = low_rank_cube(rows=208, cols=96)
    mask = torch.ones(cube.shape[1:], dtype=torch.bool)
    mask[110:] = False
    scene = make_scene(torch.where(mask, cube, torch.tensor(-9999.0)), mask=mask)
    net = White(0.15)
    said = []
    drawn = sample_prior(scene, SMALL, Control(said.append), net)
    assert drawn.facts["blocks"] == 3 and net.calls == 2 * QUICK.step_count
    assert bool(torch.isfinite(drawn.base).all()) and bool(torch.isfinite(drawn.image()).all())
    steps = [m for m in said if isinstance(m, Progress) and m.stage == STAGE]
    assert steps[-1].done == steps[-1].total == 3 * QUICK.step_count


def test_progress_goes_over_all_blocks_and_a_cancel_is_heard(narrow, large):
    said, net = [], White(0.15)
    sample_prior(large, SMALL, Control(said.append), net)
    steps = [m for m in said if isinstance(m, Progress) and m.stage == STAGE]
    assert steps[-1].done == steps[-1].total == 6 * QUICK.step_count == net.calls
    net = White(0.15)
    with pytest.raises(Cancelled):
        sample_prior(large, SMALL, Control(None, lambda: net.calls >= 10), net)
    assert net.calls == 10


def test_a_cancel_is_heard_between_groups_of_bands(scene):
    net = White(0.15)
    with pytest.raises(Cancelled):
        sample_prior(scene, replace(QUICK, rank=9), Control(None, lambda: net.calls >= 2), net)
    assert net.calls == 2  # of three groups


# ------------------------------------------------------------------ memory


class Waves(Source):
    """An image of any size that is computed where it is looked at, so that none of it is in memory."""

    def __init__(self, bands, rows, cols, pixel):
        self.bands, self.rows, self.cols, self._pixel = bands, rows, cols, pixel

    def read(self, rows: Range, cols: Range):
        y, x = ((torch.arange(*r) + 0.5) * self._pixel for r in (rows, cols))
        y, x = y[:, None], x[None, :]
        one = torch.sin(x / 13) * torch.cos(y / 11) + 0.4 * torch.sin((x + y) / 5)
        two, three = torch.sin(x / 23 + y / 7), torch.cos(x / 9 - y / 17)
        share = torch.linspace(0, 1, self.bands)[:, None, None]
        image = 1000 + 200 * (share * one + (1 - share) * two + share * (1 - share) * 4 * three)
        return image, torch.ones(image.shape[1:], dtype=torch.bool)


def waves(rows, cols):
    hs, guide = Waves(6, rows, cols, 4.0), Waves(1, rows * 4, cols * 4, 1.0)
    return Scene(hs, guide, 4, 0.3, 0.3)


@pytest.mark.parametrize("sampler", [{}, {"guidance": "gradient"}])
def test_memory_does_not_grow_with_the_scene(narrow, monkeypatch, tmp_path, sampler):
    monkeypatch.setenv("HYPERSHARP_CACHE", str(tmp_path))
    monkeypatch.setattr(prior, "learn_scene", learn_in_small_windows(monkeypatch))
    settings = replace(SMALL, steps=1, side=48, sampler=SamplerSettings(**sampler))
    monkeypatch.setattr(cache, "STRIP", 32)
    monkeypatch.setattr(scene_model, "WINDOWED_SAMPLES", 1000)
    most = []
    for rows in (100, 300):
        scene = waves(rows, 40)
        with MemoryWatch() as watch:
            drawn = sample_prior(scene, settings, Control(None, forget_matrices), White(0.15))
        path = tmp_path / f"{rows}.safetensors"
        with MemoryWatch() as kept:
            save_prior(drawn, path)
            loaded = load_prior(path, scene)
            assert torch.equal(loaded.base[:, -50:, -50:], drawn.base[:, -50:, -50:])
            window = (4 * rows - 30, 4 * rows), (0, 30)
            image = drawn.image(*window)
            torch.testing.assert_close(loaded.refine(image, *window), image)
        most.append((watch.most, kept.most))
        assert drawn.facts["blocks"] == {100: 12, 300: 38}[rows]
    for small, large in zip(*most):
        assert large < 1.05 * small, most


def forget_matrices():
    """Some hundred small matrices are kept between calls (lru_cache): bounded too, but larger than these scenes."""
    for function in (degradation.interpolation_matrix, degradation.decimation_matrix, shifted_decimation):
        function.cache_clear()
    return False


def learn_in_small_windows(monkeypatch):
    """A statistics pass whose windows are much smaller than the smaller scene."""
    from hypersharp.backend import scene
    from hypersharp.backend.methods import subspace

    monkeypatch.setattr(scene_model, "COARSE_TILE", 32)
    monkeypatch.setattr(scene.Scene.coarse_tiles, "__defaults__", (32, None))
    monkeypatch.setattr(subspace.coarse_windows, "__defaults__", (32,))
    return scene_model.learn_scene


def test_the_file_of_a_base_has_no_name_and_is_written_in_full(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERSHARP_CACHE", str(tmp_path))
    image = store.on_disk((2, 700, 900))
    assert image.shape == (2, 700, 900) and image.dtype == torch.float32 and not bool(image.any())
    image[:, 3:5] += 1.5
    assert float(image.sum()) == 1.5 * 2 * 2 * 900
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_no_room_for_a_base_is_said(tmp_path, monkeypatch, narrow, large):
    """The cache's folder may be of no use; the temporary one then serves. Without either it is an error with a hint."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HYPERSHARP_CACHE", str(tmp_path / "file"))
    assert store.on_disk((1, 8, 8)).shape == (1, 8, 8)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(HyperSharpError, match="No space left") as caught:
        sample_prior(large, SMALL, Control(), White(0.15))
    assert caught.value.code is ErrorCode.DISK_FULL and "HYPERSHARP_CACHE" in caught.value.hint


def test_memory_that_runs_out_beside_the_network_halves_the_block(narrow, large, monkeypatch):
    real = DataTerms.solve

    def solve(self, base, *rest):
        if base.shape[1] > 120:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, base, *rest)

    monkeypatch.setattr(DataTerms, "solve", solve)
    control = Control()
    drawn = sample_prior(large, QUICK, control, White(0.15))
    assert drawn.facts["blocks"] > 1 and max(drawn.facts["block_pixels"]) <= 104
    assert any("blocks of 104 pixels" in w for w in control.warnings)
    monkeypatch.setattr(prior, "LEAST_BLOCK", 512)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sample_prior(large, QUICK, Control(), White(0.15))


def test_smaller_tiles_are_kept_for_the_next_block(narrow, large):
    class Greedy(White):
        refused = 0

        def epsilon(self, x, alpha_bar):
            if max(x.shape[2:]) > 80:
                self.refused += 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().epsilon(x, alpha_bar)

    net = Greedy(0.15)
    sample_prior(large, replace(SMALL, side=128), Control(), net)
    assert net.refused == 1


def test_strips_of_wide_images_are_thin():
    assert cache._strips(600, 10) == [(0, 256), (256, 512), (512, 600)]
    assert cache._strips(3, cache.STRIP_VALUES * 2) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.gpu
def test_blocks_on_cuda_give_the_same_and_leave_the_base_on_disk(narrow, tmp_path):
    cube = low_rank_cube(rows=208, cols=96)
    one = sample_prior(make_scene(cube), SMALL, Control(), White(0.15))
    scene = make_scene(cube, device="cuda")
    other = sample_prior(scene, SMALL, Control(), White(0.15))
    assert other.facts["blocks"] == 3 and other.base.device.type == "cpu"
    torch.testing.assert_close(other.base, one.base, rtol=1e-2, atol=5e-3)
    window = (90, 140), (0, 60)
    image = other.image(*window)
    assert image.device.type == "cuda"
    torch.testing.assert_close(image.cpu(), one.image(*window), rtol=1e-2, atol=2.0)
    save_prior(other, tmp_path / "p.safetensors")
    torch.testing.assert_close(load_prior(tmp_path / "p.safetensors", scene).refine(image, *window), image)
