# SPDX-License-Identifier: GPL-2.0-or-later
"""Megapixels a second and peak memory of the learned methods, on the CPU and on a GPU when there is one.

    make bench (its last table), make gpu, or        .venv/bin/python .ci/learned_bench.py --methods lmmse,s3rnet

Each run is a process of its own: fusing a made pair, reading and writing included, imports and assessment not. Shipped
weights are used where there are any; else weights of the preset's shape, whose values do not matter for the time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "bench"))
from bench_fusion import make_pair, peak_mb

BASE = "lmmse"
"""The closed form that the networks correct: what a learned method costs beyond it is the network's."""


def learned_methods() -> list[str]:
    """Return the ids of the registered learned methods and of the presets that could become one."""
    from hypersharp.backend.registry import METHODS
    from hypersharp.backend.training.presets import PRESETS

    ready = [name for name in PRESETS if name not in METHODS and method_class(name) is not None]
    return [m.id for m in METHODS.values() if m.needs_weights] + ready


def method_class(preset: str) -> type | None:
    """Return the class that runs the network of a preset, or None."""
    from hypersharp.backend.methods import learned
    from hypersharp.backend.training.presets import PRESETS, build

    network = type(build(PRESETS[preset].config))
    kinds = (k for k in vars(learned).values() if getattr(k, "network", None) is network)
    return next(kinds, None)


def prepare(method: str, folder: Path) -> str | None:
    """Return the weights to run a method with: None for its own, else a folder of its preset's shape."""
    from hypersharp.backend.registry import METHODS, MethodInfo
    from hypersharp.backend.training.presets import COMPONENTS, PRESETS, build

    if method not in PRESETS:
        return None
    if method in METHODS:
        from hypersharp.backend.weights import SHIPPED

        if (SHIPPED / method / "config.json").is_file():
            return None
    from hypersharp.backend.methods import learned

    preset = PRESETS[method]
    model = build(preset.student or preset.config)
    if not folder.is_dir():
        model.save_pretrained(folder, {"input": {"form": learned.FORM, "components": COMPONENTS}})
    if method not in METHODS:
        METHODS[method] = MethodInfo(
            method, method, "learned", "", "", f"learned:{method_class(method).__name__}", needs_weights=True
        )
    return str(folder)


def run(method: str, folder: str, device: str, memory_gb: str) -> dict[str, float | str]:
    """Fuse the pair in `folder` once in this process; return seconds, tiles and peak memory."""
    from hypersharp.backend.control import Control
    from hypersharp.backend.job import FuseJob
    from hypersharp.backend.pipeline import run_fuse
    from hypersharp.backend.registry import load_method

    root = Path(folder)
    weights = prepare(method, root / f"weights-{method}")
    load_method(method)
    began: dict[str, float] = {}
    tiles = [1]

    def note(message: object) -> None:
        stage = getattr(message, "stage", None)
        if stage is not None:
            began.setdefault(stage, time.perf_counter())
            if stage == "fusing":
                tiles[0] = message.total

    job = FuseJob(
        str(root / "hs.tif"),
        str(root / "guide.tif"),
        str(root / "out.tif"),
        method=method,
        weights=weights,
        device=device,
        memory_gb=float(memory_gb),
        compress="none",
        assess=False,
    )
    spent = sum(os.times()[:2])
    started = time.perf_counter()
    result = run_fuse(job, Control(note))
    ended = time.perf_counter()
    found: dict[str, float | str] = {
        "seconds": ended - started,
        "learning": began["fusing"] - began["learning"],
        "fusing": ended - began["fusing"],
        "tiles": tiles[0],
        "cpu_seconds": sum(os.times()[:2]) - spent,
        "peak_mb": peak_mb(),
        "parameters": result.metrics["method_details"].get("network_parameters", 0),
    }
    if device == "cuda":
        import torch

        found["gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
        found["gpu"] = torch.cuda.get_device_name()
    return found


def child(cores: int, *arguments: str) -> dict[str, float | str] | str:
    """Run one measurement in a process of its own; return its figures, or the last line of what went wrong."""
    limits = {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)} if cores else {}
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **limits},
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


def bench(args: argparse.Namespace, devices: list[str]) -> None:
    """Print the table."""
    coarse = args.side // args.ratio
    pixels = (coarse * args.ratio) ** 2 / 1e6
    with tempfile.TemporaryDirectory() as name:
        make_pair(Path(name), args.bands, coarse, args.ratio, "uint16")
        side = coarse * args.ratio
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        cores = args.cores or os.cpu_count()
        print(
            f"{args.bands} bands, {coarse}x{coarse} -> {side}x{side}, ratio {args.ratio}, PAN, uint16, ",
            end="",
        )
        print(
            f"--memory {args.memory:g}; {cores} cores, {platform.machine()}, load before {load:.1f}, ", end=""
        )
        print(f"fastest of {args.repeat}\n")
        print("| method | parameters | device | seconds | CPU seconds ", end="")
        print("| megapixels/s | first pass s | tiles | peak MB | GPU MB |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for device in devices:
            for method in args.methods.split(",") if args.methods else [BASE, *learned_methods()]:
                runs = [child(args.cores, method, name, device, str(args.memory)) for _ in range(args.repeat)]
                good = [r for r in runs if isinstance(r, dict)]
                if not good:
                    print(f"| {method} | | {device} | {runs[0]} | | | | | | |")
                    continue
                r = min(good, key=lambda entry: entry["seconds"])
                gpu = f"{r['gpu_mb']:.0f}" if "gpu_mb" in r else ""
                print(
                    f"| {method} | {r['parameters'] or ''} | {r.get('gpu', device)} | {r['seconds']:.1f} "
                    f"| {r['cpu_seconds']:.1f} "
                    f"| {pixels / r['seconds']:.3f} | {r['learning']:.1f} | {r['tiles']} "
                    f"| {r['peak_mb']:.0f} | {gpu} |",
                    flush=True,
                )


SCENES = (("aviris_moffett", "pan", None), ("rosis_pavia_bridge", "4", 30.0))
"""Kept-out cubes on which the precisions are compared: name, guide, noise in dB."""


def precisions(methods: list[str]) -> None:
    """Print what bfloat16 changes in the fused image, beside the error that this has anyway."""
    import zlib

    import quality_table as quality
    import torch
    from hypersharp.backend.control import Control
    from hypersharp.backend.registry import load_method

    print("| method | scene | PSNR dB, float32 | change with bfloat16, dB | its RMS over that of the error |")
    print("|---|---|---|---|---|")
    for method in methods:
        for name, guide, noise in SCENES:
            cube = quality.read_cube(name)
            scene, truth, mask = quality.simulate(*cube, 4, guide, noise, zlib.crc32(name.encode()))
            whole = tuple((0, size) for size in scene.shape)
            found = {}
            for precision in ("float32", "bfloat16"):
                engine = load_method(method)({"precision": precision})
                engine.fit(scene, Control())
                tile = scene.tile(*whole, engine.halo)
                found[precision] = engine.fuse(tile)
            errors = {k: (v - truth)[:, mask].square().mean(dim=1) for k, v in found.items()}
            peak = truth.flatten(1).amax(dim=1) ** 2
            psnr = {k: float((10 * torch.log10(peak / e)).mean()) for k, e in errors.items()}
            moved = (found["bfloat16"] - found["float32"])[:, mask].square().mean()
            share = float((moved / errors["float32"].mean()).sqrt())
            print(
                f"| {method} | {name} | {psnr['float32']:.3f} | {psnr['bfloat16'] - psnr['float32']:+.5f} "
                f"| {share:.1e} |",
                flush=True,
            )


def layouts(side: int = 480, ratio: int = 4) -> None:
    """Print the CPU seconds of each preset's network for a megapixel and component, by layout and precision."""
    import torch
    from hypersharp.backend.training.presets import PRESETS, build

    torch.set_num_threads(1)
    print("\n| network | parameters | float32 | float32, channels last | bfloat16, channels last |")
    print("|---|---|---|---|---|")
    for name, preset in PRESETS.items():
        if method_class(name) is None:
            continue
        model = build(preset.student or preset.config).eval()
        c = model.config
        inputs = (
            torch.randn(1, c.hs_bands, side // ratio, side // ratio),
            torch.randn(1, c.guide_bands, side, side),
        )
        took = []
        for layout, half in (
            (torch.contiguous_format, False),
            (torch.channels_last, False),
            (torch.channels_last, True),
        ):
            model = model.to(memory_format=layout)
            laid = [x.contiguous(memory_format=layout) for x in inputs]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                runs = []
                for _ in range(4):
                    started = time.process_time()
                    model(*laid)
                    runs.append(time.process_time() - started)
            took.append(min(runs[1:]) / side**2 * 1e6)
        print(f"| {name} | {model.parameter_count()} | {' | '.join(f'{t:.2f}' for t in took)} |", flush=True)


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", help=f"comma-separated ids (default: {BASE} and every learned one)")
    parser.add_argument("--side", type=int, default=600, help="pixels along a side of the result")
    parser.add_argument("--bands", type=int, default=100)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--memory", type=float, default=2.0, help="memory bound in GB")
    parser.add_argument("--cores", type=int, default=0, help="threads of a run; 0 for all")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu, and cuda where there is one")
    parser.add_argument(
        "--precision",
        action="store_true",
        help="instead: what bfloat16 changes, on scenes of the data folder",
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run(*args.child)))
        return
    if args.precision:
        from hypersharp.backend.weights import shipped_names

        print(f"load {os.getloadavg()[0]:.1f}\n")
        own = [m for m in learned_methods() if m in shipped_names()]
        precisions(args.methods.split(",") if args.methods else own)
        layouts()
        return
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("learned_bench: no CUDA device here, nothing measured")
        return
    devices = [args.device] if args.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    bench(args, devices)


if __name__ == "__main__":
    main()
