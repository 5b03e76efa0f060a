"""Seconds and peak memory of every method, beside plain writing and gdal_pansharpen.py, as a Markdown table.

    make bench                                        the whole of it
    .venv/bin/python tests/bench/bench_fusion.py --methods gsa,brovey --repeat 3
    .venv/bin/python tests/bench/bench_fusion.py --large

Each run is a process of its own; its seconds are counted after the imports, reading and writing included. Compare
within one run only: the machines differ, and other programs may be running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"small": (100, 150, 6, "uint16"), "large": (200, 400, 6, "int16")}


def make_pair(folder: Path, bands: int, side: int, ratio: int, dtype: str) -> tuple[Path, Path]:
    """Write a textured pair: HS `[bands, side, side]`, PAN `side * ratio`; return their paths."""
    import numpy as np
    import rasterio
    from affine import Affine
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    size = side * ratio
    transform = Affine(5, 0, 500000, 0, -5, 5000000)
    layers = [gaussian_filter(rng.standard_normal((size, size)), s) for s in (1.5, 4, 12)]
    layers = [layer / layer.std() for layer in layers]
    spectra = 1 + 0.05 * rng.standard_normal((bands, 3)).cumsum(axis=0)
    coarse = [layer.reshape(side, ratio, side, ratio).mean(axis=(1, 3)) for layer in layers]
    hs, guide = folder / "hs.tif", folder / "guide.tif"
    profile = {"driver": "GTiff", "dtype": dtype, "crs": "EPSG:32631", "tiled": True}
    with rasterio.open(
        guide, "w", width=size, height=size, count=1, transform=transform, **profile
    ) as dataset:
        dataset.write((1500 + 300 * sum(layers)).clip(1, 30000).astype(dtype), 1)
    with rasterio.open(
        hs, "w", width=side, height=side, count=bands, transform=transform * Affine.scale(ratio), **profile
    ) as dataset:
        for band in range(bands):
            image = 1500 + 300 * sum(w * c for w, c in zip(spectra[band], coarse))
            noise = rng.normal(0, 5, image.shape)
            dataset.write((image + noise).clip(1, 30000).astype(dtype), band + 1)
            dataset.update_tags(band + 1, wavelength=str(400 + 20 * band), wavelength_units="nm")
    return hs, guide


def run_method(method: str, hs: str, guide: str, output: str, compress: str) -> dict[str, float]:
    """Fuse once in this process; return seconds after the imports and the peak resident size in MB."""
    from hypersharp.backend.threads import wait_politely

    wait_politely()
    from hypersharp.backend.job import FuseJob
    from hypersharp.backend.pipeline import run_fuse
    from hypersharp.backend.registry import load_method

    load_method(method)
    from hypersharp.backend.control import Control

    began: dict[str, float] = {}

    def note(message: object) -> None:
        """Remember when each stage begins."""
        stage = getattr(message, "stage", None)
        if stage is not None:
            began.setdefault(stage, time.perf_counter())

    started = time.perf_counter()
    run_fuse(FuseJob(hs, guide, output, method=method, compress=compress, assess=False), Control(note))
    ended = time.perf_counter()
    return {
        "seconds": ended - started,
        "peak_mb": peak_mb(),
        "reading": began["learning"] - began["reading"],
        "learning": began["fusing"] - began["learning"],
        "fusing": ended - began["fusing"],
    }


def run_copy(bands: str, side: str) -> dict[str, float]:
    """Interpolate nothing, filter nothing: copy a float32 result once, and interpolate its tiles, in memory."""
    import torch
    from hypersharp.backend.degradation import interpolation_matrix, separable

    source = torch.ones(int(bands), int(side), int(side))
    target = torch.empty_like(source)
    target.copy_(source)
    started = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    copying = (time.perf_counter() - started) / 5
    tile, matrix = torch.ones(int(bands), 47, 47), interpolation_matrix((0, 256), (0, 47), 6, 150)
    separable(matrix, matrix, tile)
    tiles = round(int(side) ** 2 / 256**2)
    started = time.perf_counter()
    for _ in range(tiles):
        separable(matrix, matrix, tile)
    return {"seconds": copying, "peak_mb": peak_mb(), "interpolation": time.perf_counter() - started}


def run_write(source: str, output: str, compress: str) -> dict[str, float]:
    """Write an image that stands in memory, with the fused output's creation options, block row by block row."""
    import rasterio
    from hypersharp.backend.io.writer import BLOCK, creation_options
    from rasterio.windows import Window

    with rasterio.open(source) as dataset:
        image, profile = dataset.read(), dataset.profile
    for key in ("compress", "predictor", "interleave", "blockxsize", "blockysize", "tiled"):
        profile.pop(key, None)
    profile |= creation_options(profile["dtype"], compress, image.shape[1:])
    started = time.perf_counter()
    with rasterio.open(output, "w", **profile) as dataset:
        for row in range(0, image.shape[1], BLOCK):
            part = image[:, row : row + BLOCK]
            dataset.write(part, window=Window(0, row, image.shape[2], part.shape[1]))
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Return the largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_gdal(hs: Path, guide: Path, output: Path, options: list[str]) -> dict[str, float] | None:
    """Run GDAL's own weighted Brovey; None where it is not installed."""
    program = shutil.which("gdal_pansharpen.py", path="/usr/bin:" + os.environ.get("PATH", ""))
    if program is None:
        return None
    output.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    command = ["/usr/bin/python3", program, "-q", "-threads", "ALL_CPUS", str(guide), str(hs), str(output)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": seconds, "peak_mb": after / 1024 if after > before else float("nan")}


def child(*arguments: str) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the fastest run."""
    return min(runs, key=lambda r: r["seconds"])


def bench(size: str, methods: list[str], repeat: int) -> None:
    """Print the table of one size."""
    bands, side, ratio, dtype = SIZES[size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hs, guide = make_pair(folder, bands, side, ratio, dtype)
        out = folder / "out.tif"
        rows: list[tuple[str, str, dict[str, float]]] = []
        gdal: dict[str, float] | None = None
        if size == "small":
            gdal_options = {"none": ["-co", "TILED=YES"]}
            gdal_options["deflate"] = [*gdal_options["none"], "-co", "COMPRESS=DEFLATE", "-co", "ZLEVEL=1"]
            for compress, options in gdal_options.items():
                options += (
                    ["-co", "PREDICTOR=2", "-co", "NUM_THREADS=ALL_CPUS"] if compress == "deflate" else []
                )
                runs = [run_gdal(hs, guide, folder / "gdal.tif", options) for _ in range(repeat)]
                if None in runs:
                    break
                rows.append(("gdal_pansharpen.py (start included)", compress, best([r for r in runs if r])))
                gdal = gdal or rows[-1][2]
        for compress in ("none", "deflate"):
            for method in methods:
                runs = [child("fuse", method, str(hs), str(guide), str(out), compress) for _ in range(repeat)]
                rows.append((method, compress, best(runs)))
                if method == "gsa" or (method == methods[0] and "gsa" not in methods):
                    copies = [
                        child("write", str(out), str(folder / "copy.tif"), compress) for _ in range(repeat)
                    ]
                    rows.append(("plain writing of the same output", compress, best(copies)))
        writing = {c: r["seconds"] for label, c, r in rows if label.startswith("plain")}
        print(
            f"\n{bands} bands, {side}x{side} -> {side * ratio}x{side * ratio}, ratio {ratio}, {dtype}; ",
            end="",
        )
        print(f"{os.cpu_count()} cores, {platform.machine()}, fastest of {repeat}\n")
        print("| | compression | seconds | of plain writing | of GDAL's Brovey | peak MB |")
        print("|---|---|---|---|---|---|")
        for label, compress, r in sorted(rows, key=lambda row: (row[1], row[2]["seconds"])):
            times_gdal = f"{r['seconds'] / gdal['seconds']:.1f}x" if gdal and compress == "none" else ""
            times_write = f"{r['seconds'] / writing[compress]:.1f}x" if compress in writing else ""
            print(
                f"| {label} | {compress} | {r['seconds']:.2f} | {times_write} | {times_gdal} | {r['peak_mb']:.0f} |"
            )
        if size == "small":
            print_stages(
                [row for row in rows if row[1] == "none" and "fusing" in row[2]], bands, side * ratio
            )
        sys.stdout.flush()


def print_stages(rows: list[tuple[str, str, dict[str, float]]], bands: int, side: int) -> None:
    """Print where the seconds of uncompressed runs go, and how many copies of the result the second pass takes."""
    copy = child("copy", str(bands), str(side))
    print(f"\nCopying the float32 result once in memory: {copy['seconds']:.3f} s; ", end="")
    print(f"interpolating all its tiles: {copy['interpolation']:.2f} s\n")
    print("| method | reading, survey | first pass | second pass and writing | as copies of the result |")
    print("|---|---|---|---|---|")
    for label, _, r in sorted(rows, key=lambda row: row[2]["fusing"]):
        stages = f"{r['reading']:.2f} | {r['learning']:.2f} | {r['fusing']:.2f}"
        print(f"| {label} | {stages} | {r['fusing'] / copy['seconds']:.0f} |")


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", help="comma-separated ids (default: every classical method)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="only the small scene")
    parser.add_argument("--large", action="store_true", help="only the large scene, gsa")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        print(json.dumps({"fuse": run_method, "write": run_write, "copy": run_copy}[kind](*rest)))
        return
    from hypersharp.backend.registry import METHODS

    methods = (
        args.methods.split(",") if args.methods else [m.id for m in METHODS.values() if not m.needs_weights]
    )
    if not args.large:
        bench("small", methods, args.repeat)
    if args.large or not (args.methods or args.small):
        bench("large", ["gsa"], 1)


if __name__ == "__main__":
    main()
