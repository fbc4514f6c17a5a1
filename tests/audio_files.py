"""Audio files as programs leave them that were interrupted, wrote to a pipe, or guessed."""

import io
import re
import struct

import numpy as np
import soundfile

RATE = 16_000
SECONDS = 2.0
SUBTYPES = {
    "wav": "PCM_16", "rf64": "PCM_16", "w64": "PCM_16", "aiff": "PCM_16", "au": "PCM_16", "caf": "PCM_16",
    "flac": "PCM_16", "ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III",
}  # fmt: skip


def tone(seconds=SECONDS, channels=1):
    """A tone that fades, with noise, float32 `[S, C]`."""
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal((len(t), channels))
    return (0.3 * np.sin(2 * np.pi * 330 * t) * np.exp(-t))[:, None].astype(np.float32) + 0.02 * noise.astype("f4")


def encoded(kind, audio=None, rate=RATE):
    """The bytes of a file of that kind (see SUBTYPES)."""
    file = io.BytesIO()
    form = {"opus": "OGG"}.get(kind, kind.upper())
    soundfile.write(file, tone() if audio is None else audio, rate, format=form, subtype=SUBTYPES[kind])
    return file.getvalue()


def with_wav_length(length):
    """A WAV file whose data chunk announces `length` bytes."""
    data = encoded("wav")
    place = data.index(b"data") + 4
    return data[:place] + struct.pack("<I", length) + data[place + 4 :]


def with_flac_length(samples):
    """A FLAC file whose header announces `samples` samples."""
    data = encoded("flac")
    field = int.from_bytes(data[18:26], "big") >> 36 << 36 | samples
    return data[:18] + field.to_bytes(8, "big") + data[26:]


def mp3_frames(data):
    """The frames of an MP3 file of MPEG 1 or 2, layer III, the first one that with the count of the others."""
    rates = {3: [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]}
    rates[2] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    hertz = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000)}
    frames, place = [], re.search(rb"\xff[\xf2-\xfb]", data).start()
    while place + 4 <= len(data) and data[place] == 0xFF:
        version, third = data[place + 1] >> 3 & 3, data[place + 2]
        bits = 1000 * rates[version][third >> 4]
        length = (144 if version == 3 else 72) * bits // hertz[version][third >> 2 & 3] + (third >> 1 & 1)
        frames.append(data[place : place + length])
        place += length
    return frames


def with_mp3_count(count):
    """An MP3 file whose first frame announces `count` frames, or one without that frame for None."""
    first, *others = mp3_frames(encoded("mp3"))
    place = max(first.find(b"Xing"), first.find(b"Info"))
    assert place > 0
    if count is None:
        return b"".join(others)
    return first[: place + 8] + struct.pack(">I", count) + first[place + 12 :] + b"".join(others)


def vbr_mp3():
    """An MP3 file of variable rate that begins loud and does not say how long it is."""
    audio = tone(4.0)
    audio[: RATE // 2] = np.random.default_rng(1).standard_normal((RATE // 2, 1)) * 0.3
    audio[RATE // 2 :] *= 0.001
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", RATE, 1, "MPEG_LAYER_III", format="MP3", compression_level=0.6, bitrate_mode="VARIABLE"
    ) as writer:
        writer.write(audio)
    return b"".join(mp3_frames(file.getvalue())[1:])


def ogg_pages(data):
    """The pages of an Ogg file."""
    places = [match.start() for match in re.finditer(b"OggS\0", data)]
    return [data[first:last] for first, last in zip(places, [*places[1:], None])]
