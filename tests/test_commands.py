"""External commands: file names and captions are always arguments, and never run."""

import json
import sys

import pytest
import soundfile

from bandtok_jax.evaluation.metrics import external_command
from tests import evaluations, music_files
from tests.evaluations import RATE, run, table

SHOW = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
HOSTILE = [
    "{decoded}$(touch PWNED).wav",
    "`touch PWNED`.wav",
    "a'; touch PWNED; '.wav",
    'a" && touch PWNED && "b.wav',
    "two  words\tand\nlines.wav",
    "*|>PWNED",
    "{original}{decoded}{caption}{",
    "~root \\ $HOME ${IFS}",
    "-rf",
    "--help=x",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_values_are_arguments_replaced_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"original": name, "decoded": f"folder/{name}", "caption": name}
    command = f"{SHOW} {{original}} --copy={{decoded}} {{decoded}}.mp3 {{other}} && {SHOW} {{caption}}"
    first, second = map(json.loads, external_command.run(command, values, "--measure=a", "segment").splitlines())
    safe = " " + name if name.startswith("-") else name
    assert first == [safe, f"--copy=folder/{name}", f"folder/{name}.mp3", "{other}"] and second == [safe]
    assert not list(tmp_path.iterdir())


def test_a_file_that_begins_like_a_flag_is_named_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-n.wav").touch()
    assert json.loads(external_command.run(f"{SHOW} {{input}}", {"input": "-n.wav"}, "--command=a", "segment")) == [
        "./-n.wav"
    ]


def test_a_script_is_given_its_values_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = """sh -c 'printf %s "$1" | wc -c' - {decoded}"""
    assert external_command.number(command, {"decoded": "$(touch PWNED)"}, "--measure=a", "segment") == 14
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command, message",
    [
        ("sh -c 'wc {decoded}'", "could run as a program"),
        ("sh -c wc\\ {decoded}", "could run as a program"),
        (f"{sys.executable} -c 'print(\"{{decoded}}\")'", "could run as a program"),
        ("cat {decoded} | wc", "'|' needs a shell"),
        ("cat <{decoded} 2>&1", "'<' needs a shell"),
        ("echo 1; echo {decoded}", "';' needs a shell"),
        ("cat $(echo {decoded})", "needs a shell"),
        ("cat '{decoded}", "close its quotes"),
        ("echo {decoded} &&", "names no program"),
        ("", "names no program"),
        ("{decoded} 1", "is not installed"),
        ("nosuchprogram {decoded}", "'nosuchprogram' is not installed"),
    ],
)
def test_what_needs_a_shell_is_refused_with_the_cure(command, message):
    with pytest.raises(ValueError, match="--measure=a") as raised:
        external_command.run(command, {"decoded": "x"}, "--measure=a", "segment")
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("value", ["a\0b", "\ud800", "x" * 2_000_000])
def test_what_no_argument_can_hold_is_a_mistake_with_a_name(value):
    with pytest.raises(ValueError, match="cannot run 'echo' on segment") as raised:
        external_command.run("echo {caption}", {"caption": value}, "--measure=a", "segment")
    assert len(str(raised.value)) < 500


def test_an_evaluation_runs_nothing_that_a_file_is_called(tmp_path, monkeypatch):
    evaluations.use_small_codec(monkeypatch)
    monkeypatch.chdir(tmp_path)
    music = tmp_path / "music"
    music.mkdir()
    names = ["{decoded}$(touch PWNED).wav", "';touch PWNED;'.wav", "--{original}`touch PWNED`.wav"]
    for number, name in enumerate(names):
        soundfile.write(music / name, music_files.make_audio(number, 1.2, 1, RATE), RATE)
    (tmp_path / "tracks.csv").write_text(
        "file,caption\n" + "".join(f'"{name}","{{decoded}}$(touch PWNED)"\n' for name in names)
    )
    flags = ["--codec=mine=x", "--data=music", "--tracks=tracks.csv", "--output=report"]
    measure = f"{sys.executable} -c 'import sys; print(len(sys.argv))' {{original}} {{decoded}} {{caption}}"
    assert run(*flags, f"--measure=a={measure}", "--command=copied=cp {input} {output}") == 0
    assert {line["a"] for line in table(tmp_path / "report" / "files.csv")} == {"4.0"}
    assert not list(tmp_path.rglob("PWNED*"))
