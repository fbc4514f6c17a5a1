"""The page of `bandtok demo`: its server by HTTP, and the page itself in a browser."""

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from urllib import parse

import numpy as np
import pytest
import soundfile

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.commands import music_files
from bandtok_jax.demo import connection, mel_image, server, sessions, site
from bandtok_jax.demo.band_pass import BandPass
from bandtok_jax.pretrained import export_folder
from tests import browser, loopback, test_codec, test_flow_codec, test_mid_side, tiny, toy_tokenizer
from tests.test_cli import failure
from tests.test_editing import editor

RATE = 44_100


@contextlib.contextmanager
def served(codec, folder):
    """A server of the page, for as long as the context lasts."""
    content = site.Site(codec, "small model", str(folder))
    running = server.Server(content)
    assert running.server_address[0] == "127.0.0.1"
    with loopback.serving(running):
        yield content


class Client:
    """A tab of a browser."""

    def __init__(self, running):
        self.running, self.session = running, ""
        self.session = self.post("/open")["session"]

    def send(self, method, path, body=None, headers=(), **query):
        """Status, headers and body of an answer; headers with the value None are left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=120)
        kind = "application/json" if isinstance(body, str) else "application/octet-stream"
        sent = {"Host": self.running.hosts[0], "Origin": self.running.address[:-1], "Content-Type": kind}
        sent |= dict(headers)
        connection.putrequest(method, f"{path}?{parse.urlencode({'session': self.session} | query)}", skip_host=True)
        body = body.encode() if isinstance(body, str) else body
        if body is not None and "Content-Length" not in sent:
            sent["Content-Length"] = str(len(body))
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def post(self, path, **content):
        """The answer to a request that succeeds."""
        status, _, body = self.send("POST", path, json.dumps(content))
        assert status == 200, body
        return json.loads(body)

    def error(self, *arguments, **options):
        """Status and line of a request that fails."""
        status, headers, body = self.send(*arguments, **options)
        assert headers["Content-Type"] == "application/json" and headers["X-Content-Type-Options"] == "nosniff"
        return status, json.loads(body)["error"]

    def upload(self, data, name="song.wav"):
        status, _, body = self.send("POST", "/upload", data, name=name)
        assert status == 200, body
        return json.loads(body)

    def codes(self, rows=16):
        return np.frombuffer(self.send("GET", "/codes")[2], "<i4").reshape(-1, rows)

    def audio(self, name):
        """Audio [S, C] of 16 bits, as int16."""
        return soundfile.read(io.BytesIO(self.send("GET", "/audio", name=name)[2]), dtype="int16", always_2d=True)[0]


def folder_of(tab):
    return tab.running.sessions.find(tab.session).folder


def wav(audio, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, audio, rate, "PCM_16", format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with served(editor(), tmp_path_factory.mktemp("demo")) as content:
        yield content


def music():
    """Audio of 1.6 s in 16 bits."""
    return waveform.as_int16(test_codec.music()[:70_000]).astype(np.float32) / waveform.INT16_SCALE


def stereo_editor():
    """A stereo codec with a language model, as if it had been trained to fill in."""
    return tiny.with_language_model(test_mid_side.create(), **{"loss.infill_fraction": 0.5})


def stereo_music():
    """Audio `[2, S]` of 1.6 s in 16 bits, with two different channels."""
    return waveform.as_int16(np.stack([music(), 0.5 * music()[::-1]])).astype(np.float32) / waveform.INT16_SCALE


def test_a_file_becomes_its_grid_and_back(running):
    """The codes and the audio of the page are those of the codec, at the loudness of the training."""
    tab, codec, audio = Client(running), editor(), music()
    opened = tab.upload(wav(audio))
    gain = np.float32(music_files.training_gain(codec, audio))
    codes = codec.encode(audio * gain, RATE)
    np.testing.assert_array_equal(tab.codes(), codes)
    assert opened["columns"] == len(codes) and opened["samples"] == len(audio) and gain != 1
    np.testing.assert_array_equal(tab.audio(opened["original"])[:, 0], waveform.as_int16(audio))
    name = tab.post("/reconstruct", rows=[0, 16])["audio"]
    decoded = codec.decode(codes, samples=len(audio)) / gain
    np.testing.assert_array_equal(tab.audio(name)[:, 0], waveform.as_int16(decoded))
    border_hz = (codec.row_edges_hz[7, 1] + codec.row_edges_hz[8, 0]) / 2
    for rows, band in (([0, 8], (0, border_hz)), ([8, 16], (border_hz, np.inf))):
        filtered = BandPass(*band, RATE, 1)(decoded)
        part = tab.audio(tab.post("/reconstruct", rows=rows)["audio"])[:, 0]
        np.testing.assert_allclose(part, waveform.as_int16(filtered), atol=1)
    assert tab.send("GET", "/audio", name=name)[0] == 200 and len(os.listdir(folder_of(tab))) == 4


def test_levels_of_a_codec_without_vocoder_and_language_model(tmp_path):
    codec = WaveformCodec(tiny.drawn_component(toy_tokenizer.get_config()))
    with served(codec, tmp_path) as running:
        tab, audio = Client(running), music()[:20_000]
        model = tab.post("/open")["model"]
        assert model["listening"] == "levels" and not model["editing"] and not model["generating"]
        assert len(model["missing"]) == 2 and "residual levels, not bands" in model["missing"][0]
        assert "New music: this codec has no language model: load it" in model["missing"][1]
        tab.upload(wav(audio))
        codes = codec.encode(audio, RATE)
        np.testing.assert_array_equal(tab.codes(codec.rows), codes)
        decoded = tab.audio(tab.post("/reconstruct", rows=[0, 1])["audio"])[:, 0]
        np.testing.assert_array_equal(decoded, waveform.as_int16(codec.decode(codes[:, :1], samples=len(audio))))
        assert "levels, not bands" in tab.error("POST", "/edit", json.dumps(EDIT))[1]


def test_both_channels_of_a_stereo_codec(tmp_path):
    """The rows of mid and side, a region in both, and audio that is that of the codec."""
    codec, audio = stereo_editor(), stereo_music()
    with served(codec, tmp_path) as running:
        tab, gain = Client(running), np.float32(music_files.training_gain(codec, audio))
        model = tab.post("/open")["model"]
        assert model["channels"] == 2 and model["channel_rows"] == [16, 12] and model["listening"] == "bands"
        opened, codes = tab.upload(wav(audio.T)), codec.encode(audio * gain, RATE)
        np.testing.assert_array_equal(tab.codes(28), codes)
        np.testing.assert_array_equal(tab.audio(opened["original"]).T, waveform.as_int16(audio))
        decoded = codec.decode(codes, samples=audio.shape[1]) / gain
        name = tab.post("/reconstruct", rows=[0, 16])["audio"]
        np.testing.assert_array_equal(tab.audio(name).T, waveform.as_int16(decoded))
        border_hz = (codec.row_edges_hz[7, 1] + codec.row_edges_hz[8, 0]) / 2
        part = tab.audio(tab.post("/reconstruct", rows=[0, 8])["audio"]).T
        np.testing.assert_allclose(part, waveform.as_int16(BandPass(0, border_hz, RATE, 2)(decoded)), atol=1)
        tab.post("/edit", columns=[4, 9], rows=[10, 14], prompt="", seed=3)
        changed = tab.codes(28) != codes
        inside = np.zeros_like(changed)
        inside[4:9, [*range(10, 14), 26, 27]] = True  # the side has rows up to those above the tenth and eleventh
        assert not changed[~inside].any() and changed[4:9, 10:14].any() and changed[4:9, 26:].any()


@pytest.mark.slow
def test_new_music_of_a_stereo_codec(tmp_path):
    codec = stereo_editor()
    with served(codec, tmp_path) as running:
        check_new_music(Client(running), codec)


def check_new_music(tab, codec):
    body = tab.send("POST", "/generate", json.dumps({"prompt": "", "seconds": 1.3, "seed": 3}))[2]
    expected = np.concatenate(list(codec.generate_stream(None, 1.3, 3)), axis=1)[:, : round(1.3 * codec.sample_rate_hz)]
    np.testing.assert_array_equal(np.frombuffer(body[44:], "<i2").reshape(-1, 2).T, waveform.as_int16(expected))


@pytest.mark.slow
def test_levels_of_a_stereo_flow(tmp_path):
    codec = tiny.with_language_model(test_flow_codec.create())
    audio = stereo_music()[:, :40_000]
    with served(codec, tmp_path) as running:
        tab = Client(running)
        model = tab.post("/open")["model"]
        assert model["listening"] == "levels" and model["row_counts"] == [1, 2] and model["generating"]
        assert not model["editing"] and model["channel_rows"] == [2]
        samples, codes = tab.upload(wav(audio.T))["samples"], tab.codes(2)
        np.testing.assert_array_equal(codes, codec.encode(audio, RATE))
        decoded = tab.audio(tab.post("/reconstruct", rows=[0, 1])["audio"])
        np.testing.assert_array_equal(decoded.T, waveform.as_int16(codec.decode(codes[:, :1], samples=samples)))
        check_new_music(tab, codec)


EDIT = {"columns": [4, 9], "rows": [3, 8], "prompt": "soft bells", "seed": 3}


def test_an_edit_keeps_the_codes_around_it_until_it_is_undone(running):
    tab = Client(running)
    tab.upload(wav(music()))
    before, inside = tab.codes(), np.zeros((18, 16), bool)
    inside[4:9, 3:8] = True
    assert tab.post("/edit", **EDIT) == {"columns": 18, "is_proposal": True, "can_undo": True}
    proposal = tab.codes()
    np.testing.assert_array_equal(proposal[~inside], before[~inside])
    assert (proposal[inside] != before[inside]).mean() > 0.5
    tab.post("/edit", **EDIT | {"seed": 4})  # from the same grid, not from the proposal
    assert (tab.codes() != proposal)[inside].any()
    assert not tab.post("/keep")["is_proposal"]
    kept = tab.codes()
    tab.post("/edit", **EDIT | {"columns": [12, 14]})
    assert tab.post("/undo")["can_undo"]
    np.testing.assert_array_equal(tab.codes(), kept)
    assert not tab.post("/undo")["can_undo"]
    np.testing.assert_array_equal(tab.codes(), before)
    for change, message in (
        ({"columns": [4, 99]}, "columns 4 to 99 of 18: select"),
        ({"rows": [8, 3]}, "rows 8 to 3 of 16: choose"),
        ({"columns": [0, 18], "rows": [0, 16]}, "the regions hold the whole track"),
        ({"seed": -1}, "seed is -1, not a whole number"),
        ({"prompt": "a" * 1001}, "text of at most 1000 letters"),
    ):
        status, line = tab.error("POST", "/edit", json.dumps(EDIT | change))
        assert status == 400 and message in line


def test_new_music_is_a_stream_of_wav(running):
    tab, codec = Client(running), editor()
    content = {"prompt": "slow piano", "seconds": 1.3, "seed": 3}
    status, headers, body = tab.send("POST", "/generate", json.dumps(content))
    assert status == 200 and headers["Transfer-Encoding"] == "chunked" and headers["Content-Type"] == "audio/wav"
    audio = np.frombuffer(body[44:], "<i2")
    expected = np.concatenate(list(codec.generate_stream("slow piano", 1.3, 3)))[: round(1.3 * RATE)]
    np.testing.assert_array_equal(audio, waveform.as_int16(expected))
    assert body[:4] == b"RIFF" and len(audio) == round(1.3 * RATE)
    for seconds in (0, 601, "long"):
        assert tab.error("POST", "/generate", json.dumps(content | {"seconds": seconds}))[0] == 400


def test_a_closed_stream_ends_its_work(running):
    """The lock is free again for other tabs, long before the minutes of the stream."""
    tab = Client(running)
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    headers = {"Origin": running.address[:-1], "Content-Type": "application/json"}
    body = json.dumps({"prompt": "", "seconds": 600, "seed": 0})
    connection.request("POST", f"/generate?session={tab.session}", body, headers)
    assert len(connection.getresponse().read(1000)) == 1000
    threads = threading.active_count()
    connection.close()
    end = time.monotonic() + 30
    while threading.active_count() >= threads:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_tabs_do_not_disturb_each_other_and_the_oldest_ends(running):
    tabs = [Client(running) for _ in range(2)]
    for tab, length in zip(tabs, (30_000, 50_000)):
        tab.upload(wav(music()[:length]))
    assert [len(tab.codes()) for tab in tabs] == [8, 13]
    names = [tab.upload(wav(music()[:length]))["original"] for tab, length in zip(tabs, (30_000, 50_000))]
    assert tabs[0].error("GET", "/audio", name=names[1])[0] == 404
    folder = folder_of(tabs[0])
    for _ in range(sessions.MOST_SESSIONS):
        Client(running)
    status, line = tabs[0].error("GET", "/codes")
    assert status == 404 and "reload the page" in line and not os.path.exists(folder)


def test_a_session_that_works_keeps_its_files_when_it_is_dropped(tmp_path):
    every = sessions.Sessions(str(tmp_path))
    busy, idle = every.open(), every.open()
    with busy.lock:
        for _ in range(sessions.MOST_SESSIONS):
            every.open()
    assert os.path.exists(busy.folder) and not os.path.exists(idle.folder)


def test_silence_is_dark(running):
    tab = Client(running)
    tab.upload(wav(np.zeros_like(music())))
    mels = running.sessions.find(tab.session).mels
    assert mels and not any(mel.any() for mel in mels.values())


def test_requests_from_elsewhere_are_refused(running):
    tab = Client(running)
    for headers in ({"Host": "evil.example"}, {"Host": f"evil.example:{running.port}"}, {"Host": "127.0.0.1"},
                    {"Host": None}):  # fmt: skip
        for method, path in (("GET", "/"), ("POST", "/open")):
            assert tab.error(method, path, "{}", headers=headers)[0] == 403, headers
    for origin in ("http://evil.example", "null", None, "https://" + running.hosts[0], "http://localhost"):
        status, line = tab.error("POST", "/open", "{}", headers={"Origin": origin})
        assert status == 403 and "another page" in line
    assert tab.error("POST", "/open", "{}", headers={"Content-Type": "text/plain"})[0] == 415
    assert tab.send("GET", "/", headers={"Host": running.hosts[1]})[0] == 200


def test_browsers_leave_out_port_80(running, monkeypatch):
    monkeypatch.setattr(running, "port", 80)
    assert running.hosts == ("127.0.0.1", "localhost") and running.address == "http://127.0.0.1/"


def test_uploads_beyond_the_limits_and_broken_files(running):
    tab = Client(running)
    status, line = tab.error("POST", "/upload", b"", {"Content-Length": "200000001"}, name="long.wav")
    assert status == 413 and line == "long.wav of 200.0 MB: the page takes at most 200 MB"
    assert tab.error("POST", "/upload", b"", {"Content-Length": None})[0] == 411
    status, line = tab.error("POST", "/upload", wav(np.zeros(8000 * 601), 8000), name="long.wav")
    assert status == 400 and line.startswith("long.wav: it has 601 s or more, and the page takes at most 600 s: cut it")
    name = "../../<b>\u202e\n.mp3"
    for data in (b"", b"no audio at all", wav(music())[:20_000]):
        status, line = tab.error("POST", "/upload", data, name=name)
        assert status == 400 and line.startswith("../../<b>\\u202e\\n.mp3: ") and folder_of(tab) not in line, line
    assert "no file is open" in tab.error("POST", "/reconstruct", '{"rows": [0, 16]}')[1]
    assert not os.listdir(folder_of(tab))
    assert tab.upload(wav(music()[:9000]), name)["columns"] == 3


def test_no_name_is_a_path(running):
    tab = Client(running)
    tab.upload(wav(music()[:9000]))
    for name in ("../../../etc/passwd", "/etc/passwd", "", "original"):
        assert tab.error("GET", "/audio", name=name)[0] == 404
    for path in ("/../page.html", "/page.html", "//etc/passwd", "/codes/", "/favicon.ico"):
        assert tab.error("GET", path)[0] == 404
    assert tab.error("POST", "/else", "{}")[0] == 404
    for body in ("[]", "{", '{"rows": 3}', "x" * (connection.MOST_JSON_BYTES + 1)):
        assert tab.error("POST", "/reconstruct", body)[0] in (400, 413)


def test_ranges_of_audio(running):
    tab = Client(running)
    name = tab.upload(wav(music()[:9000]))["original"]
    whole = tab.send("GET", "/audio", name=name)[2]
    for wanted, part in (("bytes=0-9", whole[:10]), ("bytes=100-", whole[100:]), ("bytes=9-99999999", whole[9:])):
        status, headers, body = tab.send("GET", "/audio", headers={"Range": wanted}, name=name)
        assert status == 206 and body == part
        first = wanted.removeprefix("bytes=").split("-")[0]
        assert headers["Content-Range"] == f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}"
    assert tab.error("GET", "/audio", headers={"Range": "bytes=9999999-"}, name=name)[0] == 416
    assert tab.send("GET", "/audio", headers={"Range": "bytes=4-2,7-9"}, name=name)[0] == 200


def test_the_page_may_run_its_own_script_alone(running):
    status, headers, body = Client(running).send("GET", "/")
    policy = dict(part.split(maxsplit=1) for part in headers["Content-Security-Policy"].split("; "))
    assert status == 200 and policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in headers["Content-Security-Policy"]
    text = body.decode()
    assert "http:" not in text and "https:" not in text and "innerHTML" not in text and " style=" not in text


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_script_of_the_page_can_be_parsed(running, tmp_path):
    page = Client(running).send("GET", "/")[2].decode()
    (tmp_path / "script.js").write_text(page.partition("<script>")[2].partition("</script>")[0])
    check = subprocess.run(["node", "--check", tmp_path / "script.js"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_the_image_has_a_frame_for_each_hop():
    codec = tiny.drawn_codec()
    audio = music()[: 20 * codec.mel.hop_samples]
    levels = np.concatenate(list(mel_image.decibels(audio, codec.mel)))
    reference = 20 / np.log(10) * np.asarray(spectral.log_mel(audio, codec.mel))
    np.testing.assert_allclose(levels[3:-3], reference[3:-3], atol=0.01)  # the ends are silent here, mirrored there
    image = mel_image.image(np.array([-1.0, 0, -40, -80, -200]), 0.0)
    assert image.tolist() == [252, 255, 128, 0, 0]


def test_the_band_pass_keeps_its_band_over_blocks():
    audio = np.random.default_rng(0).normal(size=(2, RATE)).astype(np.float32)
    whole, parts = (BandPass(1000, 4000, RATE, 2) for _ in range(2))
    filtered = whole(audio)
    blocks = [parts(block) for block in np.split(audio, [1000, 1001, 30_000], axis=1)]
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), filtered, atol=1e-6)
    spectra = [np.abs(np.fft.rfft(np.hanning(RATE) * signal)) ** 2 for signal in (filtered, audio)]
    power = spectra[0].mean(axis=0) / spectra[1].mean(axis=0)
    assert power[1200:3500].mean() == pytest.approx(1, abs=0.02)
    assert power[500:510].mean() < 1e-3 > power[8000:8010].mean()
    np.testing.assert_array_equal(BandPass(0, np.inf, RATE, 2)(audio), audio)


def test_ctrl_c_ends_the_program_and_removes_its_files(tmp_path, capsys):
    export_folder.save_codec(tiny.drawn_codec(), tmp_path / "model")
    # The children of a program that was started in the background ignore the signal.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bandtok_jax import cli; sys.exit(cli.main())"
    )
    arguments = ["demo", f"--model={tmp_path / 'model'}", "--no-open"]
    (tmp_path / "files").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "files")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    address = process.stdout.readline().split()[0]
    port = parse.urlsplit(address).port
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200 and len(os.listdir(tmp_path / "files")) == 1
    error = failure(capsys, *arguments, f"--port={port}")
    assert f"--port={port}: Address already in use; choose another" in error
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors and printed.splitlines() == ["ended"]
    assert not os.listdir(tmp_path / "files")
    assert "--port=99999: give a number from 1 to 65535" in failure(capsys, *arguments, "--port=99999")


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(running, tmp_path):
    """A dropped file, a region drawn by the mouse, a prompt, and no request that left this machine."""
    soundfile.write(tmp_path / "<i>song.flac", np.tile(music(), 2), RATE)
    with browser.page(tmp_path / "profile") as page:
        page.open(running.address)
        page.wait("typeof session !== 'undefined' && !!session")
        x, y, *_ = page.box("drop")
        page.drop(tmp_path / "<i>song.flac", x + 20, y + 20)
        page.wait("track && track.reconstruction && !working")
        assert page.run("at('name').textContent").startswith("<i>song.flac: 3.17 s, 35 columns")
        before = page.run("[...track.codes]")
        x, y, width, height = page.box("grid")
        page.drag((x + 0.4 * width, y + 0.3 * height), (x + 0.5 * width, y + 0.6 * height))
        (first, stop), (low, high) = page.run("[selection.columns, selection.rows]")
        assert 0 < first < stop < 35 and 0 < low < high < 16
        page.run("at('regenerate').click()")
        page.wait("track.is_proposal && !working")
        changed = np.array(page.run("[...track.codes]")).reshape(-1, 16) != np.array(before).reshape(-1, 16)
        inside = np.zeros_like(changed)
        inside[first:stop, low:high] = True
        assert changed[inside].any() and not changed[~inside].any()
        page.run("at('undo').click()")
        page.wait("!working")
        assert page.run("[...track.codes]") == before
        page.run("at('seconds').value = 2; at('prompt').value = 'bells'; at('generate').click()")
        page.wait("!at('result').hidden")
        assert page.run("music.blob.size") == 44 + 2 * 2 * RATE
        page.wait("at('audio').readyState > 0 && at('music').readyState > 0")
        for scheme in ("light", "dark"):
            page.screenshot(tmp_path / f"{scheme}.png", scheme)
        hosts = {parse.urlsplit(url).netloc for url in page.requests if not url.startswith(("data:", "about:"))}
        assert hosts - {""} == {running.hosts[0]} and len(page.requests) > 10
        assert not page.messages


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_a_region_of_mid_and_side_in_a_browser(tmp_path):
    """A rectangle over rows of the side selects those of the mid, too, and the page plays both channels."""
    soundfile.write(tmp_path / "song.flac", stereo_music().T, RATE)
    (tmp_path / "files").mkdir()
    with served(stereo_editor(), tmp_path / "files") as running, browser.page(tmp_path / "profile") as page:
        page.open(running.address)
        page.wait("typeof session !== 'undefined' && !!session")
        x, y, *_ = page.box("drop")
        page.drop(tmp_path / "song.flac", x + 20, y + 20)
        page.wait("track && track.reconstruction && !working")
        before = np.array(page.run("[...track.codes]")).reshape(-1, 28)
        x, y, width, height = page.box("grid")
        page.drag((x + 0.4 * width, y + 0.1 * height), (x + 0.5 * width, y + 0.2 * height))
        (low, high), rows = page.run("[selection.rows, selectedRows()]")
        assert 0 < low < high < 12 and rows == [[low, high], [16 + low, 16 + high]]
        assert page.run("at('under').textContent").partition(":")[0].endswith("of the side")
        page.run("at('regenerate').click()")
        page.wait("track.is_proposal && !working")
        changed = (np.array(page.run("[...track.codes]")).reshape(-1, 28) != before).any(axis=0)
        inside = np.zeros(28, bool)
        inside[low:high] = inside[16 + low : 16 + high] = True
        assert changed[inside].any() and not changed[~inside].any()
        page.run("at('seconds').value = 1; at('generate').click()")
        page.wait("!at('result').hidden")
        decoded = "new OfflineAudioContext(1, 1, 44100).decodeAudioData(buffer)"
        script = f"music.blob.arrayBuffer().then((buffer) => {decoded}).then((x) => [x.numberOfChannels, x.length])"
        assert page.run(script) == [2, RATE] and not page.messages
