"""Makes `import hypersharp` mean this checkout, whatever its folder is called, and finds the real data."""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("_hypersharp_bootstrap", ROOT / "backend" / "_bootstrap.py")
_bootstrap = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_bootstrap)
_bootstrap.load_package(ROOT)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported


@pytest.fixture(scope="session", autouse=True)
def own_cache():
    """Keep the tests' priors, those of the worker processes included, out of the user's cache."""
    with tempfile.TemporaryDirectory(prefix="hypersharp-cache-") as folder:
        before = os.environ.get("HYPERSHARP_CACHE")
        os.environ["HYPERSHARP_CACHE"] = folder
        yield Path(folder)
        if before is None:
            del os.environ["HYPERSHARP_CACHE"]
        else:
            os.environ["HYPERSHARP_CACHE"] = before


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real sensor data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("HYPERSHARP_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "pairs").is_dir():
        pytest.skip("no real sensor data: ../shared/data is absent and HYPERSHARP_DATA is not set")
    return folder


def pytest_collection_modifyitems(items):
    """Skip GPU tests, with the reason, where there is no CUDA device."""
    if not any("gpu" in item.keywords for item in items):
        return
    try:
        import torch

        reason = None if torch.cuda.is_available() else "no CUDA device on this machine"
    except ImportError:
        reason = "torch is not installed here"
    if reason:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
