# SPDX-License-Identifier: GPL-2.0-or-later
"""Saving and loading networks: a folder with `config.json` and `model.safetensors`; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import ErrorCode, HyperSharpError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "card.md"
FORMAT = 1
"""Version of the folder's layout."""

_MODELS: dict[str, tuple[type[PretrainedModel], type[Any]]] = {}
M = TypeVar("M", bound="type[PretrainedModel]")


def register_model(name: str, config: type[Any]) -> Callable[[M], M]:
    """Make a network known by name to `from_pretrained` (a class decorator)."""

    def add(cls: M) -> M:
        cls.model_name = name
        _MODELS[name] = (cls, config)
        return cls

    return add


class PretrainedModel(nn.Module):
    """A network with a configuration, saved and loaded as a folder.

    A form of networks may give them weights that were fitted before training, as a buffer `start` that is saved with
    the others; the form adds them to the output, the network itself does nothing with them.

    Args:
        config: a dataclass of JSON values; its entry `start` is that buffer's shape, empty for none.
    """

    model_name: str
    start: torch.Tensor | None
    convolutional: ClassVar[bool] = True
    """Whether its time goes into convolutions, which decides the precision that pays on a CPU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        shape = getattr(config, "start", ())
        self.register_buffer("start", torch.zeros(shape) if shape else None)

    def reach(self, ratio: int) -> int:
        """Return how many coarse pixels to each side a fine pixel of the result depends on."""
        raise NotImplementedError

    def last_reach(self, ratio: int) -> int:
        """Return on how many coarse pixels around the result it computes at the fine resolution."""
        return self.reach(ratio)

    def parameter_count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def save_pretrained(
        self,
        folder: str | Path,
        extra: dict[str, Any] | None = None,
        half: bool = False,
        card: str | None = None,
    ) -> None:
        """Write the network's folder.

        Args:
            folder: made when missing; existing files of the same names are replaced.
            extra: what else belongs into config.json (the input contract, training facts), JSON-ready.
            half: store the weights in half precision.
            card: text of `card.md`.
        """
        content = {"class": self.model_name, "architecture": asdict(self.config), **(extra or {})}
        write_folder(folder, self, content, half, card)


def write_folder(
    folder: str | Path,
    network: nn.Module,
    content: dict[str, Any],
    half: bool,
    card: str | None,
    weights_name: str = WEIGHTS_NAME,
) -> None:
    """Write a weights folder.

    Args:
        folder: made when missing; existing files of the same names are replaced.
        network: whose tensors are written.
        content: of config.json, but for the format; JSON-ready.
        half: store the weights in half precision.
        card: text of `card.md`; None for none.
        weights_name: the file of the tensors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {
        name: tensor.detach().to("cpu", dtype, memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    part = folder / (weights_name + ".part")
    save_file(tensors, part, metadata={"format": "pt"})  # as diffusers and transformers ask for
    part.chmod(0o644)  # safetensors writes for its owner alone; weights are shared
    part.replace(folder / weights_name)
    text = json.dumps({"format": FORMAT, **content}, indent=1) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    if card is not None:
        (folder / CARD_NAME).write_text(card, encoding="utf-8")


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return a weights folder's config.json.

    Raises:
        HyperSharpError: no such folder, no configuration, or of a layout that this version does not know.
    """
    path = Path(folder) / CONFIG_NAME
    hint = f"a weights folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HyperSharpError(
            f"no weights in {folder}: {error.strerror or error}", hint, ErrorCode.NO_WEIGHTS
        ) from error
    except ValueError as error:
        raise HyperSharpError(f"{path} is not JSON", hint, ErrorCode.NO_WEIGHTS) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise HyperSharpError(
            f"{path} has no known format", f"this version reads format {FORMAT}", ErrorCode.NO_WEIGHTS
        )
    return content


def from_pretrained(folder: str | Path, expected: type[PretrainedModel] | None = None) -> PretrainedModel:
    """Load a network from its folder, in evaluation mode and float32.

    Args:
        folder: see `PretrainedModel.save_pretrained`.
        expected: the class that the caller needs; None for any.

    Raises:
        HyperSharpError: code `no_weights`: missing, damaged or truncated files, values that are not finite, or
            weights of another class or shape.
    """
    content = read_config(folder)
    name = content.get("class")
    if not isinstance(name, str) or name not in _MODELS or expected not in (None, _MODELS[name][0]):
        wanted = expected.model_name if expected else " or ".join(_MODELS)
        raise HyperSharpError(
            f"the weights in {folder} are of class {name!r}",
            f"class {wanted} is needed",
            ErrorCode.NO_WEIGHTS,
        )
    cls, config_class = _MODELS[name]
    path = Path(folder) / WEIGHTS_NAME
    try:
        config = make_config(config_class, content.get("architecture") or {})
        # Without memory first: a wrong number in the configuration must not ask for all there is.
        with torch.device("meta"):
            shapes = {k: tuple(v.shape) for k, v in cls(config).state_dict().items()}
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise HyperSharpError(
            f"the configuration in {folder} is not valid: {str(error).splitlines()[0]}",
            "download or train the weights again",
            ErrorCode.NO_WEIGHTS,
        ) from error
    tensors = read_tensors(path, shapes)
    model = cls(config)
    model.load_state_dict({k: v.float() for k, v in tensors.items()})
    return model.eval()


def make_config(cls: type[Any], values: dict[str, Any]) -> Any:
    """Return a configuration from JSON values (lists become tuples).

    Raises:
        TypeError: an unknown key.
    """
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise TypeError(f"unknown entries {', '.join(unknown)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network from a safetensors file.

    Raises:
        HyperSharpError: see `read_tensors`.
    """
    tensors = read_tensors(path, {k: tuple(v.shape) for k, v in model.state_dict().items()})
    model.load_state_dict({k: v.float() for k, v in tensors.items()})


def read_tensors(path: Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        path: of the file.
        wanted: shapes by name.

    Raises:
        HyperSharpError: code `no_weights`; the file is missing, truncated, not finite or of another network.
    """
    again = "download or train the weights again"
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise HyperSharpError(f"there is no {path}", again, ErrorCode.NO_WEIGHTS) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise HyperSharpError(
            f"{path} is damaged or incomplete ({error})", again, ErrorCode.NO_WEIGHTS
        ) from error
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    if shapes != wanted:
        wrong = sorted(k for k in set(shapes) | set(wanted) if shapes.get(k) != wanted.get(k))
        raise HyperSharpError(
            f"{path} is of another network: {len(wrong)} of {len(wanted)} tensors differ, first {wrong[0]}",
            again,
            ErrorCode.NO_WEIGHTS,
        )
    if not all(bool(torch.isfinite(v).all()) for v in tensors.values()):
        raise HyperSharpError(f"{path} holds values that are not finite", again, ErrorCode.NO_WEIGHTS)
    return tensors
