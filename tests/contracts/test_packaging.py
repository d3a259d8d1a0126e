"""One distribution, seven rooms: what is declared is there, and what is there gets installed."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [ROOT / path for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def files_of(package: Path) -> set[str]:
    """Everything of a package that should be installed, as paths inside the wheel."""
    found = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package.parent).as_posix() for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, set[str]]:
    """File names of a wheel and a source distribution made from this tree."""
    out = tmp_path_factory.mktemp("dist")
    code = "import sys; from hatchling.build import *; print(build_wheel(sys.argv[1])); print(build_sdist(sys.argv[1]))"
    printed = subprocess.check_output([sys.executable, "-c", code, str(out)], cwd=ROOT, text=True)
    wheel, sdist = printed.split()[-2:]
    with zipfile.ZipFile(out / wheel) as archive:
        names = {"wheel": set(archive.namelist())}
    with tarfile.open(out / sdist) as archive:
        names["sdist"] = {name.partition("/")[2] for name in archive.getnames()}
    return names


def test_every_room_is_declared():
    there = {path.parent for path in ROOT.glob("*/pocketlens_*/__init__.py")}
    assert set(PACKAGES) == there
    assert set(PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]) == {package.parent.name for package in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_room_is_typed_and_says_what_it_is(package):
    assert (package / "py.typed").is_file()
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text()))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_stray_module_lies_beside_a_package(package):
    # A room's folder is on the path in development: edge/helpers.py would be importable as `helpers`.
    stray = []
    for _, folders, names in os.walk(package.parent):
        folders[:] = [
            name for name in folders if name not in (package.name, "node_modules")
        ]  # another test fills those
        stray += [name for name in names if name.endswith(".py")]
    assert stray == []


@pytest.mark.parametrize(("command", "target"), PROJECT["project"]["scripts"].items())
def test_every_command_has_its_app(command, target):
    module, _, name = target.partition(":")
    room, _, inner = module.partition(".")
    (package,) = (each for each in PACKAGES if each.name == room)
    file = package / f"{inner.replace('.', '/')}.py"
    tree = ast.parse((file if file.is_file() else file.with_suffix("") / "__init__.py").read_text())
    targets = [leaf for node in tree.body if isinstance(node, ast.Assign) for leaf in node.targets]
    assigned = {leaf.id for leaf in targets if isinstance(leaf, ast.Name)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert name in assigned | defined | imported, f"{command} points at {target}"


def test_the_device_and_the_service_need_no_training_library():
    light = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["cloud"]
    names = {re.split(r"[\[<>=!~ ;]", requirement)[0] for requirement in light}
    assert names.isdisjoint({"torch", "torchvision", "onnx", "onnxscript", "safetensors", "transformers", "timm"})


def test_every_requirement_has_a_lower_and_an_upper_bound():
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(each for extra in extras for each in extra)]:
        if not requirement.startswith(("pocketlens[", "types-")):
            assert "==" in requirement or (">=" in requirement and "<" in requirement), requirement


def test_the_wheel_holds_every_file_of_every_room_and_nothing_else(built):
    wanted = set().union(*(files_of(package) for package in PACKAGES))
    came = {name for name in built["wheel"] if not name.startswith("pocketlens-")}
    assert came == wanted


def test_the_wheel_holds_the_licence(built):
    assert any(name.endswith("licenses/LICENSE") for name in built["wheel"])


def test_the_source_distribution_holds_what_is_needed_to_build_and_test(built):
    packages = {f"{package.parent.name}/{name}" for package in PACKAGES for name in files_of(package)}
    assert built["sdist"] >= packages | {"pyproject.toml", "LICENSE", "README.md", "Makefile"}
    assert "tests/contracts/test_packaging.py" in built["sdist"]
    tops = {name.split("/")[0] for name in built["sdist"]}
    assert tops.isdisjoint({".venv", ".venv-demo", ".git", "demo", "runs", "dist", "build"})


def test_the_sample_bundle_is_part_of_the_package():
    bundle = ROOT / "samples" / "pocketlens_samples" / "bundle"
    for half in ("edge", "cloud"):
        assert (bundle / half / "manifest.json").is_file()


def test_the_shipped_students_are_part_of_the_package():
    students = ROOT / "benchmarks" / "pocketlens_bench" / "students"
    assert {path.name for path in students.iterdir()} == {"k1", "k2", "k8"}
    for student in students.iterdir():
        assert (student / "manifest.json").is_file()
