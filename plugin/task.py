# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs as QGIS tasks: they run on a thread of QGIS's task manager, with progress and cancel, and never raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

from qgis.core import QgsRasterLayer, QgsTask
from qgis.PyQt.QtCore import pyqtSignal

from ..backend import protocol
from ..backend.errors import Cancelled, ErrorCode, HyperSharpError
from ..backend.job import FuseJob, Job
from . import layers, log, worker_process

OnFinished = Callable[[Optional[QgsRasterLayer], dict[str, Any]], None]
OnError = Callable[[HyperSharpError], None]

_alive: set[WorkerTask] = set()
"""QGIS keeps no Python reference to a task; without one it would vanish while it runs."""


class WorkerTask(QgsTask):
    """Runs one job in the worker.

    Signals (all reach the main thread):
        progressed(stage, done, total, seconds left or None)
        said(level, text): a line for the log
        succeeded(result): a `protocol.Result`
        failed(error): a `HyperSharpError`; a cancelled job is one with code `cancelled`
    """

    progressed = pyqtSignal(str, int, int, object)
    said = pyqtSignal(str, str)
    succeeded = pyqtSignal(object)
    failed = pyqtSignal(object)

    def __init__(self, description: str, job: Job, command: Optional[Sequence[str]] = None) -> None:
        super().__init__(description, QgsTask.Flag.CanCancel)
        self.job = job
        self.result: Optional[protocol.Result] = None
        self.error: Optional[HyperSharpError] = None
        self._command = command
        self._abandoned = False
        _alive.add(self)

    def run(self) -> bool:
        """Run the job (on a thread of the task manager). Never raises."""
        try:
            self.result = worker_process.run_job(
                self.job, self._on_message, self.isCanceled, command=self._command
            )
            return True
        except HyperSharpError as error:
            self.error = error
        except Exception as error:
            self.error = _internal(error)
        return False

    def _on_message(self, message: Any) -> None:
        """Pass on what the worker says (on the task's thread)."""
        if isinstance(message, protocol.Progress):
            self.setProgress(100.0 * message.fraction)
            self.progressed.emit(message.stage, message.done, message.total, message.eta_s)
        elif isinstance(message, protocol.Log):
            self.said.emit(message.level, message.text)
            log.write(message.text, message.level)
        elif isinstance(message, protocol.Hello):
            versions = ", ".join(f"{name} {version}" for name, version in message.versions.items())
            log.write(f"worker started: {versions}; device {message.device}")

    def finished(self, result: bool) -> None:
        """Tell the outcome (on the main thread)."""
        _alive.discard(self)
        if self._abandoned:
            return
        if result and self.result is not None:
            try:
                self.take_result(self.result)
                self.succeeded.emit(self.result)
                return
            except HyperSharpError as error:
                self.error = error
            except Exception as error:
                self.error = _internal(error)
        self._fail(self.error or Cancelled())

    def take_result(self, result: protocol.Result) -> None:
        """Do what is to be done with the result, on the main thread."""

    def _fail(self, error: HyperSharpError) -> None:
        self.error = error
        if error.code is not ErrorCode.CANCELLED:
            log.write(log.sentence(error), "error")
        self.on_failure(error)
        self.failed.emit(error)

    def on_failure(self, error: HyperSharpError) -> None:
        """Do what is to be done about a failure, on the main thread."""

    def abandon(self) -> None:
        """Cancel, and tell nobody: the plugin is being unloaded."""
        self._abandoned = True
        self.cancel()


class FusionTask(WorkerTask):
    """Fuses, and puts the styled result on the map.

    Args:
        source: the job with the names and colours of its inputs (`layers.capture`).
        add_to_project: put the layer on the map.
        match_source: show an unstyled source layer in the result's colours too.
        on_finished: called with the layer (None without `add_to_project`) and the metrics.
        on_error: called with the error, also when the run was cancelled.
        command: the worker's command line; None finds the fusion environment.
    """

    def __init__(
        self,
        source: layers.FusedSource,
        add_to_project: bool = True,
        match_source: bool = False,
        on_finished: Optional[OnFinished] = None,
        on_error: Optional[OnError] = None,
        command: Optional[Sequence[str]] = None,
    ) -> None:
        super().__init__(f"HyperSharp: {source.layer_name}", source.job, command)
        self.source = source
        self.layer: Optional[QgsRasterLayer] = None
        self._add_to_project = add_to_project
        self._match_source = match_source
        self._on_finished = on_finished
        self._on_error = on_error

    @property
    def fuse_job(self) -> FuseJob:
        """The job."""
        return self.source.job

    def take_result(self, result: protocol.Result) -> None:
        """Add the layer and call back."""
        if self._add_to_project:
            path = result.outputs.get("OUTPUT", self.source.job.output)
            self.layer = layers.add_fused_layer(self.source, path, result.metrics)
            if self._match_source:
                layers.match_source(self.source)
        if self._on_finished is not None:
            self._on_finished(self.layer, result.metrics)

    def on_failure(self, error: HyperSharpError) -> None:
        """Call back."""
        if self._on_error is not None:
            self._on_error(error)


def _internal(error: Exception) -> HyperSharpError:
    """Return a bug of the plugin's own as an error that can be shown."""
    return HyperSharpError(
        f"internal error: {type(error).__name__}: {error}",
        "please report it with the log panel's lines",
        ErrorCode.INTERNAL,
    )


def alive() -> list[WorkerTask]:
    """Return the tasks that have not finished."""
    return list(_alive)


def abandon_all() -> None:
    """Cancel every task without a word and see that no worker is left."""
    for task in alive():
        task.abandon()
    worker_process.stop_all()
