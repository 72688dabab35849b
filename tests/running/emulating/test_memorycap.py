from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from autopart.errors import OutOfMemoryError
from autopart.running.emulating.memorycap import MemoryCap, cap_of
from autopart.running.memory import LiveMeter, meter_for
from tests.running.handmade import Skipping, make_plan, trace_skipping

KILOBYTE = 1000


def test_what_fits_is_left_alone_and_the_numbers_of_what_does_not_are_said() -> None:
    with MemoryCap("old", 100 * KILOBYTE) as cap:
        kept = torch.zeros(20 * KILOBYTE)
        assert cap.now_bytes == 80 * KILOBYTE
        with pytest.raises(OutOfMemoryError, match=r"^old is out of memory: its tensors take 120 kB, 20.0 kB more than "
                           r"its cap of 100 kB; plan with --max-memory old=100kB") as caught:  # fmt: skip
            torch.zeros(10 * KILOBYTE)
    assert caught.value.exit_code == 3 and caught.value.device == "old" and kept.numel()


def test_what_is_freed_may_be_used_again() -> None:
    with MemoryCap("old", 100 * KILOBYTE):
        for _ in range(5):
            torch.zeros(20 * KILOBYTE)


def test_the_error_comes_out_of_a_backward_pass_as_it_is() -> None:
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(3)))
    cap = MemoryCap("old", 3 * 40_400 + 150 * KILOBYTE)
    cap.watch(model.parameters())
    with cap, pytest.raises(OutOfMemoryError, match="old is out of memory"):
        loss = model(torch.zeros(50, 100)).sum()
        assert cap.now_bytes < cap.cap_bytes
        loss.backward()


def test_a_capped_meter_watches_the_weights_and_the_warmup_steps() -> None:
    weights = [torch.zeros(1000)]
    with pytest.raises(OutOfMemoryError, match=r"take 4\.00 kB, 1\.00 kB more than its cap of 3\.00 kB"):
        meter_for(torch.device("cpu"), weights, warmup=2, cap=MemoryCap("old", 3000))
    meter = meter_for(torch.device("cpu"), weights, warmup=2, cap=MemoryCap("old", 6000))
    assert isinstance(meter, LiveMeter)
    for step in range(LiveMeter.NUM_STEPS):
        with pytest.raises(OutOfMemoryError) if step else torch.no_grad():
            torch.zeros(1000 if step else 100)
        meter.observe()
    torch.zeros(1000)  # no longer watched
    assert meter.peak_bytes() >= 8000


def test_caps_are_kept_on_emulated_devices_and_where_the_user_gave_one() -> None:
    graph = trace_skipping(Skipping(), 8, 4, training=False).graph
    device = make_plan(graph, (2,), num_microbatches=4).cluster.devices[0]
    assert cap_of(device, emulated=False) is None
    assert cap_of(device, emulated=True) == device.memory_bytes
    capped = dataclasses.replace(device, memory_bytes=5, uncapped_bytes=7)
    assert cap_of(capped, emulated=False) == 5
    assert cap_of(dataclasses.replace(capped, backend="cuda"), emulated=True) is None
