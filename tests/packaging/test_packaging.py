"""What the plugin site and pip ask of the package."""

import ast
import configparser
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
MANDATORY = (
    "name description version qgisMinimumVersion author email about tracker repository homepage changelog "
    "tags".split()
)


@pytest.fixture(scope="module")
def metadata():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "metadata.txt", encoding="utf-8")
    return parser["general"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The plugin zip, built from the working tree's tracked files."""
    target = tmp_path_factory.mktemp("dist") / "hypersharp.zip"
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "build_zip.py"), str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


def test_metadata_is_complete(metadata):
    for key in MANDATORY:
        assert metadata.get(key, "").strip(), key
    assert metadata["qgisMinimumVersion"] == "3.22" and metadata["qgisMaximumVersion"] == "4.99"
    assert metadata["hasProcessingProvider"] == "yes"
    assert "supportsQt6" not in metadata
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    assert "/" not in metadata["author"] and "<" not in metadata["about"]
    assert (ROOT / metadata["icon"]).is_file()


def test_one_version(metadata):
    from hypersharp.backend._version import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["version"] == __version__ == project["version"]
    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_users_are_told_of_every_package_that_is_needed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.match(r"[\w-]+", line).group().lower() for line in project["dependencies"]}
    source = ast.parse((ROOT / "plugin" / "environment.py").read_text(encoding="utf-8"))
    named = {
        node.targets[0].id: {c.value.lower() for c in ast.walk(node.value) if isinstance(c, ast.Constant)}
        for node in source.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("REQUIRED_PACKAGES", "PACKAGES")
    }
    assert named["REQUIRED_PACKAGES"] | named["PACKAGES"] == wanted
    page = (ROOT / "resources" / "help" / "index.html").read_text(encoding="utf-8").lower()
    command = page.partition("-m pip install ")[2].partition("</code>")[0].replace("\\", " ")
    assert set(command.split()) == wanted
    from hypersharp.backend.doctor import REQUIRED_PACKAGES

    assert {name.lower() for name in REQUIRED_PACKAGES} == wanted


def test_every_package_is_listed():
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    )
    found = {
        ".".join(["hypersharp", *path.parent.relative_to(ROOT).parts])
        for folder in ("backend", "plugin", "ui")
        for path in (ROOT / folder).rglob("__init__.py")
    } | {"hypersharp"}
    assert listed == found


def test_top_level_is_the_agreed_one():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert top <= set(
        "metadata.txt __init__.py __main__.py plugin ui backend resources tests Makefile README.md LICENSE "
        "CHANGELOG.md pyproject.toml .ci docs .gitignore .gitattributes".split()
    )
    size = sum(
        (ROOT / line).stat().st_size for line in tracked.stdout.splitlines() if (ROOT / line).is_file()
    )
    assert size < 40 * 2**20


def test_the_zip_is_what_the_site_accepts(package):
    assert package.stat().st_size <= 25_000_000
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"hypersharp"}
    for needed in (
        "metadata.txt",
        "__init__.py",
        "LICENSE",
        "backend/cli.py",
        "plugin/main.py",
        "ui/fusion_dialog.py",
    ):
        assert f"hypersharp/{needed}" in names
    for name in names:
        assert not re.search(
            r"\.pyc$|__pycache__|\.git/|__MACOSX|\.\.|\\|\.(sh|bat|so|dll|exe|ps1|cmd)$", name
        ), name
        assert not name.startswith(("hypersharp/tests/", "hypersharp/docs/", "hypersharp/.ci/")), name


def test_the_site_scan_is_clean(package, tmp_path):
    """Bandit with the site's rules and detect-secrets, on the unpacked zip, without any configuration file."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "bandit", "-q", "-r", str(tmp_path), "-s", "B404", "-f", "txt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    scan = subprocess.run(
        [sys.executable, "-m", "detect_secrets", "scan", "--all-files", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert scan.returncode == 0, scan.stderr
    import json

    assert json.loads(scan.stdout)["results"] == {}


def test_the_unpacked_zip_runs(package, tmp_path):
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "hypersharp"), "methods"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "gsa" in done.stdout, done.stderr


def test_qt_rules_of_qgis_4():
    """Fully qualified enums, no direct PyQt, no removed names."""
    old = re.compile(
        r"PyQt[56]\b|\.exec_\(|\bqApp\b|QRegExp\b|QDesktopWidget|supportsQt6|resources_rc|QtWebKit|"
        r"\bQt\.(AlignLeft|AlignRight|AlignCenter|UserRole|Horizontal|Vertical|Checked|Unchecked|WaitCursor)\b|"
        r"\bQgis\.(Info|Warning|Critical|Success)\b|\bQgsTask\.CanCancel\b|QMessageBox\.(Yes|No|Ok|Cancel)\b|"
        r"QgsProcessingParameterNumber\.(Integer|Double)\b|QgsProcessingParameterDefinition\.FlagAdvanced\b"
    )
    for path in [*(ROOT / "plugin").rglob("*.py"), *(ROOT / "ui").rglob("*.py")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not old.search(line), f"{path.name}:{number}: {line.strip()}"
