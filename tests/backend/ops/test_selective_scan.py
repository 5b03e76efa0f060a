# SPDX-License-Identifier: GPL-2.0-or-later
import importlib.util
import sys
import types

import pytest
import torch
from hypersharp.backend.ops import selective_scan as module
from hypersharp.backend.ops.selective_scan import scan_lanes, scan_name, scan_segment, selective_scan
from memory import MemoryWatch
from torch.nn import functional


def step_by_step(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Algorithm 2 of the paper, as it is written."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = functional.softplus(delta)
    state, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for u_t, delta_t, b_t, c_t in zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1)):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * b_t[:, None]
        ys.append((state * c_t[:, None]).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * functional.silu(z)


def inputs(batch, d, n, length, dtype=torch.float32, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype).to(device)

    return {
        "u": noise(batch, d, length),
        "delta": noise(batch, d, length) - 1,
        "A": -torch.exp(noise(d, n)),
        "B": noise(batch, n, length),
        "C": noise(batch, n, length),
        "D": noise(d),
        "z": noise(batch, d, length),
        "delta_bias": noise(d),
    }


def gradients(function, values, **more):
    leaves = {k: v.detach().clone().requires_grad_() for k, v in values.items()}
    y = function(**leaves, delta_softplus=True, **more)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (y * weight.to(y)).sum().backward()
    return y.detach(), {k: v.grad for k, v in leaves.items()}


def assert_same(found, expected, tolerance):
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * max(1.0, float(value.abs().max())), name


def test_values_and_gradients_of_a_plain_loop_in_fp32():
    values = inputs(2, 12, 8, 300)
    y, grads = gradients(selective_scan, values)
    expected, expected_grads = gradients(step_by_step, values)
    assert (y - expected).abs().max() < 1e-4
    assert_same(grads, expected_grads, 1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 64, 100, 101, 1000])
def test_chunks_of_any_length_give_the_same_numbers(chunk):
    values = inputs(2, 5, 3, 101, torch.float64)
    y, grads = gradients(selective_scan, values, chunk=chunk)
    expected, expected_grads = gradients(step_by_step, values)
    assert (y - expected).abs().max() < 1e-11
    assert_same(grads, expected_grads, 1e-11)


@pytest.mark.parametrize(("block", "step"), [(1, 1), (40, 1 << 15), (1 << 18, 200), (1 << 18, 1 << 15)])
def test_blocks_and_slabs_of_any_size_give_the_same_numbers(block, step, monkeypatch):
    monkeypatch.setitem(module.BLOCK, "cpu", block)
    monkeypatch.setitem(module.STEP, "cpu", step)
    values = inputs(2, 5, 3, 53, torch.float64)
    y, grads = gradients(selective_scan, values, chunk=20)
    expected, expected_grads = gradients(step_by_step, values)
    assert (y - expected).abs().max() < 1e-11
    assert_same(grads, expected_grads, 1e-11)


def test_gradcheck():
    values = inputs(1, 2, 2, 7, torch.float64)
    names = list(values)

    def scan(*tensors):
        return selective_scan(**dict(zip(names, tensors)), delta_softplus=True, chunk=3)

    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in values.values()])


def test_a_length_of_one_and_missing_options():
    values = inputs(3, 4, 2, 1)
    plain = {k: values[k] for k in ("u", "delta", "A", "B", "C")}
    assert torch.allclose(selective_scan(**plain), step_by_step(**plain), atol=1e-6)


def test_groups_have_their_own_b_and_c():
    first, second = inputs(2, 3, 4, 40, seed=1), inputs(2, 3, 4, 40, seed=2)
    parts = [step_by_step(**v, delta_softplus=True) for v in (first, second)]
    joined = {k: torch.cat([first[k], second[k]], 0 if k in "AD" or "bias" in k else 1) for k in first}
    joined |= {k: torch.stack([first[k], second[k]], 1) for k in "BC"}
    assert torch.allclose(selective_scan(**joined, delta_softplus=True), torch.cat(parts, 1), atol=1e-5)


def test_slabs_over_groups_channels_and_lanes(monkeypatch):
    g = torch.Generator().manual_seed(3)
    u, delta = (torch.rand(9, 4, 6, 70, generator=g, dtype=torch.float64) for _ in range(2))
    B, C = (torch.randn(9, 4, 3, 70, generator=g, dtype=torch.float64) for _ in range(2))
    A = -torch.rand(4, 6, 3, generator=g, dtype=torch.float64)
    results = []
    for step in (1 << 30, 2000, 150):
        monkeypatch.setitem(module.STEP, "cpu", step)
        leaves = [x.clone().requires_grad_() for x in (u, delta, A, B, C)]
        y = scan_lanes(*leaves)
        y.square().sum().backward()
        results.append([y.detach(), *(x.grad for x in leaves)])
    for other in results[1:]:
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(other, results[0]))


def test_lanes_are_the_same_scan():
    v = inputs(2, 4, 3, 50, torch.float64)
    delta = functional.softplus(v["delta"])
    expected = step_by_step(v["u"], delta, v["A"], v["B"], v["C"])
    u, delta, B, C = (x.permute(2, 1, 0)[:, None] for x in (v["u"], delta, v["B"], v["C"]))
    for chunk in (None, 9):
        y = scan_lanes(u, delta, v["A"][None], B, C, chunk)
        assert torch.allclose(y[:, 0].permute(2, 1, 0), expected, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("step", [1 << 15, 60])
def test_stretches_go_on_where_the_one_before_ended(chunk, step, monkeypatch):
    monkeypatch.setitem(module.STEP, "cpu", step)
    g = torch.Generator().manual_seed(4)
    u, delta = (torch.rand(31, 2, 5, 40, generator=g, dtype=torch.float64) for _ in range(2))
    B, C = (torch.randn(31, 2, 3, 40, generator=g, dtype=torch.float64) for _ in range(2))
    A = -torch.rand(2, 5, 3, generator=g, dtype=torch.float64)
    results = []
    for cuts in ([0, 31], [0, 9, 10, 31]):
        u_, delta_, A_, B_, C_ = leaves = [x.clone().requires_grad_() for x in (u, delta, A, B, C)]
        state, parts = None, []
        for i, j in zip(cuts, cuts[1:]):
            y, state = scan_segment(u_[i:j], delta_[i:j], A_, B_[i:j], C_[i:j], state, chunk)
            parts.append(y)
        y = torch.cat(parts)
        (y.square().sum() + state.cos().sum()).backward()
        results.append([y.detach(), state.detach(), *(x.grad for x in leaves)])
    assert results[0][1].shape == (2, 3, 5, 40)
    assert torch.allclose(results[0][0], scan_lanes(u, delta, A, B, C), atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*results))


@pytest.mark.parametrize(("size", "decay"), [(1e-4, 1e-3), (5.0, 50.0), (300.0, 500.0)])
def test_long_sequences_and_large_decays_stay_finite_and_right(size, decay):
    length = 20_000
    v = inputs(1, 2, 2, length)
    v["delta"] = v["delta"].abs() * size
    v["A"] = -torch.tensor([[decay, decay / 10], [decay / 100, 1e-6]])
    v = {k: v[k] for k in ("u", "delta", "A", "B", "C")}
    leaves = {k: x.clone().requires_grad_() for k, x in v.items()}
    y = selective_scan(**leaves)
    y.square().mean().backward()
    assert torch.isfinite(y).all() and all(torch.isfinite(x.grad).all() for x in leaves.values())
    expected = step_by_step(**{k: x.double() for k, x in v.items()})
    assert float((y - expected).detach().abs().max() / expected.abs().max()) < 1e-4


def test_a_zero_step_leaves_the_state_alone():
    v = inputs(1, 3, 2, 60)
    v = {k: v[k] for k in ("u", "delta", "A", "B", "C")}
    v["delta"] = v["delta"].abs()
    v["delta"][..., 20:40] = 0.0
    v["u"][..., 20:40] = 1e6
    short = {k: x if k == "A" else torch.cat([x[..., :20], x[..., 40:]], -1) for k, x in v.items()}
    y = selective_scan(**v)
    assert torch.allclose(torch.cat([y[..., :20], y[..., 40:]], -1), selective_scan(**short), atol=1e-4)


def test_half_precision_comes_back_as_it_went_in():
    v = inputs(1, 4, 4, 64)
    half = {k: x.bfloat16() if k in ("u", "delta", "B", "C", "z") else x for k, x in v.items()}
    y = selective_scan(**half, delta_softplus=True)
    expected = step_by_step(**{k: x.float() for k, x in half.items()}, delta_softplus=True)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), expected, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert selective_scan(**v, delta_softplus=True).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused():
    v = inputs(1, 4, 3, 10)
    v["B"] = v["B"][..., :9]
    with pytest.raises(ValueError, match="do not fit"):
        selective_scan(**v)


def test_memory_is_a_fraction_of_all_states():
    length, d, n = 4096, 64, 64
    v = inputs(1, d, n, length)
    leaves = [v[k].requires_grad_() for k in ("u", "delta", "A", "B", "C")]
    with MemoryWatch() as watch:
        selective_scan(*leaves, delta_softplus=True).sum().backward()
    states = 4 * length * d * n
    assert 0 < watch.most < 0.5 * states, watch.most / states


def test_the_scan_is_named():
    assert scan_name("cpu") == "chunked torch scan"
    assert scan_name("cuda") in ("mamba-ssm kernel", "chunked torch scan")


@pytest.fixture
def reference(monkeypatch):
    """mamba-ssm's own reference; its import asks for compiled parts that the reference never calls."""
    for name in ("mamba_ssm", "einops"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (make mamba-reference)")
    if not torch.cuda.is_available():
        folder = importlib.util.find_spec("mamba_ssm").submodule_search_locations
        # The package's own __init__ imports every Triton kernel.
        package = types.ModuleType("mamba_ssm")
        package.__path__ = list(folder)
        stubs = {
            "mamba_ssm": package,
            "selective_scan_cuda": types.ModuleType("selective_scan_cuda"),
            "mamba_ssm.ops.triton.layer_norm": types.ModuleType("layer_norm"),
        }
        stubs["mamba_ssm.ops.triton.layer_norm"]._layer_norm_fwd = None
        for name in [n for n in sys.modules if n.split(".")[0] == "mamba_ssm"]:
            monkeypatch.delitem(sys.modules, name)
        for name, stub in stubs.items():
            monkeypatch.setitem(sys.modules, name, stub)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    yield selective_scan_ref
    for name in [n for n in sys.modules if n.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)


def test_mamba_ssm_reference(reference):
    for length in (64, 517):
        values = inputs(2, 8, 4, length, seed=length)
        y, grads = gradients(selective_scan, values)
        expected, expected_grads = gradients(reference, values)
        assert (y - expected).abs().max() < 1e-4
        assert_same(grads, expected_grads, 1e-4)


def test_what_the_kernel_is_given(reference, monkeypatch):
    """mamba-ssm's reference takes the kernel's arguments, so it can stand for it here."""
    values = inputs(2, 8, 4, 33)
    values |= {k: torch.stack([values[k], values[k].flip(2)], 1) for k in "BC"}
    u, delta = (torch.rand(33, 2, 4, 3) for _ in range(2))
    B, C, A = torch.randn(33, 2, 5, 3), torch.randn(33, 2, 5, 3), -torch.rand(2, 4, 5)
    ours = selective_scan(**values, delta_softplus=True), scan_lanes(u, delta, A, B, C)
    calls = []

    def kernel(*arguments):
        calls.append(arguments)
        return reference(*arguments)

    monkeypatch.setattr(module, "_kernel", lambda device: kernel)
    assert torch.allclose(selective_scan(**values, delta_softplus=True), ours[0], atol=1e-4)
    assert torch.allclose(scan_lanes(u, delta, A, B, C), ours[1], atol=1e-4)
    assert scan_name("cpu") == "mamba-ssm kernel" and len(calls) == 2
    half = {k: v.bfloat16() if k == "u" else v for k, v in values.items()}
    assert selective_scan(**half, delta_softplus=True).dtype == torch.bfloat16
    given = calls[-1]
    assert {x.dtype for x in (given[0], given[1], given[3], given[4], given[6])} == {torch.bfloat16}
    assert {x.dtype for x in (given[2], given[5], given[7])} == {torch.float32}
    # A number for the chunk asks for the torch scan.
    selective_scan(**values, delta_softplus=True, chunk=8)
    assert len(calls) == 3


@pytest.mark.gpu
def test_cuda_gives_the_numbers_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values = inputs(2, 16, 8, 700)
    expected, expected_grads = gradients(step_by_step, values)
    y, grads = gradients(selective_scan, {k: v.cuda() for k, v in values.items()}, chunk=64)
    assert (y.cpu() - expected).abs().max() < 1e-4
    assert_same({k: v.cpu() for k, v in grads.items()}, expected_grads, 1e-4)


@pytest.mark.gpu
def test_kernel_parity():
    if scan_name("cuda") != "mamba-ssm kernel":
        pytest.skip("mamba-ssm's kernel does not run here")
    values = inputs(2, 16, 8, 700, device="cuda")
    y, grads = gradients(selective_scan, values, chunk=64)
    expected, expected_grads = gradients(selective_scan, values)
    assert (y - expected).abs().max() < 1e-4
    assert_same(grads, expected_grads, 1e-4)
