# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way from QGIS to the backend: a worker process for each job, spoken to by the lines of `protocol`.

`run_job` blocks and belongs on a thread (a task's or an algorithm's). Whatever happens to the worker, crash, kill
or hang, comes back as an error that people can read, and QGIS lives on.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess  # nosec B404 # starts the user's own interpreter, never a shell
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from ..backend import protocol
from ..backend.errors import Cancelled, ErrorCode, HyperSharpError
from ..backend.job import (
    MAP_NAMES,
    TRAIN_STATE,
    AssessJob,
    CompareJob,
    FuseJob,
    Job,
    SimulateJob,
    TrainJob,
    save_job,
)
from . import environment, log

POLL_S = 0.05
HELLO_TIMEOUT_S = 60.0
CANCEL_GRACE_S = 5.0
TERMINATE_GRACE_S = 2.0
STDERR_LINES = 200
_CRASH_LINES_SHOWN = 3

MessageHandler = Callable[[Any], None]

_WINDOWS_CRASHES = {
    0xC0000005: "access violation",
    0xC00000FD: "stack overflow",
    0xC0000135: "a DLL is missing",
    0xC0000409: "stack buffer overrun",
    0xC0000017: "memory ran out",
}

_running: set[Worker] = set()
_running_lock = threading.Lock()


class Worker:
    """One worker process with its pump threads."""

    def __init__(self, command: Sequence[str], folder: str) -> None:
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = environment.hidden_window_flags() | subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options["start_new_session"] = True  # a process group of its own, to be ended as one
        self._process = subprocess.Popen(  # nosec B603 # a list, no shell; the interpreter is the user's own
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment.child_environment(),
            **options,
        )
        self._send_lock = threading.Lock()
        self.stopping = threading.Event()
        """Set from outside (unload, QGIS's exit) to cancel the job, as its user would."""
        self.messages: queue.Queue[Any] = queue.Queue()
        """What the worker says, decoded; None at its end."""
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._pumps = [
            threading.Thread(target=pump, name="hypersharp-worker-pipe", daemon=True)
            for pump in (self._pump_stdout, self._pump_stderr)
        ]
        for thread in self._pumps:
            thread.start()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def _pump_stdout(self) -> None:
        for line in self._process.stdout or ():
            text = line.decode("utf-8", "replace").rstrip()
            message = protocol.decode(text)
            if message is not None:
                self.messages.put(message)
            elif text:
                self._stderr.append(text)
        self.messages.put(None)

    def _pump_stderr(self) -> None:
        for line in self._process.stderr or ():
            self._stderr.append(line.decode("utf-8", "replace").rstrip())

    def send(self, message: Any) -> None:
        """Write one message; a worker that is gone is noticed where its end is read."""
        with contextlib.suppress(OSError, ValueError), self._send_lock:
            self._process.stdin.write((protocol.encode(message) + "\n").encode("utf-8"))
            self._process.stdin.flush()

    def terminate(self) -> None:
        """Ask the process group to end."""
        self._signal("SIGTERM", [])

    def kill(self) -> None:
        """End the process group now."""
        self._signal("SIGKILL", ["/F"])

    def _signal(self, name: str, taskkill_options: list[str]) -> None:
        if self._process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                root = os.environ.get("SYSTEMROOT", r"C:\Windows")
                subprocess.run(  # nosec B603 # fixed program, no shell
                    [rf"{root}\System32\taskkill.exe", "/T", *taskkill_options, "/PID", str(self.pid)],
                    capture_output=True,
                    creationflags=environment.hidden_window_flags(),
                    check=False,
                )
            else:
                os.killpg(self.pid, getattr(signal, name))

    def exited(self) -> bool:
        """Say whether the process has ended."""
        return self._process.poll() is not None

    def close(self) -> Optional[int]:
        """End the process, by force if need be, free its pipes, and return its exit code."""
        self.send(protocol.Quit())
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for patience, force in ((CANCEL_GRACE_S, self.terminate), (TERMINATE_GRACE_S, self.kill)):
            try:
                self._process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                force()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(TERMINATE_GRACE_S)
        for thread in self._pumps:
            thread.join(TERMINATE_GRACE_S)
        for pipe in (self._process.stdout, self._process.stderr):
            if not any(thread.is_alive() for thread in self._pumps):
                pipe.close()
        return self._process.returncode

    def last_words(self) -> list[str]:
        """Return the last lines that the worker wrote outside the protocol."""
        return [line for line in self._stderr if line.strip()]


def partial_paths(job: Job) -> list[Path]:
    """Return what a job may be writing under a name of its own until it is whole."""
    if isinstance(job, (FuseJob, AssessJob)):
        parts = [Path(job.maps) / f"{name}.part.tif" for name in MAP_NAMES] if job.maps else []
        if isinstance(job, FuseJob):
            target = Path(job.output)
            parts.append(target.with_name(f"{target.stem}.part.tif"))
        return parts
    if isinstance(job, SimulateJob):
        return [Path(job.folder) / f"{stem}.part.tif" for stem in ("hs", "guide", "reference")]
    if isinstance(job, CompareJob):
        return sorted(Path(job.folder).rglob("fused.part.tif"))
    if isinstance(job, TrainJob):
        folder = Path(job.output)
        return [*sorted(folder.rglob("model.safetensors.part")), (folder / TRAIN_STATE).with_suffix(".part")]
    return []


def running() -> int:
    """Return how many workers are at work."""
    with _running_lock:
        return len(_running)


def stop_all(timeout_s: float = CANCEL_GRACE_S) -> None:
    """Cancel every running job and wait for the workers to end; what has not ended by then is killed."""
    with _running_lock:
        workers = list(_running)
    for worker in workers:
        worker.stopping.set()
        worker.send(protocol.Cancel())
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and not all(worker.exited() for worker in workers):
        time.sleep(POLL_S)
    for worker in workers:
        worker.kill()


def run_job(
    job: Job,
    on_message: Optional[MessageHandler] = None,
    is_cancelled: Optional[Callable[[], bool]] = None,
    *,
    command: Optional[Sequence[str]] = None,
    hello_timeout_s: float = HELLO_TIMEOUT_S,
    cancel_grace_s: float = CANCEL_GRACE_S,
    terminate_grace_s: float = TERMINATE_GRACE_S,
) -> protocol.Result:
    """Run a job in a worker process and return its result. Blocks: call it on a thread.

    Args:
        job: what to do; its paths must be absolute.
        on_message: called on this thread with each `protocol.Hello`, `Progress`, `Log` and `Memory`.
        is_cancelled: asked every 50 ms; when true, the worker is told to cancel and, if it does not, killed.
        command: the worker's command line; None finds the fusion environment.
        hello_timeout_s: how long the worker may take to start, in seconds.
        cancel_grace_s: from the cancel message to termination, in seconds.
        terminate_grace_s: from termination to the kill, in seconds.

    Raises:
        Cancelled: the job was cancelled; nothing was written.
        HyperSharpError: the worker's own error; code `no_environment` when no worker can be started; code
            `crashed` when it ended without an answer.
    """
    say = on_message or (lambda _message: None)
    cancelled = is_cancelled or (lambda: False)
    if cancelled():
        raise Cancelled
    worker_command = list(command) if command is not None else environment.worker_command()
    folder = tempfile.mkdtemp(prefix="hypersharp-")
    try:
        job_file = Path(folder) / "job.json"
        save_job(job, job_file)
        worker = _start(worker_command, folder)
        watch = _Watch(worker, cancelled, cancel_grace_s, terminate_grace_s)
        answer = None
        try:
            _await_hello(worker, watch, say, hello_timeout_s)
            worker.send(protocol.Run(str(job_file)))
            answer = _await_answer(worker, watch, say)
        finally:
            if answer is None:
                worker.kill()
            code = worker.close()
            if answer is None:
                _remove_partial(job)
            with _running_lock:
                _running.discard(worker)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if answer is None:
        raise Cancelled if watch.asked else _crash(code, worker.last_words())
    return _result_of(answer, say)


def _start(command: Sequence[str], folder: str) -> Worker:
    """Start the worker and enter it among the running ones.

    Raises:
        HyperSharpError: code `no_environment`: the operating system cannot start it.
    """
    try:
        worker = Worker(command, folder)
    except OSError as error:
        raise HyperSharpError(
            f"cannot start the fusion worker: {error.strerror or error}",
            "check the interpreter in the setting hypersharp/python",
            ErrorCode.NO_ENVIRONMENT,
        ) from error
    with _running_lock:
        _running.add(worker)
    return worker


class _Watch:
    """Turns the wish to cancel into ever stronger means: message, terminate, kill."""

    def __init__(
        self, worker: Worker, cancelled: Callable[[], bool], cancel_grace_s: float, terminate_grace_s: float
    ) -> None:
        self._worker = worker
        self._cancelled = cancelled
        self._steps = [
            (0.0, lambda: worker.send(protocol.Cancel())),
            (cancel_grace_s, worker.terminate),
            (cancel_grace_s + terminate_grace_s, worker.kill),
        ]
        self._since: Optional[float] = None

    @property
    def asked(self) -> bool:
        """Whether the job's end was asked for."""
        return self._since is not None

    def look(self) -> None:
        """Do the next step when its time has come."""
        if self._since is None:
            if not (self._worker.stopping.is_set() or self._cancelled()):
                return
            self._since = time.monotonic()
        while self._steps and time.monotonic() - self._since >= self._steps[0][0]:
            self._steps.pop(0)[1]()


def _next(worker: Worker, watch: _Watch, deadline: Optional[float] = None) -> Any:
    """Return the worker's next message, None at its end.

    Raises:
        TimeoutError: the deadline passed.
    """
    while True:
        watch.look()
        try:
            return worker.messages.get(timeout=POLL_S)
        except queue.Empty:
            if deadline is not None and time.monotonic() > deadline and not watch.asked:
                raise TimeoutError from None


def _await_hello(worker: Worker, watch: _Watch, say: MessageHandler, timeout_s: float) -> None:
    """Wait for the worker's first message.

    Raises:
        HyperSharpError: no hello in time, or another protocol.
    """
    try:
        message = _next(worker, watch, time.monotonic() + timeout_s)
    except TimeoutError:
        raise HyperSharpError(
            f"the fusion worker did not start within {timeout_s:g} s",
            "try again; if it stays so, check the fusion environment (hypersharp doctor)",
            ErrorCode.NO_ENVIRONMENT,
            retry=True,
        ) from None
    if isinstance(message, protocol.Hello):
        if message.protocol != protocol.PROTOCOL_VERSION:
            raise HyperSharpError(
                f"the fusion worker speaks protocol {message.protocol}, the plugin {protocol.PROTOCOL_VERSION}",
                "install the same version of both",
                ErrorCode.NO_ENVIRONMENT,
            )
        say(message)
    else:
        worker.messages.put(message)  # its end, or an error: told where answers are read


def _await_answer(worker: Worker, watch: _Watch, say: MessageHandler) -> Any:
    """Return the answer, a Result, CancelledMessage or ErrorMessage; None when the worker ended without."""
    while True:
        message = _next(worker, watch)
        if message is None or isinstance(
            message, (protocol.Result, protocol.CancelledMessage, protocol.ErrorMessage)
        ):
            return message
        say(message)


def _result_of(answer: Any, say: MessageHandler) -> protocol.Result:
    """Return the result, or raise what the worker answered instead."""
    if isinstance(answer, protocol.Result):
        return answer
    if isinstance(answer, protocol.CancelledMessage):
        raise Cancelled
    if answer.details:
        say(protocol.Log("debug", answer.details))
    try:
        code = ErrorCode(answer.code)
    except ValueError:
        code = ErrorCode.INTERNAL
    raise HyperSharpError(answer.message, answer.hint, code, answer.retry)


def _remove_partial(job: Job) -> None:
    """Remove what a worker left that could not clean up behind itself."""
    for path in partial_paths(job):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.write(f"cannot remove {path}: {error}", "warning")


def _crash(code: Optional[int], last_words: list[str]) -> HyperSharpError:
    """Return the error for a worker that ended without an answer."""
    hint = "the details are in the log"
    if code is None:
        what = "it does not end"
    elif code in (-9, 137):
        what = "it was killed, probably because memory ran out"
        hint = "lower the memory bound or close other programs"
    elif code < 0 and sys.platform != "win32":
        try:
            what = f"signal {signal.Signals(-code).name}"
        except ValueError:
            what = f"signal {-code}"
    elif (code & 0xFFFFFFFF) in _WINDOWS_CRASHES:
        what = _WINDOWS_CRASHES[code & 0xFFFFFFFF]
    else:
        what = f"exit code {code}"
    fatal = [
        line for line in last_words if line.startswith("Fatal Python error")
    ]  # faulthandler's first line
    shown = " | ".join(line.strip() for line in fatal or last_words[-_CRASH_LINES_SHOWN:])
    if last_words:
        log.write("the worker's last lines:\n" + "\n".join(last_words), "error")
    return HyperSharpError(
        f"the fusion worker ended unexpectedly: {what}" + (f" ({shown})" if shown else ""),
        hint,
        ErrorCode.CRASHED,
        retry=True,
    )
