"""The page beside ONNX programs: a browser encodes and decodes a file as Python does."""

import functools
import http.server
import importlib.util
import io
import json
import queue
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile

from bandtok_jax.pretrained import programs
from tests import loopback
from tests.browser import CHROMIUM
from tests.test_programs import CODECS

RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Chooses the file as a person does, and sends the results of the page to the server.
DRIVER = """
<script type="module">
const status = document.getElementById("status"), input = document.getElementById("file");
const wait = (done) => new Promise((resolve, reject) => {
  const look = () => {
    if (status.textContent.startsWith("Error")) reject(new Error(status.textContent));
    else if (done()) resolve();
    else setTimeout(look, 100);
  };
  look();
});
const bytes = async (address) => (await fetch(address)).arrayBuffer();
try {
  await wait(() => !input.disabled);
  const files = new DataTransfer();
  files.items.add(new File([await bytes("music.wav")], "music.wav"));
  input.files = files.files;
  input.dispatchEvent(new Event("change"));
  await wait(() => !document.getElementById("result").hidden);
  await fetch("codes", { method: "POST", body: await bytes(document.getElementById("codes").href) });
  await fetch("audio", { method: "POST", body: await bytes(document.getElementById("decoded").src) });
} catch (error) {
  await fetch("error", { method: "POST", body: error.message });
}
</script>
"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps the data that the browser sends."""

    received: queue.Queue

    def do_POST(self):
        self.received.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def runtime(tmp_path):
    """The two files of onnxruntime-web that the page needs, from npm."""
    if CHROMIUM is None or shutil.which("npm") is None:
        pytest.skip("needs Chromium and npm")
    packed = subprocess.run(
        ["npm", "pack", "--silent", "onnxruntime-web"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    if packed.returncode:
        pytest.skip(f"npm does not reach onnxruntime-web: {packed.stderr.strip()[-200:]}")
    with tarfile.open(tmp_path / packed.stdout.split()[-1]) as archive:
        return {name: archive.extractfile(f"package/dist/{name}").read() for name in RUNTIME_FILES}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mono", "stereo", "mimi"])
@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="needs  pip install 'bandtok-jax[onnx]'")
def test_a_browser_codes_a_file_as_python_does(kind, runtime, tmp_path):
    codec = CODECS[kind]()
    folder = tmp_path / "programs"
    list(programs.save_programs(codec, folder, "onnx"))
    (folder / "onnxruntime-web").mkdir()
    for name, content in runtime.items():
        (folder / "onnxruntime-web" / name).write_bytes(content)
    samples = 2 * 8 * codec.samples_per_column + 5_000  # more than one chunk, the last one not full
    audio = (0.1 * np.random.default_rng(1).normal(size=(samples, 2))).astype(np.float32)
    soundfile.write(folder / "music.wav", audio, codec.sample_rate_hz, subtype="FLOAT")
    page = (folder / "index.html").read_text()
    (folder / "driven.html").write_text(page.replace("</body>", DRIVER + "</body>"))

    handler = type("Handler", (Server,), {"received": queue.Queue()})
    with loopback.serving(
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    ) as server:
        address = f"http://127.0.0.1:{server.server_port}/driven.html"
        browser = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}", address],
            stderr=subprocess.DEVNULL,
        )
        try:
            received = {}
            while received.keys() != {"/codes", "/audio"}:
                path, content = handler.received.get(timeout=240)
                assert path != "/error", content.decode()
                received[path] = content
        finally:
            browser.terminate()
            browser.wait()
    codes = codec.encode(audio.T, codec.sample_rate_hz)
    np.testing.assert_array_equal(np.shape(json.loads(received["/codes"])), codes.shape)
    assert np.mean(np.array(json.loads(received["/codes"])) == codes) > 0.99
    decoded, rate = soundfile.read(io.BytesIO(received["/audio"]), dtype="float32")
    expected = codec.decode(np.array(json.loads(received["/codes"]), np.int32), samples=samples).T
    assert rate == codec.sample_rate_hz
    np.testing.assert_allclose(decoded, expected, atol=1e-4 * np.abs(expected).max())
