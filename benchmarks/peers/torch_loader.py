"""torch.utils.data: random mono crops from .ogg files, and from their int16 .wav copies."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import os
import tempfile
import time
from typing import Any

from machine import Load
import numpy as np
import soundfile
from timing import emit, keeps_freed_memory, spread
import torch

CROP_SAMPLES, BATCH, WORKERS = 65_536, 8, 2
BLOCKS, WARMUP_BLOCKS = 7, 2
FOLDER_VARIABLE = "PEER_AUDIO"  # set by run_peers.py --audio


class Crops(torch.utils.data.Dataset):
    """Random mono crops; crop i depends on i alone."""

    def __init__(self, files: Sequence[str]) -> None:
        lengths = ((file, soundfile.info(file).frames) for file in files)
        self.files = [(file, frames) for file, frames in lengths if frames > CROP_SAMPLES]

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, number: int) -> torch.Tensor:
        random = np.random.default_rng(number)
        path, frames = self.files[random.integers(len(self.files))]
        with soundfile.SoundFile(path) as file:
            file.seek(int(random.integers(frames - CROP_SAMPLES + 1)))
            audio = file.read(CROP_SAMPLES, dtype="float32", always_2d=True)
        mono = audio[:, 0].copy()
        for channel in range(1, audio.shape[1]):
            mono += audio[:, channel]
        return torch.from_numpy(mono if audio.shape[1] == 1 else mono / audio.shape[1])


def load() -> None:
    """Measures both kinds of files, which are in the page cache."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise SystemExit("the loader needs --audio FOLDER")
    ogg = sorted(os.path.join(at, file) for at, _, files in os.walk(folder) for file in files if file.endswith(".ogg"))
    if not ogg:
        raise SystemExit(f"--audio={folder}: no .ogg file there; give a folder with some")
    for path in ogg:
        with open(path, "rb") as file:
            while file.read(1 << 22):
                pass
    _measure("loader_ogg", ogg, 25)
    with tempfile.TemporaryDirectory() as copies, ThreadPoolExecutor(WORKERS) as pool:
        start = time.perf_counter()
        decoded = list(pool.map(_decode, ogg, [os.path.join(copies, f"{i:04d}") for i in range(len(ogg))]))
        seconds = time.perf_counter() - start
        whole, mono, durations = zip(*decoded)
        _measure(
            "loader_wav_int16", whole, 100, channels="as in the source", decoded_audio_s=round(sum(durations), 1),
            decode_and_write_s=round(seconds, 1),
        )  # fmt: skip
        _measure("loader_wav_int16_mono", mono, 250, channels="1")


def _decode(path: str, stem: str) -> tuple[str, str, float]:
    """Writes int16 copies of a file, with its channels and mono, and returns their paths and the duration."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    names = f"{stem}.source.wav", f"{stem}.mono.wav"
    soundfile.write(names[0], audio, rate, subtype="PCM_16")
    soundfile.write(names[1], audio.mean(axis=1), rate, subtype="PCM_16")
    return *names, audio.shape[0] / rate


def _measure(name: str, files: Sequence[str], batches_per_block: int, **fields: Any) -> None:
    data = Crops(files)
    total = (BLOCKS + WARMUP_BLOCKS) * batches_per_block
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, sampler=range(total * BATCH), num_workers=WORKERS, drop_last=True
    )
    batches = iter(loader)
    for _ in range(WARMUP_BLOCKS * batches_per_block):  # start of the workers, full queues
        next(batches)
    rates = []
    with Load() as load:
        for _ in range(BLOCKS):
            start = time.perf_counter()
            for _ in range(batches_per_block):
                shape = next(batches).shape
            rates.append(BATCH * batches_per_block / (time.perf_counter() - start))
    assert tuple(shape) == (BATCH, CROP_SAMPLES), shape
    emit(
        name, "crops/s", **spread(rates), kept=keeps_freed_memory(), **load.fields, crop=CROP_SAMPLES, batch=BATCH,
        workers=WORKERS, files=len(data.files), megabytes=round(sum(map(os.path.getsize, files)) / 1e6, 1), **fields,
    )  # fmt: skip


MEASUREMENTS = {"loader": load}
