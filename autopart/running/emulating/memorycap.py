"""The memory of an emulated device: a cap on the bytes of the tensors that are alive."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from autopart.errors import OutOfMemoryError
from autopart.livebytes import LiveBytes
from autopart.schema.device import Device
from autopart.units import format_bytes

__all__ = ["MemoryCap", "cap_of"]


class MemoryCap(LiveBytes):  # type: ignore[no-untyped-call]
    """Within, tensors of more than ``cap_bytes`` in all are refused; exact but for buffers inside of operators.

    Every operator is looked at, which costs some microseconds each.

    Args:
        device: name of the device, for the message.
        cap_bytes: that the tensors may take.

    Raises:
        OutOfMemoryError: from the operator, or ``watch``, after which more are alive.
    """

    def __init__(self, device: str, cap_bytes: int) -> None:
        super().__init__()
        self._device, self.cap_bytes = device, cap_bytes

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Counts these from now on."""
        super().watch(tensors)
        if self.now_bytes > self.cap_bytes:
            raise OutOfMemoryError(
                f"{self._device} is out of memory: its tensors take {format_bytes(self.now_bytes)}, "
                f"{format_bytes(self.now_bytes - self.cap_bytes)} more than its cap of {format_bytes(self.cap_bytes)}; "
                f"plan with --max-memory {self._device}={format_bytes(self.cap_bytes).replace(' ', '')} or a smaller "
                f"--batch, or raise the cap",
                device=self._device, fate="memory",
            )


def cap_of(device: Device, *, emulated: bool) -> int | None:
    """Bytes that a device's tensors may take in a run, None: what the system gives.

    Caps are kept on emulated devices, and on the processor's where the user gave one.
    """
    if device.backend == "cpu" and (emulated or device.uncapped_bytes):
        return device.memory_bytes
    return None
