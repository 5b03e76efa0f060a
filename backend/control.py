# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress, cancel and warnings of a running job, for any caller (worker, command line, Python)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import psutil

from .errors import Cancelled
from .protocol import Log, Memory, Progress

T = TypeVar("T")
MESSAGE_INTERVAL_S = 0.1
ETA_AFTER_S = 0.5
"""Seconds before which no time left is foretold."""


class Control:
    """What the engine tells its caller, and how the caller stops it.

    Args:
        on_message: gets protocol messages (`Progress`, `Log`, `Memory`); None for nobody.
        is_cancelled: asked between tiles; True stops the job with `Cancelled`.
    """

    def __init__(
        self,
        on_message: Callable[[Any], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.warnings: list[str] = []
        self._on_message = on_message
        self._is_cancelled = is_cancelled
        self._plan: dict[str, float] = {}
        self._finished_weight = 0.0
        self._name, self._total, self._done, self._weight = "", 1, 0, 0.0
        self._started = time.monotonic()
        self._before = 0.0
        self._said = 0.0
        self._peak = 0

    def plan(self, stages: dict[str, float]) -> None:
        """Say which stages will come and how long each takes relative to the others."""
        whole = sum(stages.values()) or 1.0
        self._plan = {name: weight / whole for name, weight in stages.items()}

    def stage(self, name: str, total: int, weight: float | None = None) -> None:
        """Begin a stage of `total` steps; `weight` is its share of the whole where no plan names it."""
        self.check()
        self._finished_weight = min(1.0, self._finished_weight + self._weight)
        self._name, self._total, self._done = name, max(1, total), 0
        self._weight = self._plan.get(name, weight or 0.0)
        self._say(force=True)

    def step(self, count: int = 1) -> None:
        """Report `count` steps done, and stop here if the job was cancelled.

        Several at the beginning of a stage are those of an interrupted run: they say nothing of this one's speed.
        """
        self.check()
        if count > 1 and not self._done:
            self._before += self._weight * min(count, self._total) / self._total
        self._done = min(self._total, self._done + count)
        self._say(force=self._done >= self._total)

    def steps(self, items: Iterable[T], name: str, total: int, weight: float | None = None) -> Iterator[T]:
        """Iterate over `items` as the steps of a stage."""
        self.stage(name, total, weight)
        for item in items:
            self.check()
            yield item
            self.step()

    def check(self) -> None:
        """Stop here if the job was cancelled.

        Raises:
            Cancelled: the caller wants the job to stop.
        """
        if self._is_cancelled is not None and self._is_cancelled():
            raise Cancelled()

    def finish(self) -> None:
        """The result is whole and gets its final name now: a cancel that comes later comes too late."""
        self.check()
        self._is_cancelled = None

    def silent(self) -> Control:
        """Return a control that is cancelled with this one and tells nobody anything."""

        def cancelled() -> bool:
            try:
                self.check()
            except Cancelled:
                return True
            return False

        return Control(None, cancelled)

    def warn(self, text: str) -> None:
        """Report a warning once; it also stands in metrics.json and in the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._emit(Log("warning", text))

    def info(self, text: str) -> None:
        """Report a line for the log."""
        self._emit(Log("info", text))

    def _emit(self, message: Any) -> None:
        if self._on_message is not None:
            self._on_message(message)

    def _say(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._on_message is None or (not force and now - self._said < MESSAGE_INTERVAL_S):
            return
        self._said = now
        fraction = min(1.0, self._finished_weight + self._weight * self._done / self._total)
        elapsed = now - self._started
        own = fraction - self._before
        eta = elapsed * (1.0 - fraction) / own if own > 0.02 and elapsed > ETA_AFTER_S else None
        self._emit(
            Progress(
                self._name,
                self._done,
                self._total,
                round(fraction, 4),
                None if eta is None else round(eta, 1),
            )
        )
        used = psutil.Process().memory_info().rss
        self._peak = max(self._peak, used)
        self._emit(Memory(used, self._peak, psutil.virtual_memory().total))


class PartControl(Control):
    """Control of one part of a longer job: its progress fills a share of the whole.

    Its warnings stand in its own list and, once each, in the whole's. Cancelling the whole cancels the part;
    a part that has finished does not keep the whole from being cancelled.

    Args:
        whole: control of the whole job.
        name: what the part is, put before its stages' names; "" for nothing.
        start, stop: its share of the whole, from 0 to 1.
    """

    def __init__(self, whole: Control, name: str, start: float, stop: float) -> None:
        super().__init__(self._pass_on, whole._is_cancelled)
        self._whole, self._part_name, self._from, self._to = whole, name, start, stop

    def split(self, share: float) -> tuple[PartControl, PartControl]:
        """Return the controls of two parts, the first of which takes `share` of this one."""
        middle = self._from + share * (self._to - self._from)
        return (
            PartControl(self._whole, self._part_name, self._from, middle),
            PartControl(self._whole, self._part_name, middle, self._to),
        )

    def _pass_on(self, message: Any) -> None:
        whole = self._whole
        if isinstance(message, Log) and message.level == "warning":
            whole.warn(message.text)
            return
        if isinstance(message, Progress):
            fraction = self._from + (self._to - self._from) * message.fraction
            stage = f"{self._part_name}: {message.stage}" if self._part_name else message.stage
            elapsed = time.monotonic() - whole._started
            eta = (
                round(elapsed * (1.0 - fraction) / fraction, 1) if fraction > 0.02 and elapsed > 0.5 else None
            )
            message = Progress(stage, message.done, message.total, round(fraction, 4), eta)
        whole._emit(message)
