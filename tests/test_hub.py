"""Models on the Hugging Face hub: publishing, loading, pinned commits, the cache without a network, refusals.

The package huggingface_hub talks to a stand-in on loopback, `hub_server`.
"""

import errno
import json
import os
import pathlib
import re
import shutil
import sys

import pytest
import yaml

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.config.stored import to_json, write_config
from bandtok_jax.pretrained import export_folder, hub, model_folder
from bandtok_jax.training import run
from tests import hub_server, tiny

pytest.importorskip("huggingface_hub", reason="needs  pip install 'bandtok-jax[hub]'")

VOCOS = pathlib.Path(__file__).parent / "golden" / "vocos" / "same"
FILES = ("README.md", "config.json", "model.safetensors")


def _forget_library():
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The stand-in, which huggingface_hub takes from the environment when it is imported."""
    with hub_server.serve() as content, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", content.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        _forget_library()
        yield content
        _forget_library()


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two exports of the same small codec with other weights."""
    folder = tmp_path_factory.mktemp("exports")
    config = tiny.config("waveform_codec", folder)
    for seed in range(2):
        codec = assemble({"tokenizer": tiny.drawn_component(config, seed)})
        export_folder.save_codec(codec, folder / str(seed))
    return folder


@pytest.fixture
def offline(server, monkeypatch):
    """Makes the hub unreachable."""

    def disconnect(by_variable):
        import huggingface_hub.constants as constants

        if by_variable:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    return disconnect


def _content(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def _hash(folder):
    return json.loads((folder / "config.json").read_text())["weight_hash"]


def _fails(arguments, capsys):
    """Returns the one line of the error of a command."""
    assert cli.main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("bandtok: error: ")
    return lines[0]


def test_a_published_export_is_loaded_by_its_name(server, exports, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    name, output = "lab/published", tmp_path / "export"
    command = ["export", str(exports / "0"), "--licence=cc0-1.0", "--push", name, "--private", "-o", str(output)]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    commit = server.commit(name)
    assert "licence of the weights: cc0-1.0" in printed.out and "synthetic music" in printed.out
    assert printed.out.endswith(f"--model=hf://{name}@{commit}\n")
    assert hub_server.TOKEN not in printed.out + printed.err
    assert server.repositories[name]["private"]
    files = server.repositories[name]["commits"][-1]
    assert set(files) == {*FILES, ".gitattributes"}
    assert files["model.safetensors"] == (output / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card == (output / "README.md").read_text().replace("this folder", f"hf://{name}")
    assert yaml.safe_load(card.split("---")[1]) == {
        "library_name": "bandtok-jax",
        "license": "cc0-1.0",
        "pipeline_tag": "audio-to-audio",
        "tags": ["audio", "music", "tokenizer", "jax", "dac"],
    }

    codec = bandtok_jax.load(f"hf://{name}")
    assert codec.weight_hash == _hash(exports / "0")
    assert codec.components["tokenizer"].source_path == f"hf://{name}@{commit}"
    assert cli.main(command) == 0  # nothing has changed, so there is no second commit
    assert server.commit(name) == commit
    monkeypatch.delenv("HF_TOKEN")
    _fails(["export", f"hf://{name}@{'0' * 40}", "-o", tmp_path / "again"], capsys)

    # A model that is made of it names it as its base.
    again = model_folder.export(f"hf://{name}@{commit}", output=tmp_path / "derived")
    assert again.weight_hash == codec.weight_hash
    assert yaml.safe_load((tmp_path / "derived/README.md").read_text().split("---")[1])["base_model"] == [name]


def test_a_revision_is_loaded_and_a_recorded_commit_stays(server, exports):
    old, new = (server.put("lab/two", _content(exports / number)) for number in "01")
    assert bandtok_jax.load(f"hf://lab/two@{old}").weight_hash == _hash(exports / "0")
    assert bandtok_jax.load("hf://lab/two").weight_hash == _hash(exports / "1")
    recorded = f"hf://lab/two@{old}"
    assert hub.pin("hf://lab/two", recorded) == hub.pin("hf://lab/two@main", recorded) == recorded
    assert hub.pin("hf://lab/two") == f"hf://lab/two@{new}"  # never recorded
    assert hub.pin(f"hf://lab/two@{new}", recorded) == f"hf://lab/two@{new}"  # another one was asked for
    assert hub.pin("hf://lab/two", "hf://lab/other@main") == f"hf://lab/two@{new}"


def test_a_run_records_the_commit_and_reads_it_when_it_is_resumed(server, exports, tmp_path, offline):
    config = tiny.config("vocoder", tmp_path, tokenizer="hf://lab/tokenizer")
    old, lines = server.put("lab/tokenizer", _content(exports / "0")), []
    started = run.resolve(config, tmp_path / "run", log=lines.append)
    assert started.config.tokenizer == f"hf://lab/tokenizer@{old}"
    assert f"the tokenizer is hf://lab/tokenizer@{old}" in lines
    write_config(started.config, tmp_path / "run")

    server.put("lab/tokenizer", {"config.json": b"{}"})  # a newer commit that could not be read
    offline(by_variable=False)
    resumed = run.resolve(config, tmp_path / "run", resumed=True)
    assert resumed.config.tokenizer == started.config.tokenizer
    assert resumed.dependencies == started.dependencies == {"tokenizer": _hash(exports / "0")}


def test_a_configuration_is_read_without_the_weights(server, exports, offline, tmp_path):
    path, config = "hf://lab/start", tiny.config("waveform_codec", tmp_path)
    server.put("lab/start", _content(exports / "0"))
    count = len(server.requests)
    changed = run.with_network_of(path, load_config("dac:tiny"), {"model.rows"}, log=str)
    assert changed.model.rows == load_config("dac:tiny").model.rows != config.model.rows
    assert to_json(changed.model) == to_json(config.model) | {"rows": changed.model.rows}
    assert not [request for request in server.requests[count:] if export_folder.WEIGHTS_FILE in str(request)]
    offline(by_variable=False)
    assert to_json(model_folder.read_configs(path)["tokenizer"].model) == to_json(config.model)
    with pytest.raises(ValueError, match=f"{path}: the hub cannot be read .* and the cache has no complete copy"):
        model_folder.read_components(path)


@pytest.mark.parametrize("by_variable", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_the_cache_serves_without_a_network(by_variable, server, exports, offline, capsys, tmp_path):
    server.put("lab/cached", _content(exports / "0"))
    server.put("lab/absent", _content(exports / "0"))
    hub.download("hf://lab/cached")
    count = len(server.requests)
    offline(by_variable)
    assert bandtok_jax.load("hf://lab/cached").weight_hash == _hash(exports / "0")
    cure = "HF_HUB_OFFLINE forbids a download: unset it once" if by_variable else "connect to the network"
    error = _fails(["export", "hf://lab/absent", "-o", tmp_path / "out"], capsys)
    assert error.startswith("bandtok: error: hf://lab/absent: ") and cure in error
    assert len(server.requests) == count


@pytest.mark.parametrize(
    "path, words",
    [
        ("hf://lab/nothing", "hf://lab/nothing: there is no such repository, or it is private: .*set HF_TOKEN"),
        ("hf://lab/empty@v9", "hf://lab/empty@v9: the repository has no such revision: give a branch"),
        ("hf://lab/empty", "hf://lab/empty@[0-9a-f]{40} holds no export of bandtok: .*bandtok import"),
        ("hf://lab/other", "hf://lab/other@[0-9a-f]{40} holds no export of bandtok"),
        ("hf://lab", "hf://lab names no repository: write hf://OWNER/NAME or"),
        ("hf://lab/a/b", "names no repository"),
        ("hf://../etc", "names no repository"),
    ],
)
def test_names_without_a_model_are_one_line(path, words, server, tmp_path, capsys):
    server.put("lab/empty", {".gitattributes": b""})
    server.put("lab/other", {"config.json": b'{"model_type": "dac"}', "model.safetensors": b"of another program"})
    assert re.search(words, _fails(["export", path, "-o", tmp_path / "out"], capsys))
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments in (["hf://lab/model"], [tmp_path, "--licence=mit", "--push=lab/model"]):
        error = _fails(["export", *arguments, "-o", tmp_path / "out"], capsys)
        assert "pip install 'bandtok-jax[hub]'" in error


@pytest.mark.parametrize(
    "token, licence, arguments, words",
    [
        (hub_server.TOKEN, None, [], "licences: tokenizer none; .*give --licence=NAME"),
        (hub_server.TOKEN, "unknown", [], "whose authors state none must not be published"),
        (hub_server.TOKEN, "cc-by-nc-4.0", ["--licence=mit"], "licence of the tokenizer is cc-by-nc-4.0, not mit"),
        (hub_server.TOKEN, None, ["--licence=Own licence"], "give an identifier of https"),
        (hub_server.TOKEN, None, ["--licence=mitt"], "Invalid metadata in README.md"),
        (hub_server.TOKEN, None, ["--licence=mit", "--private"], "it exists and is public: leave out --private"),
        (hub_server.READ_ONLY, None, ["--licence=mit"], "make a token with the right to write"),
        ("hf_wrong", None, ["--licence=mit"], "the token is not valid: set HF_TOKEN"),
        (None, None, ["--licence=mit"], "there is no token of the hub: set HF_TOKEN"),
    ],
)
def test_refused_uploads_leave_the_hub_as_it_was(
    token, licence, arguments, words, server, exports, tmp_path, monkeypatch, capsys
):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    before = server.put("lab/public", {".gitattributes": b""})
    source = shutil.copytree(exports / "0", tmp_path / "source")
    content = json.loads((source / "config.json").read_text())
    if licence:
        content["components"]["tokenizer"]["card"]["licence"] = licence
        (source / "config.json").write_text(json.dumps(content))
    error = _fails(["export", source, *arguments, "--push=lab/public", "-o", tmp_path / "out"], capsys)
    assert re.search(words, error), error
    assert not token or token not in error
    assert server.commit("lab/public") == before


@pytest.mark.parametrize(
    "card, licence",
    [
        ("---\ntags: [a]\nlicense: mit\n---\n# A", "mit"),
        ("--- \r\nlicense: 'cc-by-4.0'  # ours\r\n---\r\n", "cc-by-4.0"),
        ("---\ntags: [a]\n---\nlicense: mit", ""),
        ("license: mit", ""),
        ("---\nlicense: my own: one\n---\n", "other"),
        ("---" + "\n" * 1_000_000, ""),
        ("---\nlicense: mit\ntags: " + "[" * 1_000_000, "mit"),
    ],
)
def test_the_licence_of_a_card_is_an_identifier(card, licence, tmp_path):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert hub.card_licence(tmp_path) == licence


def test_weights_of_other_programs_are_imported_by_their_name(server, tmp_path, capsys):
    files = {name: (VOCOS / name).read_bytes() for name in os.listdir(VOCOS)}
    commit = server.put("lab/vocos", {**files, "README.md": b"---\nlicense: mit\n---\n# Vocos\n", "song.wav": b"large"})
    assert cli.main(["import", "hf://lab/vocos", "--from=vocos", "-o", str(tmp_path / "vocos")]) == 0
    card = (tmp_path / "vocos" / "README.md").read_text()
    assert f"weights imported from hf://lab/vocos@{commit}" in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "mit" and metadata["base_model"] == ["lab/vocos"]
    assert not any("song.wav" in request for request in server.requests)
    assert "--from=dac reads files: download" in _fails(
        ["import", "hf://lab/vocos", "--from=dac", "-o", tmp_path / "dac"], capsys
    )


def test_a_full_disk_is_named_as_such():
    library = hub._library("hf://OWNER/NAME")
    with pytest.raises(ValueError, match="the disk of the cache is full: free some space, or set HF_HOME"):
        with hub._one_line_errors("hf://OWNER/NAME", library):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_branch_may_have_a_slash():
    assert hub.parse("hf://lab/two@feature/x") == hub.Repository("lab/two", "feature/x")
    assert hub.parse("hf://lab/two/") == hub.Repository("lab/two")
