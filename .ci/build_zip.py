#!/usr/bin/env python3
"""Builds the plugin zip from the tracked files as they are in the working tree: build_zip.py TARGET.zip."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("tests/", "docs/", ".ci/", ".git", "Makefile", "pyproject.toml")


def main(target: str) -> int:
    """Write the zip: one top folder, plain files without execute bits."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = sorted(n for n in listing.stdout.decode().split("\0") if n and not n.startswith(LEFT_OUT))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            if (ROOT / name).is_file():
                info = zipfile.ZipInfo(f"hypersharp/{name}", (2026, 1, 1, 0, 0, 0))
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(info, (ROOT / name).read_bytes())
    print(f"{target}: {Path(target).stat().st_size / 1e6:.1f} MB, {len(names)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "dist" / "hypersharp.zip")))
