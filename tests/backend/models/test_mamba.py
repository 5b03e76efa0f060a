# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import torch
from hypersharp.backend.models import mamba
from hypersharp.backend.models.mamba import Mamba, Pieces, Scan2d, ScanHead, scan_images, scan_with
from torch.nn import functional

UPSTREAM = {
    "A_log": (16, 4),
    "D": (16,),
    "in_proj.weight": (32, 8),
    "conv1d.weight": (16, 1, 4),
    "conv1d.bias": (16,),
    "x_proj.weight": (9, 16),
    "dt_proj.weight": (16, 1),
    "dt_proj.bias": (16,),
    "out_proj.weight": (8, 16),
}
"""Names and shapes of mamba_ssm.Mamba(8, d_state=4)."""


def written_out(block, x):
    """Mamba's block token by token, with torch's own layers."""
    x, z = block.in_proj(x).chunk(2, -1)
    length = x.shape[1]
    x = functional.silu(block.conv1d(x.transpose(1, 2))[..., :length].transpose(1, 2))
    return block.out_proj(selected_scan(block, x, x) * functional.silu(z))


def selected_scan(head, x, source):
    """[batch, l, d]; delta, B and C from the source."""
    step, B, C = head.x_proj(source).split([head.dt_rank, head.d_state, head.d_state], -1)
    delta = functional.softplus(head.dt_proj(step))
    A = -torch.exp(head.A_log)
    state, ys = x.new_zeros(len(x), x.shape[2], head.d_state), []
    for t in range(x.shape[1]):
        state = torch.exp(delta[:, t, :, None] * A) * state
        state = state + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys.append((state * C[:, t, None]).sum(-1) + head.D * x[:, t])
    return torch.stack(ys, 1)


def randomise(module, seed=0):
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=g))
    return module


def test_parameter_names_and_shapes_are_upstreams():
    block = Mamba(8, d_state=4)
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == UPSTREAM
    other = {k: torch.rand(shape) for k, shape in UPSTREAM.items()}
    block.load_state_dict(other)
    assert torch.equal(block.in_proj.weight, other["in_proj.weight"])


def test_initial_values_are_the_published_ones():
    block = Mamba(64, d_state=8)
    assert block.dt_rank == 4
    assert torch.allclose(block.A_log.exp(), torch.arange(1.0, 9).expand(128, 8))
    step = functional.softplus(block.dt_proj.bias.detach())
    assert float(step.min()) >= 1e-3 and float(step.max()) <= 0.1001
    assert float(block.dt_proj.weight.detach().abs().max()) <= 0.5


@pytest.mark.parametrize("bias", [False, True])
def test_mamba_against_a_written_out_forward(bias):
    block = randomise(Mamba(8, d_state=4, bias=bias, conv_bias=bias))
    x = torch.randn(2, 37, 8)
    assert torch.allclose(block(x), written_out(block, x), atol=1e-5)


def sequences(image, direction):
    """[batch, rows, cols, d] -> [batch, l, d] in one direction over the whole image."""
    x = (image.transpose(1, 2) if direction >= 2 else image).flatten(1, 2)
    return x.flip(1) if direction % 2 else x


def back(y, direction, rows, cols):
    y = y.flip(1) if direction % 2 else y
    return y.unflatten(1, (cols, rows)).transpose(1, 2) if direction >= 2 else y.unflatten(1, (rows, cols))


def scan2d_written_out(block, x, guide=None):
    rows, cols = x.shape[1:3]
    x, z = block.in_proj(x).chunk(2, -1)
    g = None if guide is None else block.in_proj_b(guide)
    total = 0
    for i, head in enumerate(block.directions):
        s = sequences(x, i)
        s = functional.silu(head.conv1d(s.transpose(1, 2))[..., : s.shape[1]].transpose(1, 2))
        y = selected_scan(head, s, s if g is None else sequences(g, i))
        total = total + back(y, i, rows, cols)
    return block.out_proj(block.norm(total / 4 * functional.silu(z)))


@pytest.mark.parametrize("guided", [False, True])
def test_four_directions_against_a_written_out_forward(guided):
    torch.manual_seed(0)
    block = randomise(Scan2d(6, d_state=3, guided=guided))
    x, guide = torch.randn(2, 5, 7, 6), torch.randn(2, 5, 7, 6) if guided else None
    assert torch.allclose(block(x, guide), scan2d_written_out(block, x, guide), atol=1e-5)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (1, 2), (6, 3)])
def test_pieces_are_sequences_of_their_own(guided, offset):
    torch.manual_seed(1)
    span, block = 4, randomise(Scan2d(6, d_state=3, guided=guided))
    x, guide = torch.randn(2, 9, 11, 6), torch.randn(2, 9, 11, 6) if guided else None
    found = block(x, guide, Pieces(span, offset))

    inner, z = block.in_proj(x).chunk(2, -1)
    g = block.in_proj_b(guide) if guided else None
    total = torch.zeros_like(inner)
    for i, head in enumerate(block.directions):
        axis = 2 if i < 2 else 1
        size, first = x.shape[axis], offset[1 if i < 2 else 0]
        cuts = [c - first for c in range(0, first + size + span, span) if 0 < c - first < size]
        for start, stop in zip([0, *cuts], [*cuts, size]):
            piece = inner.narrow(axis, start, stop - start)
            lines = (piece if axis == 2 else piece.transpose(1, 2)).flatten(0, 1)
            lines = lines.flip(1) if i % 2 else lines
            s = functional.silu(head.conv1d(lines.transpose(1, 2))[..., : lines.shape[1]].transpose(1, 2))
            source = s
            if g is not None:
                source = g.narrow(axis, start, stop - start)
                source = (source if axis == 2 else source.transpose(1, 2)).flatten(0, 1)
                source = source.flip(1) if i % 2 else source
            y = selected_scan(head, s, source)
            y = (y.flip(1) if i % 2 else y).unflatten(0, (2, -1))
            total.narrow(axis, start, stop - start).add_(y if axis == 2 else y.transpose(1, 2))
    expected = block.out_proj(block.norm(total / 4 * functional.silu(z)))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("span", [None, 4])
def test_streams_side_by_side_are_the_same_as_one_by_one(span):
    torch.manual_seed(2)
    blocks = [randomise(Scan2d(4, d_state=2, guided=True), seed) for seed in range(3)]
    x, guide = torch.randn(3, 2, 6, 5, 4), torch.randn(3, 2, 6, 5, 4)
    pieces = Pieces(span, (1, 3))
    together = scan_images(blocks, x, guide, pieces)
    for i, block in enumerate(blocks):
        assert torch.allclose(together[i], block(x[i], guide[i], pieces), atol=1e-6)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("span", [None, 5])
def test_stretches_and_parts_give_the_same_numbers_and_gradients(span, guided, monkeypatch):
    torch.manual_seed(5)
    block = randomise(Scan2d(4, d_state=2, guided=guided))
    x, guide = torch.randn(1, 14, 13, 4), torch.randn(1, 14, 13, 4) if guided else None
    results = []
    for at_once, shortest in ((1 << 19, 256), (150, 3), (1000, 8)):
        monkeypatch.setattr(mamba, "AT_ONCE", at_once)
        monkeypatch.setattr(mamba, "SHORTEST_STRETCH", shortest)
        monkeypatch.setattr(mamba, "LEAST_LANES", 2)
        monkeypatch.setattr(mamba, "FEW", at_once)
        block.zero_grad()
        y = block(x, guide, Pieces(span, (2, 1)))
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in block.parameters())])
    for other in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(other, results[0]))


def test_every_parameter_gets_a_gradient():
    block = randomise(Scan2d(6, d_state=3, guided=True))
    block(torch.randn(1, 6, 6, 6), torch.randn(1, 6, 6, 6), Pieces(4, (1, 1))).square().sum().backward()
    assert [n for n, p in block.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_filling_leaves_states_alone():
    torch.manual_seed(3)
    head = randomise(ScanHead(5, 3))
    x = torch.randn(12, 1, 5, 2)
    longer = torch.cat([torch.zeros(4, 1, 5, 2), x])
    keep = torch.ones(16, 1, 1, 2)
    keep[:4] = 0
    assert torch.allclose(scan_with([head], longer, keep=keep)[4:], scan_with([head], x), atol=1e-6)


def test_a_guide_is_asked_for_exactly_where_it_is_needed():
    x = torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match="guide"):
        Scan2d(4, 2)(x, x)
    with pytest.raises(ValueError, match="guide"):
        Scan2d(4, 2, guided=True)(x)


def test_half_precision_by_autocast():
    torch.manual_seed(4)
    block = Scan2d(8, d_state=4)
    x = torch.randn(1, 8, 8, 8)
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x)
    assert torch.allclose(found.float(), expected, atol=0.05)
