# SPDX-License-Identifier: GPL-2.0-or-later
"""The 2^k-ons of Q2n: products of basis elements as a table of signs."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def components(bands: int) -> int:
    """Return the number of components of the hypercomplex numbers that hold `bands` values: a power of 2."""
    return 1 << (bands - 1).bit_length()


@lru_cache(maxsize=4)
def sign_table(size: int) -> Tensor:
    """Return `s` of `e_i e_j = s[i, j] e_(i xor j)`, `[size, size]` int8, for a power of 2.

    Doubling by Cayley and Dickson, `(a, b)(c, d) = (a c - d* b, d a + b c*)` (Schafer 1954), the product that
    Garzelli and Nencini (IEEE GRSL 6(4), 2009) build Q2n on.
    """
    table = torch.ones((1, 1), dtype=torch.int8)
    while table.shape[0] < size:
        conjugate = -torch.ones(table.shape[0], dtype=torch.int8)
        conjugate[0] = 1
        upper = torch.cat([table, table.T], dim=1)
        lower = torch.cat([table * conjugate, -table.T * conjugate], dim=1)
        table = torch.cat([upper, lower])
    return table


@lru_cache(maxsize=4)
def conjugate_product_plan(bands: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (index, sign), `[size * size]`, that turn cross moments into the moments of `z w*`.

    With `C[i, j] = mean(z_i w_j)` flattened (and one zero appended), component k of `mean(z w*)` is the sum
    over i of `sign * C[index]` at `[k, i]`, because `e_i e_j*` is plus or minus the basis element `i xor j`.
    """
    size = components(bands)
    i = torch.arange(size)
    k = i[:, None]
    j = k ^ i
    sign = sign_table(size)[i.expand(size, size), j].to(torch.float64)
    sign[j > 0] *= -1
    index = torch.where((i < bands) & (j < bands), i * bands + j, bands * bands)
    return index.flatten().to(device), sign.flatten().to(device)


def conjugate_product(cross: Tensor) -> Tensor:
    """Return the components of `mean(z w*)`, `[blocks, size]`, from `cross[n, i, j] = mean(z_i w_j)`.

    Exact, and one gather instead of `size^2` products a pixel.
    """
    blocks, bands, _ = cross.shape
    index, sign = conjugate_product_plan(bands, cross.device)
    flat = pad(cross.reshape(blocks, -1), (0, 1))
    size = components(bands)
    return (flat[:, index] * sign).reshape(blocks, size, size).sum(dim=2)
