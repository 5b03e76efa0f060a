# SPDX-License-Identifier: GPL-2.0-or-later
"""Trains the shipped denoiser of the diffusion prior; may be stopped and started again.

    nice -n 10 .venv/bin/python .ci/train_prior.py --steps 10000         train or go on training, in build/prior
    .venv/bin/python .ci/train_prior.py --ship                           averaged weights in half precision + card

Crops of 64 x 64: real aerial images (WebP, subsampled chroma: they are averaged down 1 to 4 times) and random band
triplets of hyperspectral cubes. The cubes that tests and tables measure on are left out.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch
from hypersharp.backend.diffusion.denoiser import UNetDenoiser
from hypersharp.backend.diffusion.training import PriorTrainer, PriorTraining, spectral_jitter
from hypersharp.backend.training.cubes import read_cubes
from PIL import Image
from quality_table import DATA, ROOT

KEPT_OUT = (
    "aviris_abu_urban-4",
    "aviris_jasper_ridge",
    "aviris_moffett",
    "rosis_pavia_bridge",
    "enmap_potsdam",
    "neon_sjer_1m",
)
SIDE = 64
RGB_SHARE = 0.65
INDOOR_SHARE = 0.03
"""Of all crops; CAVE's scenes are no remote sensing."""
SMOOTH = 0.8
"""A band is drawn only if neighbouring pixels correlate this much: others are noise (water vapour)."""


def read_rgb():
    """Return every aerial patch, uint8 [3, 256, 256]."""
    patches = []
    for path in sorted((DATA / "rgb").glob("train-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".webp"):
                    with Image.open(io.BytesIO(archive.extractfile(member).read())) as image:
                        patches.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())
    return patches


def spread(values):
    """Return values scaled so that the middle 99.6 % lie in [0, 1]."""
    low, high = np.percentile(values, (0.2, 99.8))
    return (values - low) / max(float(high - low), 1e-6)


def smooth_bands(image):
    """Return the bands whose neighbouring pixels correlate."""
    keep = []
    for index, band in enumerate(image):
        left, right = band[:, :-1].ravel(), band[:, 1:].ravel()
        if left.std() > 0 and right.std() > 0 and np.corrcoef(left, right)[0, 1] > SMOOTH:
            keep.append(index)
    return keep


class Crops:
    """Draws crops of both kinds."""

    def __init__(self):
        self.rgb = read_rgb()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            cubes = read_cubes(DATA / "cubes", KEPT_OUT)
        self.names = []
        self.outdoor, self.indoor = [], []
        for cube in cubes:
            image = cube.image.numpy()
            bands = smooth_bands(image)
            if min(image.shape[1:]) < SIDE or len(bands) < 3 or not bool(cube.mask.all()):
                continue
            scaled = np.stack([spread(image[b]) for b in bands]).astype(np.float16)
            (self.indoor if cube.name.startswith("cave") else self.outdoor).append(scaled)
            self.names.append(cube.name)
        self.names = sorted(self.names)

    def __call__(self, generator):
        """Return one crop [3, 64, 64] in [-1, 1]."""
        kind = generator.random()
        if kind < RGB_SHARE:
            crop = self.aerial(generator)
        else:
            cubes = self.indoor if kind > 1 - INDOOR_SHARE else self.outdoor
            crop = self.triplet(cubes[int(generator.integers(len(cubes)))], generator)
        return spectral_jitter(crop, generator)

    def aerial(self, generator):
        """Return part of a patch, averaged down."""
        patch = self.rgb[int(generator.integers(len(self.rgb)))]
        factor = int(generator.choice((1, 2, 3, 4), p=(0.15, 0.35, 0.25, 0.25)))
        need = SIDE * factor
        top, left = (int(generator.integers(size - need + 1)) for size in patch.shape[1:])
        part = patch[:, top : top + need, left : left + need].astype(np.float32)
        low, high = np.percentile(patch[:, ::4, ::4], (0.2, 99.8))
        part = part.reshape(3, SIDE, factor, SIDE, factor).mean(axis=(2, 4))
        return (part - low) / max(float(high - low), 8.0)

    def triplet(self, cube, generator):
        """Return three bands of a part of a cube."""
        bands = generator.choice(len(cube), 3, replace=False)
        top, left = (int(generator.integers(size - SIDE + 1)) for size in cube.shape[1:])
        return cube[bands, top : top + SIDE, left : left + SIDE].astype(np.float32)


CARD = """# Denoiser of the diffusion prior

A diffusers `UNet2DModel` of {parameters:,} parameters (three channels, no attention), half precision. It finds the
noise in a noisy three-band image in [-1, 1]; its time input is the log signal-to-noise ratio
(`hypersharp.backend.diffusion.denoiser`). It stands for what three bands of fine aerial or satellite imagery look
like; the pair itself guides it (`hypersharp.backend.diffusion.sampling`).

* **Trained** by `.ci/train_prior.py`: {steps:,} steps of {batch} crops of 64 x 64 = {crops:,} crops, AdamW
  {learning_rate:g} with a cool-down over the last {cool:.0%}, averaged weights ({average}), bfloat16, seed {seed}; one
  busy CPU core, about {hours:.1f} hours. That is little: unguided samples have the texture of imagery, not its
  structures; a larger network trained for longer on a GPU would know more.
* **Data**: {rgb} aerial RGB patches of 256 x 256, averaged down 1 to 4 times (NAIP, USDA, public domain, pack
  CC BY 4.0, Ventura et al. 2024; OpenAerialMap CC BY 4.0; kite photographs CC BY; NEON camera), {rgb_share:.0%} of the
  crops; random band triplets of {cubes} hyperspectral cubes (AVIRIS, NASA/JPL; ABU and CAVE scenes for research use),
  the rest. Bands are permuted, mixed, bent and stretched at random.
* **Kept out**: {kept_out}, and every real pair.
* **Noise levels**: as the exponential schedule of PLRDiff has them (rate {rate}), {noisy:.0%} from the noisy end.
* **Loss** (mean square error of the noise, running mean over about 100 steps) at the end: {loss:.4f}.
* **What it does for the prior**: `docs/diffusion.md`.
* **Licence**: GPL-2.0-or-later, as the package. Date: {date}.
"""


def ship(options, trainer, seconds, names, rgb):
    """Write the averaged weights in half precision, with configuration and card."""
    from hypersharp.backend.diffusion.training import NOISY_SHARE, SCHEDULE_RATE

    settings = trainer.settings
    denoiser = trainer.averaged()
    card = CARD.format(
        parameters=sum(p.numel() for p in denoiser.parameters()),
        steps=trainer.step,
        batch=settings.batch,
        crops=trainer.step * settings.batch,
        learning_rate=settings.learning_rate,
        cool=settings.cool_down,
        average=settings.average,
        seed=settings.seed,
        hours=seconds / 3600,
        rgb=rgb,
        rgb_share=RGB_SHARE,
        cubes=len(names),
        kept_out=", ".join(f"`{n}`" for n in KEPT_OUT),
        rate=SCHEDULE_RATE,
        noisy=NOISY_SHARE,
        loss=trainer.running,
        date=time.strftime("%Y-%m-%d"),
    )
    extra = {
        "training": {
            "data": {"cubes": names, "rgb": rgb, "left_out": list(KEPT_OUT)},
            "steps": trainer.step,
            "batch": settings.batch,
            "seed": settings.seed,
            "loss": round(trainer.running, 5),
        }
    }
    denoiser.save_pretrained(options.into, extra, half=True, card=card)


def main():
    """Train, log, save; or ship."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "prior")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1029)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--until", help="stop at this time of day, HH:MM")
    parser.add_argument("--ship", action="store_true", help="write the averaged weights instead of training")
    parser.add_argument("--into", type=Path, default=ROOT / "resources" / "weights" / "prior")
    options = parser.parse_args()
    settings = PriorTraining(steps=options.steps, batch=options.batch, seed=options.seed)
    torch.manual_seed(options.seed)
    crops = Crops()
    trainer = PriorTrainer(UNetDenoiser(), crops, settings)
    state, log = options.folder / "state.safetensors", options.folder / "log.jsonl"
    if state.is_file():
        trainer.load(state)
    seconds = 0.0
    if log.is_file():
        seconds = max((json.loads(line)["seconds"] for line in log.read_text().splitlines()), default=0.0)
    if options.ship:
        ship(options, trainer, seconds, crops.names, len(crops.rgb))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(crops.rgb)} patches; cubes {', '.join(crops.names)}; from step {trainer.step}", flush=True)
    started = time.perf_counter() - seconds
    while trainer.step < settings.steps:
        trainer.train_step()
        late = options.until is not None and time.strftime("%H:%M") >= options.until
        if trainer.step % options.save_every == 0 or trainer.step == settings.steps or late:
            trainer.save(state)
            line = {
                "step": trainer.step,
                "loss": round(trainer.running, 5),
                "seconds": round(time.perf_counter() - started),
            }
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if late:
            break


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
