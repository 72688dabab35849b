"""The order of streams and events between CUDA devices, with fakes: there are no such devices where tests run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from autopart.running.inprocess.parcels import StreamSender, sender_for

CARDS = torch.device("cuda", 0), torch.device("cuda", 1)


class FakeStream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        self.log.append(f"{self.name} marks")
        return f"mark of {self.name}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")


class FakeCuda:
    """Stands for torch.cuda."""

    def __init__(self, has_peers: bool) -> None:
        self.has_peers = has_peers
        self.log: list[str] = []
        self.computing = {card: FakeStream(f"compute{card.index}", self.log) for card in CARDS}
        self.current: dict[torch.device, FakeStream] = dict(self.computing)

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        return FakeStream(f"side{device.index}", self.log)

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.current[device]

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        card = CARDS[int(stream.name[-1])]
        before, self.current[card] = self.current[card], stream
        yield
        self.current[card] = before

    def can_device_access_peer(self, one: torch.device, other: torch.device) -> bool:
        return self.has_peers


class FakeTensor:
    def __init__(self, name: str, device: torch.device, cuda: FakeCuda) -> None:
        self.name, self.device, self.cuda = name, device, cuda

    def to(self, device: torch.device, non_blocking: bool = False) -> FakeTensor:
        on = self.device if self.device.type == "cuda" else device
        how = f"on {self.cuda.current[on].name}" if non_blocking else "waiting"
        self.cuda.log.append(f"{self.name} to {device} {how}")
        return FakeTensor("copy", device, self.cuda)

    def copy_(self, other: FakeTensor, non_blocking: bool) -> FakeTensor:
        assert non_blocking
        self.cuda.log.append(f"{other.name} to {self.name} on {self.cuda.current[other.device].name}")
        return self

    def record_stream(self, stream: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} is in use by {stream.name}")


def sent(has_peers: bool) -> tuple[FakeCuda, Any]:
    cuda = FakeCuda(has_peers)
    host = FakeTensor("pinned", torch.device("cpu"), cuda)
    sender = StreamSender(cuda, pinned=lambda like: host)  # type: ignore[arg-type, return-value]
    return cuda, sender(FakeTensor("value", CARDS[0], cuda), CARDS[1])  # type: ignore[arg-type]


def test_a_copy_between_peers_holds_up_neither_devices_computing() -> None:
    cuda, parcel = sent(has_peers=True)
    assert cuda.log == [
        "side0 waits for compute0",
        "value to cuda:1 on side0",
        "value is in use by side0",
        "side1 marks",
    ]
    assert cuda.current == cuda.computing
    cuda.log.clear()
    assert parcel().device == CARDS[1]
    assert cuda.log == ["compute1 waits for mark of side1", "copy is in use by compute1"]


def test_without_peer_access_it_goes_through_pinned_memory() -> None:
    cuda, _ = sent(has_peers=False)
    assert cuda.log == [
        "side0 waits for compute0",
        "value to pinned on side0",
        "side1 waits for side0",
        "pinned to cuda:1 on side1",
        "value is in use by side0",
        "side1 marks",
    ]


def test_to_and_from_the_host_the_host_waits() -> None:
    cuda = FakeCuda(has_peers=True)
    sender = StreamSender(cuda)
    for tensor, device in ((FakeTensor("value", CARDS[0], cuda), torch.device("cpu")),
                           (FakeTensor("value", torch.device("cpu"), cuda), CARDS[0])):  # fmt: skip
        assert sender(tensor, device)().device == device  # type: ignore[arg-type]
    assert cuda.log == ["value to cpu waiting", "value to cuda:0 waiting"]


def test_side_streams_are_made_once() -> None:
    cuda = FakeCuda(has_peers=True)
    sender = StreamSender(cuda)
    for _ in range(2):
        sender(FakeTensor("value", CARDS[0], cuda), CARDS[1])  # type: ignore[arg-type]
    assert len(sender._sides) == 2


@pytest.mark.parametrize(
    ("devices", "streams"), [(("cpu",), False), (("cuda:0", "cpu"), False), (("cuda:0", "cuda:0", "cuda:1"), True)]
)
def test_streams_are_for_several_cards(devices: tuple[str, ...], streams: bool) -> None:
    assert isinstance(sender_for(map(torch.device, devices)), StreamSender) is streams


def test_on_the_processor_the_tensor_itself_arrives() -> None:
    tensor = torch.rand(3)
    assert sender_for([tensor.device])(tensor, tensor.device)() is tensor
