"""Opening and using a codec imports nothing of its training."""

import subprocess
import sys

import bandtok_jax
from bandtok_jax.pretrained import export_folder

# Flax imports optax itself, which the package leaves to its tasks.
FORBIDDEN = r"orbax|grain|bandtok_jax\.(tasks|losses|training)|bandtok_jax\.models\..*(discriminator|patchgan)"
PROGRAM = """
import re, sys
import numpy as np
import bandtok_jax
codec = bandtok_jax.load(sys.argv[1])
codes = codec.encode(np.zeros(9000, np.float32), 44_100)
assert codec.decode(codes).shape == (len(codes) * 4096,)
print(*[name for name in sys.modules if re.match(sys.argv[2], name)])
"""


def test_a_codec_imports_no_optimizer_loss_or_discriminator(tmp_path):
    export_folder.save_codec(bandtok_jax.create("bandtok:tiny"), tmp_path / "model")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), FORBIDDEN]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == []
