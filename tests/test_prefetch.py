"""A thread computes items ahead of those that are used."""

import contextlib
import itertools
import threading

import pytest

from bandtok_jax.runtime.prefetch import prefetch


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_all_items_come_in_order(ahead):
    assert list(prefetch(iter(range(7)), ahead)) == list(range(7))
    assert list(prefetch(iter([]), ahead)) == []


def test_the_next_item_is_made_while_one_is_used():
    begun = [threading.Event() for _ in range(4)]

    def items():
        for event in begun:
            event.set()
            yield event

    with contextlib.closing(prefetch(items(), 1)) as blocks:
        first = next(blocks)
        assert begun.index(first) == 0
        assert begun[1].wait(10), "the second item is not begun before it is asked for"
        assert not begun[3].is_set(), "more is begun ahead than allowed"


def test_an_error_comes_in_its_place():
    def items():
        yield from (0, 1)
        raise ValueError("two")

    blocks = prefetch(items(), 4)
    assert [next(blocks), next(blocks)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(blocks)


def test_closing_ends_the_thread():
    numbers = itertools.count()
    blocks = prefetch(numbers, 5)
    next(blocks)
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert next(numbers) <= 7
