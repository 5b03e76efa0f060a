# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports a checkout of any folder name under the one stable package name. Standard library only."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "hypersharp"


def load_package(root: Path | str, name: str = PACKAGE) -> ModuleType:
    """Return the folder `root` imported as package `name`, without touching the file system."""
    root = Path(root).resolve()
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    found = importlib.util.find_spec(name)
    if found is not None and found.origin and Path(found.origin).resolve().parent == root:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(
        name, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{root} holds no package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    # The root on sys.path would expose `backend`, `plugin` and `ui` as top-level names.
    sys.path[:] = [p for p in sys.path if not p or Path(p).resolve() != root]
    return module
