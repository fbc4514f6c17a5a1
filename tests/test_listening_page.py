"""The listening test: its content, its anchor, and a run through it in a browser."""

import json
import re
import subprocess

import numpy as np
import pytest
import soundfile

from bandtok_jax.evaluation.report import listening_page
from tests import evaluations, music_files
from tests.browser import CHROMIUM

# Listens to every version, rates it by its place, and shows the saved file as the text of the page.
DRIVER = """
<script>
URL.createObjectURL = (blob) => { blob.text().then((text) => { document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = text; }); return "#"; };
HTMLMediaElement.prototype.play = () => Promise.resolve();
document.getElementById("start").click();
while (document.getElementById("next")) {
  const next = document.getElementById("next");
  if (!next.disabled) throw new Error("nothing is rated yet");
  document.querySelectorAll("tbody tr").forEach((row, place) => {
    row.querySelector("button").click();
    const slider = row.querySelector("input");
    slider.value = 10 * place;
    slider.dispatchEvent(new Event("input"));
  });
  next.click();
}
document.getElementById("listener").value = "seven";
document.getElementById("save").click();
</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with a listening test of two segments and two systems, one of them with a telling name."""
    folder = tmp_path_factory.mktemp("listening")
    for name, gain in (("music", 1.0), ("quiet", 0.5), ("quieter", 0.25)):
        (folder / name).mkdir()
        for seed in range(3):
            audio = gain * music_files.make_audio(seed, 1.2, 1, evaluations.RATE)
            soundfile.write(folder / name / f"{seed}.wav", audio, evaluations.RATE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        evaluations.use_small_codec(monkeypatch)
        decoded = [f"--decoded={name}={folder / name}" for name in ("quiet", "quieter")]
        arguments = ["--data", folder / "music", "--output", folder / "report", "--listening=2", "--seed=5"]
        assert evaluations.run(*decoded, *arguments) == 0
    return folder / "report"


def content_of(report):
    text = (report / listening_page.FILE).read_text()
    return json.loads(re.search(r'<script type="application/json" id="test">(.*?)</script>', text)[1])


def test_each_trial_has_all_systems_under_neutral_names(report):
    content = content_of(report)
    assert content["seed"] == 5 and len(content["trials"]) == 2
    for trial in content["trials"]:
        files = {stimulus["system"]: stimulus["file"] for stimulus in trial["stimuli"]}
        assert files.keys() == {"original", "anchor", "quiet", "quieter"}
        addresses = [trial["reference"], *files.values()]
        assert len(set(addresses)) == 5 and all(re.fullmatch(r"listening/[0-9a-f]{16}\.flac", a) for a in addresses)
        audio = {name: soundfile.read(report / file)[0] for name, file in files.items()}
        reference = soundfile.read(report / trial["reference"])[0]
        np.testing.assert_array_equal(audio["original"], reference)
        np.testing.assert_allclose(audio["quiet"], reference / 2, atol=1e-4)
        assert len(audio["anchor"]) == len(reference)


def test_the_anchor_passes_what_is_below_its_edge_without_delay():
    impulse = np.zeros((1, 8192), np.float32)
    impulse[0, 4096] = 1
    response = listening_page.low_pass(impulse, 44_100)[0]
    decibels = 20 * np.log10(np.abs(np.fft.rfft(response)) + 1e-12)
    hz = np.fft.rfftfreq(8192, 1 / 44_100)
    assert np.abs(decibels[hz < 3500]).max() < 0.1
    assert decibels[hz > 4000].max() < -25 and decibels[hz > 4500].max() < -50  # ITU-R BS.1534-3
    assert response.argmax() == 4096


def test_names_and_numbers_that_a_test_cannot_have():
    with pytest.raises(ValueError, match="a system is called anchor"):
        listening_page.check(["dac", "anchor"], 2)
    with pytest.raises(ValueError, match="with 11 systems"):
        listening_page.check([str(number) for number in range(11)], 2)
    with pytest.raises(ValueError, match="--listening=-1"):
        listening_page.check(["dac"], -1)


def test_text_of_others_cannot_end_the_script():
    trial = {"segment": "</script><script>alert(1)", "reference": "a", "stimuli": []}
    assert "alert(1)" in str(listening_page.render([trial], 0))
    assert "</script><script>alert" not in listening_page.render([trial], 0)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_saves_the_ratings(report, tmp_path):
    page = report / "driven.html"
    page.write_text((report / listening_page.FILE).read_text().replace("</body>", DRIVER + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
               "--virtual-time-budget=2000", "--dump-dom", f"{page.as_uri()}?seed=9"]  # fmt: skip
    document = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    page.unlink()
    saved = json.loads(re.search(r"<pre>(.*?)</pre>", document, re.DOTALL)[1])
    assert saved["seed"] == 9 and saved["listener"] == "seven" and saved["test"] == content_of(report)["test"]
    assert {trial["segment"] for trial in saved["trials"]} == {t["segment"] for t in content_of(report)["trials"]}
    for trial in saved["trials"]:
        assert trial["ratings"] == {system: 10 * place for place, system in enumerate(trial["order"])}
    orders = [trial["order"] for trial in saved["trials"]]
    assert sorted(orders[0]) == ["anchor", "original", "quiet", "quieter"] and orders[0] != orders[1]
