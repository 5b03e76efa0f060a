#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Renders the demo's reports to the pictures in docs/examples/ (after `make demo`; needs Debian's chromium).

Run with the backend's Python: .venv/bin/python .ci/report_pictures.py
The comparison's report is there after: hypersharp compare PARIS_HS PARIS_PAN -o demo/compare
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
WIDTH, LONGEST = 1240, 10000
DARK_PART = 2000  # the dark page differs in its colours only: its upper part shows them
REPORTS = (
    ("demo/report.html", "report-sample.png", "light"),
    ("demo/paris/report.html", "report-paris.png", "light"),
    ("demo/paris/report.html", "report-paris-dark.png", "dark"),
    ("demo/compare/compare.html", "compare-paris.png", "light"),
)
QUICKLOOKS = (
    ("demo/quicklook.png", "quicklook-sample.png"),
    ("demo/paris/quicklook.png", "quicklook-paris.png"),
)


def fewer_colours(image):
    """Return a picture in steps of 8 of 256 a colour: half the size, no difference that an eye sees."""
    return image.point([min(255, (v + 4) // 8 * 8) for v in range(256)] * 3)


def render(page, picture, scheme):
    """Render a page at full length, cut to its content."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: no chromium: apt-get install --no-install-recommends chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--user-data-dir={folder}", f"--window-size={WIDTH},{LONGEST}", f"--screenshot={shot}",
            # 0 is dark, 1 is light
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=True)
        image = Image.open(shot).convert("RGB")
    ground = Image.new("RGB", image.size, image.getpixel((2, image.height - 3)))
    bottom = ImageChops.difference(image, ground).getbbox()[3]
    longest = DARK_PART if scheme == "dark" else image.height
    image = image.crop((0, 0, image.width, min(longest, bottom + 30)))
    fewer_colours(image).save(picture, optimize=True)
    print(
        f"{picture.relative_to(ROOT)}: {image.width} x {image.height}, {picture.stat().st_size // 1024} KiB"
    )


def main():
    """Render every report that the demo has made."""
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    for page, name, scheme in REPORTS:
        if (ROOT / page).is_file():
            render(ROOT / page, EXAMPLES / name, scheme)
    for source, name in QUICKLOOKS:
        if (ROOT / source).is_file():
            Image.open(ROOT / source).convert("RGB").save(EXAMPLES / name, optimize=True)
            print(f"docs/examples/{name}")


if __name__ == "__main__":
    main()
