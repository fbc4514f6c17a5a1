"""Imports at the start of the command line: slow packages are imported only when they are needed."""

import json
import re
import subprocess
import sys

import numpy as np
import soundfile

from bandtok_jax.pretrained import export_folder
from tests import tiny

# Packages that take a quarter of a second or more.
SLOW = ("jax", "flax", "optax", "orbax", "grain", "scipy.signal", "scipy.stats", "scipy.fft", "sklearn", "matplotlib",
        "librosa", "numba", "pandas", "tensorflow", "tensorflow_datasets", "torch", "tensorboardX", "wandb",
        "apache_beam", "soundfile", "numpy")  # fmt: skip


def _imported(program: str) -> set[str]:
    """Runs a program in a process of its own and returns the slow packages that it imported."""
    program = f"{program}\nimport json, sys\nprint(json.dumps([name for name in {SLOW!r} if name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_help_of_the_program_and_of_each_verb_imports_no_slow_package():
    program = (
        "import contextlib, io\n"
        "from bandtok_jax.cli import dispatch as cli\n"
        "for arguments in [[], *([verb] for verb in cli.VERBS)]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.main([*arguments, '--help'])\n"
    )
    assert not _imported(program)


def test_the_package_imports_nothing():
    assert not _imported("import bandtok_jax; bandtok_jax.load, bandtok_jax.__version__")


def test_computation_imports_no_rarely_used_package():
    modules = (
        "pretrained.model_folder, commands.code_files, commands.tokenize_corpus, training.loop, commands.evaluate, "
        "evaluation.report.run_page, planning.planner, pretrained.import_dac, pretrained.import_meltok"
    )
    program = "".join(f"import bandtok_jax.{module.strip()}\n" for module in modules.split(","))
    assert _imported(program) <= {"jax", "flax", "optax", "orbax", "grain", "soundfile", "numpy"}


def test_data_needs_no_jax():
    modules = ("doctor", "prepare", "synthetic", "token_source", "tfds_sources")
    program = "".join(f"import bandtok_jax.data_pipelines.{module}\n" for module in modules)
    assert _imported(program) <= {"numpy", "soundfile"}


# All packages that encoding and decoding may import, but for those of Python itself; flax imports optax, rich and
# treescope, treescope IPython, and jax filelock and flatbuffers, where they are installed.
OF_CODEC = {
    "absl", "etils", "flax", "jax", "jaxlib", "ml_collections", "ml_dtypes", "msgpack", "numpy", "opt_einsum", "optax",
    "pygments", "rich", "safetensors", "scipy", "soundfile", "soxr", "tqdm", "treescope", "yaml",
    "IPython", "_cffi_backend", "_cyutility", "_soundfile", "_soundfile_data", "cloudpickle", "filelock", "flatbuffers",
    "traitlets", "typing_extensions",
}  # fmt: skip
NOT_OF_CODEC = {"commands.evaluate", "evaluation", "losses", "planning", "plotting", "tasks", "training"}


def test_encode_and_decode_import_what_they_need(tmp_path):
    """No loss, discriminator or training is among it."""
    export_folder.save_codec(tiny.drawn_codec(), tmp_path / "model")
    soundfile.write(tmp_path / "song.wav", np.zeros(22_050), 44_100)
    program = (
        "import json, sys\n"
        "from bandtok_jax import cli\n"
        "folder = sys.argv[1]\n"
        "commands = ['encode', f'{folder}/song.wav'], ['decode', f'{folder}/song.bt', f'--output={folder}/copy.wav']\n"
        "code = sum(cli.main([*command, f'--model={folder}/model']) for command in commands)\n"
        "files = {name: getattr(module, '__file__', None) or '' for name, module in sys.modules.items()}\n"
        "print(json.dumps([code, [name for name, file in files.items() if 'site-packages' in file], list(files)]))"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    code, packages, modules = json.loads(run.stdout.splitlines()[-1])
    assert code == 0 and (tmp_path / "copy.wav").exists(), run.stderr
    imported = {name.partition(".")[0] for name in packages}
    assert {name for name in imported if not name.startswith(("__editable", "_distutils_hack", "bandtok"))} <= OF_CODEC
    assert not {"scipy.signal", "scipy.stats", "scipy.fft"} & set(modules)
    assert not [name for name in NOT_OF_CODEC if f"bandtok_jax.{name}" in modules]
    assert not [name for name in modules if re.match(r"bandtok_jax\.models\..*(discriminator|patchgan)", name)]
