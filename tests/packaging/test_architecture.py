"""The storeys' import rules, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = {
    "errors",
    "job",
    "protocol",
    "registry",
    "sensors",
    "estimate",
    "weights",
    "product_metadata",
    "_version",
}
FORBIDDEN_IN_BACKEND = {"qgis", "PyQt5", "PyQt6", "osgeo"}
FORBIDDEN_IN_QGIS = {
    "torch",
    "rasterio",
    "diffusers",
    "numpy",
    "scipy",
    "matplotlib",
    "PyQt5",
    "PyQt6",
    "jinja2",
}


def sources(*folders):
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    """Yield (absolute module, line) of every import in a file, relative ones resolved below hypersharp."""
    package = ("hypersharp", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


@pytest.mark.parametrize("path", sources("backend"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_backend_knows_nothing_of_qgis(path):
    for module, line in imports(path):
        first = module.split(".")[0]
        assert first not in FORBIDDEN_IN_BACKEND, f"{path.name}:{line} imports {module}"
        assert not module.startswith(("hypersharp.plugin", "hypersharp.ui")), (
            f"{path.name}:{line} imports {module}"
        )


@pytest.mark.parametrize(
    "path", [ROOT / "__init__.py", *sources("plugin", "ui")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_qgis_side_uses_only_contract_modules(path):
    for module, line in imports(path):
        parts = module.split(".")
        assert parts[0] not in FORBIDDEN_IN_QGIS, f"{path.name}:{line} imports {module}"
        if module.startswith("hypersharp.backend"):
            assert len(parts) > 2 and parts[2] in CONTRACT, f"{path.name}:{line} imports {module}"
        if path.is_relative_to(ROOT / "plugin"):
            in_function = module.startswith("hypersharp.ui") and path.name != "main.py"
            assert not in_function, f"{path.name}:{line} imports {module}: only main.py may know ui"


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_contract_modules_are_standard_library_only(name):
    import sys

    path = ROOT / "backend" / f"{name}.py"
    for module, line in imports(path):
        first = module.split(".")[0]
        own = module.startswith("hypersharp.backend.") and module.split(".")[2] in CONTRACT
        assert own or first in sys.stdlib_module_names, f"{name}.py:{line} imports {module}"


@pytest.mark.parametrize(
    "path", [*sources("plugin", "ui"), *(ROOT / "backend" / f"{n}.py" for n in CONTRACT)], ids=str
)
def test_qgis_side_is_python_39_syntax(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    assert (
        "from __future__ import annotations" in path.read_text(encoding="utf-8")
        or path.name == "_version.py"
        or (path.name == "__init__.py")
    )


def test_only_one_file_knows_mamba():
    for path in sources("backend"):
        if path.name != "selective_scan.py":
            assert not any(m.split(".")[0] == "mamba_ssm" for m, _ in imports(path)), path


def test_importing_the_backend_is_free():
    """`import hypersharp.backend` and the contract modules load neither torch nor numpy."""
    import subprocess
    import sys

    code = (
        "import sys; from hypersharp.backend import errors, job, protocol, registry, sensors, estimate;"
        "print([m for m in ('torch', 'numpy', 'rasterio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True
    )
    assert done.stdout.strip() == "[]"
