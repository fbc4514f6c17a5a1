"""Import of DAC weights and .dac files: agreement with the published numbers, and errors (tests/golden/make_dac.py)."""

import dataclasses
import functools
import io
import json
import os
import pathlib
import pickle
import shutil
import types
import zipfile

import numpy as np
import pytest

from bandtok_jax import cli
from bandtok_jax.audio import loudness, waveform
from bandtok_jax.codecs import dac_file
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.commands import code_files
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import bt_file, safe_pickle, torch_checkpoint
from bandtok_jax.pretrained import import_dac

GOLDEN = pathlib.Path(__file__).parent / "golden" / "dac"
READERS = {"hf": import_dac.read_transformers}


@functools.cache
def codec(name, parity=False):
    path = GOLDEN / ("hf" if name == "hf" else f"{name}.pth")
    return assemble({"tokenizer": READERS.get(name, import_dac.read_official)(str(path), parity)})


@functools.cache
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.mark.parametrize(
    ("name", "parity"),
    [
        ("even", False),
        ("odd", True),
        ("hf", False),
        *(pytest.param(name, name != "odd", marks=pytest.mark.slow) for name in ("even", "odd", "hf")),
    ],
)
def test_codes_and_audio_are_the_published_ones(name, parity):
    """Published decoders with odd strides end early; silence follows with `parity`, else the audio continues."""
    expected, audio = golden()[f"{name}_codes"], golden()[f"{name}_audio"]
    model = codec(name, parity)
    np.testing.assert_array_equal(model.encode(golden()["audio"], 8000), expected)
    assert all(len(np.unique(level)) > 6 for level in expected.T)
    decoded, missing = model.decode(expected), {"even": 0, "odd": 2, "hf": 2}[name]
    assert len(decoded) == len(audio) + missing == len(expected) * model.samples_per_column
    context = model.components["tokenizer"].network.attribute("decoder_context_columns") * model.samples_per_column
    same = len(audio) if parity or not missing else len(audio) - context
    assert same > 3000
    np.testing.assert_allclose(decoded[:same], audio[:same], atol=1e-4)
    assert not missing or decoded[len(audio) :].any() != parity


def test_fewer_levels_decode_as_published():
    decoded = codec("even").decode(golden()["even_codes"][:, :2])
    np.testing.assert_allclose(decoded, golden()["even_two_levels"], atol=1e-4)


@pytest.mark.parametrize("name", ["song", "chunks"])
def test_dac_files_decode_as_published(name, tmp_path):
    file, expected = dac_file.read_dac(str(GOLDEN / f"{name}.dac")), golden()[f"{name}_audio"]
    assert file.padded == (name == "song") and file.codes.shape[2] == 3 and file.samples == len(expected)
    (decoded,) = dac_file.decode(codec("even"), file)
    # The published meter counts blocks that end after the audio: half a second measures 0.8 dB louder.
    gain = (decoded @ expected) / (decoded @ decoded)
    assert abs(20 * np.log10(gain)) < 1
    np.testing.assert_allclose(gain * decoded, expected, atol=1e-4 * np.abs(expected).max())
    assert loudness.integrated_lufs(decoded[None], 8000) == pytest.approx(file.lufs, abs=0.01)


def test_dac_files_on_the_command_line(tmp_path, capsys):
    export = str(tmp_path / "export")
    assert cli.main(["import", str(GOLDEN / "even.pth"), "--from=dac", "-o", export]) == 0
    assert "3 rows of 32 codes at 8000 Hz, 15.00 kbit/s" in capsys.readouterr().out
    assert "weights imported from even.pth, whose licence holds" in (tmp_path / "export" / "README.md").read_text()
    shutil.copy(GOLDEN / "song.dac", tmp_path)
    song, again = str(tmp_path / "song.dac"), str(tmp_path / "song.bt")
    assert cli.main(["decode", song, f"--model={export}"]) == 0
    assert waveform.probe(tmp_path / "song.wav") == (8000, 1, 4001)
    assert cli.main(["decode", song, f"--model={export}", "-o", again]) == 0
    codes, header = bt_file.read_codes(again)
    np.testing.assert_array_equal(codes, dac_file.read_dac(song).codes[0])
    assert header.samples == 4001
    assert cli.main(["decode", str(GOLDEN / "chunks.dac"), f"--model={export}", "-o", again]) == 1
    assert "overlap" in capsys.readouterr().err


@pytest.mark.parametrize("name, window_seconds", [("song", None), ("song", 1.0), ("chunks", 0.2)])
def test_codes_of_dac_files_are_the_published_ones(name, window_seconds, tmp_path, full_disk):
    """Encodes at the loudness of the published meter, which measures half a second 0.8 dB louder than ours."""
    expected, audio = dac_file.read_dac(str(GOLDEN / f"{name}.dac")), 0.1 * golden()["audio"]
    settings = dict(window_seconds=window_seconds, lufs=expected.lufs)
    dac_file.write_dac(str(tmp_path / "a.dac"), dac_file.encode(codec("even"), audio, 8000, **settings))
    written = dac_file.read_dac(str(tmp_path / "a.dac"))
    for field in dataclasses.fields(written):
        np.testing.assert_array_equal(getattr(written, field.name), getattr(expected, field.name))
    theirs, ours = (np.load(path, allow_pickle=True)[()] for path in (GOLDEN / f"{name}.dac", tmp_path / "a.dac"))
    assert {key: type(value) for key, value in theirs["metadata"].items()} == {
        key: type(value) for key, value in ours["metadata"].items()
    }
    with full_disk(100), pytest.raises(OSError) as error:
        dac_file.write_dac(str(tmp_path / "b.dac"), written)
    assert error.value.filename == str(tmp_path / "b.dac") and len(list(tmp_path.iterdir())) == 1
    stereo = dac_file.encode(codec("even"), np.stack([audio, -audio]), 8000, levels=2, **settings)
    np.testing.assert_array_equal(stereo.codes[0], expected.codes[0, :, :2])
    assert stereo.codes.shape[0] == 2 and (stereo.codes[1] != stereo.codes[0]).any()
    with pytest.raises(ValueError, match="windows of 0.001 s are shorter"):
        dac_file.encode(codec("even"), audio, 8000, window_seconds=0.001)


def test_chunks_have_the_published_lengths():
    """The lengths are those of the published program with the 44.1 kHz model."""
    tokenizer = types.SimpleNamespace(config=load_config("dac:base"))
    encoder, decoder = dac_file.coder_layers(types.SimpleNamespace(components={"tokenizer": tokenizer}))
    assert dac_file.coder_delay(encoder + decoder) == 7904
    for window, columns, samples in ((44_544, 72, 28_522), (220_672, 416, 204_650)):
        assert (dac_file.output_length(window, encoder), dac_file.output_length(columns, decoder)) == (columns, samples)


def test_dac_files_are_written_on_the_command_line(tmp_path, capsys, monkeypatch):
    export, audio, codes = (str(tmp_path / name) for name in ("export", "a.wav", "a.dac"))
    assert cli.main(["import", str(GOLDEN / "even.pth"), "--from=dac", "-o", export]) == 0
    waveform.write(audio, np.stack([golden()["audio"]] * 2), 8000)
    assert cli.main(["encode", audio, f"--model={export}", "-o", codes, "--window=0.2", "--levels=2"]) == 0
    assert "2 channels of 664 columns x 2 rows, 0.50 s" in capsys.readouterr().out
    assert cli.main(["decode", codes, f"--model={export}", "-o", str(tmp_path / "b.wav")]) == 0
    assert waveform.probe(tmp_path / "b.wav") == (8000, 2, 4001)
    with monkeypatch.context() as patched:
        patched.setattr(dac_file, "encode", None)  # an output that cannot be written is refused before the work
        patched.setattr(dac_file, "decode", None)
        assert cli.main(["encode", audio, f"--model={export}", "-o", f"{tmp_path}/none/a.dac"]) == 1
        assert cli.main(["decode", codes, f"--model={export}", "-o", f"{tmp_path}/none/a.wav"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bandtok: error")]
    assert [line.split("; ")[1] for line in errors] == ["check the path", "check the path"]
    assert cli.main(["encode", audio, f"--model={export}", "--window=0.2"]) == 1
    assert "--window is for .dac files" in capsys.readouterr().err


def test_dac_files_of_another_model_are_refused(tmp_path):
    """The files do not name their model, but levels and lengths show most mistakes."""
    song = dac_file.read_dac(str(GOLDEN / "song.dac"))
    for read in (dac_file.decode, dac_file.as_grid):
        with pytest.raises(ValueError, match="501 columns are 0.63 s .* 0.50 s"):
            read(codec("odd"), song)
        more = dataclasses.replace(song, codes=np.repeat(song.codes, 2, axis=2))
        with pytest.raises(ValueError, match="6 levels, and this model has 3"):
            read(codec("even"), more)
    with pytest.raises(ValueError, match="made them"):
        dac_file.decode(codec("odd"), dac_file.read_dac(str(GOLDEN / "chunks.dac")))


def test_a_bt_file_of_other_imported_weights_is_refused(tmp_path):
    waveform.write(tmp_path / "a.wav", golden()["audio"], 8000)
    code_files.encode(codec("even"), str(tmp_path / "a.wav"), str(tmp_path / "a.bt"))
    with pytest.raises(ValueError, match="decode it with its own model"):
        code_files.decode(codec("odd"), str(tmp_path / "a.bt"), str(tmp_path / "b.wav"))


def changed(tmp_path, change, source=GOLDEN / "even.pth"):
    """Writes a copy of the weights with a changed pickle, as a .pth file, and returns its path."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(tmp_path / "changed.pth", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return str(tmp_path / "changed.pth")


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    attack = pickle.dumps({"state_dict": Attack()}, protocol)
    path = changed(tmp_path, lambda entries: entries.update({next(k for k in entries if "data.pkl" in k): attack}))
    for read in (torch_checkpoint.read_torch, lambda path: safe_pickle.read_numpy(attack, path)):
        with pytest.raises(ValueError, match="its pickle wants .*system"):
            read(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    (tmp_path / "a.dac").write_bytes(header.getvalue() + attack)
    with pytest.raises(ValueError, match="its pickle wants"):
        dac_file.read_dac(str(tmp_path / "a.dac"))
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "torch._utils._rebuild_tensor", "os.getcwd"])
def test_other_names_are_refused(name):
    module, _, function = name.rpartition(".")
    with pytest.raises(ValueError, match=f"^a.dac: its pickle wants {name}"):
        safe_pickle.read_numpy(f"c{module}\n{function}\n.".encode(), "a.dac")


def test_damaged_weights_are_refused(tmp_path):
    data = (GOLDEN / "even.pth").read_bytes()
    faults = {"cut": data[:-100], "empty": b"", "text": b"<html>not found</html>", "old": b"\x80\x02\x8a\nl\xfc\x9cF"}
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 15):
        faults[f"flipped {position}"] = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
    refused = 0
    for fault, damaged in faults.items():
        (tmp_path / "weights.pth").write_bytes(damaged)
        try:
            import_dac.read_official(str(tmp_path / "weights.pth"))
        except ValueError as error:
            assert "weights.pth" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert fault.startswith("flipped")  # in the padding between the parts of a zip, which has no meaning
    assert refused > 4


def test_weights_that_do_not_fit_are_refused(tmp_path):
    def without(state):
        del state["decoder.model.0.bias"]

    def reshaped(state):
        state["decoder.model.0.bias"] = np.zeros(3, np.float32)

    def extra(state):
        state["lm.weight"] = np.zeros(3, np.float32)

    def infinite(state):
        state["decoder.model.0.bias"] = state["decoder.model.0.bias"] * np.inf

    cures = {without: "has no decoder.model.0.bias", reshaped: "shape", extra: "lm.weight", infinite: "NaN or infinity"}
    for change, words in cures.items():
        weights = torch_checkpoint.read_torch(GOLDEN / "even.pth")
        change(weights["state_dict"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_checkpoint, "read_torch", lambda path, weights=weights: weights)
            with pytest.raises(ValueError, match=words):
                import_dac.read_official("weights.pth")
    for kwargs, words in (
        ({"decoder_rates": [2, 4]}, "not the encoder's"),
        ({"codebook_dim": [4, 4, 4]}, "codebook_dim"),
        ({"encoder_rates": "no"}, "encoder_rates"),
        ({"decoder_rates": None}, "decoder's rates None"),
    ):
        weights = torch_checkpoint.read_torch(GOLDEN / "even.pth")
        weights["metadata"]["kwargs"] |= kwargs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_checkpoint, "read_torch", lambda path, weights=weights: weights)
            with pytest.raises(ValueError, match=words):
                import_dac.read_official("weights.pth")


def test_other_models_of_transformers_are_refused(tmp_path):
    weights = tmp_path / "model.safetensors"
    for path in (tmp_path, weights):
        with pytest.raises(FileNotFoundError, match="model.safetensors does not exist: give a folder with config.json"):
            import_dac.read_transformers(str(path))
    shutil.copy(GOLDEN / "hf" / "model.safetensors", weights)
    with pytest.raises(FileNotFoundError, match="config.json of the model beside model.safetensors"):
        import_dac.read_transformers(str(weights))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"its content is \[\], not an object"):
        import_dac.read_transformers(str(tmp_path))
    settings = json.loads((GOLDEN / "hf" / "config.json").read_text())
    for change, words in (
        ({"model_type": "encodec"}, "model_type is 'encodec', not one of 'dac'"),
        ({"n_codebooks": None}, "n_codebooks is None"),
        ({"codebook_size": 64}, "shape"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=words):
            import_dac.read_transformers(str(weights))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda content: content["metadata"].update(dac_version="2.0.0"), "2.0.0"),
        (lambda content: content["metadata"].pop("chunk_length"), "chunk_length"),
        (lambda content: content.update(codes=content["codes"].astype(np.float32)), "float32"),
        (lambda content: content["metadata"].update(sample_rate=0), "sample_rate is 0"),
        (lambda content: content["metadata"].update(chunk_length=7), "columns are no whole number .* of 7"),
        (lambda content: content["metadata"].update(chunk_length=float("inf")), "chunk_length is inf, not a whole"),
        (lambda content: content["metadata"].update(original_length=10**13), "made them"),
        (lambda content: content["metadata"].update(input_db=np.float32([1e5])), "1e.05|100000"),
        (lambda content: content.update(codes=content), "damaged"),
        (lambda content: content.update(codes=content["codes"] + np.uint16(500)), "outside the codebook"),
    ],
)
def test_damaged_dac_files_are_refused(change, words, tmp_path):
    content = np.load(GOLDEN / "chunks.dac", allow_pickle=True)[()]  # our own file
    change(content)
    with open(tmp_path / "a.dac", "wb") as file:
        np.save(file, content)
    with pytest.raises(ValueError, match=words):
        dac_file.decode(codec("even"), dac_file.read_dac(str(tmp_path / "a.dac")))
    whole = (GOLDEN / "chunks.dac").read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(10, 70)]
    for data in (b"", b"\x93NUMPY", whole[:-9], *flipped):
        (tmp_path / "b.dac").write_bytes(data)
        with pytest.raises(ValueError, match="b.dac"):
            dac_file.read_dac(str(tmp_path / "b.dac"))
