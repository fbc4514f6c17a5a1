"""The synthetic source: the same everywhere, band-limited, musical, and true to its caption."""

import librosa
import numpy as np
import pytest

from bandtok_jax.data_pipelines import instruments, synthetic
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic


def test_a_track_is_fixed_by_seed_split_and_index():
    record = SyntheticMusic("train", 22050, 2.0, seed=3)[7]
    again = SyntheticMusic("train", 22050, 2.0, seed=3)[7]
    assert record["audio"].dtype == np.int16 and record["audio"].shape == (44100, 2)
    np.testing.assert_array_equal(record["audio"], again["audio"])
    for other in (
        SyntheticMusic("validation", 22050, 2.0, seed=3)[7],
        SyntheticMusic("train", 22050, 2.0, seed=4)[7],
        SyntheticMusic("train", 22050, 2.0, seed=3)[8],
    ):
        assert not np.array_equal(record["audio"], other["audio"])


def test_a_crop_renders_its_part_of_the_track():
    for index in range(3):
        track = SyntheticMusic("train", 22050, 4.0, lazy=True)[index]["audio"]
        whole = np.asarray(track).astype(int)
        assert len(track) == len(whole) and np.max(np.abs(whole[40_000:60_000] - track[40_000:60_000])) <= 1


def test_splits_never_share_a_track():
    keys = [
        {(source.seed, 2 * index + (source.split == "validation")) for index in range(100)}
        for source in (SyntheticMusic("train"), SyntheticMusic("validation"))
    ]
    captions = [[SyntheticMusic(split).parameters(index) for index in range(100)] for split in ("train", "validation")]
    assert not keys[0] & keys[1] and not set(captions[0]) & set(captions[1])


def test_captions_tell_the_parameters():
    music = SyntheticMusic()
    for index in range(200):
        p = music.parameters(index)
        words = p.caption
        assert len(words.encode()) <= 128
        assert (
            words.startswith(p.tempo_word)
            and f"{p.tempo_bpm} bpm" in words
            and words.endswith(f"{synthetic.KEYS[p.key]} {p.mode}")
        )
        assert (
            p.melody in words
            and p.chords in words
            and p.bass in words
            and (("without drums" in words) == (p.drums is None))
        )
    assert {music.parameters(index).tempo_word for index in range(50)} == {"slow", "medium", "fast"}


def test_notes_lie_in_the_key_of_the_caption():
    music, shares = SyntheticMusic("train", 22050, 4.0), []
    for index in [
        index
        for index in range(40)
        if music.parameters(index).drums is None
        and music.parameters(index).melody != "bell"
        and music.parameters(index).arpeggio != "bell"
    ][:4]:
        p = music.parameters(index)
        chroma = librosa.feature.chroma_cqt(y=music[index]["audio"].mean(axis=1) / 32768, sr=22050, tuning=0.0).sum(
            axis=1
        )
        scale = [(p.key + step) % 12 for step in synthetic.SCALES[p.mode]]
        shares.append(chroma[scale].sum() / chroma.sum())
    assert min(shares) > 0.7 and np.mean(shares) > 0.75  # 7 of 12 tones would be 0.58


def test_levels_and_band():
    music = SyntheticMusic("train", 44100, 3.0)
    for index in range(4):
        audio = music[index]["audio"] / 32768
        assert 0.02 < np.sqrt(np.mean(audio**2)) < 0.5 and np.max(np.abs(audio)) < 1
        power = np.mean(np.abs(librosa.stft(audio.mean(axis=1))) ** 2, axis=1)
        hz = librosa.fft_frequencies(sr=44100)
        assert power[hz > 21_000].max() < 1e-5 * power.max()  # only the onsets reach above the top
        if music.parameters(index).drums:
            assert power[(hz > 17_000) & (hz < 20_000)].mean() > 1e-9 * power.max()


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.47])
def test_partials_equal_their_sum_one_by_one(ratio):
    voice = instruments.Voice(ratio=ratio, cutoff_hz=6000, closing=0.3)
    rate, hz, brightness = 32_000, 521.0, 0.7
    t = np.arange(4000) / rate
    got = instruments.sum_of_partials(
        voice, hz, np.arange(4000, dtype=np.uint32), t.astype(np.float32), rate, brightness
    )
    dull = hz * ratio / (voice.cutoff_hz * 4 ** (brightness - 0.5))
    wanted, k = np.zeros(4000), 0
    while hz * (1 + k * ratio) <= instruments.TOP_SHARE * rate:
        wanted += np.exp(-k * dull * (1 + t / 0.3)) * np.sin(2 * np.pi * hz * (1 + k * ratio) * t)
        k += 1
    wanted *= (1 - np.exp(-2 * dull)) ** 0.4
    assert k > 4
    np.testing.assert_allclose(got, wanted, atol=2e-3)


def test_wrong_arguments_name_the_cure():
    with pytest.raises(ValueError, match="'train' and 'validation'"):
        SyntheticMusic("test")
    with pytest.raises(ValueError, match="between 8000 and 192000"):
        SyntheticMusic(sample_rate_hz=1)
