# SPDX-License-Identifier: GPL-2.0-or-later
from dataclasses import replace

import pytest
import torch
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.models.mamba import Pieces
from hypersharp.backend.models.mbfn import MBFN, MBFNConfig
from hypersharp.backend.models.mpsrnet import MPSRNet, MPSRNetConfig, step_factors
from hypersharp.backend.models.pretrained import from_pretrained
from memory import MemoryWatch
from torch.nn import functional

SUBSPACE = MPSRNetConfig(7, 14, None, 6, 2, width=8, encoder_blocks=0, blocks=1, d_state=2)
FULL = MPSRNetConfig(9, 1, 4, None, 9, width=8, encoder_blocks=1, blocks=1, d_state=2)


def images(config, ratio, rows=5, cols=4, batch=1, seed=0):
    g = torch.Generator().manual_seed(seed)

    def image(bands, factor):
        return torch.randn(batch, bands, rows * factor, cols * factor, generator=g)

    return image(config.hs_bands, 1), image(config.guide_bands, ratio), image(config.prior_bands, ratio)


def shaken(model, seed=0, by=0.1):
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.add_(by * torch.randn(p.shape, generator=g))
    return model.eval()


@pytest.mark.parametrize(
    ("ratio", "steps"),
    [(1, (1,)), (2, (2,)), (3, (3,)), (4, (2, 2)), (5, (5,)), (6, (2, 3)), (8, (2, 2, 2)), (10, (2, 5))],
)
def test_the_steps_of_a_ratio(ratio, steps):
    assert step_factors(ratio) == steps


def test_a_ratio_of_nothing_is_refused():
    with pytest.raises(ValueError, match="ratio"):
        step_factors(0)


@pytest.mark.parametrize("guide_bands", [1, 3, 4])
@pytest.mark.parametrize("ratio", range(2, 11))
def test_shapes_of_both_forms(ratio, guide_bands):
    for config in (
        replace(SUBSPACE, guide_bands=guide_bands, scan_span=8, patch=2),
        replace(FULL, guide_bands=guide_bands, ratio=ratio),
    ):
        model = MPSRNet(config)
        out, results = model(*images(config, ratio, batch=2))
        bands = config.out_bands or config.hs_bands
        assert out.shape == (2, bands, 5 * ratio, 4 * ratio)
        sizes = torch.tensor(step_factors(ratio)).cumprod(0).tolist()
        assert [r.shape for r in results] == [(2, bands, 5 * s, 4 * s) for s in sizes]
        assert torch.equal(results[-1], out)


def test_steps_share_weights_for_any_ratio_and_have_their_own_for_one():
    shared, own = MPSRNet(replace(SUBSPACE, ratio=None)), MPSRNet(replace(SUBSPACE, ratio=8))
    assert own.parameter_count() == 3 * shared.parameter_count()
    assert (
        MPSRNet(replace(SUBSPACE, ratio=8, progressive=False)).parameter_count() == shared.parameter_count()
    )


def test_it_begins_as_plain_enlarging_or_as_nothing():
    torch.manual_seed(0)
    hs, guide, prior = images(FULL, 4)
    out, _ = MPSRNet(FULL)(hs, guide, prior)
    twice = functional.interpolate(hs, scale_factor=2, mode="bicubic")
    assert (out - functional.interpolate(twice, scale_factor=2, mode="bicubic")).abs().max() < 0.5
    out, _ = MPSRNet(SUBSPACE)(*images(SUBSPACE, 4))
    assert float(out.detach().abs().max()) < 0.5


def test_every_switch_changes_the_network_as_it_says():
    base = replace(SUBSPACE, ratio=4, scan_span=6)
    plain = shaken(MPSRNet(base))
    hs, guide, prior = images(base, 4)
    expected = plain(hs, guide, prior)[0]
    other = torch.randn_like(prior)

    without = shaken(MPSRNet(replace(base, prior=False)))
    assert without.parameter_count() < plain.parameter_count()
    assert torch.equal(without(hs, guide, prior)[0], without(hs, guide)[0])
    assert not torch.allclose(plain(hs, guide, other)[0], expected)

    single = MPSRNet(replace(base, progressive=False))
    assert len(single(hs, guide, prior)[1]) == 1 and len(plain(hs, guide, prior)[1]) == 2

    alone = MPSRNet(replace(base, inter=False))
    assert alone.parameter_count() < plain.parameter_count()
    assert [n for n, _ in alone.named_parameters() if ".inter" in n] == []

    names = [n for n, _ in MPSRNet(replace(base, mixer="conv")).named_parameters()]
    assert any("conv2d" in n for n in names) and not any("A_log" in n for n in names)


def test_without_inter_scans_the_streams_meet_only_at_the_end():
    for inter in (True, False):
        config = replace(SUBSPACE, inter=inter)
        model = shaken(MPSRNet(config))
        block = model.steps[0].blocks[0]
        x = torch.randn(3, 1, 6, 6, config.width)
        changed = x.clone()
        changed[1] = torch.randn(1, 6, 6, config.width)
        with torch.no_grad():
            difference = (block(changed, Pieces()) - block(x, Pieces())).abs().amax(dim=(1, 2, 3, 4))
        assert (float(difference[0]) > 1e-6) is inter
        # The prior's stream hears of the guide only through the HS stream of an earlier block.
        assert float(difference[2]) == 0.0 and float(difference[1]) > 1e-6


@pytest.mark.parametrize("mixer", ["scan", "conv"])
@pytest.mark.parametrize("ratio", [None, 4])
def test_every_parameter_gets_a_gradient(mixer, ratio):
    config = replace(SUBSPACE, ratio=ratio, mixer=mixer, encoder_blocks=1, blocks=2, patch=2, scan_span=4)
    model = shaken(MPSRNet(config))
    out, _ = model(*images(config, 4))
    out.square().mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("ratio", "patch"), [(3, 1), (4, 2), (6, 2), (8, 1)])
def test_what_is_kept_is_the_same_and_each_step_does_less(ratio, patch):
    """Far from the pixels that are wanted only the first, coarse steps look; what is left out is never computed."""
    config = replace(SUBSPACE, ratio=None, hs_bands=2, guide_bands=1, out_bands=1, prior_bands=1, width=4)
    model = shaken(MPSRNet(replace(config, patch=patch, scan_span=3)), by=0.3)
    reach, size = model.reach(ratio), 2 * model.reach(ratio) + 6
    inputs = images(model.config, ratio, size, size + 3)
    keep = (reach, reach + 5), (reach + 1, reach + 7)
    part = (..., *(slice(a * ratio, b * ratio) for a, b in keep))
    with torch.no_grad():
        whole, every = model(*inputs, origin=(6 * ratio, 0))
        kept, results = model(*inputs, origin=(6 * ratio, 0), keep=keep)
        with MemoryWatch() as all_of_it:
            model(*inputs)
        with MemoryWatch() as some_of_it:
            model(*inputs, keep=keep)
    assert kept.shape[-2:] == (5 * ratio, 6 * ratio) and results[-1] is kept
    assert torch.allclose(kept, whole[part], atol=1e-4 * float(whole.abs().max()))
    assert len(results) == len(every) and 0 < model.last_reach(ratio) <= reach
    if len(results) > 1:
        assert model.last_reach(ratio) < reach and some_of_it.most < 0.8 * all_of_it.most


def test_early_results_reach_the_loss_too():
    model = shaken(MPSRNet(replace(SUBSPACE, ratio=4)))
    _, results = model(*images(SUBSPACE, 4))
    results[0].square().mean().backward()
    assert model.steps[0].last.weight.grad.abs().max() > 0
    assert model.steps[1].last.weight.grad is None


def test_save_and_load(tmp_path):
    config = replace(SUBSPACE, scan_span=8, patch=2, mixer="scan")
    model = shaken(MPSRNet(config))
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path, MPSRNet)
    assert again.config == config
    inputs = images(config, 3)
    assert torch.equal(again(*inputs)[0], model(*inputs)[0])
    with pytest.raises(HyperSharpError, match="class"):
        from_pretrained(tmp_path, MBFN)
    MBFN(MBFNConfig(4, 1, None, width=4, growth=2, blocks=(0, 0, 0, 0), attention=4)).save_pretrained(
        tmp_path
    )
    with pytest.raises(HyperSharpError, match="class"):
        from_pretrained(tmp_path, MPSRNet)


@pytest.mark.parametrize(
    "change", [{"mixer": "attention"}, {"patch": 0}, {"scan_span": 1}, {"prior_bands": 0}]
)
def test_configurations_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError):
        MPSRNet(replace(SUBSPACE, **change))


def test_wrong_inputs_are_refused():
    model = MPSRNet(replace(SUBSPACE, ratio=4))
    hs, guide, prior = images(SUBSPACE, 4)
    with pytest.raises(ValueError, match="prior"):
        model(hs, guide)
    with pytest.raises(ValueError, match="do not fit"):
        model(hs, guide, prior[..., 1:])
    with pytest.raises(ValueError, match="do not fit"):
        model(*images(SUBSPACE, 3))


@pytest.mark.parametrize(
    ("ratio", "change"),
    [
        (2, {"patch": 2, "scan_span": 4}),
        (3, {"patch": 2, "scan_span": 4}),
        (4, {"patch": 1, "scan_span": 4, "blocks": 2}),
        (4, {"mixer": "conv"}),
    ],
)
def test_a_crop_with_its_reach_gives_the_same_pixels(ratio, change):
    config = replace(SUBSPACE, hs_bands=2, guide_bands=1, out_bands=1, prior_bands=1, width=4, **change)
    model = shaken(MPSRNet(config), by=0.3)
    reach = model.reach(ratio)
    size = 2 * reach + 4
    inputs = images(config, ratio, size, size)
    cut = 3
    crops = [x[..., cut * f :, cut * f :] for x, f in zip(inputs, (1, ratio, ratio))]
    with torch.no_grad():
        whole = model(*inputs)[0]
        crop = model(*crops, origin=(cut * ratio, cut * ratio))[0]
        misplaced = model(*crops)[0]
    inner = slice((reach + cut) * ratio, None)
    own = slice(reach * ratio, None)
    assert torch.allclose(whole[..., inner, inner], crop[..., own, own], atol=1e-4 * float(whole.abs().max()))
    if "scan_span" in change:
        # The test is about something only where the place in the scene matters.
        assert not torch.allclose(whole[..., inner, inner], misplaced[..., own, own], atol=1e-4)


def test_the_stated_memory_covers_what_is_used():
    for change in ({}, {"patch": 2, "scan_span": 16}, {"prior": False, "d_state": 4}, {"mixer": "conv"}):
        config = replace(SUBSPACE, width=16, **change)
        model = MPSRNet(config)
        inputs = images(config, 4, 48, 48)
        with torch.no_grad(), MemoryWatch() as watch:
            model(*inputs)
        used = watch.most / (192 * 192)
        assert 0.7 * used < model.pixel_bytes(4) < 3 * used, (change, used, model.pixel_bytes(4))
