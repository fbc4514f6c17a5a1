"""The launchers install for the accelerator of the machine, with the requested Python, and only once."""

import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Replaces Python: prints a version, makes environments with a copy of itself, and logs the last argument of pip.
FAKE_PYTHON = """#!/bin/bash
version=VERSION
case "$*" in
  -c*) echo "$version" ;;
  --version) echo "Python $version" ;;
  -m\\ venv*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  -m\\ pip*) echo "$version ${*: -1}" >> "$PIP_LOG" ;;
esac
"""


def _program(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _environment(folder: pathlib.Path, **variables: str) -> dict[str, str]:
    """Returns the variables of a process with the programs in `folder` and the basic ones of the system."""
    system = folder / "system"
    if not system.exists():
        system.mkdir()
        names = ("bash", "cat", "cksum", "cp", "dirname", "env", "grep", "head", "mkdir", "sed", "sort", "uname")
        for name in names:
            (system / name).symlink_to(shutil.which(name))
    return {"PATH": f"{folder / 'bin'}:{system}", "HOME": str(folder), "PIP_LOG": str(folder / "pip.log"), **variables}


def _bash(*command, **environment):
    return subprocess.run(["bash", *map(str, command)], capture_output=True, text=True, **environment)


def _accelerator(folder, **variables):
    command = (ROOT / "launch" / "accelerator.sh", folder / "root")
    run = _bash(*command, env=_environment(folder, **variables))
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("580.159.03, 9.0\n", "cuda13"),
        ("575.57.08, 9.0\n", "cuda12"),
        ("590.44, 12.0\n590.44, 7.0\n", "cuda12"),  # the oldest of all GPUs decides
        ("580.65.06, 10.0\n580.65.06, 9.0\n", "cuda13"),
        ("470.82.01, 8.0\n", ""),
        ("No devices were found\n", ""),
    ],
)
def test_nvidia_smi_decides(tmp_path, answer, expected):
    _program(tmp_path / "bin" / "nvidia-smi", f"#!/bin/bash\nprintf '{answer}'\n")
    assert _accelerator(tmp_path) == expected
    assert _accelerator(tmp_path, JAX_PLATFORMS="cpu") == ""


@pytest.mark.parametrize("release, expected", [("580.159.03", "cuda13"), ("535.129.03", "cuda12")])
def test_a_driver_without_nvidia_smi(tmp_path, release, expected):
    _program(tmp_path / "bin" / "nvidia-smi", "#!/bin/bash\nexit 9\n")
    version = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {release}  Tue Mar  4 2025\nGCC version:  gcc 12.2.0\n"
    _program(tmp_path / "root" / "proc" / "driver" / "nvidia" / "version", version)
    assert _accelerator(tmp_path) == expected


@pytest.mark.parametrize(
    "vendor, device, expected", [("0x1ae0", "0x0063", "tpu"), ("0x1ae0", "0x0042", ""), ("0x10de", "0x0063", "")]
)
def test_a_tpu_is_recognised_by_its_pci_number(tmp_path, vendor, device, expected):
    for name, value in (("vendor", vendor), ("device", device)):
        _program(tmp_path / "root" / "sys" / "bus" / "pci" / "devices" / "0000:00:05.0" / name, f"{value}\n")
    assert _accelerator(tmp_path) == expected


@pytest.fixture
def tree(tmp_path):
    """Returns a source tree that the replacements of Python can install."""
    (tmp_path / "tree" / "launch").mkdir(parents=True)
    for name in ("environment.sh", "accelerator.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "tree" / "launch")
    (tmp_path / "tree" / "setup.cfg").write_text("[metadata]\n")
    (tmp_path / "tree" / "pyproject.toml").touch()
    return tmp_path / "tree"


def _install(tree, extras, **variables):
    program = f"set -euo pipefail; source launch/environment.sh {extras}; python --version"
    return _bash("-c", program, cwd=tree, env=_environment(tree.parent, **variables))


def _pip_log(tree):
    log = tree.parent / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def _python(tree, place, version):
    _program(tree.parent / place, FAKE_PYTHON.replace("VERSION", version))


def test_the_newest_python_and_no_second_installation(tree):
    for version in ("3.11", "3.12", "3.14"):
        _python(tree, f"bin/python{version}", version)
    _program(tree.parent / "bin" / "python3.13", "#!/bin/bash\nexit 127\n")  # as pyenv's shims do
    assert "Python 3.12" in _install(tree, "test").stdout
    assert "installing" not in _install(tree, "test").stdout
    assert _pip_log(tree) == [f"3.12 {tree}[test]"]
    (tree / "setup.cfg").write_text("[metadata]\nname = other\n")
    _install(tree, "test")
    assert len(_pip_log(tree)) == 2


@pytest.mark.parametrize("asked", ["3.11", "PATH"])
def test_another_python_has_an_environment_of_its_own(tree, asked):
    _python(tree, "bin/python3.13", "3.13")
    _python(tree, ".pyenv/versions/3.11.7/bin/python", "3.11")
    asked = str(tree.parent / ".pyenv/versions/3.11.7/bin/python") if asked == "PATH" else asked
    assert "Python 3.13" in _install(tree, '""').stdout
    assert "Python 3.11" in _install(tree, '""', PYTHON=asked).stdout
    assert "Python 3.13" in _install(tree, '""', PYTHON="3.13").stdout
    assert _pip_log(tree) == [f"3.13 {tree}", f"3.11 {tree}"]
    assert sorted(path.name for path in tree.glob(".venv*")) == [".venv", ".venv-3.11"]


@pytest.mark.parametrize("asked", ["", "3.11", "3.14", "/no/python"])
def test_no_python(tree, asked):
    _python(tree, "bin/python3", "3.10")
    run = _install(tree, '""', PYTHON=asked)
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1 and "3.1" in run.stderr, run.stderr
    assert not list(tree.glob(".venv*"))


def test_a_gpu_installs_its_extra(tree):
    _python(tree, "bin/python3.13", "3.13")
    _install(tree, "accelerator", JAX_PLATFORMS="cpu")
    _program(tree.parent / "bin" / "nvidia-smi", "#!/bin/bash\necho 580.159.03, 9.0\n")
    for _ in range(2):
        assert _install(tree, "accelerator").returncode == 0
    _install(tree, "train,eval,accelerator")
    _install(tree, "train,eval,accelerator", JAX_PLATFORMS="cpu")
    extras = ("", "[cuda13]", "[train,eval,cuda13]", "[train,eval]")
    assert _pip_log(tree) == [f"3.13 {tree}{extra}" for extra in extras]


def test_all_stages_install_for_the_accelerator(tmp_path):
    _program(tmp_path / "bin" / "nvidia-smi", "#!/bin/bash\necho 535.1.2, 9.0\n")
    run = _bash(ROOT / "launch" / "local.sh", "--music", "synthetic", "--dry-run", env=_environment(tmp_path))
    assert "== environment for: cuda12" in run.stdout, run.stderr
    assert "source launch/environment.sh train,eval,accelerator" in (ROOT / "launch" / "local.sh").read_text()


def test_processes_install_what_training_needs(tree):
    _python(tree, "bin/python3.13", "3.13")
    shutil.copy(ROOT / "launch" / "processes.sh", tree / "launch")
    command = (tree / "launch" / "processes.sh", "2", "2", "--", "--config=bandtok:tiny")
    assert _bash(*command, env=_environment(tree.parent)).returncode == 0
    assert _pip_log(tree) == [f"3.13 {tree}[train]"]


def _launch(tree, *command):
    """Runs a script that must not install anything."""
    _python(tree, "bin/python3.13", "3.13")
    shutil.copytree(ROOT / "launch", tree / "launch", dirs_exist_ok=True)
    script, *arguments = command
    run = _bash(tree / "launch" / script, *arguments, env=_environment(tree.parent))
    assert not _pip_log(tree) and not list(tree.glob(".venv*"))
    return run


@pytest.mark.parametrize("script", sorted({path.name for path in ROOT.glob("launch/*.sh")} - {"environment.sh"}))
def test_help_is_the_comment_at_the_head_of_a_script(tree, script):
    comment = (ROOT / "launch" / script).read_text().partition("\n")[2].partition("\nset ")[0]
    for flag in ("--help", "-h"):
        run = _launch(tree, script, flag)
        assert (run.returncode, run.stderr) == (0, "") and f"bash launch/{script}" in run.stdout
        assert run.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in comment.splitlines()]


@pytest.mark.parametrize(
    "command, message",
    [
        ("local.sh", "--music: give a folder"),
        ("local.sh --musik x", "--musik: unknown argument"),
        ("local.sh x", "x: unknown argument"),
        ("local.sh --music /no/such --size tiny", "--music /no/such: no such folder"),
        ("local.sh --music synthetic --tracks=no.csv", "no.csv: no such file"),
        ("local.sh --music synthetic --size huge", "--size huge: give tiny"),
        ("local.sh --music synthetic --system dac", "--system dac: give bandtok"),
        ("local.sh --music synthetic --encoder.seed=1", "--encoder.seed=1: bandtok has no such stage, only mucodec"),
        ("local.sh --music synthetic --seconds ten", "ten: give a number"),
        ("local.sh --music synthetic --output", "--output: its value is missing"),
        ("default_model.sh", "--music: give a folder"),
        ("default_model.sh --output", "--output: its value is missing"),
        ("quickstart.sh --output x", "--output x: give one folder"),
        ("processes.sh two 2 -- --config=bandtok:tiny", "two 2 .* give two numbers"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_installed(tree, command, message):
    run = _launch(tree, *command.split())
    assert run.returncode == 2 and not run.stdout
    assert re.search(message, run.stderr) and len(run.stderr.splitlines()) == 1


def test_the_extras_and_the_pythons_are_those_of_the_package():
    settings = (ROOT / "setup.cfg").read_text()
    for extra in ("cuda12", "cuda13", "eval", "gpu", "test", "tpu", "train"):
        assert re.search(rf"^{extra} =", settings, re.M)
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", settings)
    least, beyond = re.search(r"python_requires = >=3\.(\d+),<3\.(\d+)", settings).groups()
    assert named == [f"3.{minor}" for minor in range(int(least), int(beyond))]
    assert f"find_python {' '.join(reversed(named))})" in (ROOT / "launch" / "environment.sh").read_text()
    image = re.search(r"FROM python:(3\.\d+)", (ROOT / "launch" / "Dockerfile").read_text())[1]
    assert image in (named[0], named[-1])  # those that are tested
