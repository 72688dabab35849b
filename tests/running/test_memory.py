from __future__ import annotations

import torch

from autopart.running.memory import LiveMeter, ResidentMeter, meter_for, storage_bytes

MIB = 2**20


def test_storages_are_counted_once() -> None:
    weight = torch.zeros(4, 8)
    assert storage_bytes([weight, weight.t(), weight[1:], torch.zeros(3)]) == 4 * 8 * 4 + 12


def test_the_peak_is_the_weights_and_what_a_step_needs() -> None:
    weight = torch.ones(MIB)
    meter = meter_for(torch.device("cpu"), [weight])
    assert isinstance(meter, ResidentMeter)
    block = torch.ones(16 * MIB)
    meter.observe()
    held_bytes = block.nbytes
    del block
    assert meter.peak_bytes() >= 4 * MIB + held_bytes * 0.9
    assert meter.peak_bytes() < 4 * MIB + held_bytes * 2
    assert meter.origin


def test_with_two_warm_up_steps_the_tensors_alive_are_counted() -> None:
    weight = torch.ones(MIB // 4)
    meter = meter_for(torch.device("cpu"), [weight], warmup=2)
    assert isinstance(meter, LiveMeter)
    for _ in range(2):
        twice = weight * 2
        del twice
        meter.observe()
    late = weight.repeat(8)  # in a timed step, which is not slowed down
    meter.observe()
    assert late.nbytes == 8 * MIB
    assert meter.peak_bytes() == 2 * MIB
    assert isinstance(meter_for(torch.device("cpu"), [weight], warmup=1), ResidentMeter)
