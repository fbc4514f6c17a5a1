"""The table of tracks: many dialects are read, and everything unused is reported."""

import pytest

from bandtok_jax import cli
from bandtok_jax.cli import messages
from bandtok_jax.data_pipelines import discovery, track_table
from tests import fuzz
from tests.music_files import make_music, run

WHOLE = """file,split,licence,caption,domain,ends
a.flac,train,CC0-1.0,"slow, dark piano",piano,yes
b.wav,validation,CC-BY-4.0,loud guitars,rock,no
live/c.ogg,test,,é – ♪,live,
"""


@pytest.fixture
def table(tmp_path):
    """Writes and reads a table."""

    def write_and_read(text, encoding="utf-8"):
        (tmp_path / "tracks.csv").write_bytes(text.encode(encoding))
        return track_table.read_table(tmp_path / "tracks.csv")

    return write_and_read


@pytest.fixture
def music(tmp_path):
    return make_music(tmp_path / "music")


def find(music, text):
    path = music.parent / "tracks.csv"
    path.write_text(text)
    tracks, left_out, _, notes = discovery.find_tracks([music], csv_path=path, validation_share=0)
    return {track.name: track for track in tracks}, left_out, notes


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("file,caption,split\na.flac,slow piano,test\n", "utf-8"),
        ("File , Caption,SPLIT\n a.flac , slow piano , Test \n", "utf-8"),
        ('file, caption, split\n"a.flac", "slow piano", test\n', "utf-8-sig"),
        ('file;caption;split\r\na.flac;"slow piano";test\r\n;;\r\n', "utf-8-sig"),
        ("split\tcaption\tfile\ntest\tslow piano\ta.flac", "utf-8"),
        ('"caption"|"file"|"split"|\nslow piano|./a.flac|test|\n', "utf-8"),
        ("\n\nfile,kind,split\n\na.flac,slow piano,test,,\na.flac,slow piano,test\n", "utf-8"),
    ],
)
def test_the_same_table_in_many_dialects(table, text, encoding):
    result = table(text, encoding)
    assert list(result.rows) == ["a.flac"] and not result.notes
    assert (result.rows["a.flac"].caption, result.rows["a.flac"].split) == ("slow piano", "test")


@pytest.mark.parametrize(
    "text, error",
    [
        ("file,description\na.wav,x\n", "no column 'caption' but 'description': name it caption"),
        ("file,captions\na.wav,x\n", "no column 'caption' but 'captions': name it caption"),
        ("File;Licens\na.wav;x\n", "no column 'licence' but 'licens'"),
        ("filename,caption\na.wav,x\n", "no column 'file' but 'filename'"),
        ("artist,caption\na.wav,x\n", "no column 'file', but 'artist', 'caption'"),
        ("", "no column 'file', but nothing"),
        ("file,file\na.wav,b.wav\n", "two columns have the name file"),
        ("file,caption\n,x\n", "no line below the header names a file"),
        ('file,caption\na.wav,"slow\nb.wav,x\n', "line 2: a quote is opened there and never closed"),
        ('file,caption\na.wav,x\nb.wav,"slow" piano\n', "line 3: ',' expected after '\"'"),
        ("file,caption\na.wav,slow, dark\n", "line 2 has 3 cells below 2 columns: put quotes around commas"),
        ("file,split\n\na.wav,valid\n", "line 3 has the split 'valid'; write train, validation, test"),
        ("file,ends\na.wav,perhaps\n", "line 2 has 'perhaps' under ends; write yes, no"),
        ("file,caption\na.wav,x\nb.wav,y\n./a.wav,z\n", "lines 2 and 4 differ"),
        ("file,caption\na.wav," + "x" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_what_is_not_understood_is_an_error(table, tmp_path, text, error):
    with pytest.raises(ValueError) as refused:
        table(text)
    line = messages.one_line(refused.value)
    assert error in line and str(tmp_path / "tracks.csv") in line and len(line) < 500


def test_another_encoding_and_no_file(table, tmp_path):
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(ValueError, match=r"save it as UTF-8|no column 'file'"):
            table("file\ncafé.wav\n", encoding)
    with pytest.raises(FileNotFoundError, match="there is no such file; leave it out to split by a hash"):
        track_table.read_table(tmp_path / "gone.csv")


def test_columns_and_lines_that_say_nothing_are_noted(music):
    _, left_out, notes = find(music, "file,artist,caption,year\na.flac,x,slow,1999\n,y,z,\nb.wav,,,\n,v,w,\n")
    assert "only `bandtok evaluate probe` reads 'artist', 'year'; the columns are file, split" in notes[0]
    assert "no file is named in line 3, 5" in notes[1] and not left_out
    assert (
        notes[2] == "tracks.csv has rows for 2 of 3 tracks: captions for 1, splits for 0, domains for 0, lyrics for 0"
    )


def test_files_that_nobody_has_are_listed_to_a_limit_and_none_found_is_an_error(music):
    lost = "".join(f"{number}.wav,lost\n" for number in range(50))
    tracks, left_out, notes = find(music, "file,caption\na.flac,\n" + lost)
    assert len(left_out) == discovery.MAX_MISSING_NAMES + 1 and left_out[-1]["track"] == "40 more"
    assert "rows for 1 of 3 tracks: captions for 0" in notes[0] and len(tracks) == 3
    with pytest.raises(ValueError, match="none of its 50 rows names a file of the sources, the first '0.wav'; write "):
        find(music, "file,caption\n" + lost)


@pytest.mark.parametrize("name", ["music/a.flac", "a.flac", "./music/../music/a.flac", "{music}/a.flac"])
def test_a_file_is_named_from_the_table_from_the_source_or_from_the_root(music, name):
    tracks, left_out, _ = find(music, f"file,caption\n{name.format(music=music)},slow\n")
    assert tracks["a.flac"].caption == "slow" and not left_out


def test_accents_are_written_in_two_ways(music):
    (music / "a.flac").rename(music / "cafe\u0301.flac")
    tracks, left_out, _ = find(music, "file,caption\ncaf\u00e9.flac,slow\n")
    assert tracks["cafe\u0301.flac"].caption == "slow" and not left_out


def test_prepare_says_what_the_table_was_good_for(music, tmp_path, capsys):
    (tmp_path / "tracks.csv").write_text("file,caption\na.flac,\n")
    assert cli.main(["prepare", str(music), "-o", str(tmp_path / "out"), "--tracks", str(tmp_path / "tracks.csv")]) == 0
    assert "note: tracks.csv has rows for 1 of 3 tracks: captions for 0" in capsys.readouterr().out
    (tmp_path / "tracks.csv").write_text('file,caption\na.flac,"x\n')
    for verb in (["prepare", str(music)], ["evaluate", "--opus=24", "--data", str(music)]):
        assert cli.main([*verb, "-o", str(tmp_path / "new"), "--tracks", str(tmp_path / "tracks.csv")]) == 1
        assert "a quote is opened there and never closed" in capsys.readouterr().err


def test_damaged_tables(tmp_path):
    assert fuzz.check(track_table.read_table, tmp_path / "tracks.csv", WHOLE.encode(), fuzz.text, cases=300)["taken"]


def test_a_table_decides_what_run_makes(music, tmp_path):
    (tmp_path / "tracks.csv").write_text(WHOLE)
    manifest = run(music, output=tmp_path / "out", tracks=tmp_path / "tracks.csv")
    assert {split: content["tracks"] for split, content in manifest["splits"].items()} == dict(
        test=1, train=1, validation=1
    )
    assert manifest["domains"].keys() == {"piano", "rock", "live"}
