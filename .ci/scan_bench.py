#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast is the selective scan, and how does an MPSRNet block's cost grow? Prints the tables of docs/benchmarks.md.

scan_bench.py                              the scan beside the step-by-step forms, on 1 and 2 threads
scan_bench.py --least 5                    the same; exit code 1 where it is not 5 times as fast as the loop
scan_bench.py --sides 64 128 256 512 1024  an MPSRNet Mamba block beside an attention block of equal width
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass

from hypersharp.backend.threads import wait_politely

wait_politely()  # as the product does, before torch is imported

import torch  # noqa: E402
from hypersharp.backend.models.mamba import Pieces  # noqa: E402
from hypersharp.backend.models.mpsrnet import CONV, MPSRNetConfig, MutualBlock  # noqa: E402
from hypersharp.backend.ops.selective_scan import scan_name, selective_scan  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

PATIENCE = 120.0
"""Seconds after which a larger attention block is not tried."""


def step_by_step(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    state, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    # unbind: slicing [..., t] would make the backward pass quadratic in the length.
    for u_t, delta_t, b_t, c_t in zip(*(x.unbind(-1) for x in (u, delta, B, C))):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * b_t[:, None]
        ys.append((state * c_t[:, None]).sum(-1))
    return torch.stack(ys, -1)


def reference() -> Callable[..., Tensor] | None:
    """Return mamba-ssm's selective_scan_ref, or None where it is not installed."""
    if any(importlib.util.find_spec(n) is None for n in ("mamba_ssm", "einops")):
        return None
    # Its import asks for compiled parts that the reference never calls.
    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(importlib.util.find_spec("mamba_ssm").submodule_search_locations)
    norm = types.ModuleType("layer_norm")
    norm._layer_norm_fwd = None
    sys.modules |= {
        "mamba_ssm": package,
        "selective_scan_cuda": types.ModuleType("selective_scan_cuda"),
        "mamba_ssm.ops.triton.layer_norm": norm,
    }
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    return selective_scan_ref


@dataclass
class Case:
    name: str
    run: Callable[[], object]
    repeats: int
    best: float = float("inf")

    def measure(self) -> None:
        start = time.perf_counter()
        self.run()
        self.best = min(self.best, time.perf_counter() - start)


def scan_table(length: int, d: int, n: int, threads: int, ref: Callable[..., Tensor] | None) -> float:
    """Print the rows of a number of threads; return the smaller of the two gains over the loop."""
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    delta = functional.softplus(torch.randn(1, d, length, generator=g) - 1)
    sequences = [torch.randn(1, k, length, generator=g) for k in (d, n, n)]
    inputs = [sequences[0], delta, -torch.exp(torch.randn(d, n, generator=g)), *sequences[1:]]
    leaves = [x.clone().requires_grad_() for x in inputs]
    forward = {"step by step": step_by_step, "this scan": selective_scan}
    if ref is not None:
        forward["mamba-ssm's selective_scan_ref"] = ref
    runs = [
        Case(name, lambda f=f: f(*inputs), 7 if name == "this scan" else 2) for name, f in forward.items()
    ]
    # selective_scan_ref slices, so its backward pass is quadratic in the length: hours here.
    both = [
        Case(name, lambda f=forward[name]: f(*leaves).sum().backward(), repeats)
        for name, repeats in (("step by step", 1), ("this scan", 5))
    ]
    for cases, grad in ((runs, False), (both, True)):
        with torch.set_grad_enabled(grad):
            for turn in range(max(c.repeats for c in cases)):
                for case in cases:
                    if turn < case.repeats:
                        case.measure()
    ours, loop = ({c.name: c for c in cases} for cases in (runs, both))
    found = {name: (ours[name].best, loop[name].best if name in loop else None) for name in forward}
    slow = found["step by step"]
    for name, (one, two) in found.items():
        back = "quadratic" if two is None else f"{two:.3f} ({slow[1] / two:.1f}x)"
        print(f"| {threads} | {name} | {one:.3f} ({slow[0] / one:.1f}x) | {back} |", flush=True)
    fast = found["this scan"]
    return min(slow[0] / fast[0], slow[1] / fast[1])


class Attention2d(nn.Module):
    """What a Scan2d is with attention between all tokens instead of the scans."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)

        key, value = self.key_value(x if guide is None else guide).chunk(2, dim=-1)
        y = functional.scaled_dot_product_attention(*(split(t) for t in (self.query(x), key, value)))
        return self.out(y.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3]))


def growth_table(sides: list[int], width: int, d_state: int, threads: int) -> None:
    torch.set_num_threads(threads)
    config = MPSRNetConfig(width=width, d_state=d_state)
    scan = MutualBlock(3, config)
    attention = MutualBlock(3, MPSRNetConfig(width=width, mixer=CONV))
    attention.intra = nn.ModuleList(Attention2d(width) for _ in attention.intra)
    attention.inter = nn.ModuleList(Attention2d(width) for _ in attention.inter)
    print(
        "| side (tokens) | whole-image scans (s) | us per token | lines cut at 32 (s) | us per token | attention (s) |"
    )
    print("|---|---|---|---|---|---|")
    expected = 0.0
    for previous, side in zip([sides[0], *sides], sides):
        x = torch.randn(3, 1, side, side, width)

        def seconds(block: nn.Module, span: int | None, x: Tensor = x) -> float:
            with torch.no_grad():
                case = Case("", lambda: block(x, Pieces(span)), 1)
                for _ in range(3 if x.numel() < 1 << 22 else 1):
                    case.measure()
            return case.best

        cells = []
        for span in (None, 32):
            t = seconds(scan, span)
            cells += [f"{t:.2f}", f"{1e6 * t / side**2:.1f}"]
        expected *= (side / previous) ** 4
        if expected > PATIENCE:
            cells.append(f"about {expected:.0f} (from the side before, squared)")
        else:
            expected = seconds(attention, None)
            cells.append(f"{expected:.2f}")
        print(f"| {side} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--least", type=float, default=0.0, help="fail below this gain over the loop")
    parser.add_argument("--sides", type=int, nargs="+", help="print the growth with the image's side instead")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--block-states", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.sides:
        growth_table(args.sides, args.width, args.block_states, args.threads[0])
        return 0
    print(
        f"{scan_name('cpu')}, torch {torch.__version__}, L = {args.length}, D = {args.channels}, N = {args.states}"
    )
    print("| threads | form | forward (s) | forward + backward (s) |")
    print("|---|---|---|---|")
    ref = reference()
    gains = [scan_table(args.length, args.channels, args.states, t, ref) for t in args.threads]
    if min(gains) < args.least:
        print(f"only {min(gains):.1f} times as fast as the loop; {args.least} is asked for", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
