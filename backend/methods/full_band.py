# SPDX-License-Identifier: GPL-2.0-or-later
"""The full-band form, the papers' own: a network takes every HS band and guide band and returns every HS band.

Such weights are tied to their sensors: numbers of bands, ratio and scales stand in config.json as `input`
(docs/full-band.md). Sources: arXiv 2406.19666 (CSAKD), 2501.07953 (S3RNet), 2501.04665 (HyFusion).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..device import PRECISIONS
from ..errors import ErrorCode, HyperSharpError
from ..estimate import BASE_MEMORY_BYTES
from ..job import FULL_BAND
from ..models.mbfn import MBFN
from ..models.mpsrnet import SCAN, MPSRNet
from ..models.pretrained import PretrainedModel, from_pretrained, read_config
from ..scene import FILL_REACH, Scene, Tile, tile_windows
from .context import inner, widened, within
from .subspace import grown

QUANTILE = 0.999
"""This share of an image's values is brought below 1 where the weights state no scale."""
MOST_VALUES = 2_000_000
"""Values that are looked at for a quantile."""
WINDOW = 512
"""Side of the windows that they are read by, in pixels."""

Run = Callable[[list[Tensor], tuple[int, int]], Tensor]
"""Runs a network on its inputs, the first fine pixel of which has these scene coordinates."""


@dataclass(frozen=True)
class FullBandInput:
    """What weights of the full-band form take; `input` of config.json.

    Attributes:
        hs_bands, guide_bands: of the two images.
        ratio: fine pixels per coarse pixel; None for any.
        hs_scale, guide_scale: values that become 1 (0 stays 0), in the images' own units; None for the quantile
            `QUANTILE` of the scene that is fused.
        range: to where [0, 1] is moved: what the network is given and returns.
    """

    hs_bands: int
    guide_bands: int
    ratio: int | None
    hs_scale: float | None = None
    guide_scale: float | None = None
    range: tuple[float, float] = (0.0, 1.0)

    def entry(self) -> dict[str, Any]:
        """Return it as it stands in config.json."""
        return {"form": FULL_BAND, **asdict(self), "range": list(self.range)}

    def __str__(self) -> str:
        ratio = "any ratio" if self.ratio is None else f"the ratio {self.ratio}"
        return f"{self.hs_bands} HS bands, a guide of {_counted(self.guide_bands)} and {ratio}"

    def moved(self, values: Tensor, scale: float) -> Tensor:
        """Return values in an image's own units as the network takes them."""
        low, high = self.range
        return values * ((high - low) / scale) + low

    def moved_back(self, output: Tensor) -> Tensor:
        """Return a network's output, or its target, in the HS image's units."""
        return self.unit(output) * (self.hs_scale or 1.0)

    def unit(self, output: Tensor) -> Tensor:
        """Return a network's output, or its target, with its range moved to [0, 1]."""
        low, high = self.range
        return (output - low) / (high - low)

    def scaled(self, scene: Scene, control: Control) -> FullBandInput:
        """Return it with the scene's own scales where it states none."""
        if self.hs_scale is not None and self.guide_scale is not None:
            return self
        hs, guide = scene_scales(scene, control)
        return replace(self, hs_scale=self.hs_scale or hs, guide_scale=self.guide_scale or guide)

    def check(self, scene: Scene, folder: Path) -> None:
        """Refuse a pair that the weights do not take.

        Args:
            scene: the pair.
            folder: of the weights, for the message.

        Raises:
            HyperSharpError: code `no_weights`; another number of bands, or another ratio.
        """
        found = FullBandInput(scene.hs.bands, scene.guide.bands, scene.ratio)
        if found != FullBandInput(self.hs_bands, self.guide_bands, self.ratio or scene.ratio):
            raise HyperSharpError(
                f"the weights in {folder} take {self}; this pair has {found}",
                "bands that are empty, constant or marked as bad do not count; fuse a pair of the sensors that they "
                "were trained for, or train weights on this one",
                ErrorCode.NO_WEIGHTS,
            )


def _counted(bands: int) -> str:
    return f"{bands} band{'' if bands == 1 else 's'}"


def input_form(folder: Path) -> Any:
    """Return the form that a weights folder names in its config.json; None where it names none.

    Raises:
        HyperSharpError: code `no_weights`; see `read_config`.
    """
    entry = read_config(folder).get("input")
    return entry.get("form") if isinstance(entry, dict) else None


def trained_pair(folder: Path) -> str | None:
    """Return the file names of the pair that weights were trained on; None where config.json names none."""
    found: Any = read_config(folder)
    for key in ("training", "data", "pair"):
        found = found.get(key) if isinstance(found, dict) else None
    return " + ".join(str(name) for name in found) if isinstance(found, list) else None


def load_full_band(folder: Path, network: type[PretrainedModel]) -> tuple[PretrainedModel, FullBandInput]:
    """Return a network in the full-band form, and what it takes.

    Raises:
        HyperSharpError: code `no_weights`; missing, damaged, of another class or of another form.
    """
    form = input_form(folder)
    if form != FULL_BAND:
        raise HyperSharpError(
            f"the weights in {folder} take another input: {form!r}",
            f"weights of the form {FULL_BAND!r} are needed here",
            ErrorCode.NO_WEIGHTS,
        )
    model = from_pretrained(folder, network)
    config = model.config
    takes = _read_input(read_config(folder)["input"], config, folder)
    if getattr(config, "prior", False):
        raise HyperSharpError(
            f"the weights in {folder} take a prior, which the full-band form has not",
            "train them without it (prior: false), or in the subspace form",
            ErrorCode.NO_WEIGHTS,
        )
    sizes = config.hs_bands, config.guide_bands, config.out_bands or config.hs_bands
    ratios = None, takes.ratio
    fits = sizes == (takes.hs_bands, takes.guide_bands, takes.hs_bands) and config.ratio in ratios
    if not fits or model.start is not None:  # this form has nothing that a start could weigh
        raise HyperSharpError(
            f"the configuration in {folder} contradicts itself: its input names {takes}, its architecture does not",
            "download, convert or train the weights again",
            ErrorCode.NO_WEIGHTS,
        )
    return model, takes


def _read_input(entry: dict[str, Any], config: Any, folder: Path) -> FullBandInput:
    """Return the input that config.json states; numbers that it leaves out are those of the architecture."""
    ratio = entry.get("ratio", config.ratio)
    counts = [entry.get(name, getattr(config, name)) for name in ("hs_bands", "guide_bands")]
    scales = [entry.get(name) for name in ("hs_scale", "guide_scale")]
    place = entry.get("range", [0, 1])
    fine = (
        all(_is_number(n) and isinstance(n, int) and n > 0 for n in [*counts, 1 if ratio is None else ratio])
        and all(s is None or (_is_number(s) and s > 0) for s in scales)
        and isinstance(place, list)
        and len(place) == 2
        and all(_is_number(v) for v in place)
        and place[0] < place[1]
    )
    if not fine:
        raise HyperSharpError(
            f"the configuration in {folder} is not valid: input is {entry!r}",
            "download, convert or train the weights again",
            ErrorCode.NO_WEIGHTS,
        )
    return FullBandInput(counts[0], counts[1], ratio, scales[0], scales[1], (place[0], place[1]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def scene_scales(scene: Scene, control: Control) -> tuple[float, float]:
    """Return below which value `QUANTILE` of the HS image's values lie, and the same of the guide's.

    Valid pixels count, in large scenes a sample of them. An image without a positive value has the scale of its
    largest size, or 1.
    """
    found = []
    for source in (scene.hs, scene.guide):
        step = max(1, math.ceil(source.bands * source.rows * source.cols / MOST_VALUES))
        values: list[Tensor] = []
        for rows, cols in tile_windows((0, source.rows), (0, source.cols), WINDOW):
            control.check()
            image, mask = source.read(rows, cols)
            values.append(image[:, mask][:, ::step].flatten())
        found.append(_quantile(torch.cat(values)))
    return found[0], found[1]


def _quantile(values: Tensor) -> float:
    if not len(values):
        return 1.0
    found = float(values.kthvalue(max(1, math.ceil(QUANTILE * len(values)))).values)
    return found if found > 0 else float(values.abs().max()) or 1.0


def is_local(model: PretrainedModel) -> bool:
    """Return whether a pixel of a network's result depends on a neighbourhood only, so that tiles fit together."""
    config = model.config
    if isinstance(model, MBFN):
        return config.window is not None
    if isinstance(model, MPSRNet):
        return config.scan_span is not None or config.mixer != SCAN
    return True


@dataclass(frozen=True)
class Means:
    """What stands where nothing is known: the means of the bands, `[hs_bands]` and `[guide_bands]`."""

    hs: Tensor
    guide: Tensor

    @classmethod
    def of(cls, scene: Scene, control: Control) -> Means:
        """Return a scene's.

        Raises:
            ValueError: no coarse pixel is valid in both images.
        """
        statistics = scene.statistics(scene.mtf_hs, control)
        return cls(statistics.hs_mean, statistics.guide_mean)


def network_inputs(tile: Tile, takes: FullBandInput, means: Means) -> tuple[Tensor, Tensor]:
    """Return what a network sees of a tile of whole coarse pixels.

    Args:
        tile: see `context.widened`.
        takes: with its scales.
        means: of the scene.

    Returns:
        The HS image `[1, hs_bands, rows / ratio, cols / ratio]` and the guide `[1, guide_bands, rows, cols]`, in
        the network's range; what is far from any valid pixel is the mean of the band.
    """
    own = inner(tile)
    near = grown(tile.hs_mask, FILL_REACH)[own[1:]]
    hs = torch.where(near, tile.hs[own], means.hs.to(tile.hs)[:, None, None])
    fine = within(tile.rows, tile.cols, (tile.fine_rows[0], tile.fine_cols[0]))
    seen = grown(tile.guide_mask, FILL_REACH)[fine[1:]]
    guide = torch.where(seen, tile.guide_core, means.guide.to(tile.guide)[:, None, None])
    return takes.moved(hs, takes.hs_scale or 1.0)[None], takes.moved(guide, takes.guide_scale or 1.0)[None]


class FullBandFusion:
    """A network in the full-band form on a scene, as a learned method runs it.

    A network whose attention or scans span the whole image, as published, is run on the whole scene once, and the
    tiles are cut from its result.

    Args:
        model: on its device.
        takes: what it takes.
        folder: of the weights.
        run: runs it.
        precision: one of `device.PRECISIONS`.

    Attributes:
        halo, pixel_bytes: see `FusionMethod`.
    """

    def __init__(
        self, model: PretrainedModel, takes: FullBandInput, folder: Path, run: Run, precision: str
    ) -> None:
        self.model, self.takes, self.folder, self.precision = model, takes, folder, precision
        self._run = run
        self.local = is_local(model)
        self.halo, self.pixel_bytes = 0, 0
        self._whole: Tensor | None = None

    def fit(self, scene: Scene, control: Control, memory_gb: float) -> None:
        """Check that the weights take the scene, and see to the scales.

        Args:
            scene: the pair.
            control: cancel.
            memory_gb: bound of working memory in GiB.

        Raises:
            HyperSharpError: code `no_weights`: they do not take it; or the network needs the whole scene at once, and
                that would break the bound.
        """
        self.takes.check(scene, self.folder)
        self._trained_on = trained_pair(self.folder)
        if self._trained_on:
            # The assessment's pair one scale down is the very one that was trained on.
            control.warn(
                f"the weights were trained on {self._trained_on}, one scale down: for that pair the "
                "reduced-resolution indices say what was learned by heart too"
            )
        self._own_scales = self.takes.hs_scale is not None and self.takes.guide_scale is not None
        self._means = Means.of(scene, control)
        self.takes = self.takes.scaled(scene, control)
        self._scene = scene
        # The network's own, and the image in its units and in the HS image's.
        needed = self.model.pixel_bytes(scene.ratio) + 4 * (3 * scene.hs.bands + 2 * scene.guide.bands)
        if self.local:
            self.halo, self.pixel_bytes = self.model.reach(scene.ratio), needed
            return
        total = math.prod(scene.shape) * needed + 4 * self.model.parameter_count() + BASE_MEMORY_BYTES
        if total > memory_gb * 2**30:
            raise HyperSharpError(
                f"the network of the weights in {self.folder} looks at the whole scene at once: {scene.shape[0]} x "
                f"{scene.shape[1]} pixels take about {total / 2**30:.1f} GiB, the bound is {memory_gb:g}",
                "raise the memory bound, fuse a smaller extent, or train weights of one's own, which work by tiles "
                f"(hypersharp train HS GUIDE --form {FULL_BAND})",
            )

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]` in the HS image's units."""
        if self.local:
            wide = widened(tile, self.halo)
            return self._image(wide)[within(tile.rows, tile.cols, (wide.rows[0], wide.cols[0]))]
        if self._whole is None:
            (rows, cols), scene = self._scene.shape, self._scene
            self._whole = self._image(scene.tile((0, rows), (0, cols))).cpu()
        return self._whole[within(tile.rows, tile.cols, (0, 0))].to(tile.hs.device, copy=True)

    @torch.no_grad()
    def _image(self, tile: Tile) -> Tensor:
        """Return the network's image of a tile of whole coarse pixels."""
        layout = torch.channels_last
        inputs = [x.contiguous(memory_format=layout) for x in network_inputs(tile, self.takes, self._means)]
        half = PRECISIONS[self.precision]
        with torch.autocast(tile.hs.device.type, half or torch.bfloat16, enabled=half is not None):
            output = self._run(inputs, (tile.rows[0], tile.cols[0]))
        return self.takes.moved_back(output[0].float()).contiguous()

    def describe(self) -> dict[str, Any]:
        """Return the facts for the report."""
        source = "the weights" if self._own_scales else f"this scene: {QUANTILE:.1%} of its values lie below"
        return {
            "form": FULL_BAND,
            "takes": str(self.takes),
            "network_parameters": self.model.parameter_count(),
            "precision": self.precision,
            "hs_scale": self.takes.hs_scale,
            "guide_scale": self.takes.guide_scale,
            "scales_from": source,
            "by_tiles": self.local,
            **({"trained_on": self._trained_on} if self._trained_on else {}),
        }
