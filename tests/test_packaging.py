"""The wheel holds what the checkout holds; see docs/adr/0001-packaging.md."""

import doctest
import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]
MAPPING = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}
LINKS = {ROOT / name.replace(".", "/") for name in MAPPING if "." in name}  # `make links`


def folder_of(package: str) -> Path:
    """Return the folder of a package: the longest mapped prefix and what follows."""
    prefix = max((name for name in MAPPING if f"{package}.".startswith(f"{name}.")), key=len)
    return MAPPING[prefix].joinpath(*package.removeprefix(prefix).split(".")[1:])


def packages_on_disk() -> set[str]:
    """List the folders that hold Python files, by import name."""
    found = set()
    for name, top in MAPPING.items():
        for path in top.rglob("*.py"):
            if not any(parent in LINKS for parent in path.parents):
                found.add(".".join((name, *path.parent.relative_to(top).parts)))
    return found


def sources() -> set[PurePosixPath]:
    """List where each Python file of the checkout must lie in the wheel."""
    return {
        PurePosixPath(package.replace(".", "/"), path.name)
        for package in packages_on_disk()
        for path in folder_of(package).glob("*.py")
    }


def test_every_folder_is_listed() -> None:
    assert packages_on_disk() == set(SETUPTOOLS["packages"])


def test_every_package_has_an_init() -> None:
    bare = [
        name
        for name in SETUPTOOLS["packages"]
        if not folder_of(name).joinpath("__init__.py").exists()
    ]
    assert not bare


def test_kernels_does_not_shadow_the_package_of_that_name() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("name", [name for name in MAPPING if "." in name])
def test_siblings_refuse_to_be_imported_by_folder_name(name: str) -> None:
    init = MAPPING[name] / "__init__.py"
    code = f"import runpy; runpy.run_path({str(init)!r}, run_name={init.parent.name!r})"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "import it by that name" in done.stderr
    assert name in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing stale and nothing of ours is touched."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for folder in {path.relative_to(ROOT) for path in MAPPING.values()}:
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=lambda where, names: {
                *ignore(where, names),
                *(name for name in names if Path(where, name) in LINKS),
            },
        )
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("autocomp-*.whl"))


def test_wheel_holds_every_source_and_one_top_level_name(wheel: Path) -> None:
    names = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert sources() <= names
    assert {name.parts[0] for name in names if ".dist-info" not in name.parts[0]} == {"autocomp"}
    assert PurePosixPath("autocomp/py.typed") in names


def test_wheel_holds_every_data_file(wheel: Path) -> None:
    names = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    data = {
        PurePosixPath(package.replace(".", "/"), path.name)
        for package in packages_on_disk()
        for path in folder_of(package).iterdir()
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert data <= names


def test_wheel_imports_from_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    code = (
        "import autocomp, autocomp.methods, autocomp.kernels, autocomp.search_spaces\n"
        "from autocomp.core import registry\n"
        "for table in (registry.METHODS, registry.SPACES, registry.KERNELS, registry.FORMATS):\n"
        "    assert len(table), table.kind\n"
        "print(autocomp.__file__, autocomp.methods.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=empty,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(path).is_relative_to(site) for path in done.stdout.split())


def test_doctests() -> None:
    """By name, since importing the siblings by path is refused."""
    for package in sorted(packages_on_disk()):
        for path in folder_of(package).glob("*.py"):
            if ">>> " in path.read_text(encoding="utf-8"):
                name = package if path.stem == "__init__" else f"{package}.{path.stem}"
                assert doctest.testmod(importlib.import_module(name)).failed == 0, name
