"""Networks by their kinds: the shipped ones, those of others, and unknown ones."""

import functools
import re
import sys

import jax
from ml_collections import ConfigDict
import pytest

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.config.schema import flatten
from bandtok_jax.config.shipped import list_configs, list_variants
from bandtok_jax.models import registry

ROLES = {
    **dict.fromkeys(("bandtok", "dac", "meltok", "mucodec", "muencoder_gan", "mel_rvq"), "tokenizer"),
    **dict.fromkeys(("hifigan", "vocos", "token_vocoder"), "vocoder"),
    "mel_vae": "autoencoder",
    "language_model": "language_model",
    "muencoder": "encoder",
}


@pytest.mark.parametrize("name", list_configs())
def test_every_configuration_names_its_networks(name):
    for variant in list_variants(name):
        config = load_config(f"{name}:{variant}")
        network_class = registry.constructor(config.model.kind)
        assert network_class.role == ROLES[name]
        assert hasattr(network_class, {"tokenizer": "produces", "vocoder": "consumes"}.get(ROLES[name], "role"))
        assert set(getattr(network_class, "LAYER_COUNTS", ())) <= set(config.model)
        assert all(registry.constructor(config[group].kind) for group in registry.networks(config))


def test_a_network_gets_its_group_the_dtype_and_the_mel():
    config = load_config("bandtok:tiny", {"dtype": "bfloat16", "model.codebook_size": "32", "mel.floor": "1e-3"})
    keywords = registry.arguments(config)
    assert keywords["dtype"] == jax.numpy.bfloat16 and keywords["mel"].floor == 1e-3 and "kind" not in keywords
    assert registry.build(config).attribute("codebook_size") == 32
    assert "mel" not in registry.arguments(config, "discriminator")
    parameters, _ = registry.build(config, "discriminator").shapes()
    assert parameters["discriminators"]


def _refusal(config: ConfigDict, key: str, value) -> str:
    """The line that refuses a value, "" where it is accepted; nothing is traced."""
    *names, last = key.split(".")
    group = functools.reduce(ConfigDict.get, names, config)
    before, group[last] = group[last], value
    try:
        registry.build(config, names[0])
    except ValueError as error:
        return str(error)
    finally:
        group[last] = before
    return ""


@pytest.mark.parametrize("name", list_configs())
def test_no_size_of_a_network_is_too_small(name):
    config, zeros = load_config(name).copy_and_resolve_references().unlock(), set()
    for key, value in flatten(config).items():
        group, is_list = key.partition(".")[0], isinstance(value, tuple)
        if group in registry.networks(config) and type(value[0] if value and is_list else value) is int:
            least = f"config.{key} is .*: set {'each of them' if is_list else 'it'} to a whole number of at least [01]"
            assert re.fullmatch(least, _refusal(config, key, (-1,) if is_list else -1)), key
            assert _refusal(config, key, value) == ""
            if not _refusal(config, key, () if is_list else 0):
                zeros.add(key.rpartition(".")[2])
    optional = "alignment_layer|attention_levels|context_columns|(mid|num_res)_blocks|layer|periods|rates|stft_windows"
    optional += "|side_mels|stale_steps|residual_levels|text_(layers|ngrams)|row_layers"
    assert all(re.fullmatch(optional, zero) for zero in zeros), zeros


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (
            "bandtok",
            {"model.codebook_size": 0},
            "config.model.codebook_size is 0: set it to a whole number of at least 1",
        ),
        ("bandtok", {"model.channels": ()}, r"config.model.channels is \(\): give one or more numbers"),
        ("bandtok", {"mel.mels": 64}, "config.model.mels is 128 and config.mel.mels 64: set both alike"),
        ("mucodec", {"model.encoder.dim": 0}, "config.model.encoder.dim is 0: set it"),
        (
            "vocos",
            {"discriminator.periods": (2, 0)},
            r"periods are \(2, 0\), .*: give a period or a rate, each at",
        ),
        ("vocos", {"discriminator.periods": ()}, r"periods are \(\), rates \(\) and .*: give a period or a rate"),
        ("vocos", {"discriminator.period_channels": (4,)}, r"period_channels are \(4,\): give two layers or more"),
        ("vocos", {"discriminator.stft_windows": (16,)}, "windows of at least 18 samples"),
        ("vocos", {"mel.fft_samples": 2049}, "Vocos needs .* an even number of fft_samples"),
        ("language_model", {"model.num_heads": 5}, "dim is 256, which 5 heads do not divide .* multiple of 10"),
        ("language_model", {"data.columns": 0}, "config.data.columns is 0: set it to the columns of an example"),
        ("bandtok", {"data.clip_samples": 30000}, "data.clip_samples 30000 .* multiple of 4096"),
        ("bandtok", {"model.activation": "no"}, "activation is 'no': set it to a function of jax.nn, such as"),
        (
            "mel_vae",
            {"model.attention_levels": (1,)},
            r"attention_levels are \(1,\) of 1 channels: give numbers from",
        ),
    ],
)
def test_a_task_is_checked_without_its_data(name, changes, message):
    with pytest.raises(ValueError, match=message):
        tasks.check(load_config(name, {key: str(value) for key, value in changes.items()}))


def test_networks_of_others_have_the_sizes_that_they_allow():
    class Network:
        GROUPS = {"inner": dict}
        OPTIONAL_SIZES = ("zero", "none")

        def __init__(self, zero, none, tap: int = -2, dim: int = 4, names=("a",), gains=(), inner=None, **others):
            pass

    allowed = dict(zero=0, none=(), tap=-2, names=("b",), gains=(), inner={}, dim=True, other=0)
    registry.check_sizes(Network, allowed, "model")
    for name, value in dict(zero=-1, none=(-1,), tap=-3, dim=0, names=(), gains=(0,)).items():
        with pytest.raises(ValueError, match=f"config.model.{name} is "):
            registry.check_sizes(Network, {name: value}, "model")


@pytest.mark.parametrize("kind", ["os", "os:system", "bandtok_jax.models.dac:DAC", "singer", 7, ["dac"]])
def test_an_unknown_kind_imports_nothing(kind):
    before = set(sys.modules)
    with pytest.raises(
        ValueError, match="kind is .*bandtok, bigvgan, dac, .*language_model.*import the module that registers it"
    ):
        registry.constructor(kind)
    assert set(sys.modules) == before


def test_networks_are_registered_from_outside(monkeypatch):
    monkeypatch.setattr(registry.KINDS, "registered", {})
    registry.register("singer", dict)
    assert registry.constructor("singer") is dict
    with pytest.raises(ValueError, match="dac"):
        registry.register("dac", dict)
