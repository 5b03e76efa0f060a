# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel regression: the estimator that it states, blocks that nobody sees, gaps, and what cannot be solved."""

import copy
import dataclasses
import math

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import decimation_matrix, degrade, gaussian_sigma, separable
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.methods import kernel_block, kernel_regression
from hypersharp.backend.methods.kernel_block import CHUNK, TERMS, regress, regress_area
from hypersharp.backend.methods.kernel_regression import (
    BLOCK,
    FACTS,
    FEW_PIXELS,
    GUIDE_INPUTS,
    INPUTS,
    OVERLAP,
    KernelRegression,
    guide_axes,
)
from hypersharp.backend.methods.learned_base import fit_base
from hypersharp.backend.models.kernel_features import TABLE_UNIT, KernelConfig, KernelFeatures
from hypersharp.backend.scene import Scene

from ..training.conftest import synthetic_image

RATIO, GAIN = 4, 0.3


def tiny_model(seed=0, terms=len(TERMS)):
    torch.manual_seed(seed)
    return KernelFeatures(KernelConfig(INPUTS, terms, FACTS, width=6, features=5, dilations=(1, 1))).eval()


def make_scene(rows=96, cols=None, guide_bands=3, gap=None, seed=1, shift=None):
    truth = synthetic_image(seed, rows=rows, cols=cols or rows)
    mask = torch.ones(truth.shape[1:], dtype=torch.bool)
    hs = degrade(truth, RATIO, GAIN)[0]
    hs_mask = torch.ones(hs.shape[1:], dtype=torch.bool)
    edges = torch.linspace(2, 12, guide_bands + 1).long()
    guide = torch.stack([truth[a:b].mean(dim=0) for a, b in zip(edges, edges[1:])])
    if gap is not None:
        mask[gap] = False
        hs_mask = degrade(mask[None].float(), RATIO, None)[0][0] > 0.999
        hs, guide = hs * hs_mask, guide * mask
    return truth, Scene(TensorSource(hs, hs_mask), TensorSource(guide, mask), RATIO, GAIN, GAIN)


def fitted(scene, model=None):
    method, subspace, statistics = fit_base(scene, Control())
    kernel = KernelRegression(method, subspace, statistics, model or tiny_model())
    kernel.fit(scene, Control())
    return kernel


def tile_of(scene, rows, cols):
    return scene.tile(rows, cols, 4)


def whole(kernel, count=4):
    rows, cols = kernel.scene.shape
    return kernel.coefficients(tile_of(kernel.scene, (0, rows), (0, cols)), count)


@pytest.mark.parametrize("shift", [0.0, 0.37, -0.6, 1.25, -2.0])
def test_a_shifted_degradation_is_that_of_the_shifted_ground(shift):
    """The ground of the coarse grid lies `shift` further along: a wave is seen with that phase."""
    size, wave = 64, 2 * math.pi / 23
    place = torch.arange(size, dtype=torch.float64)
    matrix = decimation_matrix((4, 12), (0, size), RATIO, size, GAIN, shift).double()
    centres = torch.arange(4, 12, dtype=torch.float64) * RATIO + (RATIO - 1) / 2
    seen = matrix @ torch.sin(wave * place)
    expected = torch.sin(wave * (centres + shift))
    damped = math.exp(-0.5 * (wave * gaussian_sigma(RATIO, GAIN)) ** 2)
    assert torch.allclose(seen, damped * expected, atol=2e-3)
    still = decimation_matrix((4, 12), (0, size), RATIO, size, GAIN)
    assert (shift == 0) == torch.equal(matrix, still.double())


def test_it_is_the_mean_of_the_gaussian_process_that_it_states(monkeypatch):
    """Kernels that hold everywhere, against the textbook formula with every fine pixel's covariance written out."""
    _, scene = make_scene(rows=40)
    monkeypatch.setattr(kernel_block, "TERMS", (("expanded", math.inf), ("learned", math.inf)))
    monkeypatch.setattr(kernel_block, "LEFT_OUT", 0.0)
    model = tiny_model(terms=2)
    with torch.no_grad():
        model.table.zero_()
        model.table[0, :3] = torch.tensor([0.0, -0.5, -3.0]) / TABLE_UNIT
        model.table[0, -1] = 20.0 / TABLE_UNIT  # all the way
    kernel = fitted(scene, model)
    block, _, window = kernel.block(3, ((0, 10), (0, 10)))
    assert window == ((0, 40), (0, 40)) and bool(block.valid.all())
    block = dataclasses.replace(
        block, unexplained=torch.full_like(block.unexplained, 1e9)
    )  # its equation says nothing
    rows, cols = (g.flatten() for g in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    with torch.no_grad():
        found = regress(model, block, rows, cols).double()
        area = regress_area(model, block, slice(0, 40), slice(0, 40)).flatten(1).double()
        features = {n: kind.at(rows, cols).double() for n, kind in block.features(model).items()}
    down = torch.kron(block.down[0].double(), block.down[1].double())
    coarse, cross = torch.zeros(100, 100).double(), torch.zeros(1600, 100).double()
    variances = {"expanded": 1.0, "learned": math.exp(-0.5)}
    for name, variance in variances.items():
        fine = features[name].T @ features[name]
        seen = fine @ down.T
        size = (down @ seen).diagonal().mean() / variance
        coarse, cross = coarse + down @ seen / size, cross + seen / size
    noise = math.exp(-3) + 2e-4 * sum(variances.values())
    for k in range(3):
        system = coarse + (noise + float(block.noise[k])) * torch.eye(100)
        expected = cross @ torch.linalg.solve(system, block.target[k].double())
        assert float((found[k] - expected).norm() / expected.norm()) < 1e-3
        assert float((area[k] - expected).norm() / expected.norm()) < 1e-3


def doubled(value):
    """Return a block, or whatever it holds, with its numbers in double precision."""
    if dataclasses.is_dataclass(value):
        parts = {f.name: doubled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    if isinstance(value, dict):
        return {name: doubled(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(doubled, value))
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize(("left_out", "allowed"), [(0.0, 1e-9), (kernel_block.LEFT_OUT, 1e-3)])
def test_an_area_comes_out_as_its_pixels_do(monkeypatch, left_out, allowed):
    """All kernels, gaps and a shift, by products over the axes and by pairs of pixels.

    In double precision: single rounds otherwise with every number of threads, and the system multiplies that.
    """
    _, scene = make_scene(rows=96, gap=(slice(40, 60), slice(32, 56)))
    kernel = fitted(scene, kernel_regression.shipped_model())
    kernel.closed.registration = dataclasses.replace(kernel.closed.registration, shift=(0.4, -0.3))
    block, _, _ = kernel.block(4, ((0, 24), (0, 24)))
    assert not bool(block.valid.all())
    monkeypatch.setattr(kernel_block, "LEFT_OUT", left_out)
    monkeypatch.setattr(kernel_block, "AREA_CHUNK", 100)  # a few rows at once, the last ones fewer
    rows, cols = slice(3, 80), slice(10, 43)
    y, x = torch.meshgrid(torch.arange(3, 80), torch.arange(10, 43), indexing="ij")
    with torch.no_grad():
        model, block = copy.deepcopy(kernel.model).double(), doubled(block)
        area = regress_area(model, block, rows, cols)
        pixels = regress(model, block, y.flatten(), x.flatten()).view_as(area)
    assert float(((area - pixels).square().mean() / pixels.var()).sqrt()) < allowed


def test_features_that_say_the_same_are_taken_together():
    """Eight orientations of all features on few pixels: far fewer are left, and products stay."""
    _, scene = make_scene(rows=64)
    kernel = fitted(scene, kernel_regression.shipped_model())
    block, _, _ = kernel.block(3, ((0, 16), (0, 16)))
    rows = torch.arange(8, 40)
    with torch.no_grad():
        kind = block.features(kernel.model)["learned"]
        before = kind.at(rows, rows).T @ kind.coarse
        count = len(kind.coarse)
        kind.narrow(1e-6)
        after = kind.at(rows, rows).T @ kind.coarse
    assert len(kind.coarse) < count / 2
    assert float((after - before).norm() / before.norm()) < 2e-3


def test_kernels_are_summed_the_same_by_chunks():
    _, scene = make_scene(rows=100)
    kernel = fitted(scene)
    block, _, _ = kernel.block(3, ((0, 25), (0, 25)))
    assert block.target.shape[1] > CHUNK  # or nothing is tested
    with torch.no_grad():
        strength, *_ = kernel.model.strengths(block.facts)
        coarse = {name: kind.coarse for name, kind in block.features(kernel.model).items()}
        parts = kernel_block._alike(block, coarse, strength)
        sizes = kernel_block._sizes(block, coarse)
    kernels = kernel_block._coarse_kernels(block, coarse, slice(None))
    whole = torch.einsum("kt,tij->kij", strength, kernels)
    assert torch.allclose(parts, whole, atol=1e-5 * float(whole.abs().max()))
    assert torch.allclose(sizes, kernels.diagonal(dim1=1, dim2=2).mean(dim=1), rtol=1e-4)


def test_only_blocks_of_few_pixels_are_told_so():
    facts = {}
    for side in (5, 12, 30):
        _, scene = make_scene(rows=side * RATIO)
        block, _, _ = fitted(scene).block(2, ((0, side), (0, side)))
        facts[side] = float(block.facts[0, -1])
    assert facts[5] == pytest.approx(math.log(FEW_PIXELS / 25) / 2)
    assert facts[12] == facts[30] == 0.0


def test_what_a_block_takes_is_told():
    """Arrays of the size of what dominates: components' matrices, kernels of a chunk, features in half precision."""
    _, scene = make_scene(rows=160)
    kernel = fitted(scene)
    block, _, _ = kernel.block(4, ((0, 40), (0, 40)))
    with torch.no_grad():
        features = block.features(kernel.model)["learned"]
    assert all(part.dtype == torch.float16 for part in features.fine_parts)
    kernels = 2 * len(TERMS) * CHUNK + kernel_regression.KERNEL_COMPONENTS * 1600
    held = sum(part.numel() * 2 for part in features.fine_parts) + 4 * 1600 * kernels
    assert held < kernel.block_bytes < 2 * held
    small = fitted(make_scene(rows=48)[1])
    assert small.block_bytes < kernel.block_bytes / 20


def test_the_guides_equation_is_met_where_it_is_known_to_hold():
    _, scene = make_scene(rows=48)
    model = tiny_model()
    with torch.no_grad():
        model.table[0, -1] = 20.0 / TABLE_UNIT
    kernel = fitted(scene, model)
    block, _, _ = kernel.block(4, ((0, 12), (0, 12)))
    rows = torch.arange(8, 40)
    left = {}
    for name, unexplained in (("exact", 0.0), ("unknown", 1e9)):
        sure = dataclasses.replace(block, unexplained=torch.full_like(block.unexplained, unexplained))
        with torch.no_grad():
            found = regress(model, sure, rows, rows)
        left[name] = float((block.guide[:, rows, rows] - block.mixing @ found).square().mean())
    assert left["exact"] < 1e-3 * left["unknown"]


def test_tiles_do_not_show():
    _, scene = make_scene(rows=160, cols=132)
    kernel = fitted(scene)
    assert len(kernel_regression._blocks(40)) == 2  # or nothing is tested
    image = whole(kernel)
    other = fitted(scene, kernel.model)
    parts = torch.full_like(image, torch.nan)
    for r in range(0, 160, 37):
        for c in range(0, 132, 50):
            rows, cols = (r, min(160, r + 37)), (c, min(132, c + 50))
            parts[:, slice(*rows), slice(*cols)] = other.coefficients(tile_of(scene, rows, cols), 4)
    assert torch.allclose(parts, image, atol=1e-5 * float(image.std()))


def test_a_block_that_was_dropped_from_the_cache_comes_out_the_same(monkeypatch):
    _, scene = make_scene(rows=160)
    image = whole(fitted(scene))
    monkeypatch.setattr(kernel_regression, "TILE_CACHE_BYTES", 0)
    kernel = fitted(scene)
    assert torch.equal(whole(kernel), image) and len(kernel._cache) == 1


@pytest.mark.parametrize("size", [5, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_the_shares_of_blocks_add_up_to_one(size):
    total = torch.zeros(size * RATIO)
    blocks = kernel_regression._blocks(size)
    assert blocks[0][0] == 0 and blocks[-1][1] == size
    assert all(a[1] == b[0] for a, b in zip(blocks, blocks[1:])) and max(b - a for a, b in blocks) <= BLOCK
    for block in blocks:
        start, stop = kernel_regression._predicted(block, size, RATIO)
        total[start:stop] += kernel_regression._share(block, size, RATIO)
    assert torch.allclose(total, torch.ones(()), atol=1e-5)
    if len(blocks) > 1:
        inside = kernel_regression._share(blocks[0], size, RATIO)
        assert (inside == 1).sum() == (blocks[0][1] - OVERLAP) * RATIO


def test_there_is_no_step_where_blocks_meet():
    _, scene = make_scene(rows=240)
    kernel = fitted(scene)
    border = kernel_regression._blocks(60)[0][1] * RATIO
    image = whole(kernel)
    closed = kernel.subspace.coefficients(
        kernel.closed.fuse(scene.tile((0, 240), (0, 240), kernel.closed.halo))
    )
    steps = (image - closed[:4]).diff(dim=1).square().mean(dim=(0, 2)).sqrt()
    near = float(steps[border - 2 : border + 2].max())
    assert near < 1.5 * float(steps.median())


def test_gaps_stay_local_and_finite():
    gap = (slice(40, 60), slice(32, 56))
    _, scene = make_scene()
    _, holed = make_scene(gap=gap)
    full, found = whole(fitted(scene)), whole(fitted(holed))
    assert bool(torch.isfinite(found).all())
    far = torch.ones(96, 96, dtype=torch.bool)
    far[12:88, 4:84] = False
    span = full.std(dim=(1, 2))
    # Subspace and block are those of a scene with fewer pixels: not the same, but alike.
    difference = (found.abs() - full.abs())[:, far].square().mean(dim=1).sqrt()
    assert float((difference / span)[0]) < 0.2


def test_what_is_kept_is_rounded_by_as_much_as_it_says():
    torch.manual_seed(0)
    image = 1e5 + torch.randn(3, 40, 50) * torch.tensor([1.0, 300.0, 1e4])[:, None, None]
    image[0, 0, 0] += 60  # far beyond the others
    image[2] = 7.0
    kept = kernel_regression._Kept.rounded(image)
    away = (image - image.mean(dim=(1, 2), keepdim=True)).abs()
    assert kept.values.dtype == torch.float16
    error = (kept.part((slice(None), slice(3), slice(None))) - image[:, :3]).abs()
    assert bool((error <= away[:, :3] / 2048 + 0.02).all()) and float(error.max()) > 0


def test_where_too_little_is_valid_the_closed_form_stands():
    _, scene = make_scene(gap=(slice(0, 84), slice(None)))
    kernel = fitted(scene)
    assert kernel.block(3, ((0, 8), (0, 8)))[0] is None
    found = kernel._solve(3, ((0, 8), (0, 8))).part((slice(None), slice(None), slice(None)))
    tile = scene.tile((0, 44), (0, 44), kernel.closed.halo)
    closed = kernel.subspace.coefficients(kernel.closed.fuse(tile))[:3]
    assert torch.allclose(found, closed, atol=1e-4 * float(closed.abs().max() + 1))


def test_what_cannot_be_solved_is_left_to_the_closed_form(monkeypatch):
    _, scene = make_scene(rows=48)
    kernel = fitted(scene)
    monkeypatch.setattr(kernel_block, "JITTERS", (math.nan,))
    estimate = kernel.subspace.coefficients(
        kernel.closed.fuse(scene.tile((0, 48), (0, 48), kernel.closed.halo))
    )
    assert torch.allclose(whole(kernel), estimate[:4])


def test_features_that_are_no_numbers_are_left_to_the_closed_form():
    _, scene = make_scene(rows=48)
    kernel = fitted(scene)
    with torch.no_grad():
        kernel.model.body[0].bias.fill_(math.inf)
    tile = scene.tile((0, 48), (0, 48), kernel.closed.halo)
    estimate = kernel.subspace.coefficients(kernel.closed.fuse(tile))
    assert torch.allclose(whole(kernel), estimate[:4])


def test_a_flat_guide_and_a_guide_of_many_bands_are_taken():
    for bands in (1, 8):
        _, scene = make_scene(rows=64, guide_bands=bands)
        assert bool(torch.isfinite(whole(fitted(scene))).all())
    _, scene = make_scene(rows=64, guide_bands=2)
    scene.guide.image[1] = 3.0
    assert bool(torch.isfinite(whole(fitted(scene))).all())
    scene = Scene(scene.hs, TensorSource(-scene.guide.image, scene.guide.mask), RATIO, GAIN, GAIN)
    kernel = fitted(scene)
    assert bool(torch.isfinite(whole(kernel)).all())


def test_axes_of_the_guide_have_settled_signs_and_no_more_than_there_are():
    _, scene = make_scene(guide_bands=2)
    axes, mean = guide_axes(fitted(scene).statistics)
    assert axes.shape == (GUIDE_INPUTS, 4) and mean.shape == (4,)
    assert not axes[2].any() and float(axes[0].sum()) > 0
    assert not axes[:, :2].any()  # of the logarithms alone


def test_a_cancel_stops_it_within_a_block():
    _, scene = make_scene()
    kernel = fitted(scene)
    asked = []
    kernel.control = Control(is_cancelled=lambda: bool(asked.append(1)) or len(asked) > 4)
    with pytest.raises(Cancelled):
        whole(kernel)
    assert len(asked) == 5 and not kernel._cache


def test_a_shift_is_followed():
    """With the HS image shifted, features are degraded on its ground and predicted on the guide's."""
    _, scene = make_scene(rows=80)
    kernel = fitted(scene)
    moved = dataclasses.replace(kernel.closed.registration, shift=(0.4, -0.3))
    kernel.closed.registration = moved
    block, _, _ = kernel.block(2, ((0, 20), (0, 20)))
    assert torch.allclose(block.fine_places[0][:2], (torch.tensor([0.5, 1.5]) - 0.4) / RATIO)
    assert torch.allclose(block.coarse_places[1][:2], torch.tensor([0.5, 1.5]))
    still = decimation_matrix((0, 20), (0, 80), RATIO, 80, moved.mtf_gain)
    assert not torch.allclose(block.down[0], still)
    fine = block.fixed["linear"]
    assert torch.allclose(
        separable(*block.down, fine)[:, 10, 10],
        separable(
            decimation_matrix((10, 11), (0, 80), RATIO, 80, moved.mtf_gain, 0.4),
            decimation_matrix((10, 11), (0, 80), RATIO, 80, moved.mtf_gain, -0.3),
            fine,
        )[:, 0, 0],
        atol=1e-5,
    )


def test_damaged_weights_are_refused_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_regression, "SHIPPED", tmp_path)
    kernel_regression._shipped.cache_clear()
    try:
        with pytest.raises(HyperSharpError) as caught:
            kernel_regression.shipped_model()
        assert caught.value.code == ErrorCode.NO_WEIGHTS
        folder = tmp_path / kernel_regression.WEIGHTS
        tiny_model().save_pretrained(folder)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(HyperSharpError, match="damaged or incomplete"):
            kernel_regression.shipped_model()
    finally:
        kernel_regression._shipped.cache_clear()


@pytest.mark.gpu
def test_cuda_gives_the_same_as_the_cpu():
    _, scene = make_scene(rows=160)
    there = Scene(scene.hs, scene.guide, RATIO, GAIN, GAIN, device="cuda")
    one, other = whole(fitted(scene)), whole(fitted(there)).cpu()
    assert torch.allclose(one, other, atol=0.02 * float(one.std()))


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_beside_gaps_it_is_no_worse_than_the_closed_form(guide_bands):
    """Features that saw the edge of a gap, and coarse pixels left out for it, once cost 1 to 4 dB there."""
    gap = (slice(36, 64), slice(28, 60))
    truth, scene = make_scene(rows=120, gap=gap, guide_bands=guide_bands)
    kernel = fitted(scene, kernel_regression.shipped_model())
    count = len(kernel.subspace.projector)
    tile = scene.tile((0, 120), (0, 120), kernel.closed.halo)
    closed = kernel.subspace.coefficients(kernel.closed.fuse(tile))
    found, wanted = kernel.coefficients(tile, count), kernel.subspace.coefficients(truth)
    near = torch.zeros(120, 120, dtype=torch.bool)
    near[26:74, 18:70] = True
    unknown = ~tile.mask
    assert torch.allclose(found[:, unknown], closed[:, unknown], atol=1e-3 * float(closed.std()))
    for area in (near & tile.mask, ~near):
        error, before = ((x - wanted)[:, area].square().mean(dim=1) for x in (found, closed))
        assert float((error / before).log().mean()) < 0.1
