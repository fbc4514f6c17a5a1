"""From records to batches: every example by its position alone, mixed by weight, cropped and augmented as asked."""

from collections import Counter
import dataclasses
import json
import shutil
import threading
import warnings

import grain
from ml_collections import ConfigDict
import numpy as np
import pytest
import soundfile

from bandtok_jax.audio import loudness, waveform
from bandtok_jax.data_pipelines import iterator, mixture, sources
from bandtok_jax.data_pipelines.batches import create_batcher
from bandtok_jax.data_pipelines.prepare import prepare
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.transforms import RandomGain, RotatePhase, caption_bytes, rotate_phase
from tests.music_files import make_music, run

RATE = 8000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve training tracks and three validation tracks of 4 s in records of 2 s; four of the first reach above 19
    kHz. One of these is speech, and of the others two are speech, one is live; all else is music.
    """
    music = tmp_path_factory.mktemp("music")
    rows, domains = ["file,split,caption,domain"], {0: "speech", 4: "speech", 5: "speech", 6: "live"}
    rng = np.random.default_rng(0)
    for number in range(15):
        rate = 44_100 if number < 4 else RATE
        soundfile.write(music / f"{number:02}.wav", 0.1 * rng.standard_normal((4 * rate, 2)), rate)
        split = "train" if number < 12 else "validation"
        rows.append(f"{number:02}.wav,{split},track {number},{domains.get(number, '')}")
    (music / "tracks.csv").write_text("\n".join(rows))
    output = tmp_path_factory.mktemp("records")
    prepare(
        [music], output, tracks=music / "tracks.csv", sample_rate_hz=RATE, clip_seconds=2.0, workers=1, progress=False
    )
    return str(output)


def config(folder, **changes):
    return ConfigDict(
        {
            "sources": folder,
            "tokens": "",
            "channels": 1,
            "clip_samples": 4000,
            "sample_rate_hz": RATE,
            "gain_db": (-6.0, 3.0),
            "phase_rotation": True,
            "loudness_lufs": -16.0,
            "balance_full_band": False,
            "balance_domains": False,
            "damaged": "fail",
            "draw": "seconds",
            "workers": 0,
            "columns": 0,
            "caption_bytes": 128,
            "lyrics_tokens": 0,
            "lyrics_model": "",
        }
        | changes
    )


def take(data, batches, batch_size=4, **options):
    stream = iterator.train_batches(data, split="train", batch_size=batch_size, seed=5, **options)
    taken = [next(stream) for _ in range(batches)]
    position = stream.position
    stream.close()
    return taken, position


def by_index(batches):
    """{index: everything of that example as bytes}."""
    return {
        int(index): tuple(batch[name][row].tobytes() for name in sorted(batch))
        for batch in batches
        for row, index in enumerate(batch["index"])
    }


def test_batches_have_the_promised_form(folder):
    (first, second), position = take(config(folder), 2)
    assert {name: (value.shape, value.dtype) for name, value in first.items()} == {
        "audio": ((4, 4000), np.float32),
        "caption": ((4, 128), np.uint8),
        "index": ((4,), np.int64),
    }
    assert list(first["index"]) + list(second["index"]) == list(range(8)) and position == 8
    assert first["caption"][0].tobytes().rstrip(b"\0").decode().startswith("track ")


def test_start_resumes_exactly(folder):
    straight, _ = take(config(folder), 6)
    resumed, position = take(config(folder), 3, start=12)
    assert by_index(resumed) == by_index(straight[3:]) and position == 24


def test_processes_and_workers_change_nothing(folder):
    straight, _ = take(config(folder), 4)
    halves = [take(config(folder), 4, process_index=process, process_count=2) for process in range(2)]
    for number in range(4):  # batch by batch, two hosts hold together the batch of one
        assert by_index([half[0][number] for half in halves]) == by_index([straight[number]])
        indices = [half[0][number]["index"] for half in halves]
        np.testing.assert_array_equal(np.concatenate(indices), straight[number]["index"])  # and in the same order
    assert halves[0][1] == halves[1][1] == 16
    workers, position = take(config(folder, workers=2), 4)
    assert by_index(workers) == by_index(straight) and position == 16


def test_a_batch_that_cannot_be_shared_is_an_error(folder):
    with pytest.raises(ValueError, match="batch_size 4 cannot be shared by 3 processes; make it a multiple of 3"):
        iterator.train_batches(config(folder), split="train", batch_size=4, seed=0, process_count=3)


def test_every_epoch_holds_every_training_record_and_none_other(folder):
    source = RecordSource(folder, "train", lazy=True)
    epochs = mixture.ShuffledEpochs(source, (3, 0))
    tracks = [
        [(epochs[index]["track"], epochs[index]["start"]) for index in range(number * 24, number * 24 + 24)]
        for number in range(3)
    ]
    for epoch in tracks:
        assert len(set(epoch)) == 24 and max(track for track, _ in epoch) == "11.wav"
    assert tracks[0] != tracks[1] != tracks[2]


def test_weights_and_balance(folder):
    weighted = sources.open_audio(f"{folder}=3,synthetic", "train", sample_rate_hz=RATE, clip_samples=4000)
    assert [weight for _, weight in weighted] == [3, 1]
    stream = mixture.stream(weighted, seed=0)
    captions = [stream[index]["caption"] for index in range(40)]
    assert sum(caption.startswith("track") for caption in captions) == 30
    balanced = sources.balance(
        sources.open_audio(folder, "train", sample_rate_hz=RATE, clip_samples=4000), full_band=True
    )
    stream = mixture.stream(balanced, seed=0)
    tracks = Counter(int(stream[index]["caption"].split()[1]) for index in range(32))
    assert sum(count for track, count in tracks.items() if track < 4) == 16


def test_sources_are_found_by_the_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("x=1", "a, b", "a=2, c", "plain", "two words"):
        (tmp_path / name / "data").mkdir(parents=True)
    parse = sources.parse_weights
    assert parse("x=1/data") == [("x=1/data", 1)]
    assert parse("x=1") == [("x=1", 1)] and parse("x=1=3") == [("x=1", 3)]
    assert parse("a, b/data=2,plain") == [("a, b/data", 2), ("plain", 1)]
    assert parse("plain=2, a=2, c ,two words") == [("plain", 2), ("a=2, c", 1), ("two words", 1)]
    assert parse("~/x=1,~/plain=3") == [(f"{tmp_path}/x=1", 1), (f"{tmp_path}/plain", 3)]
    assert parse("absent=2,gs://b/day=3/data") == [("absent", 2), ("gs://b/day=3/data", 1)]
    for text, part in (("plain=many", "many"), ("plain=0", "0"), ("plain=nan", "nan"), (" , ", "empty")):
        with pytest.raises(ValueError, match=part):
            parse(text)


def renamed(folder, output, **names):
    """A copy of a folder whose domains have other names."""
    shutil.copytree(folder, output)
    tracks = [json.loads(line) for line in (output / "tracks.jsonl").read_text().splitlines()]
    lines = [json.dumps(track | {"domain": names.get(track["domain"], track["domain"])}) for track in tracks]
    (output / "tracks.jsonl").write_text("\n".join(lines))
    return str(output)


def test_a_list_of_tracks_that_is_not_of_these_records_is_named(folder, tmp_path):
    copy = renamed(folder, tmp_path / "copy")
    lines = (tmp_path / "copy" / "tracks.jsonl").read_text().splitlines()
    (tmp_path / "copy" / "tracks.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match="tracks.jsonl: it has .* less in train than .* prepare ... --overwrite"):
        first_records(copy, 1, domains=True)


def first_records(text, examples, **choices):
    """Returns the records at the first positions of a stream."""
    opened = sources.open_audio(text, "train", sample_rate_hz=RATE, clip_samples=4000)
    stream = mixture.stream(sources.balance(opened, **choices), seed=0)
    return [stream[index] for index in range(examples)]


@pytest.mark.parametrize("live", ["live", ""])  # no domain is a domain
def test_domains_come_equally_often(folder, tmp_path, live):
    domains = [
        record["domain"] for record in first_records(renamed(folder, tmp_path / "it", live=live), 300, domains=True)
    ]
    for length in range(1, 301):
        counts = Counter(domains[:length])
        assert all(abs(counts[domain] - length / 3) < 2 for domain in ("speech", "live", "music")), length
    assert set(Counter(domains).values()) == {100}
    assert Counter(record["domain"] for record in first_records(folder, 24)) == {"speech": 6, "live": 2, "music": 16}


def test_domains_are_balanced_within_each_kind_and_source(folder):
    records = first_records(f"{folder}=3,synthetic", 480, full_band=True, domains=True)
    # In the full-band half, the folder has 3 * 8 / 24 parts and the synthetic source one. Grain rounds the weights.
    wanted = {
        (True, "speech"): 60, (True, "music"): 60, (True, "synthetic"): 120,
        (False, "speech"): 80, (False, "music"): 80, (False, "live"): 80,
    }  # fmt: skip
    assert Counter((record["full_band"], record["domain"]) for record in records) == pytest.approx(wanted, abs=1.5)
    tracks = {record["track"] for record in records if record["domain"] != "synthetic"}
    assert tracks == {f"{number:02}.wav" for number in range(12)}
    counts = Counter(record["domain"] for record in first_records(f"{folder}=3,synthetic", 400, domains=True))
    assert counts == {"speech": 100, "music": 100, "live": 100, "synthetic": 100}


def test_a_balanced_stream_resumes_exactly_anywhere(folder):
    data = config(folder, balance_domains=True, balance_full_band=True)
    straight, _ = take(data, 6)
    assert by_index(straight) != by_index(take(config(folder), 6)[0])
    assert by_index(take(data, 3, start=12)[0]) == by_index(straight[3:])
    halves = [take(data, 6, process_index=process, process_count=2)[0] for process in range(2)]
    assert by_index(halves[0] + halves[1]) == by_index(straight)


def test_one_domain_is_the_stream_as_it_was(folder, tmp_path):
    same = renamed(folder, tmp_path / "same", speech="music", live="music")
    for data in (config(same), config(same, balance_full_band=True)):
        balanced = ConfigDict({**data, "balance_domains": True})
        assert by_index(take(balanced, 3)[0]) == by_index(take(data, 3)[0])


def test_many_domains_are_shuffled_once_an_epoch(monkeypatch):
    seeds, streams = [], [mixture.ShuffledEpochs([{}] * 4, (0, number)) for number in range(40)]
    real, this_thread = np.random.default_rng, threading.get_ident()

    def default_rng(seed):
        if threading.get_ident() == this_thread:  # not of a loader that still runs
            seeds.append(seed)
        return real(seed)

    monkeypatch.setattr(np.random, "default_rng", default_rng)
    for index in (*range(8), 3, 4):  # two epochs, and threads that are behind
        for stream in streams:
            stream[index]
    assert len(seeds) == len(set(seeds)) == 80


@pytest.mark.parametrize(
    "text, message", [("", "is empty"), ("synthetic=0", "above 0"), ("synthetic=much", "write NAME or NAME=NUMBER")]
)
def test_wrong_sources_name_the_cure(text, message):
    with pytest.raises(ValueError, match=message):
        sources.open_audio(text, "train", sample_rate_hz=RATE, clip_samples=4000)
    with pytest.raises(FileNotFoundError, match="bandtok prepare"):
        sources.open_audio("nowhere", "train", sample_rate_hz=RATE, clip_samples=4000)


def test_evaluation_covers_every_track_and_repeats_itself(folder):
    data = config(folder)
    batches = iterator.evaluation_batches(data, batch_size=3, count=2)
    assert len(batches) == 2
    tracks = [row.tobytes().rstrip(b"\0") for batch in batches for row in batch["caption"]]
    assert set(tracks) == {b"track 12", b"track 13", b"track 14"}
    for first, again in zip(
        batches,
        iterator.evaluation_batches(config(folder, gain_db=(0.0, 0.0), phase_rotation=False), batch_size=3, count=2),
    ):
        assert {name: value.tobytes() for name, value in first.items()} == {
            name: value.tobytes() for name, value in again.items()
        }
    wrapped = list(iterator.evaluation_batches(data, batch_size=4, count=5))  # 20 of 6 records
    assert (
        all(len(set(batch["index"])) == 4 for batch in wrapped)
        and len({index for batch in wrapped for index in batch["index"]}) == 6
    )


def test_evaluation_covers_beginnings_middles_and_ends(monkeypatch):
    ramps = [record(np.arange(9000, dtype=np.int16)[:, None]) for _ in range(6)]
    monkeypatch.setattr(sources, "open_audio", lambda *_, **__: [(ramps, 1.0)])
    for count in (1, 2):
        batches = iterator.evaluation_batches(config("", loudness_lufs=None), batch_size=6, count=count)
        starts = np.concatenate([np.rint(32_768 * batch["audio"][:, 0]).astype(int) for batch in batches])
        assert {0, 5000} <= set(starts) and len(set(starts)) >= 6 * count - 1
        assert np.abs(np.sort(starts) / 5000 - np.linspace(0, 1, 6 * count)).max() < 0.2


def test_hosts_share_the_evaluation(folder):
    data, share = config(folder), dict(batch_size=4, count=2)
    whole = iterator.evaluation_batches(data, **share)
    hosts = [iterator.evaluation_batches(data, **share, process_index=i, process_count=2) for i in range(2)]
    for number, batch in enumerate(whole):
        parts = [host[number]["audio"] for host in hosts]
        np.testing.assert_array_equal(np.concatenate(parts), batch["audio"])


def record(audio, **fields):
    return {"audio": audio, "sample_rate_hz": RATE, "caption": "", "mono_lufs": -20.0} | fields


def crop(records, generators=None, **changes):
    plain = {"gain_db": (0.0, 0.0), "phase_rotation": False, "loudness_lufs": None}
    batcher = create_batcher(config("", **plain | changes), augment=generators is not None)
    return batcher(records, generators)["audio"]


def test_a_crop_is_the_mean_of_the_channels():
    audio = np.random.default_rng(0).integers(-32_768, 32_767, (9000, 2)).astype(np.int16)
    got = crop([record(audio)])[0]
    np.testing.assert_allclose(got, audio[:4000].astype(np.float64).mean(axis=1) / 32_768, atol=1e-7)
    ramp = record(np.arange(9000, dtype=np.int16)[:, None])
    generators = [np.random.default_rng(seed) for seed in range(40)]
    starts = set((crop([ramp] * 40, generators)[:, 0] * 32_768).astype(int))
    assert len(starts) > 30 and max(starts) <= 5000 and min(starts) >= 0


def test_stereo_crops_treat_both_channels_alike():
    rng = np.random.default_rng(0)
    audio = rng.integers(-20_000, 20_000, (3000, 2)).astype(np.int16)
    records = [record(audio), record(audio[:, :1]), record(audio, sample_rate_hz=16_000)]
    plain = crop(records, channels=2)
    assert plain.shape == (3, 2, 4000) and not plain[..., 3000:].any()
    np.testing.assert_allclose(plain[0, :, :3000], audio.T / 32_768, atol=1e-7)
    np.testing.assert_array_equal(plain[1], plain[0, :1].repeat(2, axis=0))  # a mono record is doubled
    for channel in range(2):
        wanted = waveform.resample(audio[:, channel] / np.float32(32_768), 16_000, RATE)
        np.testing.assert_array_equal(plain[2, channel, : len(wanted)], wanted)
    changes = {"gain_db": (20.0, 20.0), "phase_rotation": True, "loudness_lufs": -16.0}
    limited = crop(records, [np.random.default_rng(7) for _ in records], channels=2, **changes)
    assert np.abs(limited).max(axis=(1, 2)) == pytest.approx(1, abs=1e-6)  # the louder channel
    angle = np.random.default_rng(7)
    angle.integers(1), angle.uniform(20, 20)
    turned = rotate_phase(plain[0, :, :3000], angle.uniform(-np.pi, np.pi))
    np.testing.assert_allclose(limited[0, :, :3000], turned / np.abs(turned).max(), atol=1e-5)
    np.testing.assert_array_equal(limited[1, 0], limited[1, 1])


def test_a_clip_longer_than_the_records_is_refused(folder):
    data = config(folder, clip_samples=16_800)
    with pytest.raises(ValueError, match=r"records of 2 s, .* has 2.10 s, .*prepare --clip-seconds 3 --overwrite"):
        take(data, 1)
    assert (
        len(iterator.evaluation_batches(data, batch_size=4, count=1)[0]["audio"][0]) == 16_800
    )  # an evaluation is possible
    take(config(f"{folder},synthetic", clip_samples=16_000), 1)


def test_single_short_tracks_are_reported_with_their_share(tmp_path):
    run(make_music(tmp_path / "music"), output=tmp_path / "out", clip_seconds=5.0, validation_share=0)
    data = config(str(tmp_path / "out"), clip_samples=4 * RATE, phase_rotation=False)
    with pytest.warns(UserWarning, match=r"out: 60.0% of the records in train are shorter than the 4.00 s of a clip"):
        take(data, 1)  # records of 3, 5, 2, 5 and 3 s
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,), _ = take(config(str(tmp_path / "out")), 1)
    assert batch["audio"].any(axis=1).all()


def test_only_short_records_are_padded():
    audio = np.full((1500, 1), 8192, np.int16)
    got = crop([record(audio)], [np.random.default_rng(0)])[0]
    assert (got[:1500] == 0.25).all() and not got[1500:].any() and len(got) == 4000


def test_another_sample_rate_is_resampled():
    t = np.arange(3 * 16_000) / 16_000
    audio = np.round(8000 * np.sin(2 * np.pi * 440 * t))[:, None].astype(np.int16)
    got = crop([record(audio, sample_rate_hz=16_000)], clip_samples=8000)[0]
    wanted = 8000 / 32_768 * np.sin(2 * np.pi * 440 * np.arange(8000) / RATE)
    assert len(got) == 8000
    np.testing.assert_allclose(got[200:-200], wanted[200:-200], atol=1e-3)


def test_loudness_is_brought_to_the_target_and_never_clips():
    audio = (0.05 * np.random.default_rng(0).standard_normal((6 * RATE, 1)) * 32_768).astype(np.int16)
    lufs = loudness.integrated_lufs(audio.T / np.float32(32_768), RATE)
    got = crop([record(audio, mono_lufs=lufs)], clip_samples=5 * RATE, loudness_lufs=-16.0)[0]
    assert loudness.integrated_lufs(got[None], RATE) == pytest.approx(-16, abs=0.1)
    loud = crop([record(audio, mono_lufs=lufs)], clip_samples=5 * RATE, loudness_lufs=-3.0)[0]
    assert np.max(np.abs(loud)) == pytest.approx(1, abs=1e-6)


def test_gain_lies_in_its_range():
    audio = np.full((4000, 1), 1000, np.int16)
    generators = [np.random.default_rng(seed) for seed in range(200)]
    crops = crop([record(audio)] * 200, generators, gain_db=(-6.0, 3.0))
    gains = 20 * np.log10(crops[:, 0] * 32.768)
    assert -6 <= min(gains) < -5.5 and 2.5 < max(gains) <= 3


def test_phase_rotation_keeps_every_magnitude():
    audio = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    turned = rotate_phase(audio, np.pi / 2)
    np.testing.assert_allclose(np.abs(np.fft.rfft(turned))[:-1], np.abs(np.fft.rfft(audio))[:-1], atol=1e-3)
    np.testing.assert_allclose(rotate_phase(audio - audio.mean(), np.pi)[10:], -(audio - audio.mean())[10:], atol=2e-3)
    assert np.corrcoef(audio, turned)[0, 1] < 0.1


def test_captions_are_cut_between_characters():
    assert bytes(caption_bytes("ä" * 100, 128)).decode().rstrip("\0") == "ä" * 64
    assert bytes(caption_bytes("x" + "ä" * 100, 128)).rstrip(b"\0").decode() == "x" + "ä" * 63


def test_token_crops(monkeypatch):
    records = [
        {
            "codes": np.arange(columns * 3, dtype=np.int32).reshape(columns, 3),
            "track": str(columns),
            "offset_samples": 0,
            "caption": f"track {columns}",
            "samples": columns,
            "ends": True,
        }
        for columns in (5, 8, 20)
    ]
    monkeypatch.setattr(sources, "open_tokens", lambda directory, split: [(records, 1.0)])
    data = config("", tokens="folder", columns=8, draw="track")
    batches, position = take(data, 12, batch_size=2)
    assert position == 24
    seen = set()
    for batch in batches:
        assert batch["codes"].shape == (2, 8, 3) and batch["codes"].dtype == np.int32
        for codes, columns, ended, start, caption in zip(
            *(batch[name] for name in ("codes", "columns", "ended", "start", "caption"))
        ):
            length = int(caption.tobytes().rstrip(b"\0").split()[1])
            whole = next(record["codes"] for record in records if len(record["codes"]) == length)
            assert ended == (start + columns == length) and (ended or start == 0 or columns == 8)
            assert not codes[columns:].any()
            np.testing.assert_array_equal(codes[:columns], whole[start : start + columns])
            seen.add((length, int(start)))
    assert len({start for length, start in seen if length == 20}) > 3
    assert take(data, 1, batch_size=2, start=22)[0][0]["codes"].tolist() == batches[11]["codes"].tolist()
    evaluation = iterator.evaluation_batches(data, batch_size=3, count=1)[0]
    assert evaluation["start"].tolist() == [0, 0, 6] and evaluation["columns"].tolist() == [5, 8, 8]  # 6 of 0..12
    assert evaluation["ended"].tolist() == [True, True, False]
    example = create_batcher(config("", tokens="folder", columns=4), augment=False)(
        [{**records[0], "embedding": np.ones((7, 2), np.float16)}]
    )
    assert example["embedding"].shape == (1, 7, 2) and example["embedding"].dtype == np.float32


def test_the_stream_is_one_grain_can_drive(folder):
    stream = mixture.stream(sources.open_audio(folder, "train", sample_rate_hz=RATE, clip_samples=4000), seed=0)
    assert isinstance(stream, grain.MapDataset) and len(stream) > 1e15 and stream[10**9]["audio"].shape == (16_000, 2)


def test_an_augmentation_is_one_entry_of_the_list():
    def reverse(example, rng):
        assert rng is not None
        return {**example, "audio": example["audio"][::-1]}

    data = config("", loudness_lufs=None, gain_db=(0.0, 0.0), phase_rotation=False)
    batcher, generator = create_batcher(data, augment=True), np.random.default_rng
    ramp = record(np.arange(3000, dtype=np.int16)[:, None])
    (plain,) = batcher([ramp], [generator(0)])["audio"]
    reversing = dataclasses.replace(batcher, transforms=[*batcher.transforms, reverse])
    (augmented,) = reversing([ramp], [generator(0)])["audio"]
    np.testing.assert_array_equal(augmented[:3000], plain[2999::-1])
    assert not augmented[3000:].any()  # the padding stays behind the audio
    random = {RandomGain, RotatePhase}
    assert random <= {type(transform) for transform in create_batcher(config(""), augment=True).transforms}
    assert not random & {type(transform) for transform in create_batcher(config(""), augment=False).transforms}
