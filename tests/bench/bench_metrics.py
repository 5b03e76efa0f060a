# SPDX-License-Identifier: GPL-2.0-or-later
"""Seconds and memory of the quality indices, as a Markdown table: `.venv/bin/python tests/bench/bench_metrics.py`.

The scene is streamed by tiles as the assessment does; its tiles are made by code, outside the clock. Each row
of the first table is a process of its own, so that its peak memory is its own. The second table compares with
torchmetrics and with the textbook forms of the tests on a scene that these can handle. `--values` prints instead
what other codes say of one and the same pair of images.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
FULL = ["PSNR", "SAM", "ERGAS", "RMSE", "CC", "SSIM", "UIQI", "Q2n", "SCC"]
NONE = ["D_lambda", "D_lambda_K", "D_s", "D_s_R", "D_rho", "QNR", "HQNR", "RQNR"]


class Clock:
    """Adds up the wall and the processor seconds of the blocks that it is entered for."""

    wall = cpu = 0.0

    def __enter__(self):
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]


def load(name, path):
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tile_pair(bands, rows, cols, seed):
    """Return (fused, reference) of a tile: correlated bands with texture, the fused one noisier."""
    rng = torch.Generator().manual_seed(seed)
    fields = torch.nn.functional.avg_pool2d(torch.rand(6, rows + 4, cols + 4, generator=rng), 5, 1)
    weights = torch.rand(bands, 6, generator=rng)
    reference = torch.einsum("bk,kij->bij", weights, fields).mul_(2000)
    return reference + 30 * torch.randn(reference.shape, generator=rng), reference


def pooled(image, ratio):
    """Return a tile on the coarse grid."""
    return torch.nn.functional.avg_pool2d(image[None], ratio)[0]


def windows(size, tile, halo):
    """Yield (start, stop, core slice) along one side."""
    for start in range(0, size, tile):
        stop = min(size, start + tile)
        first, last = max(0, start - halo), min(size, stop + halo)
        yield first, last, slice(start - first, stop - first)


def measure(keys, bands, size, ratio, tile):
    """Return seconds within the indices and the peak memory in bytes of this process."""
    from hypersharp.backend.metrics import FullReferenceSet, NoReferenceSet, reference_range

    full = [k for k in keys if k in FULL]
    none = [k for k in keys if k in NONE]
    # The first product of matrices starts threads, not worth timing.
    torch.rand(64, 64) @ torch.rand(64, 64)
    clock = Clock()
    data_range = None
    if "SSIM" in full:
        for _, _, _, _, (_, reference) in tiles(bands, size, tile, 0):
            mask = torch.ones(reference.shape[1:], dtype=torch.bool)
            with clock:
                data_range = reference_range(reference, mask, data_range)
    reference_set = FullReferenceSet(ratio, full, data_range) if full else None
    resolution_set = NoReferenceSet(ratio, None, none) if none else None
    halo = max(reference_set.halo if reference_set else 0, resolution_set.halo if resolution_set else 0)
    for rows, cols, row_core, col_core, (fused, reference) in tiles(bands, size, tile, halo):
        mask = torch.ones(rows, cols, dtype=torch.bool)
        core = (row_core, col_core)
        if reference_set:
            with clock:
                reference_set.update(fused, reference, mask, core)
        if resolution_set:
            guide = reference.mean(dim=0, keepdim=True)
            coarse = [pooled(image[:, row_core, col_core], ratio) for image in (fused, reference, guide)]
            mask_lr = torch.ones(coarse[0].shape[1:], dtype=torch.bool)
            with clock:
                resolution_set.update(fused, guide, mask, *coarse, mask_lr, core)
    for one in (reference_set, resolution_set):
        if one is not None:
            with clock:
                values = one.compute()
            if any(v.value is None for v in values.values()):
                raise SystemExit(f"a value is missing: {values}")
    return {
        "wall": clock.wall,
        "cpu": clock.cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def tiles(bands, size, tile, halo):
    """Yield the tiles of the scene."""
    largest = min(size, tile + 2 * halo)
    whole = tile_pair(bands, largest, largest, 0)
    for a, b, row_core in windows(size, tile, halo):
        for c, d, col_core in windows(size, tile, halo):
            yield (
                b - a,
                d - c,
                row_core,
                col_core,
                tuple(image[:, : b - a, : d - c].clone() for image in whole),
            )


def first_table(args):
    """Print seconds and memory of each index and of the sets."""
    print(
        f"{args.bands} bands, {args.size} x {args.size} pixels, ratio {args.ratio}, tiles of {args.tile}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads:\n")
    print("| indices | seconds | processor seconds | peak memory (MB) |\n|---|---|---|---|")
    rows = [("nothing (tiles only)", ["PSNR"], 32)]
    rows += [(key, [key], args.size) for key in FULL + NONE[:5]]
    rows += [
        ("all full-reference", FULL, args.size),
        ("all no-reference", NONE, args.size),
        ("HQNR with its parts", ["D_lambda_K", "D_s", "HQNR"], args.size),
        ("**the whole set**", FULL + NONE, args.size),
    ]
    for title, keys, size in rows:
        call = [sys.executable, __file__, "--one", ",".join(keys), "--size", str(size)]
        call += ["--bands", str(args.bands), "--ratio", str(args.ratio), "--tile", str(args.tile)]
        found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        print(
            f"| {title} | {found['wall']:.1f} | {found['cpu']:.1f} | {found['peak'] / 1e6:.0f} |", flush=True
        )


def timed(call):
    """Return processor seconds as text, best of three for what is quick."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
        if best > 5:
            break
    return f"{best:.3f}" if best < 1 else f"{best:.1f}"


def second_table(bands=32, size=256, ratio=4):
    """Print seconds of ours, torchmetrics and the textbook forms on a small scene."""
    import torchmetrics.functional.image as tm
    from hypersharp.backend.metrics import FullReferenceSet, NoReferenceSet

    naive = load("naive", ROOT / "tests" / "backend" / "metrics" / "conftest.py")
    fused, reference = tile_pair(bands, size, size, 0)
    guide = reference.mean(dim=0, keepdim=True)
    coarse = [pooled(image, ratio) for image in (fused, reference, guide)]
    mask = torch.ones(size, size, dtype=torch.bool)
    mask_lr = torch.ones(coarse[0].shape[1:], dtype=torch.bool)
    f, r, m = fused.double().numpy(), reference.double().numpy(), mask.numpy()
    small_f, small_r, small_m = coarse[0].double().numpy(), coarse[1].double().numpy(), mask_lr.numpy()
    span = float(reference.max() - reference.min())

    def all_pairs():
        for images, valid, side in (((f,), m, 32 * ratio), ((small_r,), small_m, 32)):
            for image in images:
                for i in range(bands):
                    for j in range(i):
                        naive.q_image(image[i], image[j], valid, side)

    theirs = {
        "PSNR": lambda: tm.peak_signal_noise_ratio(fused[None], reference[None], data_range=span),
        "SAM": lambda: tm.spectral_angle_mapper(fused[None], reference[None]),
        "ERGAS": lambda: tm.error_relative_global_dimensionless_synthesis(
            fused[None], reference[None], ratio
        ),
        "SSIM": lambda: tm.structural_similarity_index_measure(fused[None], reference[None], data_range=span),
        "UIQI": lambda: tm.universal_image_quality_index(fused[None], reference[None]),
        "SCC": lambda: tm.spatial_correlation_coefficient(fused[None], reference[None]),
        "D_lambda": lambda: tm.spectral_distortion_index(fused[None], coarse[1][None]),
        "D_s": lambda: tm.spatial_distortion_index(
            fused[None],
            coarse[1][None],
            guide.expand(bands, -1, -1)[None],
            coarse[2].expand(bands, -1, -1)[None],
        ),
    }
    books = {
        "CC": lambda: [np.corrcoef(a.ravel(), b.ravel()) for a, b in zip(f, r)],
        "UIQI": lambda: [naive.q_image(a, b, m) for a, b in zip(f, r)],
        "Q2n": lambda: naive.q2n(f, r, m),
        "D_lambda": all_pairs,
        "D_lambda_K": lambda: naive.q2n(small_f, small_r, small_m),
    }
    print(f"\n{bands} bands, {size} x {size} pixels, in memory, processor seconds:\n")
    print("| index | HyperSharp | torchmetrics | textbook numpy |\n|---|---|---|---|")
    for key in FULL + NONE[:5]:
        if key in FULL:
            ours = timed(lambda key=key: FullReferenceSet(ratio, [key]).update(fused, reference, mask))
        else:
            ours = timed(
                lambda key=key: NoReferenceSet(ratio, None, [key]).update(
                    fused, guide, mask, *coarse, mask_lr
                )
            )
        other = timed(theirs[key]) if key in theirs else "-"
        book = timed(books[key]) if key in books else "-"
        print(f"| {key} | {ours} | {other} | {book} |", flush=True)


def values_table():
    """Print one pair's indices by ours and by other codes, called as a hurried user would."""
    import sewar
    import torchmetrics.functional.image as tm
    from hypersharp.backend.metrics import FullReferenceSet

    naive = load("naive", ROOT / "tests" / "backend" / "metrics" / "conftest.py")
    fused, reference, mask = naive.make_scene(bands=16, rows=128, cols=128, scale=1.0, noise=0.05)
    metrics = FullReferenceSet(4)
    metrics.update(fused, reference, mask)
    ours = {key: v.value for key, v in metrics.compute().items()}
    f, r = fused[None], reference[None]
    digital = [(10000 * image)[None] for image in (fused, reference)]
    np_f, np_r = (np.moveaxis(image.double().numpy(), 0, -1) for image in (fused, reference))
    rows, cols = 128, 128

    def sliding(x, y):
        """Wang and Bovik's Q in 8 x 8 sliding windows, written out."""
        x, y = naive.windows_of(x, 8), naive.windows_of(y, 8)
        mean_x, mean_y = x.mean(1), y.mean(1)
        cov = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(1)
        return (4 * cov * mean_x * mean_y / ((x.var(1) + y.var(1)) * (mean_x**2 + mean_y**2))).mean()

    textbook = np.mean([sliding(*pair) for pair in zip(fused.double().numpy(), reference.double().numpy())])
    others = {
        "PSNR": {
            "peak 1": 10 * np.log10(1 / ((np_f - np_r) ** 2).mean()),
            "in DN, peak 65535": 10 * np.log10(65535**2 / ((1e4 * (np_f - np_r)) ** 2).mean()),
        },
        "SAM": {
            "torchmetrics (radians)": tm.spectral_angle_mapper(f, r),
            "sewar (radians)": sewar.sam(np_r, np_f),
        },
        "ERGAS": {
            "torchmetrics, ratio=4": tm.error_relative_global_dimensionless_synthesis(f, r, 4),
            "torchmetrics, ratio=1/4": tm.error_relative_global_dimensionless_synthesis(f, r, 1 / 4),
        },
        "SSIM": {
            "in DN, L = 1": tm.structural_similarity_index_measure(*digital, data_range=1.0),
            "in DN, L = 65535": tm.structural_similarity_index_measure(*digital, data_range=65535.0),
        },
        "UIQI": {
            "torchmetrics (Gaussian 11)": tm.universal_image_quality_index(f, r),
            "8 x 8 sliding, textbook": textbook,
            "8 x 8 sliding, sewar": sewar.uqi(np_r, np_f),
        },
        "SCC": {
            "torchmetrics (local windows)": tm.spatial_correlation_coefficient(f, r),
            "sewar (local windows)": sewar.scc(np_r, np_f),
        },
    }
    print(f"16 bands, {rows} x {cols}, reflectance 0-1, ratio 4:\n")
    print("| index | HyperSharp | other codes |\n|---|---|---|")
    for key, value in ours.items():
        said = "; ".join(f"{name}: {float(v):.4g}" for name, v in others.get(key, {}).items())
        print(f"| {key} | {value:.4g} | {said} |")


def main():
    """Run the benchmark, or one row of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bands", type=int, default=200)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--values", action="store_true", help="what other codes say of one pair")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one.split(","), args.bands, args.size, args.ratio, args.tile)))
        return
    if args.values:
        values_table()
        return
    first_table(args)
    second_table()


if __name__ == "__main__":
    main()
