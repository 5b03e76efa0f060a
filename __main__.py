# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m hypersharp`, and `python <this folder>` without any installation."""

import sys

if not __package__:  # `python <folder>`: no parent package, whatever the folder is called
    import importlib.util
    from pathlib import Path

    _root = Path(__file__).resolve().parent
    _spec = importlib.util.spec_from_file_location(
        "_hypersharp_bootstrap", _root / "backend" / "_bootstrap.py"
    )
    _bootstrap = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_bootstrap)
    _bootstrap.load_package(_root)

from hypersharp.backend.cli import main

if __name__ == "__main__":
    sys.exit(main())
