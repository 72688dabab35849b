from __future__ import annotations

import itertools

import torch

from autopart.pace import Pacer


def test_the_pace_is_the_median_of_the_samples() -> None:
    readings = itertools.accumulate([0.0, 2.0, 0.0, 9.0, 0.0, 3.0, 0.0])
    pacer = Pacer(torch.device("cpu"), lambda: next(readings))
    for _ in range(3):
        pacer.sample()
    assert pacer.seconds == 3.0


def test_no_samples_no_pace() -> None:
    assert Pacer(torch.device("cpu"), lambda: 0.0).seconds == 0.0


def test_other_devices_have_no_pace() -> None:
    pacer = Pacer(torch.device("meta"), iter(range(10)).__next__)
    pacer.sample()
    assert pacer.seconds == 0.0


def test_the_share_is_what_the_clock_counts_of_the_time_that_passes() -> None:
    worked = itertools.accumulate([0.0, 2.0, 0.0, 2.0, 0.0, 2.0])
    passed = itertools.accumulate([0.0, 8.0, 0.0, 2.0, 0.0, 4.0])
    pacer = Pacer(torch.device("cpu"), worked.__next__, passed.__next__)
    assert pacer.share == 1.0
    for _ in range(3):
        pacer.sample()
    assert pacer.share == 0.5
