"""Regions of grids: the sequence that fills them in, the codes that the loss counts, and the command that edits."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandtok_jax import cli
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.codecs.regions import Region, cells
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import bt_file
from bandtok_jax.generation import autoregressive, decoding, editing
from bandtok_jax.models.infilling import MASK, Surroundings
from bandtok_jax.pretrained import export_folder
from bandtok_jax.tasks import infilling
from tests import kept_programs, test_codec, test_layouts, test_waveform_codec_files, tiny
from tests.small_language_model import CODES, ROWS, SETTINGS, captions, drawn, grid, network
from tests.test_language_model_task import batches, markov, task_of  # noqa: F401

LAYOUTS = ("flat", "depth")
WINDOW = 8


def generator(layout, parameters=None):
    parameters = test_layouts.weights(layout=layout) if parameters is None else parameters
    return autoregressive.Generator({**SETTINGS, **test_layouts.SMALL, "layout": layout}, parameters)


@functools.cache
def forward(**changes):
    model = network(**test_layouts.SMALL, **changes)

    @jax.jit
    def logits(parameters, codes, surroundings, caption, begins):
        text = () if caption is None else model.apply(parameters, {}, caption=caption, method="encode_text")
        return model.apply(parameters, {}, codes, *text, begins=begins, surroundings=surroundings)

    return logits


def filled_in_logits(parameters, codes, region, first, stop, caption=None, begins=True, **changes):
    """Logits `[B, n, F, K]` of the columns `[first, stop)` of windows `[B, T, F]` by the full forward pass."""
    batch, columns, _ = codes.shape
    around = np.where(region, CODES + MASK, codes)
    # The sequence is as long as the window, so the surroundings and the region need a longer one.
    pad = ((0, 0), (0, columns), (0, 0))
    surroundings = Surroundings(np.pad(around, pad), np.full(batch, columns), np.full(batch, first))
    predicted = np.pad(np.roll(codes, -first, axis=1), pad)
    logits = forward(**changes)(parameters, predicted, surroundings, caption, np.array(begins))
    return np.asarray(logits)[:, : (stop - first) * ROWS, :CODES].reshape(batch, stop - first, ROWS, CODES)


@pytest.mark.parametrize("layout", tiny.fast("depth", among=LAYOUTS))
def test_cached_filling_in_equals_the_forward_pass(layout):
    """Greedy codes of several regions, in one part, with guidance, beside the likeliest ones of the forward pass."""
    codes, text = grid(2, 15), captions(b"slow", b"fast")
    region = np.zeros((15, ROWS), bool)
    region[6:8, 1:] = region[9, :2] = True
    new = editing.fill_in(
        generator(layout), codes, region, window_columns=12, key=jax.random.key(0), caption=text, guidance=2.0,
        temperature=0.0,
    )  # fmt: skip
    (part,) = editing.plan(region.any(axis=1), 12)
    assert part == (4, 6, 10, 12)
    np.testing.assert_array_equal(new[:, ~region], codes[:, ~region])
    window, hidden = new[:, 4:12], region[4:12]
    with_text, without = (
        filled_in_logits(
            test_layouts.weights(layout=layout), window, hidden, 2, 6, caption, begins=False, layout=layout
        )
        for caption in (text, captions(b"", b""))
    )
    guided = (without + 2.0 * (with_text - without)).argmax(-1)
    np.testing.assert_array_equal(guided[:, hidden[2:6]], new[:, region])
    assert (new[:, region] != codes[:, region]).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_sides_of_a_region_count_and_its_own_codes_do_not(layout):
    parameters, codes = test_layouts.weights(layout=layout), grid(1, 6)
    region = np.zeros((6, ROWS), bool)
    region[2:4, 1] = True
    before = filled_in_logits(parameters, codes, region, 2, 4, layout=layout)
    for column, row, reads in ((0, 0, True), (5, 2, True), (3, 2, True), (3, 1, False)):
        changed = codes.copy()
        changed[0, column, row] = (changed[0, column, row] + 1) % CODES
        after = filled_in_logits(parameters, changed, region, 2, 4, layout=layout)
        assert (np.abs(after - before)[0, :, 1].max() > 1e-4) == reads, (column, row)


def test_windows_of_long_regions_cover_them_once_and_read_no_hidden_codes():
    random = np.random.default_rng(0)
    for length in (1, 2, 7, 30, 200):
        for share in (0.02, 0.3, 0.9, 1.0):
            columns = np.repeat(random.random(length) < share, random.integers(1, 9, length))[:length]
            columns[random.integers(length)] = True
            remaining, counts = columns.copy(), np.zeros(length, int)
            for window_first, first, stop, window_stop in editing.plan(columns, WINDOW):
                assert 0 <= window_first <= first < stop <= window_stop <= length
                assert window_stop - window_first + stop - first <= WINDOW
                counts[first:stop] += 1
                remaining[first:stop] = False
                assert not remaining[window_first:window_stop].any()
            assert (counts[columns] == 1).all() and not remaining.any()


@pytest.mark.parametrize("layout", tiny.fast("flat", among=LAYOUTS))
def test_a_long_region_is_made_with_few_programs(layout):
    codes, region = grid(1, 40), np.zeros((40, ROWS), bool)
    region[:, 1:] = True  # bandwidth extension
    region[25:, :] = False
    options = dict(window_columns=WINDOW, key=jax.random.key(0), top_k=5)
    new, finished = editing.fill_in(generator(layout), codes, region, **options), []
    programs = [program._cache_size() for program in (decoding.decode_steps, decoding.prefill_cache)]
    again = editing.fill_in(generator(layout), codes[[0, 0]], region, **options, report=finished.append)
    np.testing.assert_array_equal(again[0], new[0])
    np.testing.assert_array_equal(new[:, ~region], codes[:, ~region])
    assert finished[-1] == 25 and finished == sorted(finished) and (again[0] != again[1]).any()
    longer = np.concatenate([codes, codes], axis=1)
    editing.fill_in(generator(layout), longer, np.concatenate([region, ~region]), **options)
    sizes = [program._cache_size() for program in (decoding.decode_steps, decoding.prefill_cache)]
    assert max(np.subtract(sizes, programs)) <= 1  # of the batch of two


# ---- training -------------------------------------------------------------------------------------------------------


def test_regions_are_inside_of_their_windows_and_of_all_kinds():
    columns = np.resize([12, 12, 12, 7, 2, 1, 0], 700)
    codes = np.random.default_rng(0).integers(0, CODES, (700, 12, ROWS)).astype(np.int32)
    batch = {"codes": codes, "columns": columns, "ended": columns == 7, "start": np.arange(700) % 3}
    keys = jax.random.split(jax.random.key(0), 700)
    examples = jax.device_get(jax.jit(infilling.with_regions, static_argnums=(2, 3))(batch, keys, 0.8, CODES))
    around, window, first = examples.surroundings
    filled_in, kinds = window > 0, set()
    assert 0.7 < filled_in[columns > 1].mean() < 0.9 and not filled_in[columns < 2].any()
    for b in np.flatnonzero(filled_in):
        span, start, counted = examples.columns[b], examples.offset[b] - first[b], examples.counted[b]
        assert window[b] + span <= columns[b] and first[b] + span <= window[b] and start + window[b] <= columns[b]
        grid_columns = codes[b, start : start + window[b]]
        hidden = around[b, : window[b]] == CODES + MASK
        np.testing.assert_array_equal(np.where(hidden, 0, around[b, : window[b]]), np.where(hidden, 0, grid_columns))
        np.testing.assert_array_equal(hidden[first[b] : first[b] + span], counted[:span])
        np.testing.assert_array_equal(examples.codes[b, :span], grid_columns[first[b] : first[b] + span])
        assert hidden.sum() == counted.sum() > 0 and counted[0].any() and counted[span - 1].any()
        assert not hidden.all() and not examples.ended[b]
        assert examples.begins[b] == (batch["start"][b] == 0 and start == 0)
        kinds |= {("all rows", counted[:span].all()), ("whole length", span == window[b]), ("begins", first[b] == 0)}
    assert len(kinds) == 6
    plain = jax.device_get(infilling.left_to_right(batch))
    for got, expected in zip(examples[:6], plain[:6]):
        np.testing.assert_array_equal(got[~filled_in], expected[~filled_in])


@pytest.mark.parametrize("layout", tiny.fast("depth", among=LAYOUTS))
def test_the_loss_counts_the_codes_of_regions_alone(markov, layout):  # noqa: F811
    changes = {"model.row_layers": 1, "model.layout": layout, "model.text": "none"}
    task = task_of(markov, **changes, **{"loss.infill_fraction": 1.0})
    frozen, batch, parameters = task.load_frozen(), batches(task, 1)[0], drawn(task.network)
    batch["columns"][:] = 12

    passed, token_losses = [], task._token_losses

    def recorded(parameters, examples, *arguments):
        result = token_losses(parameters, examples, *arguments)
        passed.append((examples, result[0]))
        return result

    @jax.jit
    def run(batch):
        """Examples of the batch, their token losses, and the losses of the training."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "_token_losses", recorded)
            losses = task.forward(parameters, {}, frozen, batch, batch, jax.random.key(0))[0]
        return *passed.pop(), losses

    examples, losses, _ = jax.device_get(run(batch))

    def loss(batch):
        metrics = run(batch)[2]
        assert float(metrics["cross_entropy"]) == 0
        return float(metrics["infill_cross_entropy"])

    assert float(losses.sum() / examples.counted.sum()) == pytest.approx(loss(batch), rel=1e-5)
    assert (losses[~examples.counted] == 0).all()
    # The crop's columns outside of the window are read by nothing; a known cell inside is read, but not counted.
    window_first = examples.offset - examples.surroundings.first
    columns, inside = np.arange(12), []
    for b in range(16):
        window = (columns >= window_first[b]) & (columns < window_first[b] + examples.surroundings.columns[b])
        hidden = np.zeros((12, ROWS), bool)
        hidden[examples.offset[b] : examples.offset[b] + examples.columns[b]] = examples.counted[
            b, : examples.columns[b]
        ]
        inside.append(window[:, None] & ~hidden)
        batch["codes"][b, ~window] = 7
    unread = loss(batch)
    assert unread == pytest.approx(float(losses.sum() / examples.counted.sum()), rel=1e-5)
    b = next(b for b in range(16) if inside[b].any())
    column, row = np.argwhere(inside[b])[0]
    batch["codes"][b, column, row] = (batch["codes"][b, column, row] + 1) % CODES
    assert abs(loss(batch) - unread) > 1e-6
    state = {"model": {"parameters": parameters, "buffers": {}, "ema": {}}}
    scores = task.aggregate(jax.device_get(jax.jit(task.eval_step)(state, frozen, batch)), 1)
    assert 0 < scores["infill_cross_entropy"] < 20 and 0 < scores["infill_left_to_right_cross_entropy"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_of_one_grid_fills_in_its_regions(layout):
    """Two grids that begin in the same way; only the columns after a region say which of them it is in."""
    codes = grid(2, WINDOW)
    codes[1, :-1] = np.where(np.arange(ROWS) == 0, codes[0, :-1], codes[1, :-1])
    settings = {**test_layouts.SMALL, "layout": layout, "text": "none", "num_layers": 1, "row_layers": 1}
    model = network(**settings)
    parameters, _ = model.init(jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 300))

    @jax.jit
    def step(parameters, state, key):
        batch = {
            "codes": jnp.tile(codes, (8, 1, 1)), "columns": jnp.full(16, WINDOW), "ended": jnp.zeros(16, bool),
            "start": jnp.zeros(16, int),
        }  # fmt: skip
        examples = infilling.with_regions(batch, jax.random.split(key, 16), 1.0, CODES)

        def loss(parameters):
            losses, _ = model.apply(
                parameters, {}, examples.codes, jnp.pad(examples.codes, ((0, 0), (0, 1), (0, 0))),
                begins=examples.begins, surroundings=examples.surroundings, method="token_losses",
            )  # fmt: skip
            return jnp.where(examples.counted, losses[:, :-1], 0).sum() / examples.counted.sum()

        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, value

    state = optimizer.init(parameters)
    for key in jax.random.split(jax.random.key(0), 300):
        parameters, state, value = step(parameters, state, key)
    region = np.zeros((WINDOW, ROWS), bool)
    region[1:3, 1:] = region[4] = True
    damaged = np.where(region, 0, codes)
    writer = autoregressive.Generator({**SETTINGS, **settings}, parameters)
    new = editing.fill_in(writer, damaged, region, window_columns=12, key=jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(new, codes, err_msg=f"loss {value}")


def test_trainings_that_cannot_fill_in_are_refused(markov, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match='layout "delay".*set model.layout to "flat" or "depth"'):
        task_of(markov, **{"model.layout": "delay", "loss.infill_fraction": 0.5})
    with pytest.raises(ValueError, match="loss.infill_fraction is 1.5: set it to a .* at least 0 and at most 1"):
        task_of(markov, **{"loss.infill_fraction": 1.5})
    task = task_of(markov, **{"loss.infill_fraction": 0.5, "model.row_vocabulary": True})
    task.manifest["row_kind"] = "residual"
    with pytest.raises(ValueError, match="are residual levels, not bands of frequency"):
        task.load_frozen()


# ---- codec and command ----------------------------------------------------------------------------------------------


@functools.cache
def editor(infill_fraction=0.5, layout="depth"):
    """The small composer of the codec's tests, as if it had been trained to fill in."""
    stages = tiny.drawn_codec().components
    sizes = {"dim": 32, "num_layers": 1, "num_heads": 2, "feed_forward_dim": 32, "text_dim": 16, "row_dim": 16}
    changes = {f"model.{name}": str(size) for name, size in sizes.items()}
    changes |= {
        "data.columns": "8",
        "data.caption_bytes": "16",
        "model.row_layers": "1",
        "model.layout": layout,
        "loss.infill_fraction": str(infill_fraction),
    }
    config = load_config("language_model:tiny", changes)
    language_model = tiny.drawn_component(config) if infill_fraction else Component(config, stages["vocoder"].weights)
    return MelCodec(stages["tokenizer"], stages["vocoder"], language_model, chunk_columns=8)


def test_cells_of_regions():
    edges = np.array([[0, 110], [90, 220], [180, 400], [360, 1000]], float)  # borders at 100, 200 and 380 Hz

    def shape(*regions):
        return [
            tuple(np.flatnonzero(axis)[[0, -1]]) for axis in (cells(regions, 20, 4.0, edges).any(i) for i in (1, 0))
        ]

    assert shape(Region((1, 2), (100, 200))) == [(4, 7), (1, 1)]
    assert shape(Region((1.1, 2.1), (98, 380.5))) == [(4, 8), (0, 2)]  # by less than 1 Hz a row is not touched
    assert shape(Region(band=(300, None))) == [(0, 19), (2, 3)]
    assert shape(Region((None, 3)), Region((4, 5))) == [(0, 19), (0, 3)]
    assert cells([Region((1, 2)), Region((2, 3))], 20, 4.0, edges).sum() == 32
    for regions, message in (
        ([], "no regions: give at least one"),
        ([Region((2, 2))], "the time 2 to 2 s is empty: give an end above the start"),
        ([Region((2, math.nan))], "the time 2 to nan s is empty"),
        ([Region((4, 5.1))], "the time 4 to 5.1 s is outside of the grid, which has 0 to 5 s: give a time inside"),
        ([Region((-1, 2))], "the time -1 to 2 s is outside of the grid"),
        ([Region((1, 2), (500, 1100))], "the band 500 to 1100 Hz is outside of the grid, which has 0 to 1000 Hz"),
        ([Region((1, 2)), Region((1.5, 3), (0, 50))], "regions 1 and 2 overlap, 1 to 2 s at 0 to 1000 Hz and 1.5 to"),
        ([Region((0, 2)), Region((2, None))], "hold the whole track, of which nothing would be kept"),
    ):
        with pytest.raises(ValueError, match=message):
            cells(regions, 20, 4.0, edges)
    assert cells([Region(np.array([1, 2]), [np.float32(100), None])], 20, 4.0, edges).sum() == 12
    for regions, message in (
        (Region((1, 2)), r"regions is the region \(\(1, 2\), .*: pass a list, as \[region\]"),
        (5, "regions is 5: pass a list of regions"),
        ([None], r"region 1 is None: give a Region\(time="),
        ([Region(), (1, 2, 3)], r"region 2 is \(1, 2, 3\): give a Region\(time="),
        ([Region(time="1:2")], r"the time of region 1 is '1:2': give a pair of seconds, as \(4.0, 8.0\)"),
        ([Region(time=(1,))], r"the time of region 1 is \(1,\): give a pair of seconds"),
        ([Region(time=("1", 2))], r"the time of region 1 is \('1', 2\): give a pair of seconds"),
        ([Region(), Region(band=5)], r"the band of region 2 is 5: give a pair of Hz, as \(2000.0, None\)"),
    ):
        with pytest.raises(TypeError, match=message):
            cells(regions, 20, 4.0, edges)


def test_edit():
    codec = editor()
    codes = codec.encode(test_codec.music()[:90_000], 44_100)
    regions = [Region((0.4, 1.1), (2000, 8000)), ((1.3, 1.5), (None, None))]
    region = codec.region_cells(regions, len(codes))
    new = codec.edit(codes, regions, "slow piano", seed=1)
    assert new.dtype == np.int32 and new.shape == codes.shape
    np.testing.assert_array_equal(new[~region], codes[~region])
    assert (new[region] != codes[region]).mean() > 0.9
    np.testing.assert_array_equal(codec.edit(codes, regions, "slow piano", seed=1), new)
    levels = test_waveform_codec_files.create()
    for other, message in (
        (editor(infill_fraction=0.0), "trained without infilling .* train one with --config.loss.infill_fraction=0.5"),
        (editor(infill_fraction=0.0, layout="delay"), 'has the layout "delay".*train one with'),
        (tiny.drawn_codec(), "no language model"),
        (levels, "residual levels, not bands of frequency"),
    ):
        with pytest.raises(ValueError, match=message):
            other.edit(codes, regions)
    with pytest.raises(ValueError, match="residual levels, not bands of frequency"):
        levels.region_cells(regions, len(codes))
    with pytest.raises(ValueError, match="outside the codebook"):
        codec.edit(codes + 1024, regions)
    with pytest.raises(ValueError, match="temperature is -1"):
        codec.edit(codes, regions, temperature=-1)


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with kept_programs.loaded_once():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "editor"
    export_folder.save_codec(editor(), folder)
    return str(folder)


def test_the_command(model, tmp_path, capsys):
    codec = editor()
    codes = codec.encode(test_codec.music()[:90_000], 44_100)
    source, target = tmp_path / "song.bt", tmp_path / "new.bt"
    bt_file.write_codes(source, codes, codec.header, 90_000)
    command = ["edit", str(source), f"--model={model}", "--time=0.4:1.1", "--band=2000:8000"]
    assert cli.main([*command, "--time=1.3:", "--band=:", "--prompt=slow piano", "--seed=1", "-o", str(target)]) == 0
    regions = [Region((0.4, 1.1), (2000, 8000)), Region((1.3, None))]
    new, header = bt_file.read_codes(target)
    np.testing.assert_array_equal(new, codec.edit(codes, regions, "slow piano", seed=1))
    assert header.samples == 90_000
    count = codec.region_cells(regions, len(codes)).sum()
    assert f"2.04 s; {count} new codes of {codes.size}, in 17 of 22 columns" in capsys.readouterr().out

    def failure(*arguments, code=1):
        try:
            assert cli.main(["edit", *map(str, arguments), f"--model={model}"]) == code
        except SystemExit as error:
            assert error.code == code
        return capsys.readouterr().err

    output = ("-o", tmp_path / "other.bt")
    assert "no region: give --time=A:B" in failure(source, *output)
    assert "2 --time and 1 --band: give each region both" in failure(
        source, "--time=0:1", "--time=1:2", "--band=:900", *output
    )
    assert "argument --time: '3' cannot be read: write it as 4:8, 4: or :8" in failure(
        source, "--time=3", *output, code=2
    )
    assert f"{source}: the time 1 to 9 s is outside" in failure(source, "--time=1:9", *output)
    assert f"{source}: the time -1 to 2 s is outside" in failure(source, "--time", "-1:2", *output)
    assert "is the original itself" in failure(source, "--time=0:1", "-o", source)
    assert "cannot write .xyz" in failure(source, "--time=0:1", "-o", tmp_path / "a.xyz")
    bt_file.write_codes(source, codes, dataclasses.replace(codec.header, weight_hash="0" * 32), 90_000)
    assert "was made by the model 000000000000" in failure(source, "--time=0:1", *output)
    assert not (tmp_path / "other.bt").exists()


def test_the_command_keeps_length_and_level_of_audio(model, tmp_path):
    from bandtok_jax.audio import waveform

    audio = 0.1 * test_codec.music()[:60_000]
    waveform.write(tmp_path / "song.wav", audio, 44_100)
    flags = [f"--model={model}", "--time=:0.3", "-o", str(tmp_path / "new.wav")]
    assert cli.main(["edit", str(tmp_path / "song.wav"), *flags]) == 0
    new, rate = waveform.read(tmp_path / "new.wav")
    assert rate == 44_100 and new.shape == (1, 60_000) and new.std() > 0
