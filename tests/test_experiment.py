"""Configurations: found by name, changed by dotted keys, stored and read again."""

import pytest

from bandtok_jax.config.load import load_config
from bandtok_jax.config.shipped import list_configs
from bandtok_jax.config.stored import read_config, to_json, write_config


@pytest.mark.parametrize("name", list_configs())
@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_every_shipped_configuration_has_the_keys_of_the_contract(name, variant):
    config = load_config(f"{name}:{variant}")
    for key in ("task", "seed", "total_steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every",
                "data", "model", "loss", "optimizer", "mesh", "tokenizer", "vocoder"):  # fmt: skip
        assert key in config, key
    assert config.is_locked and "tokens" in config.data
    if variant == "tiny":
        assert config.data.sources == "synthetic"


def test_a_file_and_a_name_are_the_same_configuration(request):
    path = request.config.rootpath / "configs" / "bandtok.py"
    assert load_config(f"{path}:tiny").to_dict() == load_config("bandtok:tiny").to_dict()


def test_dotted_keys_are_set_with_their_types():
    config = load_config(
        "bandtok:tiny",
        {"batch_size": "4", "optimizer.learning_rate": "1", "data.sources": "a=2,b", "model.channels": "(8, 16)",
         "data.phase_rotation": "true", "data.loudness_lufs": "None"},
    )  # fmt: skip
    assert config.batch_size == 4 and config.optimizer.learning_rate == 1.0 and config.data.sources == "a=2,b"
    assert tuple(config.model.channels) == (8, 16) and config.data.phase_rotation is True
    assert config.data.loudness_lufs is None


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("bandtok:tiny", {"batchsize": "4"}, "no key 'batchsize'.*did you mean 'batch_size'"),
        ("bandtok:tiny", {"optimizer.learning_rte": "1"}, "config.optimizer.*did you mean 'learning_rate'"),
        ("bandtok:tiny", {"batch_size": "many"}, "config.batch_size cannot be 'many'"),
        ("bandtok:tiny", {"batch_size": "1.5"}, "type of 16|type of 8"),
        ("bandtok:tiny", {"optimizer": "1"}, "is a group"),
        ("bandtok:tny", {}, "no variant 'tny'"),
        ("bandtock:tiny", {}, "did you mean 'bandtok'"),
        ("nowhere/bandtok.py:tiny", {}, "no configuration file"),
        ("bandtok:tiny", {"dtype": "float17"}, "config.dtype is 'float17': set it to one of float32, bfloat16"),
        ("bandtok:tiny", {"log_every": "0"}, "config.log_every is 0: set it to a whole number of at least 1"),
        ("bandtok:tiny", {"batch_size": "-2"}, "config.batch_size is -2"),
        ("bandtok:tiny", {"evaluation_batches": "0"}, "config.evaluation_batches is 0"),
        ("bandtok:tiny", {"optimizer.accumulation_steps": "0"}, "config.optimizer.accumulation_steps is 0"),
        ("bandtok:tiny", {"seed": "-1"}, "config.seed is -1: .* from 0"),
        ("bandtok:tiny", {"seed": "4294967296"}, "config.seed is 4294967296: .* to 4294967295"),
        ("bandtok:tiny", {"optimizer.learning_rate": "-1e-3"}, "config.optimizer.learning_rate is -0.001"),
        ("vocos:tiny", {"discriminator_optimizer.learning_rate": "1e999"}, "learning_rate is inf: .* finite"),
        (
            "bandtok:tiny",
            {"data.sample_rate_hz": "24000"},
            "the mel .* is one of 44100 Hz: set --config.data.sample_ra",
        ),
        ("vocos:tiny", {"data.sample_rate_hz": "22050"}, "config.data.sample_rate_hz is 22050, and the mel"),
        ("bandtok:tiny_24khz", {"data.sample_rate_hz": "44100"}, "the mel .* is one of 24000 Hz"),
        ("bandtok:tiny", {"batch_size": "None"}, "config.batch_size cannot be 'None': it must be of the type of 8"),
        ("bandtok:tiny", {"optimizer.gradient_clip_norm": "None"}, "gradient_clip_norm cannot be 'None'"),
        ("bandtok:tiny", {"optimizer.gradient_clip_norm": "-1"}, "gradient_clip_norm is -1.0: .*0 switches it off"),
        ("bandtok:tiny", {"data.gain_db": "()"}, r"config.data.gain_db is \(\): give 2 numbers"),
        (
            "bandtok:tiny",
            {"data.gain_db": "(-6.0, 1e9)"},
            "each of them to a finite number of at least -200.0 and at most",
        ),
        ("bandtok:tiny", {"data.caption_bytes": "0"}, "config.data.caption_bytes is 0: .* of at least 1"),
        ("bandtok:tiny", {"optimizer.beta2": "1.0"}, "config.optimizer.beta2 is 1.0: .* of at least 0 and below 1"),
        ("bandtok:tiny", {"codebook.ema_decay": "-1.0"}, "config.codebook.ema_decay is -1.0: .* and below 1"),
        ("bandtok:tiny", {"loss.adversarial_ramp": "-1"}, "config.loss.adversarial_ramp is -1: .* of at least 0"),
        ("dac:tiny", {"loss.quantizer_dropout": "1.5"}, "config.loss.quantizer_dropout is 1.5: .* and at most 1"),
        ("vocos:tiny", {"loss.stft_windows": "(512, 2)"}, "config.loss.stft_windows is .* whole number of at least 4"),
        ("mucodec:tiny", {"sampling.steps": "0"}, "config.sampling.steps is 0: set it to a whole number of at least 1"),
        ("mucodec:tiny", {"loss.context_frames": "(1,)"}, "config.loss.context_frames is .*: give 2 numbers"),
        ("bandtok:tiny", {"log_every": None}, "config.log_every is None: set it to a whole number"),
    ],
)
def test_mistakes_name_the_near_miss(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(name, overrides)


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1", "has no get_config: define"),
        ("\ndef get_config(", r"my.py, line 2: SyntaxError"),
        ("import nothing_of_that_name", r"my.py, line 1: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return {}", "line .*: TypeError: .*takes 0 positional arguments"),
        ("def get_config(variant):\n    return {}", "returns a dict: let it return a ConfigDict"),
        ("def get_config(variant):\n    return missing", r"my.py, line 2: NameError: name 'missing'"),
    ],
)
def test_mistakes_in_a_file_name_the_line(text, message, tmp_path):
    (tmp_path / "my.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(f"{tmp_path}/my.py:tiny")


@pytest.mark.parametrize(
    "key", ["mesh", "task", "data.gain_db", "codebook", "loss.adversarial_kind", "model.codebook_size"]
)
def test_a_key_that_a_file_leaves_out_is_named(key, tmp_path):
    (tmp_path / "my.py").write_text(
        "from bandtok_jax.configs import bandtok\n"
        "def get_config(variant):\n    config = bandtok.get_config(variant)\n"
        "    with config.unlocked():\n"
        f"        del config.{key}\n    return config\n"
    )
    with pytest.raises(ValueError, match=f"my.py has no key {key}: begin with  defaults.get_config"):
        load_config(f"{tmp_path}/my.py:tiny")


def test_a_stored_configuration_comes_back(tmp_path):
    config = load_config("bandtok:tiny")
    write_config(config, tmp_path)
    again = load_config(str(tmp_path), {"total_steps": "7"})
    assert again.total_steps == 7 and to_json(again.model) == to_json(config.model)
    with pytest.raises(FileNotFoundError, match="config.json"):
        read_config(tmp_path / "empty")


def test_a_folder_does_not_hide_a_shipped_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = load_config("dac:base")
    write_config(load_config("dac:small"), "dac")
    assert load_config("dac:base") == base
    assert load_config("dac").model == load_config("dac:tiny").model
    assert load_config("./dac").model.latent_dim == 512


def test_an_unknown_key_of_a_network_names_the_near_miss(tmp_path):
    (tmp_path / "my.py").write_text(
        "from bandtok_jax.configs import bandtok\n\n\ndef get_config(variant):\n"
        "    config = bandtok.get_config(variant).unlock()\n    config.model.codebook_sizes = 3\n    return config\n"
    )
    with pytest.raises(
        ValueError, match="my.py has the key model.codebook_sizes, which nothing reads; did you mean 'codebook_size'"
    ):
        load_config(f"{tmp_path}/my.py:tiny")
