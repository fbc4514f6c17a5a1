"""The wheel: all that is needed is in it, and nothing of it stands at the top of site-packages but the package."""

import shutil
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def wheel(request, tmp_path_factory):
    source, folder = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(request.config.rootpath, source, ignore=left_out)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_only_the_package_stands_at_the_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bandtok_jax"}


def test_configurations_are_found_without_the_source_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import bandtok_jax; from bandtok_jax import cli, experiment; from bandtok_jax.data_pipelines import iterator\n"
        "assert bandtok_jax.__file__.startswith(sys.argv[1]), bandtok_jax.__file__\n"
        "assert iterator.__file__.startswith(sys.argv[1]), iterator.__file__\n"
        "print(*experiment.shipped(), experiment.load_config('bandtok:tiny').task)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == ["bandtok", "dac", "language_model", "vocos", "mel_tokenizer"], run.stderr
