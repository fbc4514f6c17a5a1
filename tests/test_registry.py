"""Networks by their kinds: the shipped ones, those of others, and unknown ones."""

import sys

import jax
import pytest

from bandtok_jax.config.load import load_config
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
