"""Tensors on their way between the devices of one process.

Between CUDA devices a copy runs on streams of its own, so that neither device's computing waits for it: on the source
it starts when what has been queued there so far is done, on the target only who opens the parcel waits.  Where two
cards have no access to each other's memory it goes through pinned memory of the host, in two asynchronous halves.
**Not verified on hardware**: the order of streams and events is tested with fakes.

Everything else is ``Tensor.to``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from autopart.transfer import transfer

__all__ = ["Parcel", "Sender", "StreamSender", "sender_for"]

Parcel = Callable[[], torch.Tensor]
"""gives the tensor on its device; what is queued there from then on runs after its arrival"""

Sender = Callable[[torch.Tensor, torch.device], Parcel]


def sender_for(devices: Iterable[torch.device]) -> Sender:
    """What sends tensors between these devices."""
    num_cards = len({device for device in devices if device.type == "cuda"})
    return StreamSender() if num_cards > 1 else _send_at_once


def _send_at_once(tensor: torch.Tensor, device: torch.device) -> Parcel:
    moved = transfer(tensor, device)
    return lambda: moved


class StreamSender:
    """Sends tensors between CUDA devices on side streams, one of each device.

    Args:
        cuda: torch.cuda, or what stands for it in a test.
        pinned: makes an empty tensor like another in pinned memory of the host.
    """

    def __init__(
        self, cuda: Any = torch.cuda,
        pinned: Callable[[torch.Tensor], torch.Tensor] = lambda like: torch.empty_like(
            like, device="cpu", pin_memory=True
        ),
    ) -> None:  # fmt: skip
        self._cuda, self._pinned = cuda, pinned
        self._sides: dict[torch.device, Any] = {}

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> Parcel:
        """Queues the copy; what is given back waits for it on the target's current stream."""
        source = tensor.device
        if source == device or "cuda" not in (source.type, device.type):
            return _send_at_once(tensor, device)
        if source.type != device.type:
            moved = tensor.to(device)  # to or from the host: the host reads or writes, so it waits
            return lambda: moved
        here, there = self._side(source), self._side(device)
        here.wait_stream(self._cuda.current_stream(source))
        with self._cuda.stream(here), self._cuda.stream(there):
            if self._cuda.can_device_access_peer(source, device):
                moved = tensor.to(device, non_blocking=True)  # torch makes the target's stream wait for the source's
            else:
                host = self._pinned(tensor).copy_(tensor, non_blocking=True)
                there.wait_stream(here)
                moved = host.to(device, non_blocking=True)
        tensor.record_stream(here)  # its memory is free for others only when the copy has been made
        arrived = there.record_event()

        def opened() -> torch.Tensor:
            stream = self._cuda.current_stream(device)
            stream.wait_event(arrived)
            moved.record_stream(stream)
            return moved

        return opened

    def _side(self, device: torch.device) -> Any:
        if device not in self._sides:
            self._sides[device] = self._cuda.Stream(device)
        return self._sides[device]
