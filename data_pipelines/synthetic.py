"""The synthetic source: endless, random-access, deterministic polyphonic music, each track with its caption.

Nothing is stored or downloaded. A track depends on (seed, split, index) alone. Its parameters (key, mode, chords,
tempo, instruments, drums, brightness) are drawn first, and the notes follow from them. The caption names them, so that
control by text can be measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bandtok_jax.data_pipelines import instruments
from bandtok_jax.data_pipelines.instruments import PALETTE

TRACKS = 2**30  # of each split, more than any training reads
KEYS = "C C# D Eb E F F# G Ab A Bb B".split()
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {  # degrees of the scale, from 0
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 0, 4), (3, 4, 0, 5), (0, 1, 3, 4), (5, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 4), (0, 2, 3, 5), (5, 6, 0, 0), (0, 4, 5, 3)),
}
DRUMS = {  # sixteenths of a bar
    "rock": {"kick": "x.......x.x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    "house": {
        "kick": "x...x...x...x...",
        "snare": "....x.......x...",
        "hat": "..............x.",
        "open hat": "..x...x...x.....",
    },
    "breakbeat": {"kick": "x.x.......xx....", "snare": "....x..x.x..x..x", "hat": "x.x.x.x.x.x.x.x."},
    "half-time": {"kick": "x.....x.........", "snare": "........x.......", "hat": "x.xxx.x.x.x.x.xx"},
}
MELODIES = ("pluck", "guitar", "keys", "bell", "lead", "flute", "brass")
CHORDS = ("pad", "strings", "organ", "keys", "guitar")
BASSES = ("finger bass", "synth bass", "sub bass")
ARPEGGIOS = (None, "pluck", "bell", "keys")
LEVELS = {"melody": 0.115, "chords": 0.08, "bass": 0.12, "arpeggio": 0.06, "drums": 0.24}
END_FADE_SECONDS = 0.3
LUFS, MONO_LUFS = -15.5, -18.8  # means; the tracks lie within about 3 LU of them


@dataclass(frozen=True)
class Parameters:
    """The parameters of a track, which its caption names."""

    key: int  # 0 is C
    mode: str  # major | minor
    tempo_bpm: int
    progression: tuple[int, ...]  # degrees of the scale
    melody: str
    chords: str
    bass: str
    arpeggio: str | None
    drums: str | None  # name of the pattern
    brightness: float  # 0 dark .. 1 bright

    @property
    def tempo_word(self) -> str:
        """The tempo as the caption names it."""
        return "slow" if self.tempo_bpm < 88 else "medium" if self.tempo_bpm < 124 else "fast"

    @property
    def brightness_word(self) -> str:
        """The brightness as the caption names it."""
        return "dark" if self.brightness < 1 / 3 else "warm" if self.brightness < 2 / 3 else "bright"

    @property
    def caption(self) -> str:
        """The caption of the track."""
        others = [self.chords, self.bass] + ([f"{self.arpeggio} arpeggio"] if self.arpeggio else [])
        drums = f"with {self.drums} drums" if self.drums else "without drums"
        return (
            f"{self.tempo_word} {self.brightness_word} {self.mode} {self.melody} "
            f"over {', '.join(others[:-1])} and {others[-1]} "
            f"{drums}, {self.tempo_bpm} bpm, {KEYS[self.key]} {self.mode}"
        )

    @property
    def labels(self) -> dict[str, str]:
        """The audible parameters as text, by their names."""
        return {
            "tempo": self.tempo_word,
            "brightness": self.brightness_word,
            "mode": self.mode,
            "key": KEYS[self.key],
            "melody": self.melody,
            "chords": self.chords,
            "bass": self.bass,
            "arpeggio": self.arpeggio or "none",
            "drums": self.drums or "none",
        }


@dataclass(frozen=True)
class Note:
    """One note."""

    part: str
    semitone: int  # MIDI: 69 is 440 Hz
    onset_seconds: float
    seconds: float
    velocity: float


def _draw_parameters(rng: np.random.Generator) -> Parameters:
    mode = str(rng.choice(("major", "minor")))
    return Parameters(
        key=int(rng.integers(12)),
        mode=mode,
        tempo_bpm=int(rng.integers(62, 169)),
        progression=PROGRESSIONS[mode][rng.integers(len(PROGRESSIONS[mode]))],
        melody=str(rng.choice(MELODIES)),
        chords=str(rng.choice(CHORDS)),
        bass=str(rng.choice(BASSES)),
        arpeggio=ARPEGGIOS[rng.integers(len(ARPEGGIOS))],
        drums=str(rng.choice(tuple(DRUMS))) if rng.random() < 0.75 else None,
        brightness=round(float(rng.random()), 3),
    )


def _compose(rng: np.random.Generator, parameters: Parameters, seconds: float) -> list[Note]:
    """Returns the notes: chords every two or four beats, a walking melody, a bass on the roots, and broken chords."""
    beat = 60 / parameters.tempo_bpm
    scale = SCALES[parameters.mode]
    chord_beats = 2 if parameters.tempo_bpm < 124 else 4
    rhythm = rng.random(8) < np.where(np.arange(8) % 2 == 0, 0.85, 0.4)  # eighths of a bar in which the melody strikes
    step_beats = 0.5 if parameters.tempo_bpm > 110 else 0.25
    bass_eighths = rng.random() < 0.5
    notes: list[Note] = []
    degree = int(rng.integers(7, 12))

    def pitch(degree: int, base: int) -> int:
        return base + parameters.key + 12 * (degree // 7) + scale[degree % 7]

    def add(part: str, semitone: int, beats_in: float, beats: float, velocity: float) -> None:
        onset = beats_in * beat + rng.normal(0, 0.004)  # musicians deviate from the grid
        if onset < seconds - END_FADE_SECONDS:
            notes.append(Note(part, int(semitone), max(0.0, onset), beats * beat, velocity * rng.uniform(0.8, 1.0)))

    chord_count = int(np.ceil(seconds / (beat * chord_beats)))
    for number in range(chord_count):
        at = number * chord_beats
        root = parameters.progression[number % len(parameters.progression)]
        chord = [root, root + 2, root + 4]
        for tone in chord:
            semitone = pitch(tone, 48)
            add("chords", semitone - 12 * (semitone > 67), at, 0.95 * chord_beats, 0.9)
        for eighth in range(2 * chord_beats) if bass_eighths else range(0, 2 * chord_beats, 2):
            add(
                "bass",
                pitch(root, 36) - 12 * (pitch(root, 36) > 43),
                at + eighth / 2,
                0.45 if bass_eighths else 0.9,
                1.0,
            )
        for eighth in range(2 * chord_beats):
            if not rhythm[(2 * at + eighth) % 8]:
                continue
            degree = int(np.clip(degree + rng.integers(-2, 3), 5, 14))
            if eighth % 4 == 0:  # strong beats fall on a tone of the chord
                degree = min(
                    (tone + 7 * octave for tone in chord for octave in (0, 1)), key=lambda tone: abs(tone - degree)
                )
            add("melody", pitch(degree, 60), at + eighth / 2, 0.48, 1.0)
        for step in range(int(chord_beats / step_beats)) if parameters.arpeggio else ():
            tone = chord[step % 3] + 7 * (step // 3 % 2)
            add("arpeggio", pitch(tone, 60), at + step * step_beats, 0.9 * step_beats, 0.9)
    return notes


class SyntheticTrack:
    """A track as an array that is rendered where it is sliced: `track[a:b]` is int16 `[b - a, 2]`."""

    read_once = True  # every slice also renders the reverberation of the audio before it

    def __init__(self, key: tuple[int, int], sample_rate_hz: int, seconds: float) -> None:
        rng = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        self.parameters = _draw_parameters(rng)
        self.sample_rate_hz = sample_rate_hz
        self.shape = (int(round(seconds * sample_rate_hz)), 2)
        self.dtype = np.dtype(np.int16)
        self._seconds, self._rng_state = seconds, rng.bit_generator.state

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int16, copy=False)

    def __getitem__(self, samples: slice) -> np.ndarray:
        start, stop, stride = samples.indices(len(self))
        rate = self.sample_rate_hz
        first = max(0, start - int(instruments.ROOM_SECONDS * rate))  # reverberation of earlier notes
        dry, wet = self._mix(first, stop)
        audio = (dry + instruments.reverberate(wet, rate))[:, start - first :]
        audio *= np.clip(
            (len(self) - np.arange(start, stop, dtype=np.float32)) / np.float32(END_FADE_SECONDS * rate), 0, 1
        )
        return np.rint(32767 * np.tanh(audio)).astype(np.int16).T[::stride]

    def _mix(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the dry mix `[2, last - first]` and the input of the reverberation `[last - first]`."""
        rng = np.random.Generator(np.random.Philox())
        rng.bit_generator.state = self._rng_state
        parameters, rate = self.parameters, self.sample_rate_hz
        notes = _compose(rng, parameters, self._seconds)
        pans = {part: rng.uniform(0.25, 0.75) for part in ("melody", "chords", "arpeggio")} | {
            "bass": 0.5,
            "drums": 0.5,
        }
        sends = {part: rng.uniform(0.15, 0.5) for part in ("melody", "chords", "arpeggio")} | {
            "bass": 0.05,
            "drums": 0.12,
        }
        breath = instruments.shaped_noise(rng, rate, 1500, 16_000, rate)
        kit = instruments.drum_kit(rng, rate, parameters.brightness)
        dry, wet = np.zeros((2, last - first), np.float32), np.zeros(last - first, np.float32)

        def add(part: str, onset: int, samples: np.ndarray) -> None:
            """Adds samples `[S]` at `onset` of the window, panned with constant power."""
            span = slice(onset, onset + len(samples))
            angle = np.pi / 2 * pans[part]
            dry[0, span] += np.float32(1.41 * np.cos(angle)) * samples
            dry[1, span] += np.float32(1.41 * np.sin(angle)) * samples
            wet[span] += np.float32(sends[part]) * samples

        for note in notes:
            voice = PALETTE[getattr(parameters, note.part)]
            onset = int(note.onset_seconds * rate)
            end = onset + int(instruments.audible_seconds(voice, note.seconds) * rate)
            if end <= first or onset >= last:
                continue
            samples = instruments.render(
                voice,
                440 * 2 ** ((note.semitone - 69) / 12),
                note.seconds,
                max(first, onset) - onset,
                min(last, end) - onset,
                rate,
                parameters.brightness,
                breath,
            )
            add(
                note.part,
                max(first, onset) - first,
                np.float32(LEVELS[note.part] * voice.level * note.velocity) * samples,
            )
        for name, onset, velocity in self._hits(rng):
            hit = kit[name][max(0, first - onset) : max(0, last - onset)]
            if len(hit):
                add("drums", max(first, onset) - first, np.float32(LEVELS["drums"] * velocity) * hit)
        return dry, wet

    def _hits(self, rng: np.random.Generator) -> Iterator[tuple[str, int, float]]:
        """Yields (drum, onset in samples, velocity)."""
        sixteenth = 60 / self.parameters.tempo_bpm / 4
        for step in range(int((self._seconds - END_FADE_SECONDS) / sixteenth)):
            for name, pattern in DRUMS.get(self.parameters.drums or "", {}).items():
                if pattern[step % 16] == "x":
                    yield name, int(step * sixteenth * self.sample_rate_hz), rng.uniform(0.7, 1.0)


class SyntheticMusic:
    """Random access to audio records of synthetic music, one for each track; see records.py.

    Args:
      split: "train" or "validation", with even and odd track numbers.
      seconds: length of a track.
      lazy: gives 'audio' as a SyntheticTrack, so that a crop renders only itself, in place of int16 `[S, 2]`.
    """

    def __init__(
        self,
        split: str = "train",
        sample_rate_hz: int = 44100,
        seconds: float = 6.0,
        seed: int = 0,
        lazy: bool = False,
    ) -> None:
        if split not in ("train", "validation"):
            raise ValueError(f"split {split!r}: the synthetic source has 'train' and 'validation'")
        if not 8000 <= sample_rate_hz <= 192_000 or seconds < 1:
            raise ValueError(
                f"{seconds} s at {sample_rate_hz} Hz: give at least 1 s at a rate between 8000 and 192000 Hz"
            )
        self.split, self.sample_rate_hz, self.seconds, self.seed, self.lazy = split, sample_rate_hz, seconds, seed, lazy

    def __len__(self) -> int:
        return TRACKS

    def track(self, index: int) -> SyntheticTrack:
        """Returns a track."""
        return SyntheticTrack(
            (self.seed, 2 * int(index) + (self.split == "validation")), self.sample_rate_hz, self.seconds
        )

    def parameters(self, index: int) -> Parameters:
        """Returns the parameters of a track."""
        return self.track(index).parameters

    def __getitem__(self, index: int) -> dict[str, Any]:
        track = self.track(index)
        return {
            "audio": track if self.lazy else track[:],
            "sample_rate_hz": self.sample_rate_hz,
            "track": f"synthetic-{self.seed}-{self.split}-{int(index)}",
            "start": 0,
            "domain": "synthetic",
            "full_band": True,
            "lufs": LUFS,
            "mono_lufs": MONO_LUFS,
            "caption": track.parameters.caption,
        }
