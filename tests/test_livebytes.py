from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopart.livebytes import LiveBytes

MIB = 2**20


def test_storages_count_once_while_they_live() -> None:
    with LiveBytes() as live:
        block = torch.zeros(MIB // 4)
        views = [block.view(2, -1), block[1:]]
        other = block + 1
        assert (live.now_bytes, live.peak_bytes) == (2 * MIB, 2 * MIB)
        del other
        assert (live.now_bytes, live.peak_bytes) == (MIB, 2 * MIB)
        del block, views
        assert live.now_bytes == 0


def test_what_is_freed_between_two_looks_is_noticed() -> None:
    live = LiveBytes()
    weight = torch.zeros(MIB // 4)
    live.watch([weight, weight.t()])
    assert live.now_bytes == MIB
    with live:
        kept = weight * 2
    del kept
    with live:
        weight.add_(1)
    assert (live.now_bytes, live.peak_bytes) == (MIB, 2 * MIB)


def test_uncounted_tensors_do_not_count() -> None:
    weight = torch.zeros(MIB)
    with LiveBytes([weight]) as live:
        weight.add_(1)
        assert live.peak_bytes == 0


def test_backward_and_fakes_are_seen() -> None:
    with FakeTensorMode():
        weight = torch.zeros(MIB // 4, requires_grad=True)
        with LiveBytes([weight]) as live:
            torch.autograd.backward((weight * weight).sum())
            assert weight.grad is not None
            assert live.now_bytes == MIB
            assert live.peak_bytes > MIB


def test_it_counts_what_the_allocator_counts() -> None:
    def step() -> None:
        hidden = torch.relu(values @ values)
        torch.autograd.backward((hidden @ values).sum())

    values = torch.rand(128, 128, requires_grad=True)
    with LiveBytes([values]) as live:
        step()
    values.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now_bytes = peak_bytes = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now_bytes += event.nbytes()
            peak_bytes = max(peak_bytes, now_bytes)
    assert peak_bytes == live.peak_bytes
