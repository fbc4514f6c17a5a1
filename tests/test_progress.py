"""Progress is a bar on a terminal and lines in a log."""

import io
import sys

import pytest

from bandtok_jax.runtime import progress
from bandtok_jax.runtime.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clock of tqdm by one that the test moves."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def work(clock, seconds, **options):
    """Runs 100 units of work of a duration under a progress bar."""
    with progress_bar(total=100, unit="step", **options) as bar:
        for _ in range(100):
            clock[0] += seconds
            bar.update(1)


def test_a_log_gets_a_line_a_minute(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    work(clock, 6.0, desc="train")
    lines = log.getvalue().splitlines()
    assert log.getvalue() == "".join(line + "\n" for line in lines) and "\r" not in log.getvalue()
    assert [line.split()[1] for line in lines] == [f"{done}%" for done in (*range(10, 101, 10), 100)]
    assert lines[4].startswith("train:  50% 50/100 [05:00<05:00,  6.00s/step")


@pytest.mark.parametrize("options, lines", [({}, 4), ({"leave": False}, 3)])
def test_a_log_gets_no_line_for_work_of_less_than_a_minute(options, lines, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    work(clock, 0.5, **options)
    assert log.getvalue() == ""
    work(clock, 2.0, **options)
    assert len(log.getvalue().splitlines()) == lines


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    work(clock, 6.0)
    assert screen.getvalue().count("\r") > 90 and screen.getvalue().count("\n") == 1
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    work(clock, 6.0, leave=False)
    assert screen.getvalue().rsplit("\r", 2)[1].strip() == "" and "\n" not in screen.getvalue()


def test_show_false_writes_nothing(clock, monkeypatch):
    for file in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", file)
        work(clock, 6.0, show=False)
        assert file.getvalue() == ""


def test_bars_below_each_other_leave_no_control_characters_in_a_log(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with progress_bar(total=2, desc="outer") as bar:
        for _ in range(2):
            work(clock, 6.0, desc="inner")
            bar.update(1)
    assert "\x1b" not in log.getvalue() and "\r" not in log.getvalue()
    assert all(line.startswith(("outer: ", "inner: ")) for line in log.getvalue().splitlines())
    assert progress.LINE_SECONDS == 60.0
