"""A worker without a backend: speaks the protocol and does what its first argument says. Standard library only."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

cancelled = threading.Event()
ended = threading.Event()


def send(**message):
    """Write one protocol line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def listen():
    """Note the parent's cancel and its end."""
    for line in sys.stdin:
        kind = json.loads(line)["type"]
        if kind == "cancel":
            cancelled.set()
        elif kind == "quit":
            ended.set()
            return
        elif kind == "run":
            job.update(json.loads(Path(json.loads(line)["job"]).read_text()))
            started.set()
    cancelled.set()
    ended.set()


job: dict = {}
started = threading.Event()


def main(how):
    """Play the part `how`."""
    if how == "mute":
        time.sleep(600)
    if how == "no-python":
        print("ImportError: no such thing", file=sys.stderr)
        return 3
    send(type="hello", protocol=99 if how == "future" else 1, versions={"python": "3"}, device="cpu")
    threading.Thread(target=listen, daemon=True).start()
    started.wait(20)
    part = Path(job["output"]).with_suffix("").as_posix() + ".part.tif"
    Path(part).write_bytes(b"half")
    if os.environ.get("PYTHONHOME") or os.environ.get("QGIS_PREFIX_PATH"):
        send(type="error", code="internal", message="QGIS's variables reached the worker")
        return 1
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "dies":
        print("one\ntwo\nthe reason", file=sys.stderr)
        return 7
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        send(type="progress", stage="deaf", done=0, total=1, fraction=0.5)
        while True:
            time.sleep(0.1)
    if how == "noise":
        print("not for the parent")
    if how == "error":
        Path(part).unlink()
        send(
            type="error",
            code="oom",
            message="memory ran out",
            hint="use less",
            retry=True,
            details="Traceback",
        )
        return 0
    for step in range(4 if how in ("ok", "noise") else 4000):
        if cancelled.wait(0.05):
            Path(part).unlink()
            send(type="cancelled")
            return 0
        send(
            type="progress",
            stage="fusing",
            done=step + 1,
            total=4,
            fraction=min(1, (step + 1) / 4),
            eta_s=1.0,
        )
    Path(part).rename(job["output"])
    send(type="log", level="warning", text="a warning")
    send(
        type="result",
        outputs={"OUTPUT": job["output"]},
        metrics={"method": job["method"]},
        warnings=["a warning"],
    )
    ended.wait(10)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
