from __future__ import annotations

import torch

from autopart.profiling.timing import laps_on, median_and_spread, num_threads_set


def test_laps_are_the_times_between_marks() -> None:
    readings = iter([1.0, 1.5, 4.0])
    laps = laps_on(torch.device("cpu"), lambda: next(readings))
    for _ in range(3):
        laps.mark()
    assert laps.seconds() == [0.5, 2.5]


def test_median_and_spread() -> None:
    assert median_and_spread([3.0, 1.0, 2.0]) == (2.0, 0.0)
    median, spread = median_and_spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert median == 3.0
    assert spread == (4.5 - 1.5) / 3.0
    assert median_and_spread([0.0] * 5) == (0.0, 0.0)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with num_threads_set(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with num_threads_set(None):
        assert torch.get_num_threads() == before
