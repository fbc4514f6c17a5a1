"""Which part of a codec computes in which dtype: a tokenizer in float32, others as trained or as asked."""

import jax
import numpy as np
import pytest

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.pretrained import export_folder, model_folder
from bandtok_jax.runtime.target_platform import made_for
from tests import tiny

NAMES = ("bandtok:tiny", "dac:tiny", "vocos:tiny", "language_model:tiny")


@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform, asked", [("cpu", ""), ("gpu", ""), ("tpu", "float32"), ("cpu", "bfloat16")])
def test_a_tokenizer_in_float32_and_others_as_trained_or_asked(trained, platform, asked):
    computed = {}
    for name in NAMES:
        stage = Component(load_config(name, {"dtype": trained}), {}, dtype=asked)
        with made_for(platform):
            computed[name] = stage.resolved_config.dtype
    assert computed["bandtok:tiny"] == computed["dac:tiny"] == "float32"
    expected = asked or ("float32" if platform == "cpu" else trained)
    assert computed["vocos:tiny"] == computed["language_model:tiny"] == expected


def test_codes_stay_and_audio_hardly_changes_in_16_bits(tmp_path):
    export_folder.save_codec(tiny.drawn_codec(), tmp_path / "model")
    short = [bandtok_jax.load(tmp_path / "model", dtype=dtype) for dtype in ("", "bfloat16")]
    short = [MelCodec(codec.components["tokenizer"], codec.components["vocoder"], chunk_columns=8) for codec in short]
    audio = np.random.default_rng(0).normal(size=20_000).astype(np.float32) * 0.1
    codes = [codec.encode(audio, 44_100) for codec in short]
    np.testing.assert_array_equal(*codes)
    wide, narrow = (codec.decode(codes[0]) for codec in short)
    assert narrow.dtype == np.float32 and 0 < np.square(narrow - wide).mean() < 1e-2 * np.square(wide).mean()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(short[1].parameters)} == {"float32"}
    with pytest.raises(ValueError, match="dtype is 'float12': give one of float32, bfloat16"):
        bandtok_jax.load(tmp_path / "model", dtype="float12")


def test_the_command_line_passes_it_on(monkeypatch, tmp_path):
    received = {}
    monkeypatch.setattr(
        model_folder, "load", lambda path, **options: received.update(options) or bandtok_jax.create("nothing")
    )
    for verb in (["decode", "a.bt"], ["reconstruct", "a.wav", "-o", "b.wav"], ["generate", "-o", f"{tmp_path}/a.wav"]):
        assert cli.main([*verb, "--model=x", "--dtype=bfloat16"]) == 1
        assert received.pop("dtype") == "bfloat16"
