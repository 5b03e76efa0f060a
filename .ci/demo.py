#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make demo` runs: a sample pair is fused through QGIS and judged; everything lands in demo/.

Environment: HS and GUIDE (the user's own files), METHOD (default lmmse), HYPERSHARP_DATA (real sensor data).
Standard library only; the parts that need the backend run in its own environment (.venv).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
WINDOWS = os.name == "nt"
BACKEND_PYTHON = ROOT / ".venv" / ("Scripts/python.exe" if WINDOWS else "bin/python")
PLUGIN = "hypersharp"
QGIS_RUN_LIMIT_S = 1800
ENABLED = set()

SAMPLE = """
import sys
from hypersharp.backend.simulation import simulate, write_scene
scene = write_scene(sys.argv[1] + "/scene.tif", 384, 384)
for guide, name in (("pan", "sample-pan"), ("4", "sample-msi")):
    simulate(scene, sys.argv[1] + "/" + name, guide=guide)
"""
JUDGE = """
import json, sys
from hypersharp.backend.report import quicklook, summary_table, verdict
fused, hs, guide, metrics, picture, title = sys.argv[1:7]
found = json.load(open(metrics, encoding="utf-8"))
quicklook(fused, hs, guide, picture, title=title, method=found.get("method", ""))
print(summary_table(found))
print()
print(verdict(found))
for text in found.get("warnings", []):
    print("warning:", text)
"""


class DemoError(Exception):
    """Something is missing or went wrong; the message says what to do."""


def qgis_process():
    """Return QGIS's headless runner; Debian 12's wrapper script fails, the binary behind it works."""
    for name in ("qgis_process.bin", "qgis_process", "qgis_process-qgis", "qgis_process-qgis-ltr"):
        found = shutil.which(name)
        if found:
            return found
    raise DemoError("qgis_process was not found: install QGIS (make env-qgis)")


def qgis_environment(settings):
    """Return the environment of a QGIS of the demo's own: no display, its own profile with the plugin in it."""
    plugins = settings / "profiles" / "default" / "python" / "plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    link = plugins / PLUGIN
    if link.is_symlink() and link.resolve() != ROOT:
        link.unlink()
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    environment = dict(os.environ)
    environment.update(
        QT_QPA_PLATFORM="offscreen",
        QGIS_CUSTOM_CONFIG_PATH=str(settings),
        HYPERSHARP_PYTHON=environment.get("HYPERSHARP_PYTHON") or str(BACKEND_PYTHON),
    )
    if not WINDOWS and not environment.get("XDG_RUNTIME_DIR"):
        runtime = settings / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        environment["XDG_RUNTIME_DIR"] = str(runtime)
    # QGIS's own Python takes its library from the first python3 on the path: that must be the one beside QGIS.
    environment["PATH"] = os.pathsep.join([str(Path(qgis_process()).parent), environment.get("PATH", "")])
    # A virtual environment's variables would send QGIS's own Python astray.
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    return environment


def call(command, log, environment=None, limit=QGIS_RUN_LIMIT_S):
    """Run a command with its output in a log file; return its exit code."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(
            "$ " + " ".join(Path(command[0]).name if i == 0 else c for i, c in enumerate(command)) + "\n"
        )
        file.flush()
        return subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            timeout=limit,
            check=False,
        ).returncode


def tail(log, lines=25):
    """Return a log's last lines."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def backend(code, *arguments):
    """Run a piece of Python in the backend's environment."""
    if not BACKEND_PYTHON.exists():
        raise DemoError("the backend's environment is missing: run make env")
    done = subprocess.run(
        [str(BACKEND_PYTHON), "-I", "-c", code, *map(str, arguments)], cwd=ROOT, check=False
    )
    if done.returncode:
        raise DemoError("the backend failed; see the message above")


def fuse_through_qgis(hs, guide, method, folder, title):
    """Fuse a pair by `hypersharp:fuse` of QGIS, then judge it; leave everything in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {
        "OUTPUT": folder / "fused.tif",
        "REPORT": folder / "report.html",
        "METRICS": folder / "metrics.json",
    }
    picture = folder / "quicklook.png"
    log = folder / "qgis.log"
    for path in (*outputs.values(), picture, log):
        path.unlink(missing_ok=True)
    runner, environment = qgis_process(), qgis_environment(DEMO / ".qgis")
    started = time.monotonic()
    if PLUGIN not in ENABLED:
        call([runner, "plugins", "enable", PLUGIN], log, environment)
        ENABLED.add(PLUGIN)
    parameters = {"SPECTRAL": hs, "GUIDE": guide, "METHOD": method, **outputs}
    command = [runner, "run", f"{PLUGIN}:fuse", *(f"--{key}={value}" for key, value in parameters.items())]
    code = call(command, log, environment)
    # QGIS 3.22 can report success for an algorithm that failed: only the files count.
    missing = [path.name for path in outputs.values() if not path.is_file()]
    if missing:
        raise DemoError(f"QGIS did not write {', '.join(missing)} (exit code {code}):\n{tail(log)}")
    print(f"\n== {title}: fused through QGIS with {method} in {time.monotonic() - started:.0f} s ==\n")
    backend(JUDGE, outputs["OUTPUT"], hs, guide, outputs["METRICS"], picture, title)
    seconds = json.loads(outputs["METRICS"].read_text(encoding="utf-8")).get("seconds")
    print(f"\nfusion itself: {seconds} s")
    for path in (*outputs.values(), picture):
        print(f"  {path.relative_to(ROOT)}")


def sample_is_fresh():
    """Return whether the sample pairs of an earlier run are as today's code would make them."""
    code = [
        *(ROOT / "backend" / "simulation").glob("*.py"),
        ROOT / "backend" / "degradation.py",
        Path(__file__),
    ]
    made = [
        DEMO / f / n for f in ("sample-pan", "sample-msi") for n in ("hs.tif", "guide.tif", "reference.tif")
    ]
    if not all(path.is_file() for path in made):
        return False
    return min(path.stat().st_mtime for path in made) > max(path.stat().st_mtime for path in code)


def data_folder():
    """Return the folder of real sensor data, or None."""
    folder = Path(os.environ.get("HYPERSHARP_DATA") or ROOT.parent / "shared" / "data")
    return folder if (folder / "pairs").is_dir() else None


def main():
    """Make the demo; return an exit code."""
    hs, guide, method = (os.environ.get(name, "").strip() for name in ("HS", "GUIDE", "METHOD"))
    method = method or "lmmse"
    if bool(hs) != bool(guide):
        raise DemoError("give both HS=... and GUIDE=..., or neither")
    if hs:
        paths = [Path(p).expanduser().resolve() for p in (hs, guide)]
        for path in paths:
            if not path.exists():
                raise DemoError(f"no such file: {path}")
        fuse_through_qgis(*paths, method, DEMO, f"{paths[0].stem} + {paths[1].stem}")
        return 0
    DEMO.mkdir(exist_ok=True)
    if not sample_is_fresh():
        print("making the sample scene (simulated, nothing is downloaded) ...", flush=True)
        backend(SAMPLE, DEMO)
    sample = DEMO / "sample-pan"
    fuse_through_qgis(
        sample / "hs.tif", sample / "guide.tif", method, DEMO, "Simulated sample: HS 16 m + PAN 4 m"
    )
    data = data_folder()
    if data is None:
        print("\nno real sensor data here (HYPERSHARP_DATA is not set): only the sample was fused")
        return 0
    pairs = data / "pairs"
    fuse_through_qgis(
        pairs / "paris_hyperion_hs_30m.tif",
        pairs / "paris_ali_pan_10m.tif",
        method,
        DEMO / "paris",
        "Paris: EO-1 Hyperion 30 m + ALI PAN 10 m",
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except subprocess.TimeoutExpired as error:
        print(f"error: QGIS did not finish within {error.timeout:.0f} s", file=sys.stderr)
        sys.exit(1)
