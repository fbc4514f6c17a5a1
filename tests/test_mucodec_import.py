"""Import of MuCodec's three files: the codec, its parts alone, layouts by plain formulas, and errors."""

import jax
import numpy as np
import pytest

from bandtok_jax import cli
from bandtok_jax.pretrained import import_mucodec, model_folder
from tests import audioldm_reference, mucodec_state
from tests.torch_files import write_torch

RNG = np.random.default_rng(0)


def write(folder, **changes):
    """The paths of the three files; changed arrays of None are left out."""
    paths = []
    for name, key, state in (
        ("mucodec.pt", "state_dict", mucodec_state.mucodec()),
        ("audioldm_48k.pth", "state_dict", mucodec_state.audioldm()),
        ("muq.pt", "model", mucodec_state.muq()),
    ):
        state |= {array: leaf for array, leaf in changes.get(name.partition(".")[0], {}).items()}
        paths.append(str(folder / name))
        write_torch(paths[-1], {key: {array: leaf for array, leaf in state.items() if leaf is not None}})
    return paths


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def tokenizer(paths):
    components = import_mucodec.read_mucodec(paths[1], paths[2], paths[0])
    assert list(components) == ["tokenizer", "vocoder"]
    return components["tokenizer"]


def run(component, *arguments, method):
    weights = component.weights["parameters"], component.weights["buffers"]
    return jax.jit(lambda weights, *x: component.network.apply(*weights, *x, method=method))(weights, *arguments)


def test_the_condition_of_codes_is_the_published_one(tokenizer):
    state, codes = mucodec_state.mucodec(), RNG.integers(0, 12, (1, 6, 2))
    vectors = 0
    for number in range(2):
        name = f"rvq_muencoder_emb.quantizers.{number}"
        weight, gain = state[f"{name}.out_proj.weight_v"][..., 0], state[f"{name}.out_proj.weight_g"][..., 0]
        weight = gain * weight / np.linalg.norm(weight, axis=1, keepdims=True)
        vectors = vectors + state[f"{name}.codebook.weight"][codes[0, :, number]] @ weight.T
        vectors = vectors + state[f"{name}.out_proj.bias"]
    condition = vectors @ state["cond_muencoder_emb.weight"].T + state["cond_muencoder_emb.bias"]
    expected = condition.reshape(3, 2, 4, 2).reshape(3, 8, 2)  # frames, channels of both columns, bins
    np.testing.assert_allclose(run(tokenizer, codes, method="condition")[0], expected.swapaxes(1, 2), atol=1e-5)


def test_arrays_of_latents_and_patches_are_turned(tokenizer):
    state, weights = mucodec_state.mucodec(), tokenizer.weights
    latents = RNG.normal(size=(1, 4, 2, 8)).astype(np.float32)
    mean = state["normfeat.sum_x"] / 50
    deviation = np.sqrt(state["normfeat.sum_x2"] / 50 - mean**2)
    np.testing.assert_allclose(
        run(tokenizer, latents, method="denormalise"), latents * deviation.T + mean.T, rtol=1e-5, atol=1e-6
    )
    patch = RNG.normal(size=(2, 2, 24)).astype(np.float32)  # time, frequency, channel
    theirs = np.einsum("dctf,tfc->d", state["cfm_wrapper.estimator.pos_embed.proj.weight"], patch)
    ours = weights["parameters"]["flow"]["transformer"]["embed"]["kernel"] @ patch.reshape(-1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        weights["parameters"]["flow"]["zero_condition"], state["zero_cond_embedding1"].reshape(8, 2).T
    )
    np.testing.assert_array_equal(weights["buffers"]["quantizer"]["levels"]["1"]["unused_steps"], np.arange(12))


def test_both_channels_are_decoded_by_the_published_autoencoder(tokenizer):
    reference = audioldm_reference.Reference(mucodec_state.audioldm())
    latents = RNG.normal(size=(1, 3, 2, 8)).astype(np.float32)
    log_mel = run(tokenizer, latents, method="decode_latents")
    for channel, part in enumerate(np.split(latents[0], 2, axis=-1)):
        np.testing.assert_allclose(log_mel[0, :, channel], reference.decode(np.moveaxis(part, -1, 0)), atol=1e-4)


def test_the_encoder_in_mucodec_pt_has_the_same_weights(tokenizer, tmp_path):
    inside = {f"muencoder.{name}": leaf for name, leaf in mucodec_state.muq().items()}
    paths = write(tmp_path, mucodec=inside)
    alone = import_mucodec.read_mucodec(*paths[:2])["tokenizer"]
    assert alone.weight_hash == tokenizer.weight_hash
    features = run(alone, RNG.normal(size=(1, 16, 128)).astype(np.float32), method="features")
    assert features.shape == (1, 4, 24) and np.isfinite(features).all()


def test_import_and_its_licence(paths, tmp_path, capsys):
    assert cli.main(["import", *paths, "--from=mucodec", "-o", str(tmp_path / "codec")]) == 0
    printed = capsys.readouterr().out
    assert "2 rows of 12 codes at 48000 Hz" in printed and "CC BY-NC 4.0" in printed and "no vocoder" not in printed
    card = (tmp_path / "codec" / "README.md").read_text()
    assert "mucodec.pt; licence CC BY-NC 4.0, no commercial use" in card
    assert model_folder.load(tmp_path / "codec").can_decode

    assert cli.main(["import", paths[2], "--from=mucodec", "-o", str(tmp_path / "encoder")]) == 0
    encoder = model_folder.read_components(tmp_path / "encoder")["encoder"]
    assert encoder.config.model.num_layers == 6 and "encoder, 128 mel bands of 24000 Hz" in capsys.readouterr().out


ESTIMATOR = "cfm_wrapper.estimator"


@pytest.mark.parametrize(
    "changes, chosen, words",
    [
        ({}, [0], "networks of audioldm_48k.pth and muq.pt: give that beside it"),
        ({}, [0, 1], "networks of muq.pt: give"),
        ({}, [1, 1], "a audioldm_48k.pth again, beside"),
        ({f"{ESTIMATOR}.proj_out.bias": None}, [0, 1, 2], f"has no {ESTIMATOR}.proj_out.bias"),
        ({f"{ESTIMATOR}.rotor": np.zeros(2)}, [0, 1, 2], f"holds {ESTIMATOR}.rotor, which MuCodec does not have"),
        ({"normfeat.sum_x": np.full((8, 2), np.nan)}, [0, 1, 2], "normfeat.sum_x holds NaN"),
        ({"zero_cond_embedding1": np.zeros(7)}, [0, 1, 2], "zero_cond_embedding1 has 7 numbers instead of 16"),
        ({"cond_muencoder_emb.weight": np.zeros((9, 24))}, [0, 1, 2], r"condition.kernel of shape \[9, 24\]"),
        ({f"{ESTIMATOR}.pos_embed.proj.weight": np.zeros(9)}, [0, 1, 2], "proj.weight has the shape .9., not 4 axes"),
    ],
)
def test_files_that_do_not_fit_are_refused(changes, chosen, words, tmp_path):
    paths = write(tmp_path, mucodec=changes)
    with pytest.raises(ValueError, match=words) as error:
        import_mucodec.read_mucodec(*[paths[number] for number in chosen])
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_the_published_size():
    """By shapes alone: the transformer, and one row of 16,384 codes."""
    from bandtok_jax.config.load import load_config
    from bandtok_jax.models import registry

    parameters, _ = registry.build(load_config("mucodec:base")).shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters["flow"]["transformer"])) == 742_381_328
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters["quantizer"])) == 67_648 + 524_288
