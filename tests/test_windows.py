"""Windows over a stream equal slices of the padded whole."""

import numpy as np
import pytest

from bandtok_jax.audio.windows import MIRROR, Windows, windows


@pytest.mark.parametrize("outside", [0.0, None, MIRROR])
@pytest.mark.parametrize(
    "length, size, before, after",
    [(1, 4, 3, 2), (2, 3, 7, 5), (8, 4, 0, 0), (23, 5, 7, 1), (25, 5, 7, 9), (100, 8, 3, 30), (101, 8, 40, 3)],
)
def test_windows_equal_slices_of_the_padded_whole(length, size, before, after, outside):
    rng = np.random.default_rng(length)
    stream = rng.normal(size=(length, 2))
    count = -(-length // size)
    margin = ((before, count * size - length + after), (0, 0))
    mode = {0.0: "constant", None: "edge", MIRROR: "reflect"}[outside]
    padded = np.pad(stream, margin, mode=mode)
    expected = [padded[i * size : i * size + before + size + after] for i in range(count)]
    for cuts in ([], [length // 2], sorted(rng.integers(0, length + 1, 6)), range(1, length)):
        streamed = list(windows(np.split(stream, cuts), size, before, after, outside))
        np.testing.assert_array_equal([window for window, _ in streamed], expected)
        assert [n for _, n in streamed] == [min(size + after, length - i * size) for i in range(count)]


def test_an_empty_stream_has_no_windows():
    assert not list(windows([], 4, 1, 1, None)) and not list(windows([np.zeros(0)], 4, 1, 1, 0.0))


@pytest.mark.parametrize("outside", [0.0, None, MIRROR])
@pytest.mark.parametrize("size, before, after, step", [(5, 7, 1, 2), (5, 2, 9, 1), (8, 40, 3, 8), (4, 0, 0, 3)])
def test_windows_that_come_early_hold_what_their_new_items_need(size, before, after, step, outside):
    stream = np.random.default_rng(0).normal(size=(43, 2))
    whole = [window for window, _ in windows([stream], size, before, after, outside)]
    cutter, received, seen = Windows(size, before, after, outside, step), 0, []
    for number in range(43):
        received = number + 1
        for window in cutter.push(stream[number : number + 1]):
            assert window.present == size + after and window.new.stop - window.new.start <= step
            seen.append(window)
            assert received == cutter.received_for(window.number * size + window.new.start + 1)
    seen.extend(cutter.finish())
    place = 0
    for window in seen:
        assert window.number * size + window.new.start == place
        place = window.number * size + window.new.stop
        needed = before + window.new.stop + after
        np.testing.assert_array_equal(window.items[:needed], whole[window.number][:needed])
    assert place >= 43
