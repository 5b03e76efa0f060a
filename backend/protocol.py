# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker protocol, version 1: one JSON object a line, UTF-8, rasters by path and never in the pipe.

Parent -> worker: `{"type": "run", "job": PATH}`, `{"type": "cancel"}`, `{"type": "quit"}`.
Worker -> parent: `hello`, `progress`, `log`, `memory`, then exactly one of `result`, `cancelled`, `error`.
A closed stdin means that the parent died: the worker cancels and ends.

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Optional

PROTOCOL_VERSION = 1


@dataclass
class Run:
    """Parent: run the job in this file."""

    type: ClassVar[str] = "run"
    job: str


@dataclass
class Cancel:
    """Parent: stop the running job; answered within a second between tiles."""

    type: ClassVar[str] = "cancel"


@dataclass
class Quit:
    """Parent: end the worker."""

    type: ClassVar[str] = "quit"


@dataclass
class Hello:
    """Worker: first message. `versions` maps package to version; `device` is what "auto" would use."""

    type: ClassVar[str] = "hello"
    protocol: int
    versions: dict[str, str]
    device: str


@dataclass
class Progress:
    """Worker: `done` of `total` steps of a stage; `fraction` of the whole job, 0 to 1; `eta_s` seconds left."""

    type: ClassVar[str] = "progress"
    stage: str
    done: int
    total: int
    fraction: float
    eta_s: Optional[float] = None


@dataclass
class Log:
    """Worker: a line for the log; `level` is "info", "warning" or "debug"."""

    type: ClassVar[str] = "log"
    level: str
    text: str


@dataclass
class Memory:
    """Worker: memory in bytes: resident now, peak so far, of the machine in all."""

    type: ClassVar[str] = "memory"
    used: int
    peak: int
    total: int


@dataclass
class Result:
    """Worker: done. `outputs` maps output name to path; `metrics` is the content of metrics.json."""

    type: ClassVar[str] = "result"
    outputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class CancelledMessage:
    """Worker: the job was cancelled and left nothing behind."""

    type: ClassVar[str] = "cancelled"


@dataclass
class ErrorMessage:
    """Worker: the job failed. `code` is an `errors.ErrorCode` value."""

    type: ClassVar[str] = "error"
    code: str
    message: str
    hint: str = ""
    retry: bool = False
    details: str = ""


_TYPES: dict[str, type[Any]] = {
    cls.type: cls
    for cls in (Run, Cancel, Quit, Hello, Progress, Log, Memory, Result, CancelledMessage, ErrorMessage)
}


def encode(message: Any) -> str:
    """Return the message as one line, without its line end."""
    return json.dumps({"type": message.type, **asdict(message)}, ensure_ascii=False, allow_nan=False)


def decode(line: str) -> Any:
    """Return the message of a line, or None when the line is none of the protocol's.

    Unknown keys are ignored, so that a newer worker can talk to an older parent.
    """
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    cls = _TYPES.get(str(values.get("type")))
    if cls is None:
        return None
    known = {f.name for f in fields(cls)}
    try:
        return cls(**{k: v for k, v in values.items() if k in known})
    except TypeError:
        return None
