"""Damaged and hostile files of models and codes: each is taken, or refused by one line that names it."""

import functools
import io
import json
import pathlib
import pickle
import pickletools
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy

from bandtok_jax import tasks
from bandtok_jax.codecs import dac_file
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.config.stored import to_json, write_config
from bandtok_jax.formats import bt_file
from bandtok_jax.formats import safetensors as weights_file
from bandtok_jax.models import registry
from bandtok_jax.pretrained import (
    export_folder,
    import_dac,
    import_meltok,
    import_mucodec,
    import_snac,
    import_vocos,
    model_folder,
)
from tests import audioldm_reference, fuzz, meltok_state, mucodec_state, tiny
from tests.torch_files import write_torch

GOLDEN = pathlib.Path(__file__).parent / "golden"
HEADER = bt_file.Header(
    rows=5, codebook_size=1000, row_kind="band", sample_rate_hz=44100, samples_per_column=4096, weight_hash="ab" * 16
)


@pytest.fixture(autouse=True)
def known_networks(monkeypatch):
    """One task and network for each description, since building it again takes most of the time."""

    def once(create):
        known = {}

        def create_once(config, *arguments):
            key = json.dumps([to_json(config).get(name) for name in ("task", "model", "mel", "dtype")])
            if key not in known:
                known[key] = create(config, *arguments)
            return known[key]

        return create_once

    monkeypatch.setattr(tasks, "create", once(tasks.create))
    monkeypatch.setattr(registry, "build", once(registry.build))


def torch_weights(random, valid):
    """Mutates a file of torch.save: its bytes, or one file of the zip, mostly its pickle."""
    if random.random() < 0.3:
        return fuzz.binary(random, valid)
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(entries)) if random.random() < 0.2 else next(n for n in entries if n.endswith("data.pkl"))
    mutate = pickled if name.endswith("data.pkl") and random.random() < 0.7 else fuzz.binary
    entries[name] = mutate(random, entries[name])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return written.getvalue()


def pickled(random, valid):
    """Changes the steps of a pickle: their arguments, their order, or which there are."""
    steps = [place for _, _, place in pickletools.genops(valid)] + [len(valid)]
    parts = [bytearray(valid[first:last]) for first, last in zip(steps, steps[1:])]
    for _ in range(random.choice((1, 1, 2, 4))):
        place, other = random.randrange(len(parts)), random.randrange(len(parts))
        match random.randrange(6):
            case 0:
                del parts[place : place + random.choice((1, 1, 3))]
                parts = parts or [bytearray(b".")]
            case 1:
                parts.insert(place, bytearray(parts[other]))
            case 2:
                parts[place], parts[other] = parts[other], parts[place]
            case 3:
                argument = random.choice(fuzz.EXTREMES) % (1 << 8 * max(len(parts[place]) - 1, 1))
                parts[place][1:] = argument.to_bytes(max(len(parts[place]) - 1, 1), "little")[: len(parts[place]) - 1]
            case 4:
                value = random.choice(fuzz.HOSTILE_VALUES[:-1])
                parts[place] = bytearray(pickle.dumps(value if value != "\ud800" else 3, 2)[2:-1])
            case 5:
                parts[place] = bytearray(fuzz.binary(random, bytes(parts[place])))
    return b"".join(parts)


def test_weights_of_dac(tmp_path, check):
    valid = (GOLDEN / "dac" / "even.pth").read_bytes()
    check(lambda path: import_dac.read_official(str(path)), tmp_path / "weights.pth", valid, torch_weights)


def test_weights_of_vocos(tmp_path, check):
    shutil.copy(GOLDEN / "vocos" / "same" / "config.yaml", tmp_path)
    valid = (GOLDEN / "vocos" / "same" / "pytorch_model.bin").read_bytes()
    check(lambda path: import_vocos.read_vocos(str(path)), tmp_path / "pytorch_model.bin", valid, torch_weights)


@pytest.mark.parametrize("stage", tiny.fast(2, among=(1, 2)))
def test_weights_of_meltok(stage, tmp_path, check):
    sizes = meltok_state.Sizes(
        stem=32, widths=(64,), blocks=1, resamplings=1, attention=(0,), latent=8, code_dim=4, codes=8, mels=8, dim=8,
        intermediate=8, layers=1,
    )  # fmt: skip
    paths = [tmp_path / "stage1", tmp_path / "stage2"][:stage]
    write_torch(paths[0], {"encoder": meltok_state.random_state(meltok_state.stage1_shapes(sizes), 0), "steps": 1})
    if stage == 2:
        state = meltok_state.random_state(meltok_state.stage2_shapes(sizes), 0)
        write_torch(paths[1], {"state_dict": state, "epoch": 1, "callbacks": {}})
    check(lambda _: import_meltok.read_meltok(*map(str, paths)), paths[-1], paths[-1].read_bytes(), torch_weights)


def test_weights_of_audioldm(tmp_path, check):
    sizes = dict(widths=(32,), blocks=1, latent=2, mels=4, initial=4, rates=(480,), kernels=(3,))
    path = tmp_path / "audioldm_48k.pth"
    write_torch(path, {"state_dict": audioldm_reference.random_state(audioldm_reference.shapes(**sizes))})
    check(lambda _: import_mucodec.read_mucodec(str(path)), path, path.read_bytes(), torch_weights, cases=100)


def test_weights_of_mucodec(tmp_path, check):
    path, others = tmp_path / "mucodec.pt", (tmp_path / "audioldm_48k.pth", tmp_path / "muq.pt")
    for other, state in zip(others, (mucodec_state.audioldm(), mucodec_state.muq())):
        write_torch(other, {"state_dict": state})
    write_torch(path, {"state_dict": mucodec_state.mucodec(rows=1, layers=1)})
    check(
        lambda _: import_mucodec.read_mucodec(str(path), *map(str, others)), path, path.read_bytes(), torch_weights,
        cases=60,
    )  # fmt: skip


def test_settings_of_vocos(tmp_path, check):
    shutil.copytree(GOLDEN / "vocos" / "same", tmp_path, dirs_exist_ok=True)
    valid, read = (tmp_path / "config.yaml").read_bytes(), lambda _: import_vocos.read_vocos(str(tmp_path))
    check(read, tmp_path / "config.yaml", valid, fuzz.text, named=str(tmp_path))


def test_settings_and_weights_of_snac(tmp_path, check):
    shutil.copytree(GOLDEN / "snac" / "windows", tmp_path, dirs_exist_ok=True)
    for name, mutate in (("config.json", fuzz.json_text), ("pytorch_model.bin", torch_weights)):
        valid = (tmp_path / name).read_bytes()
        check(
            lambda _: import_snac.read_snac(str(tmp_path)), tmp_path / name, valid, mutate, cases=100,
            named=str(tmp_path),
        )  # fmt: skip
        (tmp_path / name).write_bytes(valid)


def test_settings_and_weights_of_transformers(tmp_path, check):
    shutil.copytree(GOLDEN / "dac" / "hf", tmp_path, dirs_exist_ok=True)
    for name, mutate in (("config.json", fuzz.json_text), ("model.safetensors", tensors)):
        valid = (tmp_path / name).read_bytes()
        check(
            lambda _: import_dac.read_transformers(str(tmp_path)), tmp_path / name, valid, mutate, named=str(tmp_path)
        )


def tensors(random, valid):
    """Mutates a safetensors file: its bytes, or its header, whose length then fits."""
    if random.random() < 0.3:
        return fuzz.binary(random, valid)
    (length,) = struct.unpack("<Q", valid[:8])
    header = fuzz.json_text(random, valid[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + valid[8 + length :]


def test_tensors(tmp_path, check):
    tree = {"a": {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float16)}, "b": np.arange(3)}
    weights_file.save(tmp_path / "valid", tree, {"format": "bandtok-jax"})
    valid = (tmp_path / "valid").read_bytes()
    check(weights_file.load, tmp_path / "model.safetensors", valid, tensors, cases=400)


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), (".".join("a" * 5000),)])
def test_names_of_tensors_that_make_no_tree(names, tmp_path):
    safetensors.numpy.save_file({name: np.zeros(2) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors: a.* (is an array and holds|has more than 32 levels)"):
        weights_file.load(tmp_path / "a.safetensors")


@functools.cache
def small_tokenizer():
    config = load_config("bandtok:tiny")
    with config.unlocked():
        config.model.update(channels=(8,), patch=32, codebook_size=16, codebook_dim=4)
    return tiny.drawn_component(config)


def test_configuration_of_an_export(tmp_path, check):
    stage = small_tokenizer()
    export_folder.save_codec(assemble({stage.role: stage}), tmp_path)
    valid = (tmp_path / "config.json").read_bytes()

    def read(_):
        return model_folder.read_components(tmp_path)

    check(read, tmp_path / "config.json", valid, fuzz.json_text, named=str(tmp_path))


def test_configuration_of_a_run(tmp_path, check):
    write_config(load_config("bandtok:tiny"), tmp_path)
    valid = (tmp_path / "config.json").read_bytes()

    def read(_):
        return load_config(str(tmp_path))

    check(read, tmp_path / "config.json", valid, fuzz.json_text, named=str(tmp_path))


def dac_codes(random, valid):
    """Mutates a `.dac` file: its bytes, or the steps of its pickle."""
    begin = valid.index(b"\n") + 1
    return fuzz.binary(random, valid) if random.random() < 0.4 else valid[:begin] + pickled(random, valid[begin:])


@pytest.mark.parametrize("name", tiny.fast("song", among=("song", "chunks")))
def test_dac_files(name, tmp_path, check):
    valid = (GOLDEN / "dac" / f"{name}.dac").read_bytes()
    check(lambda path: dac_file.read_dac(str(path)), tmp_path / "a.dac", valid, dac_codes, cases=400)


def signed(random, valid):
    """Mutates a `.bt` file: its bytes, or a field of the header, whose checksum then fits."""
    data = bytearray(fuzz.binary(random, valid))
    if random.random() < 0.6:
        data = bytearray(valid)
        place, width = random.randrange(8, 60), random.choice((1, 2, 4, 8))
        data[place : place + width] = (random.choice(fuzz.EXTREMES) % (1 << 8 * width)).to_bytes(width, "little")
        data[60:64] = zlib.crc32(data[:60]).to_bytes(4, "little")
    return bytes(data)


def test_bt_files(tmp_path, check):
    codes = np.random.default_rng(0).integers(0, 1000, (40, 5), dtype=np.int32)
    bt_file.write_codes(tmp_path / "valid.bt", codes, HEADER, 40 * 4096)
    check(bt_file.read_codes, tmp_path / "a.bt", (tmp_path / "valid.bt").read_bytes(), signed, cases=400)
