# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import torch
from hypersharp.backend.models.blocks import CLRA, DFAB
from hypersharp.backend.models.mbfn import MBFN, MBFNConfig, student_config, teacher_config
from hypersharp.backend.models.ssawb import SSAWB

SMALL = {"width": 12, "growth": 6, "blocks": (1, 1, 1, 1), "attention": 8, "heads": 2}


@pytest.mark.parametrize(
    ("guide_bands", "teacher", "student"), [(4, 26_807_686, 7_449_946), (6, 26_812_330, 7_454_590)]
)
def test_published_parameter_counts(guide_bands, teacher, student):
    with torch.device("meta"):
        assert MBFN(teacher_config(172, guide_bands)).parameter_count() == teacher
        assert MBFN(student_config(172, guide_bands)).parameter_count() == student


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = MBFN(teacher_config(172, 4))
        student = MBFN(student_config(172, 4))

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(model.joint_fine_in) == count(model.joint_coarse_in) == 136_310
    assert count(model.joint_fine) == count(model.joint_coarse) == 7_792_632
    assert count(model.hs_in) == 133_214
    assert count(model.guide_in) == 3_182
    assert count(model.hs) == count(model.guide) == 5_195_088
    assert count(model.expand) == 133_300
    assert count(model.last) == 266_256
    assert count(model.fuser) == 23_674
    assert count(student.hs) == 123_840


@pytest.mark.parametrize("guide_bands", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 6, 8, 10])
def test_shapes(guide_bands, ratio):
    model = MBFN(MBFNConfig(7, guide_bands, ratio, **SMALL))
    out, features = model(torch.rand(2, 7, 5, 4), torch.rand(2, guide_bands, 5 * ratio, 4 * ratio))
    assert out.shape == (2, 7, 5 * ratio, 4 * ratio)
    assert features.shape == (2, 12, 5 * ratio, 4 * ratio)


def test_grouped_student_runs_and_every_parameter_gets_a_gradient():
    model = MBFN(MBFNConfig(5, 3, 4, width=12, growth=6, blocks=(0, 1, 2, 1), hs_groups=6, attention=8))
    out, _ = model(torch.rand(1, 5, 6, 6), torch.rand(1, 3, 24, 24))
    out.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    # A constant key bias shifts every logit of a row alike at most: all else must really move the result.
    still = [n for n, p in model.named_parameters() if p.grad.abs().max() == 0]
    assert still == []


def test_wrong_sizes_are_refused():
    model = MBFN(MBFNConfig(5, 1, 4, **SMALL))
    with pytest.raises(ValueError, match="do not fit"):
        model(torch.rand(1, 5, 6, 6), torch.rand(1, 1, 18, 18))


def test_dense_blocks_against_a_written_out_forward():
    torch.manual_seed(0)
    block = DFAB(6, 3)
    for conv in block.convs:
        conv.weight.data.mul_(20)
    x = torch.randn(1, 6, 8, 8)
    c = block.convs
    act = torch.nn.LeakyReLU(0.2)
    x1 = act(c[0](x))
    x2 = act(c[1](torch.cat([x, x1], 1)))
    x3 = act(c[2](torch.cat([x, x1, x2], 1)))
    x4 = act(c[3](torch.cat([x, x1, x2, x3], 1)))
    expected = x + 0.2 * c[4](torch.cat([x, x1, x2, x3, x4], 1))
    assert torch.allclose(block(x), expected, atol=1e-6)
    assert (expected - x).abs().max() > 1e-2
    chain = CLRA(6, 3)
    one = chain.blocks
    assert torch.allclose(chain(x), x + 0.2 * one[2](one[1](one[0](x))), atol=1e-6)


def test_ssawb_against_a_written_out_forward():
    torch.manual_seed(1)
    block = SSAWB(6, reduced=8, heads=2)
    q, k, v, z = (torch.randn(1, 6, 5, 4) * 0.5 for _ in range(4))
    expected = torch.zeros(1, 6, 5, 4)
    wq, wk, wv = block.query(q)[0], block.key(k)[0], block.value(v)[0]
    mixed = torch.zeros(8, 5, 4)
    for head in range(2):
        for i in range(4):
            logits = torch.stack([(wq[4 * head + i] * wk[4 * head + j]).sum() / 2.0 for j in range(4)])
            a = logits.softmax(0)
            mixed[4 * head + i] = sum(a[j] * wv[4 * head + j] for j in range(4))
    attended = block.project(mixed[None]) + z
    g = torch.sigmoid(block.gate(torch.cat([q, k, v, attended], 1)))
    expected = g[:, 0:1] * q + g[:, 1:2] * k + g[:, 2:3] * v + g[:, 3:4] * attended
    assert torch.allclose(block(q, k, v, z), expected, atol=1e-5)


def test_local_attention_has_a_finite_reach_and_the_published_one_has_not():
    torch.manual_seed(2)
    inputs = [torch.randn(1, 8, 24, 24) for _ in range(4)]
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[..., 23, 23] += 5.0
    for window, far_changes in ((7, False), (None, True)):
        block = SSAWB(8, reduced=8, heads=2, window=window)
        with torch.no_grad():
            difference = (block(*inputs) - block(*changed)).abs()[0].amax(0)
        assert (float(difference[:19, :19].max()) > 1e-6) is far_changes
        assert float(difference[20:, 20:].max()) > 1e-4


def test_a_crop_with_its_reach_gives_the_same_pixels():
    torch.manual_seed(3)
    ratio = 3
    model = MBFN(
        MBFNConfig(
            2, 1, None, out_bands=1, width=4, growth=2, blocks=(1, 1, 1, 1), attention=4, heads=1, window=5
        )
    ).eval()
    for p in model.parameters():
        p.data.mul_(3.0)
    reach = model.reach(ratio)
    size = 2 * reach + 4
    hs, guide = torch.randn(1, 2, size, size), torch.randn(1, 1, size * ratio, size * ratio)
    with torch.no_grad():
        whole = model(hs, guide)[0]
        rows = slice(1, size)
        crop = model(hs[..., rows, rows], guide[..., ratio:, ratio:])[0]
    inner = slice((reach + 1) * ratio, None)
    assert torch.allclose(whole[..., inner, inner], crop[..., reach * ratio :, reach * ratio :], atol=1e-5)
