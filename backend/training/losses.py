# SPDX-License-Identifier: GPL-2.0-or-later
"""The losses of S3RNet, CSAKD and HyFusion, in their correct form.

Sources: arXiv 2406.19666 (CSAKD), 2501.07953 (S3RNet), 2501.04665 (HyFusion) and their public code, whose slips
are not copied: the spectral angle there mixes pixels and bands and is taken on data in [-1, 1]. All images are
`[batch, bands, rows, cols]`.
"""

from __future__ import annotations

from functools import lru_cache

import pywt
import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-8


def to_unit(image: Tensor) -> Tensor:
    """Map data from [-1, 1] to [0, 1], where a spectral angle means something."""
    return 0.5 * (image + 1.0)


def sam_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - mean cosine of the spectra of each pixel (0 for proportional spectra); inputs in [0, 1]."""
    return 1.0 - functional.cosine_similarity(prediction, target, dim=1, eps=EPSILON).mean()


def sam_angle_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean spectral angle in radians (HyFusion's form); inputs in [0, 1]."""
    cosine = functional.cosine_similarity(prediction, target, dim=1, eps=EPSILON)
    # The slope of arccos is infinite at 1.
    return torch.arccos(cosine.clamp(-1.0 + 1e-6, 1.0 - 1e-6)).mean()


def beba_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the band-wise error balance: each band's error over its own power, averaged over the bands.

    Per sample of error d: `0.5 d^2 + max(d - 1, 0)`, over the band's `mean(y^2 + 0.1)` (over batch and pixels).
    The official code also subtracts a constant 0.5, which has no gradient and makes the loss negative.
    """
    distance = (prediction - target).abs()
    error = (0.5 * distance.square() + functional.relu(distance - 1.0)).mean(dim=(0, 2, 3))
    return (error / (target.square() + 0.1).mean(dim=(0, 2, 3))).mean()


def fusion_loss(prediction: Tensor, target: Tensor, joint: bool = True) -> Tensor:
    """Return S3RNet's and the teacher's loss: SmoothL1 + 0.1 SAM + 0.1 BEBA; data in [-1, 1].

    Args:
        joint: False for the first term alone.
    """
    loss = functional.smooth_l1_loss(prediction, target)
    if not joint:
        return loss
    angle = sam_loss(to_unit(prediction), to_unit(target))
    return loss + 0.1 * angle + 0.1 * beba_loss(prediction, target)


def distillation_loss(
    student: Tensor, student_features: Tensor, teacher: Tensor, teacher_features: Tensor
) -> Tensor:
    """Return what the student owes its teacher: 0.1 SmoothL1 of results + 0.1 cross entropy of fused features.

    The teacher is held fixed. Features are logits; the teacher's, through a sigmoid, are the target.
    """
    features = functional.binary_cross_entropy_with_logits(
        student_features, torch.sigmoid(teacher_features.detach())
    )
    return 0.1 * functional.smooth_l1_loss(student, teacher.detach()) + 0.1 * features


def student_loss(
    student: Tensor,
    student_features: Tensor,
    teacher: Tensor,
    teacher_features: Tensor,
    target: Tensor,
) -> Tensor:
    """Return CSAKD's loss of the student, for online co-training and for an offline teacher alike."""
    distilled = distillation_loss(student, student_features, teacher, teacher_features)
    return fusion_loss(student, target) + distilled


@lru_cache(maxsize=8)
def _filters(wavelet: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the decomposition filters (low, high), divided by sqrt(2): without decimation nothing may grow."""
    bank = pywt.Wavelet(wavelet)
    scale = 2.0**-0.5
    return tuple(v * scale for v in bank.dec_lo), tuple(v * scale for v in bank.dec_hi)


def swt(image: Tensor, wavelet: str = "sym19") -> Tensor:
    """Return the one-level stationary wavelet transform, periodic at the borders.

    The filters are those of PyWavelets over sqrt(2), so that the low-pass keeps the mean.

    Returns:
        `[4, batch, bands, rows, cols]`: LL, LH, HL, HH (first letter: filter along the rows' axis).
    """
    low, high = (torch.tensor(f, dtype=image.dtype, device=image.device) for f in _filters(wavelet))

    def along(x: Tensor, taps: Tensor, axis: int) -> Tensor:
        out = torch.zeros_like(x)
        centre = len(taps) // 2
        for i, tap in enumerate(taps):
            out = out + tap * torch.roll(x, i - centre, dims=axis)
        return out

    rows = [along(image, f, -2) for f in (low, high)]
    return torch.stack([along(x, f, -1) for x in rows for f in (low, high)])


def swt_loss(prediction: Tensor, target: Tensor, wavelet: str = "sym19", weight: float = 0.01) -> Tensor:
    """Return `weight` times the L1 distances of the four sub-bands, summed over them."""
    # The transform is linear: that of the difference is enough.
    return weight * swt(prediction - target, wavelet).abs().mean(dim=(1, 2, 3, 4)).sum()


def hyfusion_loss(prediction: Tensor, target: Tensor, wavelet: str = "sym19") -> Tensor:
    """Return HyFusion's loss, L1 + 0.1 SAM + SWT; data in [0, 1]."""
    l1 = functional.l1_loss(prediction, target)
    return l1 + 0.1 * sam_angle_loss(prediction, target) + swt_loss(prediction, target, wavelet)
