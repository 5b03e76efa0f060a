# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of the closed form's error could a local correction know? A test that knows more than any method may.

    .venv/bin/python .ci/headroom.py --into docs/models.md

On one scene at a time: a small network is trained on the *truth* of the left part of the scene itself, with all that
the learned methods see (planes of six components, the 9 x 9 neighbourhood of the guide), and is then judged on the
right part; the best of its checkpoints counts. It is a bound of a kind: training on other scenes cannot know this
scene's materials better. Beside it the ideal: the true coefficients of six components.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.training.cubes import read_cube
from hypersharp.backend.training.examples import make_example, mixed_seed
from hypersharp.backend.training.pairs import PairSettings, draw_pair
from hypersharp.backend.training.presets import COMPONENTS
from pages import page_parser, publish

BEGIN, END = "<!-- headroom:begin -->", "<!-- headroom:end -->"
SCENES = ["aviris_abu_airport-2", "aviris_abu_urban-1", "aviris_abu_beach-1", "aviris_sandiego_2"]
KNOWN_SHARE = 0.6
GAP = 4
STEPS, BATCH = 1200, 1024
OWN_PLANES = (0, 1, 3, 4, 5, 6)
GUIDE_PLANES = (2, 7)


def gain(error, left):
    """Return by how many dB the mean PSNR over the bands rises; both `[bands, pixels]`."""
    before, after = error.square().mean(dim=1), left.square().mean(dim=1)
    alive = before > 0
    return float(10 * torch.log10(before[alive] / after[alive]).mean())


def best_local(example):
    """Return the gain on the unknown part of a scene at the best checkpoint, and on the known part there."""
    fine, error, basis = example.fine.float(), example.error.float(), example.basis
    guide = fine[0, list(GUIDE_PLANES)]
    near = functional.unfold(functional.pad(guide[None], (4,) * 4, mode="replicate"), 9)
    planes = torch.cat([fine[:, list(OWN_PLANES)].flatten(0, 1), near.view(-1, *guide.shape[1:])])
    planes = planes / planes.std(dim=(1, 2), keepdim=True).clamp_min(1e-3)
    split = int(planes.shape[2] * KNOWN_SHARE)
    known, unknown = (slice(None), slice(0, split)), (slice(None), slice(split + GAP, None))
    x = [planes[:, part[0], part[1]].flatten(1).T for part in (known, unknown)]
    e = [error[:, part[0], part[1]].flatten(1).T for part in (known, unknown)]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(len(planes), 192), nn.SiLU(), nn.Dropout(0.1), nn.Linear(192, 96), nn.SiLU()
    )
    net.append(nn.Linear(96, basis.shape[1]))
    nn.init.zeros_(net[-1].weight)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    best = (-99.0, 0.0)
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(x[0]), (BATCH,))
        seen = x[0][chosen] + 0.05 * torch.randn(BATCH, len(planes))
        loss = (e[0][chosen] - net(seen) @ basis.T).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            net.eval()
            with torch.no_grad():
                own, other = (gain(b.T, (b - net(a) @ basis.T).T) for a, b in zip(x, e))
            best = max(best, (other, own))
            net.train()
    return best


def ideal(example):
    """Return the gain with the best possible coefficients of the components (least squares in the bands)."""
    error = example.error.float().flatten(1)[:, example.mask.flatten()]
    found = torch.linalg.lstsq(example.basis.double(), error.double()).solution.float()
    return gain(error, error - example.basis @ found)


def main():
    """Print the table."""
    parser = page_parser(__doc__, BEGIN, END)
    options = parser.parse_args()
    lines = [
        "| scene, ratio 4 | guide bands | ideal coefficients, dB | trained on this scene's truth: part not seen, dB "
        "| part trained on, dB |",
        "|---|---|---|---|---|",
    ]
    for pan in (1.0, 0.0):
        settings = PairSettings(
            ratios=(4,), side=100, mtf=(0.3, 0.3), known_mtf=1.0, pan=pan, noise=0.0, shift=0.0, bands=1.0
        )
        for number, name in enumerate(SCENES):
            cube = read_cube(quality.DATA / "cubes" / f"{name}.tif")
            generator = torch.Generator().manual_seed(mixed_seed(5, number))
            pair = draw_pair(cube, settings, generator)
            example = make_example(pair, COMPONENTS)
            other, own = best_local(example)
            lines.append(
                f"| {name} | {pair.facts['guide_bands']} | {ideal(example):+.1f} | {other:+.2f} | {own:+.2f} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    publish(options.into, BEGIN, END, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
