# SPDX-License-Identifier: GPL-2.0-or-later
import math

import pytest
import pywt
import torch
from hypersharp.backend.training import losses


def images(seed=0, shape=(2, 5, 6, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def test_sam_is_per_pixel():
    x, y = images()
    expected = 0.0
    angles = 0.0
    for b in range(2):
        for r in range(6):
            for c in range(8):
                cosine = float(x[b, :, r, c] @ y[b, :, r, c] / x[b, :, r, c].norm() / y[b, :, r, c].norm())
                expected += (1 - cosine) / 96
                angles += math.acos(cosine) / 96
    assert float(losses.sam_loss(x, y)) == pytest.approx(expected, rel=1e-4)
    assert float(losses.sam_angle_loss(x, y)) == pytest.approx(angles, rel=1e-4)
    # Brightness changes no angle; permuting pixels of one image does.
    brightness = torch.rand(2, 1, 6, 8) + 0.5
    assert float(losses.sam_loss(x, x * brightness)) == pytest.approx(0, abs=1e-6)
    assert float(losses.sam_loss(x, x.flip(-1))) > 1e-3


def test_angle_gradient_is_finite_for_equal_and_zero_spectra():
    x = torch.rand(1, 4, 3, 3)
    x[..., 0, 0] = 0
    p = x.clone().requires_grad_()
    losses.sam_angle_loss(p, x).backward()
    assert torch.isfinite(p.grad).all()


def test_beba_balances_bands():
    y = torch.ones(1, 2, 4, 4)
    y[:, 1] = 10.0
    x = y.clone()
    x[:, 0] += 0.5
    first = float(losses.beba_loss(x, y))
    assert first == pytest.approx(0.5 * (0.5 * 0.25 / 1.1), rel=1e-5)
    x = y.clone()
    x[:, 1] += 3.0
    assert float(losses.beba_loss(x, y)) == pytest.approx(0.5 * (4.5 + 2.0) / 100.1, rel=1e-5)
    assert float(losses.beba_loss(y, y)) == 0.0


def test_fusion_loss_is_the_weighted_sum_on_unit_data():
    x, y = images(1)
    x, y = 2 * x - 1, 2 * y - 1
    smooth = (0.5 * (x - y) ** 2).mean()  # all differences below 1 in places, above in others
    d = (x - y).abs()
    smooth = torch.where(d < 1, 0.5 * d**2, d - 0.5).mean()
    expected = smooth + 0.1 * losses.sam_loss((x + 1) / 2, (y + 1) / 2) + 0.1 * losses.beba_loss(x, y)
    assert torch.allclose(losses.fusion_loss(x, y), expected)
    assert torch.allclose(losses.fusion_loss(x, y, joint=False), smooth)


def test_student_loss_leaves_the_teacher_alone():
    x, y = images(2)
    teacher = x.clone().requires_grad_()
    features = torch.randn(2, 3, 6, 8, requires_grad=True)
    student, own = y.clone().requires_grad_(), torch.randn(2, 3, 6, 8, requires_grad=True)
    loss = losses.student_loss(student, own, teacher, features, x)
    loss.backward()
    assert teacher.grad is None and features.grad is None
    assert student.grad.abs().max() > 0 and own.grad.abs().max() > 0
    p = torch.sigmoid(features.detach())
    q = torch.sigmoid(own)
    entropy = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    d = (y - x).abs()
    smooth = torch.where(d < 1, 0.5 * d**2, d - 0.5).mean()
    expected = losses.fusion_loss(y, x) + 0.1 * smooth + 0.1 * entropy
    assert torch.allclose(loss, expected, atol=1e-5)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym19"])
def test_swt_against_pywavelets(wavelet):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(1, 1, 40, 44, generator=generator, dtype=torch.float64)
    ours = losses.swt(x, wavelet)[:, 0, 0]
    (ll, (horizontal, vertical, diagonal)) = pywt.swt2(x[0, 0].numpy(), wavelet, level=1, trim_approx=True)
    for index, theirs in enumerate((ll, vertical, horizontal, diagonal)):
        theirs = torch.from_numpy(theirs) / 2
        # PyWavelets may start a pixel elsewhere: the same sub-band up to a circular shift.
        shifts = [torch.roll(theirs, (a, b), (0, 1)) for a in range(-2, 3) for b in range(-2, 3)]
        options = [ours[i] for i in ((1, 2) if index in (1, 2) else (index,))]
        assert min(float((s - o).abs().max()) for s in shifts for o in options) < 1e-9


def test_swt_keeps_the_mean_and_loss_counts_each_sub_band():
    x, y = images(4, (1, 3, 40, 40))
    bands = losses.swt(x)
    assert torch.allclose(bands[0].mean(), x.mean(), atol=1e-5)
    assert bands[1:].mean().abs() < 1e-5
    expected = 0.01 * sum((a - b).abs().mean() for a, b in zip(losses.swt(x), losses.swt(y)))
    assert torch.allclose(losses.swt_loss(x, y), expected, rtol=1e-4)
    total = (x - y).abs().mean() + 0.1 * losses.sam_angle_loss(x, y) + expected
    assert torch.allclose(losses.hyfusion_loss(x, y), total, rtol=1e-4)
