# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker: runs jobs that a parent sends on stdin and answers on stdout, by the lines of `protocol`.

Stdout belongs to the protocol alone: it is duplicated first and file descriptor 1 is pointed at stderr, so that
no stray print, of Python or of a C library, can break a line. A closed stdin means that the parent died.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from importlib import metadata
from typing import Any, BinaryIO, Optional

from . import protocol
from .errors import EXIT_CANCELLED, EXIT_DONE, Cancelled, ErrorCode, HyperSharpError, package_error
from .job import load_job

log = logging.getLogger(__name__)

ORPHAN_GRACE_S = 20.0
"""How long a job may take to notice that its parent died before the worker ends itself the hard way."""
_REPORTED_PACKAGES = ("torch", "numpy", "rasterio", "scipy")
_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory")


class Channel:
    """The worker's end of the pipe: lines out under a lock, the parent's lines in on a thread of their own."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._lock = threading.Lock()
        self.jobs: queue.Queue[Optional[str]] = queue.Queue()
        """Paths of job files; None ends the worker."""
        self.cancelled = threading.Event()
        self.orphaned = threading.Event()

    def send(self, message: Any) -> None:
        """Write one message; a parent that no longer listens cancels the job."""
        line = (protocol.encode(message) + "\n").encode("utf-8")
        try:
            with self._lock:
                self._outgoing.write(line)
                self._outgoing.flush()
        except (OSError, ValueError):
            self.cancelled.set()

    def listen(self) -> None:
        """Read the parent's messages until it quits or dies (runs on the reader thread)."""
        for line in self._incoming:
            message = protocol.decode(line.decode("utf-8", "replace"))
            if isinstance(message, protocol.Run):
                self.jobs.put(message.job)
            elif isinstance(message, protocol.Cancel):
                self.cancelled.set()
            elif isinstance(message, protocol.Quit):
                self.jobs.put(None)
                return
        self.orphaned.set()
        self.cancelled.set()
        self.jobs.put(None)
        # Daemon thread: this line is reached only when the job does not come back from a long kernel.
        time.sleep(ORPHAN_GRACE_S)
        os._exit(EXIT_CANCELLED)


def _open_channel() -> Channel:
    """Keep stdout for the protocol and send whatever else is printed to stderr."""
    sys.stdout.flush()
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return Channel(sys.stdin.buffer, outgoing)


def _visible_device() -> str:
    """Return "cuda" when torch can use CUDA and the driver shows a device, without importing torch."""
    try:
        if "+cpu" in metadata.version("torch"):
            return "cpu"
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError, metadata.PackageNotFoundError):
        return "cpu"
    return "cuda" if found and count.value > 0 else "cpu"


def _hello() -> protocol.Hello:
    versions = {"python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return protocol.Hello(protocol.PROTOCOL_VERSION, versions, _visible_device())


def _is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception is memory running out, whichever library raised it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _OUT_OF_MEMORY_WORDS)


def _error_message(error: BaseException) -> protocol.ErrorMessage:
    """Return the message for an exception; tracebacks go into the details, never into the message."""
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if isinstance(error, HyperSharpError):
        return protocol.ErrorMessage(error.code.value, error.message, error.hint, error.retry)
    if _is_out_of_memory(error):
        return protocol.ErrorMessage(
            ErrorCode.OUT_OF_MEMORY.value,
            "memory ran out",
            "lower the memory bound or the tile size, close other programs, or use the CPU",
            True,
            details,
        )
    told = package_error(error) if isinstance(error, ImportError) else None
    if told is not None:
        return protocol.ErrorMessage(told.code.value, told.message, told.hint, False, details)
    return protocol.ErrorMessage(
        ErrorCode.INTERNAL.value,
        f"internal error: {type(error).__name__}",
        "please report it with the details in the log",
        False,
        details,
    )


def _run(channel: Channel, job_path: str) -> None:
    """Run one job and answer it with exactly one of result, cancelled, error."""
    try:
        job = load_job(job_path)
        if channel.cancelled.is_set():
            raise Cancelled
        from .control import Control  # torch and rasterio load behind these two
        from .run import run_job

        answer: Any = run_job(job, Control(channel.send, channel.cancelled.is_set))
        protocol.encode(answer)  # a result that is no JSON is our bug, to be told as one
    except Cancelled:
        answer = protocol.CancelledMessage()
    except Exception as error:
        answer = _error_message(error)
    channel.send(answer)


def _stop_by_signal(_number: int, _frame: Any) -> None:
    """Unwind the job, so that it removes what it has begun to write."""
    raise Cancelled("stopped by a signal")


def main() -> int:
    """Serve jobs until the parent quits or dies; return the exit code."""
    channel = _open_channel()
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    threading.Thread(target=channel.listen, name="hypersharp-stdin", daemon=True).start()
    try:
        signal.signal(signal.SIGTERM, _stop_by_signal)
        signal.signal(signal.SIGINT, _stop_by_signal)
        channel.send(_hello())
        while True:
            job_path = channel.jobs.get()
            if job_path is None:
                break
            _run(channel, job_path)
            if not channel.orphaned.is_set():
                channel.cancelled.clear()  # a cancel ends its own job only
    except Cancelled:
        return EXIT_CANCELLED
    return EXIT_CANCELLED if channel.orphaned.is_set() else EXIT_DONE
