# SPDX-License-Identifier: GPL-2.0-or-later
"""Trains a network in the subspace form; with a student, both together as CSAKD is published.

A run is a function of its settings and seed: it can be stopped at any step and resumed to the same result. The
state is a safetensors file; nothing is unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ..control import Control
from ..device import PRECISIONS, inference_precision, is_out_of_memory
from ..errors import Cancelled, ErrorCode, HyperSharpError
from ..methods.learned_planes import read_output, with_start
from ..models.pretrained import PretrainedModel
from .examples import Crop, Example, ExampleStream, correction_in_bands, crop_example, mixed_seed, psnr_gain
from .losses import distillation_loss, swt_loss
from .pairs import Dice

STATE_NAME = "state.safetensors"
LEAST_SIDE = 16
"""Side of the smallest crops that are tried when memory runs out."""
WARM_UP = 100
"""Steps over which the learning rate rises."""
STEP_LOSS = 0.5
"""Weight of each earlier step of a progressive network (specification 4.4: 0.5 for the early ones, 1 for the last)."""
LOSS_ROUNDING = 0.5
"""Below this share of the closed form's root mean square error, an error counts by its square, above by its size."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run (the cosine schedule ends there).
        examples: scenes whose gradients a step adds up.
        side: side of a crop in fine pixels.
        learning_rate: of AdamW, at its highest.
        average: decay of the averaged weights, which are the ones kept.
        seed: of every random number.
        validate_every: steps between validations.
        patience: validations without improvement after which the run stops early; 0 for never.
        swt: weight of the wavelet term (HyFusion); 0 for none.
        mixed: the networks compute in bfloat16 where the device is fast at it (see `inference_precision`).
    """

    steps: int = 4000
    examples: int = 1
    side: int = 48
    learning_rate: float = 2e-3
    average: float = 0.998
    seed: int = 1029
    validate_every: int = 250
    patience: int = 0
    swt: float = 0.0
    mixed: bool = True


@dataclass
class TrainOutcome:
    """What a run came to.

    Attributes:
        steps: done.
        best_step: the one whose averaged weights were kept.
        gain_db: rise of the mean PSNR over the closed form on the validation examples; None without any.
        history: (step, gain in dB) of every validation; with a student, its own.
        teacher: (best step, gain in dB) of a student's teacher; None without one.
        stopped: "done", "early" or "cancelled".
    """

    steps: int
    best_step: int
    gain_db: float | None
    history: list[tuple[int, float]]
    stopped: str
    teacher: tuple[int, float | None] | None = None


def correction_loss(found: Tensor, crop: Crop, swt: float = 0.0) -> Tensor:
    """Return the loss of a correction: what is left of the closed form's error, band by band.

    A smoothed L1 in which every band counts by its own error (BEBA's thought), so that scenes and bands where the
    closed form is nearly exact count as much as others. `swt` adds HyFusion's wavelet term.

    Args:
        found: `[bands, rows, cols]`, from `correction_in_bands`.
        crop: the truth.
        swt: weight of the wavelet term.
    """
    left = crop.error - found
    size = (left.square() + LOSS_ROUNDING**2).sqrt() - LOSS_ROUNDING
    # The border of a crop was filtered without its surroundings.
    margin = min(crop.ratio, *(s // 4 for s in left.shape[1:]))
    inner = slice(margin, -margin) if margin else slice(None)
    mask = crop.mask[inner, inner].to(size)
    loss = (size[:, inner, inner].mean(dim=0) * mask).sum() / mask.sum().clamp_min(1)
    if swt:
        loss = loss + swt_loss((left * crop.mask)[None], torch.zeros_like(left)[None], "db2", swt)
    return loss


class Trainer:
    """A training run.

    Args:
        model: trained; for CSAKD the teacher.
        stream: of training examples.
        settings: how.
        validation: examples of scenes that are not trained on.
        student: trained beside the model against its results (online co-training); None for none.
        device: where.
    """

    def __init__(
        self,
        model: PretrainedModel,
        stream: ExampleStream,
        settings: TrainSettings,
        validation: Sequence[Example] = (),
        student: PretrainedModel | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        # Convolutions on a CPU are nearly twice as fast with the channels innermost.
        layout = torch.channels_last
        self.model = model.to(self.device, memory_format=layout)
        self.student = student.to(self.device, memory_format=layout) if student else None
        precision = inference_precision(self.device, model.convolutional) if settings.mixed else "float32"
        # float16 would need its losses scaled.
        self._half = PRECISIONS[precision] if precision == "bfloat16" else None
        self.stream, self.settings, self.validation = stream, settings, list(validation)
        # A step adds up the gradients of its scenes one by one, so the crop is what memory bounds.
        self.side = settings.side
        self.step = 0
        self.history: list[tuple[int, float]] = []
        self.running = math.nan
        self._nets: dict[str, PretrainedModel] = {"model": self.model}
        if self.student is not None:
            self._nets["student"] = self.student
        self._optimisers = {
            name: torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=0.0)
            for name, net in self._nets.items()
        }
        self.averages = {name: _copy(net) for name, net in self._nets.items()}
        self.best = {name: _copy(net) for name, net in self._nets.items()}
        self._best_at: dict[str, tuple[int, float]] = dict.fromkeys(self._nets, (0, -math.inf))

    @property
    def main(self) -> str:
        """Name of the network whose gain counts: the student where there is one."""
        return "student" if self.student is not None else "model"

    @property
    def best_step(self) -> int:
        """Step of the best weights of the network that counts."""
        return self._best_at[self.main][0]

    @property
    def best_gain(self) -> float:
        """Their gain in dB; minus infinity where there is none."""
        return self._best_at[self.main][1]

    def run(
        self,
        control: Control,
        state: Path | None = None,
        save_every: int = 100,
        on_validation: Callable[[int, float], None] | None = None,
    ) -> TrainOutcome:
        """Train from the present step to the end, to early stopping, or until cancelled.

        Args:
            control: progress and cancel; a cancel keeps the best weights so far.
            state: file to which the state is written; None for none.
            save_every: steps between writings.
            on_validation: told (step, gain in dB).

        Raises:
            HyperSharpError: the loss is no number any more.
        """
        settings = self.settings
        control.stage("training", settings.steps)
        if self.step:
            control.step(self.step)
        stopped = "done"
        try:
            while self.step < settings.steps:
                control.check()
                side = self.side
                self.train_step()
                if self.side < side:
                    control.warn(
                        f"memory ran out: training goes on with crops of {self.side} pixels, not {side}"
                    )
                if self.step % settings.validate_every == 0 or self.step == settings.steps:
                    gain = self.validate()
                    if on_validation is not None:
                        on_validation(self.step, gain)
                    if self._out_of_patience():
                        stopped = "early"
                        break
                if state is not None and self.step % save_every == 0:
                    self.save(state)
                control.step()
        except Cancelled:
            stopped = "cancelled"
        if not self.history:
            self.validate()
        if state is not None:
            self.save(state)
        teacher = None
        if self.student is not None:
            step, gain = self._best_at["model"]
            teacher = step, _finite(gain)
        return TrainOutcome(
            self.step, self.best_step, _finite(self.best_gain), self.history, stopped, teacher
        )

    def train_step(self) -> float:
        """Take one optimiser step, with smaller crops where memory runs out; return the loss.

        Raises:
            HyperSharpError: it is no number.
            RuntimeError, MemoryError: memory runs out with the smallest crops too.
        """
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (self.step + 1) / WARM_UP)
        rate *= 0.5 + 0.5 * math.cos(math.pi * self.step / settings.steps)
        for net in self._nets.values():
            net.train()
        while True:
            try:
                total = self._gradients()
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.side <= LEAST_SIDE:
                    raise
            self.side = max(LEAST_SIDE, self.side // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if not math.isfinite(total):
            raise HyperSharpError(
                f"training diverged at step {self.step}: the loss is {total}",
                "lower the learning rate, or resume from the last saved state with another seed",
            )
        for name, optimiser in self._optimisers.items():
            nn.utils.clip_grad_norm_(self._nets[name].parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        self.step += 1
        decay = min(settings.average, self.step / (self.step + 20.0))
        with torch.no_grad():
            for name, net in self._nets.items():
                for key, value in net.state_dict().items():
                    self.averages[name][key].lerp_(value, 1.0 - decay)
        self.running = total if math.isnan(self.running) else 0.98 * self.running + 0.02 * total
        return total

    def _gradients(self) -> float:
        """Put the gradients of the present step's scenes into the networks; return the loss."""
        count = self.settings.examples
        dice = Dice(torch.Generator().manual_seed(mixed_seed(self.settings.seed, 7, self.step)))
        for optimiser in self._optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(count):
            crop = self.crop(self.stream.draw(self.step, dice), dice)
            loss = self._loss(crop) / count
            loss.backward()
            total += float(loss.detach())
        return total

    def crop(self, example: Example, dice: Dice) -> Crop:
        """Return the part of an example that a step learns from, on the device."""
        return crop_example(example, self.side, dice, self.device)

    def score(self, net: PretrainedModel, example: Example) -> float:
        """Return by how many dB a network is better than the closed form on a validation example."""
        return psnr_gain(self.forward(net, example)[0].cpu(), example)

    def _loss(self, crop: Crop) -> Tensor:
        """Return the sum of the networks' losses; the student's has no gradient for the teacher."""
        swt = self.settings.swt
        out, features = self.forward(self.model, crop)
        found = correction_in_bands(out, crop)
        loss = correction_loss(found, crop, swt)
        if isinstance(features, list):
            loss = loss + self._step_losses(features[:-1], crop)
        if self.student is None:
            return loss
        own, own_features = self.forward(self.student, crop)
        seen = correction_in_bands(own, crop)
        distilled = distillation_loss(seen, own_features, found, features)
        return loss + correction_loss(seen, crop, swt) + distilled

    def _step_losses(self, results: list[Tensor], crop: Crop) -> Tensor:
        """Return the loss of a progressive network's steps before the last, each on its own grid.

        A step's truth is the area mean of the error, its planes those of the fine grid: what it returns means the same
        at any size. The consistency step is left to the last.
        """
        total = torch.zeros((), device=crop.error.device)
        for result in results:
            size = result.shape[-2:]
            prior = None if crop.prior is None else functional.adaptive_avg_pool2d(crop.prior, size)
            fine = functional.adaptive_avg_pool2d(crop.fine, size)
            units = read_output(with_start(result.float(), fine, self.model.start), fine, prior)
            found = torch.einsum("bk,kyx->byx", crop.basis, units)
            known = (crop.mask[None].float(), crop.error)
            mask, error = (functional.adaptive_avg_pool2d(x, size) for x in known)
            left = torch.where(mask > 0.99, error - found, torch.zeros_like(found))
            total = total + STEP_LOSS * ((left.square() + LOSS_ROUNDING**2).sqrt() - LOSS_ROUNDING).mean()
        return total

    def forward(self, net: PretrainedModel, part: Example | Crop) -> tuple[Tensor, Any]:
        """Return a network's output, float32, and beside it: fused features, or the results of every step.

        The start's weights are in the output already, but not in the results of the steps.
        """
        planes = (part.coarse, part.fine) if part.prior is None else (part.coarse, part.fine, part.prior)
        inputs = (x.float().to(self.device).contiguous(memory_format=torch.channels_last) for x in planes)
        with torch.autocast(self.device.type, self._half or torch.bfloat16, enabled=self._half is not None):
            output, features = net(*inputs)
        output = with_start(output.float(), part.fine.float().to(self.device), net.start)
        return output, features.float() if isinstance(features, Tensor) else features

    @torch.no_grad()
    def gain(self, name: str = "model") -> float:
        """Return the mean rise of PSNR in dB on the validation examples with a network's averaged weights."""
        if not self.validation:
            return math.nan
        net = self._nets[name]
        own = _copy(net)
        net.load_state_dict(self.averages[name])
        net.eval()
        try:
            gains = [self.score(net, example) for example in self.validation]
        finally:  # a run that is stopped here must not go on from the averages
            net.load_state_dict(own)
        return sum(gains) / len(gains)

    def validate(self) -> float:
        """Validate; keep each network's averaged weights when they are its best so far.

        Returns:
            The gain in dB of the network that counts.
        """
        gains = {name: self.gain(name) for name in self._nets}
        for name, gain in gains.items():
            # Without validation examples the last weights are the best ones.
            if math.isnan(gain) or gain > self._best_at[name][1]:
                self._best_at[name] = self.step, -math.inf if math.isnan(gain) else gain
                self.best[name] = {k: v.clone() for k, v in self.averages[name].items()}
        self.history.append((self.step, round(gains[self.main], 4)))
        return gains[self.main]

    def _out_of_patience(self) -> bool:
        waited = sum(1 for step, _ in self.history if step > self.best_step)
        return 0 < self.settings.patience <= waited

    def load_best(self) -> None:
        """Put the best weights into the networks."""
        for name, net in self._nets.items():
            net.load_state_dict(self.best[name])
            net.eval()

    # ------------------------------------------------------------------ state

    def save(self, path: Path) -> None:
        """Write everything that resuming needs, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, net in self._nets.items():
            groups = {"now": net.state_dict(), "average": self.averages[name], "best": self.best[name]}
            for group, values in groups.items():
                tensors |= {f"{name}/{group}/{k}": v for k, v in values.items()}
            states = self._optimisers[name].state
            for key, parameter in net.named_parameters():
                for what, value in states.get(parameter, {}).items():
                    tensors[f"{name}/optimiser/{what}/{key}"] = torch.as_tensor(value).reshape(-1)
        facts = {
            "step": self.step,
            "side": self.side,
            "best": {name: (step, _finite(gain)) for name, (step, gain) in self._best_at.items()},
            "history": self.history,
            "running": None if math.isnan(self.running) else self.running,
            "settings": asdict(self.settings),
        }
        part = path.with_suffix(".part")
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, {"facts": json.dumps(facts)}
        )
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Continue where `save` was called.

        Raises:
            HyperSharpError: the file is damaged, or of a run with other networks or settings.
        """
        hint = "resume with the settings of the interrupted run, or start a new one"
        try:
            with safe_open(path, "pt") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {}).get("facts", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
        except (SafetensorError, OSError, ValueError) as error:
            raise HyperSharpError(f"cannot resume from {path}: {error}", hint, ErrorCode.USAGE) from error
        # JSON has no tuples.
        if facts.get("settings") != json.loads(json.dumps(asdict(self.settings))):
            raise HyperSharpError("the interrupted run had other settings", hint, ErrorCode.USAGE)
        try:
            for name, net in self._nets.items():
                net.load_state_dict(_part(tensors, f"{name}/now/"))
                self.averages[name] = self._onto(_part(tensors, f"{name}/average/"))
                self.best[name] = self._onto(_part(tensors, f"{name}/best/"))
                self._resume_optimiser(name, tensors)
        except (RuntimeError, KeyError) as error:
            raise HyperSharpError(
                f"the interrupted run had other networks: {str(error).splitlines()[0]}", hint, ErrorCode.USAGE
            ) from error
        self.step, self.side = facts["step"], facts.get("side", self.side)
        self._best_at = {
            name: (step, -math.inf if gain is None else gain) for name, (step, gain) in facts["best"].items()
        }
        self.history = [(int(s), float(g)) for s, g in facts["history"]]
        self.running = math.nan if facts["running"] is None else facts["running"]

    def _onto(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.device) for k, v in values.items()}

    def _resume_optimiser(self, name: str, tensors: dict[str, Tensor]) -> None:
        optimiser = self._optimisers[name]
        for key, parameter in self._nets[name].named_parameters():
            own: dict[str, Tensor] = {}
            for what in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"{name}/optimiser/{what}/{key}")
                if value is not None:
                    shape = () if what == "step" else parameter.shape
                    own[what] = value.reshape(shape).to("cpu" if what == "step" else self.device)
            if own:
                optimiser.state[parameter] = own


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
