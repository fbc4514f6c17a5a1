"""Where the time goes, and how fast a device can be."""

import time
import types

import pytest

from bandtok_jax.training import goodput


def test_every_second_is_booked_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = goodput.Timer()

    def spend(seconds):
        now[0] += seconds

    spend(2)
    watch.end_start()
    with watch.measure("evaluation"):
        spend(1)
        with watch.measure("compile"):
            spend(3)
    watch.start_interval()
    for _ in range(4):
        spend(1)  # a step
        with watch.measure("data"):
            spend(0.25)
    with watch.measure("compile"):
        spend(10)
    rates = watch.rates(4, audio_seconds_per_step=10.0)
    assert rates == pytest.approx({"seconds_per_step": 1.25, "audio_seconds_per_second": 8.0, "data_wait_share": 0.2})
    seconds = {kind: share * 21 for kind, share in watch.shares().items()}
    assert seconds == pytest.approx({"start": 2, "compile": 13, "data": 1, "evaluation": 1, "checkpoint": 0, "step": 4})


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v6 lite", 918), ("NVIDIA L4", 121), ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989), ("cpu", None),
    ],
)  # fmt: skip
def test_devices_are_known_by_their_names(kind, teraflops):
    peak = goodput.peak_flops(types.SimpleNamespace(device_kind=kind))
    assert peak == (teraflops and pytest.approx(teraflops * 1e12))
