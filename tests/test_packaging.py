"""The wheel holds all files that run time needs, and only the package is at the top of site-packages."""

import configparser
import fnmatch
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

from packaging.requirements import Requirement
import pytest

from bandtok_jax.config.shipped import list_configs
from tests.installed_packages import ROOT, requirements

MAX_BYTES = 18_000_000  # a model of 16 MB and 2 MB of source, our choice
LINKS = ("configs", "data_pipelines", "launch")  # in the package's folder, to the folders beside it


@pytest.fixture(scope="module")
def source(request, tmp_path_factory):
    copy = tmp_path_factory.mktemp("source") / "tree"
    generated = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")

    def left_out(folder, names):
        runs = {"runs"} if folder == str(request.config.rootpath) else set()  # not those of the package
        return generated(folder, names) | runs

    shutil.copytree(request.config.rootpath, copy, ignore=left_out, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def archives(source, tmp_path_factory):
    """Returns a folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("archives")
    program = (
        f"from setuptools import build_meta; folder = {str(folder)!r}\n"
        "build_meta.build_wheel(folder); build_meta.build_sdist(folder)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(archives):
    (path,) = archives.glob("*.whl")
    return path


def test_only_the_package_is_at_the_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"bandtok_jax"}
    assert len(names) == len(set(names))
    for file in ("configs/bandtok.py", "data_pipelines/prepare.py", "launch/submit.py"):
        assert [name for name in names if name.endswith(file)] == [f"bandtok_jax/{file}"]


def test_all_files_of_run_time_are_in_the_wheel(request, wheel):
    root = request.config.rootpath
    expected = {f"bandtok_jax/launch/templates/{path.name}" for path in (root / "launch" / "templates").iterdir()}
    modules = [path for folder in ("bandtok_jax", *LINKS) for path in (root / folder).rglob("*.py")]
    for path in modules:
        name = str(path.relative_to(root))
        expected.add(name if name.startswith("bandtok_jax/") else f"bandtok_jax/{name}")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {"py.typed", "runtime/accelerators.yaml", "demo/page.html", "pretrained/browser/index.html"}
    assert expected | {f"bandtok_jax/{name}" for name in data} <= names


def test_the_wheel_holds_modules_and_listed_files_alone_and_is_small(wheel):
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in settings["options.package_data"].items()
        for pattern in patterns.split()
    ]
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    others = [name for name in names if not name.endswith(".py")]
    assert not [name for name in others if not any(fnmatch.fnmatch(name, pattern) for pattern in listed)]
    assert not [pattern for pattern in listed if not fnmatch.filter(others, pattern)]
    assert wheel.stat().st_size < MAX_BYTES


def test_the_wheel_asks_for_what_setup_cfg_lists(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    asked = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    core = {Requirement(line).name for line in asked if "extra ==" not in line}
    assert core == {line.name for line in requirements()[""]}


def test_the_source_archive_holds_every_file_once(archives):
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert len(names) == len(set(names))
    for file in ("configs/bandtok.py", "data_pipelines/prepare.py", "launch/submit.py"):
        assert [name for name in names if name.endswith(file)] == [file]


def test_an_installed_package_works_at_the_top_of_the_source_tree(request, source, wheel, tmp_path):
    """In that folder, Python imports the package of the tree in place of the installed one."""
    for name in LINKS:
        link = request.config.rootpath / "bandtok_jax" / name
        assert link.is_symlink() and os.readlink(link) == f"../{name}"
    venv.create(tmp_path / "environment")
    (packages,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Its dependencies come from this environment. Their .pth files are not read, so this package is found only once.
    (packages / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    program = (
        "import sys, bandtok_jax; from bandtok_jax.config import load, shipped\n"
        "from bandtok_jax.launch import launcher\n"
        "from bandtok_jax.data_pipelines import synthetic\n"
        "print(bandtok_jax.__file__, load.load_config('bandtok:tiny').task, *map(len, [shipped.list_configs()]))"
    )
    python = tmp_path / "environment" / "bin" / "python"
    for folder, package in ((source, source), (tmp_path, packages)):
        run = subprocess.run([python, "-c", program], cwd=folder, capture_output=True, text=True)
        assert run.stdout.split()[:2] == [f"{package}/bandtok_jax/__init__.py", "mel_tokenizer"], run.stderr


def test_configurations_are_found_without_the_source_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import bandtok_jax; from bandtok_jax import cli; from bandtok_jax.config import load, shipped\n"
        "from bandtok_jax.data_pipelines import iterator\n"
        "assert bandtok_jax.__file__.startswith(sys.argv[1]), bandtok_jax.__file__\n"
        "assert iterator.__file__.startswith(sys.argv[1]), iterator.__file__\n"
        "print(*shipped.list_configs(), load.load_config('bandtok:tiny').task)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == [*list_configs(), "mel_tokenizer"], run.stderr
