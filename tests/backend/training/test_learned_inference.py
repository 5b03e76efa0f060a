# SPDX-License-Identifier: GPL-2.0-or-later
"""How networks run: seams, precision, memory that runs out, cancel."""

import numpy as np
import pytest
import rasterio
import torch
from hypersharp.backend import device as devices
from hypersharp.backend.control import Control
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.backend.estimate import BASE_MEMORY_BYTES, TileNeeds, choose_tile, estimate
from hypersharp.backend.methods.learned import HyFusionMethod, S3RNet, contexts
from hypersharp.backend.methods.lmmse import LMMSE
from hypersharp.backend.models.hyfusion import HyFusion
from hypersharp.backend.models.mbfn import MBFN
from hypersharp.backend.models.pretrained import from_pretrained
from hypersharp.backend.models.ssawb import window_mean
from hypersharp.backend.models.swin import WindowAttention
from hypersharp.backend.pipeline import fuse
from hypersharp.backend.registry import METHODS
from hypersharp.backend.weights import find_weights

from .test_learned_method import SMALL_HYFUSION, SMALL_MBFN, fused, make_scene, weights
from .test_run import raster

KINDS = {"s3rnet": (S3RNet, MBFN, SMALL_MBFN), "hyfusion": (HyFusionMethod, HyFusion, SMALL_HYFUSION)}
SIDE = 112
INVISIBLE = 2e-3
"""A step across tile borders below this share of the network's correction is rounding."""


def step_across_borders(tiled, whole):
    """Return the largest step that tiling adds between the pixels on both sides of a tile border."""
    added = tiled - whole
    steps = [added[:, b] - added[:, b - 1] for b in range(SIDE, added.shape[1], SIDE)]
    steps += [added[:, :, b] - added[:, :, b - 1] for b in range(SIDE, added.shape[2], SIDE)]
    return float(torch.stack(steps).abs().max())


def seam(cls, folder, precision="float32", rows=336):
    """Return the step across tile borders relative to the correction's standard deviation."""
    _, scene = make_scene(rows=rows)
    options = {"weights": folder, "precision": precision}
    whole = fused(cls(options), scene)
    tiled = fused(cls(options), scene, side=SIDE)
    correction = float((whole - fused(LMMSE(), scene)).std())
    assert correction > 0
    return step_across_borders(tiled, whole) / correction


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_across_tile_borders(tmp_path, kind):
    cls, _, config = KINDS[kind]
    assert seam(cls, weights(tmp_path / "w", config)) < INVISIBLE


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_across_tile_borders_would_be_seen(tmp_path, kind, monkeypatch):
    """The same measure finds tiles that overlap by less than the network's receptive field."""
    cls, network, config = KINDS[kind]
    monkeypatch.setattr(network, "reach", lambda self, ratio: -9)
    assert seam(cls, weights(tmp_path / "w", config)) > 5 * INVISIBLE


def test_half_precision_shows_no_tile_borders(tmp_path):
    """Rounding to bfloat16 differs a little from tile to tile, but no more at the borders than elsewhere."""
    _, scene = make_scene(rows=336)
    options = {"weights": weights(tmp_path / "w", SMALL_MBFN), "precision": "bfloat16"}
    whole = fused(S3RNet(options), scene)
    added = fused(S3RNet(options), scene, side=SIDE) - whole
    steps = added.diff(dim=2).square().mean(dim=(0, 1)).sqrt()
    borders = torch.zeros(len(steps), dtype=torch.bool)
    borders[SIDE - 1 :: SIDE] = True
    assert int(borders.sum()) == 2
    correction = float((whole - fused(LMMSE(), scene)).std())
    assert float(steps[borders].max()) < 2 * float(steps[~borders].max()) + 1e-6 * correction
    assert float(added.abs().max()) < 0.05 * correction


def test_half_precision_changes_nothing_that_counts(tmp_path):
    truth, scene = make_scene(rows=160)
    folder = weights(tmp_path / "w", SMALL_MBFN)
    full = fused(S3RNet({"weights": folder, "precision": "float32"}), scene)
    half = fused(S3RNet({"weights": folder, "precision": "bfloat16"}), scene)
    change, error = float((half - full).square().mean()), float((full - truth).square().mean())
    assert 0 < change < 1e-3 * error  # 0.004 dB
    correction = float((full - fused(LMMSE(), scene)).std())
    assert change**0.5 < 0.02 * correction


def test_precision_is_chosen_by_the_device_and_told(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: False, raising=False)
    assert devices.inference_precision(cpu) == "float32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert devices.inference_precision(cpu) == "bfloat16"
    assert devices.inference_precision(cpu, convolutional=False) == "float32"
    for capability, wanted in (((9, 0), "bfloat16"), ((7, 5), "float16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, c=capability: c)
        assert devices.inference_precision(torch.device("cuda")) == wanted
    method = S3RNet({"weights": weights(tmp_path / "w", SMALL_MBFN)})
    method.fit(make_scene(rows=96)[1], Control())
    assert method.describe()["precision"] == "bfloat16"
    with pytest.raises(HyperSharpError, match="unknown precision 'double'"):
        S3RNet({"precision": "double"})


def test_freed_memory_is_handed_back_where_that_can_be_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "_malloc_trim", lambda: asked.append)
    devices.give_back_memory()
    assert asked == [0]
    monkeypatch.setattr(devices, "_malloc_trim", lambda: None)
    devices.give_back_memory()
    monkeypatch.undo()
    devices._malloc_trim.cache_clear()
    monkeypatch.setattr(devices.sys, "platform", "win32")
    assert devices._malloc_trim() is None
    devices._malloc_trim.cache_clear()


@pytest.fixture
def files(tmp_path):
    from hypersharp.backend.degradation import degrade

    from .conftest import synthetic_image

    truth = synthetic_image(2, rows=240, cols=240)
    hs = raster(tmp_path / "hs.tif", degrade(truth, 3, 0.3)[0], 9.0)
    return hs, raster(tmp_path / "pan.tif", truth[3:7].mean(0, keepdim=True), 3.0)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["torch", "cublas", "cpu"],
)
def test_memory_that_runs_out_in_the_network_halves_the_tile(files, tmp_path, monkeypatch, error):
    options = {"method": "s3rnet", "weights": weights(tmp_path / "w", SMALL_MBFN), "assess": False}
    options["parameters"] = {"precision": "float32"}
    fuse(*files, tmp_path / "plain.tif", **options)
    real = MBFN.forward
    # What a tile of 128 pixels and its context come to here; one of 256 is the whole scene.
    _, scene = make_scene(rows=96)
    largest = []

    def small_only(self, hs, guide):
        largest.append(guide.shape[-1])
        if min(guide.shape[-2:]) >= 240:
            raise error
        return real(self, hs, guide)

    monkeypatch.setattr(MBFN, "forward", small_only)
    result = fuse(*files, tmp_path / "o.tif", **options)
    assert any("memory ran out: the tile was halved" in w for w in result.warnings)
    assert largest[0] == 240 > largest[-1]
    found, plain = (rasterio.open(tmp_path / f"{name}.tif").read() for name in ("o", "plain"))
    np.testing.assert_allclose(found, plain, atol=1e-3 * plain.std())

    def never(self, hs, guide):
        raise error

    monkeypatch.setattr(MBFN, "forward", never)
    with pytest.raises(HyperSharpError) as caught:
        fuse(*files, tmp_path / "never.tif", **options)
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY and caught.value.exit_code == 4
    assert not list(tmp_path.glob("never*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancel_does_not_wait_for_the_end_of_a_component(tmp_path, kind):
    cls, _, config = KINDS[kind]
    _, scene = make_scene(rows=96)
    asked = []
    method = cls({"weights": weights(tmp_path / "w", config)})
    wanted = [False]
    method.fit(scene, Control(is_cancelled=lambda: asked.append(1) or wanted[0]))
    tile = scene.tile((0, 96), (0, 96), method.halo)
    asked.clear()
    method.fuse(tile)
    assert len(asked) > 3 * 10  # many times in each of three components
    left = iter([False] * 8)
    method._control._is_cancelled = lambda: next(left, True)
    with pytest.raises(Cancelled):
        method.fuse(tile)


def test_border_windows_alone_are_masked():
    """Against the mask on every window, written out."""
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, 4, 2)
    torch.nn.init.normal_(attention.position_bias)
    for size, origin in (((13, 18), (3, 5)), ((16, 16), (2, 2)), ((5, 3), (0, 0))):
        x = torch.randn(2, *size, 8, requires_grad=True)
        found = attention(x, origin)
        assert torch.allclose(found, by_hand(attention, x, origin), atol=1e-5)
        found.square().sum().backward()
        assert bool(torch.isfinite(x.grad).all())


def by_hand(attention, x, origin):
    """Each pixel attends to the pixels of its own window."""
    batch, rows, cols, width = x.shape
    w, heads, d = attention.window, attention.heads, width // attention.heads
    q, k, v = attention.qkv(x).view(batch, rows * cols, 3, heads, d).permute(2, 0, 3, 1, 4)
    y, z = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    y, z = ((p.flatten() + o - attention.shift) for p, o in zip((y, z), origin))
    same = (y[:, None] // w == y[None] // w) & (z[:, None] // w == z[None] // w)
    index = (y % w)[:, None] - (y % w)[None] + w - 1, (z % w)[:, None] - (z % w)[None] + w - 1
    bias = attention.position_bias[index[0] * (2 * w - 1) + index[1]].permute(2, 0, 1)
    logits = q @ k.transpose(2, 3) / d**0.5 + bias
    out = logits.masked_fill(~same, -torch.inf).softmax(-1) @ v
    return attention.project(out.transpose(1, 2).reshape(batch, rows, cols, width))


def tile_for(bands, memory_gb, size=None, guide_bands=1, **needs):
    return choose_tile(bands, guide_bands, memory_gb, TileNeeds(**needs), size)


def test_tiles_with_context_are_as_large_as_memory_allows():
    small, large = (tile_for(100, gb, context=100, pixel_bytes=2000) for gb in (1.5, 4.0))
    assert small < large
    for gb, side in ((1.5, small), (4.0, large)):
        wide = side + 200
        assert wide**2 * (2000 + 32) + side**2 * 8 * 100 < gb * 2**30 - BASE_MEMORY_BYTES
    # A scene that fits is one tile, and not a larger one than it needs.
    assert tile_for(100, 4.0, (600, 600), context=100, pixel_bytes=2000) == 768
    assert tile_for(300, 0.5, context=400, pixel_bytes=9000) == 128
    # A step that takes what it takes leaves less for the result beside it.
    one = {"context": 100, "pixel_bytes": 2000}
    beside = [tile_for(100, 4.0, **one, fixed_bytes=n) for n in (0, 2 * 10**8, 32 * 10**8)]
    assert beside[0] == beside[1] == 768 and 128 <= beside[2] < 768
    # Where the context covers the scene, and nothing fits, the smallest tile saves next to nothing.
    assert tile_for(235, 1.0, (720, 720), context=372, pixel_bytes=2200) == 256
    assert choose_tile(100, 1, 2.0) == 256  # without context, as ever
    assert tile_for(100, 4.0, context=300) > tile_for(100, 4.0, context=300, fixed_bytes=3 * 10**9)


def test_many_bands_count_for_the_tile_and_not_for_its_context():
    """Of the context there are coefficients alone: what it takes does not grow with the bands."""
    few, many = (tile_for(bands, 2.0, context=132, pixel_bytes=2800) for bands in (10, 240))
    assert 256 <= many <= few
    # The images of a tile with its context, several at a time, would not have left room for this one.
    assert tile_for(480, 2.0, context=200, pixel_bytes=900) >= 256
    assert 4 * 480 * 2.75 * (256 + 400) ** 2 > 2 * 2**30


def test_what_is_needed_near_the_tile_alone_leaves_room_for_larger_ones():
    far = tile_for(100, 2.0, context=300, pixel_bytes=2400)
    near = tile_for(100, 2.0, context=300, pixel_bytes=900, inner_context=100, inner_bytes=1500)
    same = tile_for(100, 2.0, context=300, pixel_bytes=900, inner_context=300, inner_bytes=1500)
    assert near > far == same


@pytest.mark.parametrize("method", ["s3rnet", "csakd", "hyfusion", "mpsrnet-diff"])
def test_time_estimates_know_about_how_far_a_network_looks(method):
    info = METHODS[method]
    model = from_pretrained(find_weights(method))
    for ratio in (3, 4, 6):
        for known, told in zip(contexts(model, ratio, 0.3)[1:], info.network_reach):
            assert told / 1.7 < known < told * 1.7
    small, large = (
        estimate(
            235, 1, side, side, assess=False, ratio=6, network_seconds=100.0, network_reach=info.network_reach
        ).seconds
        for side in (720, 1440)
    )
    assert large > 4.3 * small  # tiles compute their contexts again


def test_a_scene_of_one_tile_takes_what_its_pixels_take():
    plain = estimate(50, 1, 300, 300, assess=False, ratio=4, network_seconds=100.0).seconds
    assert (
        plain
        == estimate(
            50, 1, 300, 300, assess=False, ratio=4, network_seconds=100.0, network_reach=(60, 20)
        ).seconds
    )


@pytest.mark.parametrize("window", [1, 5, 15])
def test_window_means_are_means_over_the_pixels_that_exist(window):
    image = torch.randn(2, 3, 9, 21)
    for dim, kernel in ((2, (window, 1)), (3, (1, window))):
        pad = tuple(side // 2 for side in kernel)
        plain = torch.nn.functional.avg_pool2d(image, kernel, 1, pad, count_include_pad=False)
        assert torch.allclose(window_mean(image, dim, window), plain, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_on_cuda_but_for_half_precision(tmp_path, kind):
    cls, _, config = KINDS[kind]
    folder = weights(tmp_path / "w", config)
    _, scene = make_scene(rows=160)
    on_cpu = fused(cls({"weights": folder, "precision": "float32"}), scene)
    correction = float((on_cpu - fused(LMMSE(), scene)).std())
    for precision, share in (("float32", 1e-2), ("auto", 5e-2)):
        _, scene = make_scene(rows=160)
        scene.device = torch.device("cuda")
        method = cls({"weights": folder, "precision": precision})
        on_gpu = fused(method, scene)
        assert float((on_gpu - on_cpu).square().mean().sqrt()) < share * correction
    assert method.describe()["precision"] in ("bfloat16", "float16")


def test_the_progress_counts_adaptation(files, tmp_path):
    from hypersharp.backend.protocol import Progress

    said = []
    control = Control(lambda m: said.append(m) if isinstance(m, Progress) else None)
    options = {"method": "s3rnet", "weights": weights(tmp_path / "w", SMALL_MBFN), "assess": False}
    fuse(*files, tmp_path / "o.tif", adapt_steps=40, control=control, **options)
    fractions = [m.fraction for m in said]
    assert fractions == sorted(fractions)
    training = [m.fraction for m in said if m.stage == "training"]
    assert training[-1] - training[0] > 0.2


def test_steps_of_an_interrupted_run_say_nothing_of_the_time_left():
    said = []
    control = Control(said.append)
    control.plan({"training": 1})
    control._started -= 100.0  # this run has been at it for so long
    control.stage("training", 1000)
    control._said = 0.0
    control.step(900)
    assert said[-2].fraction == pytest.approx(0.9) and said[-2].eta_s is None
    for _ in range(50):
        control._said = 0.0
        control.step()
    # 50 steps in 100 seconds, and 50 more to go.
    assert said[-2].eta_s == pytest.approx(100, rel=0.05)
