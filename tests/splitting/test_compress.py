from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autopart.schema.codec import CodecName
from autopart.splitting import SplitModule, StagePlacement, traffic_of
from tests.zoo import CPU, tracer

NAMES = ("enter", "blocks.0", "blocks.1", "leave")


class Skipping(nn.Module):
    """A value that two later stages read, and a mask that is not to be touched."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 128)
        self.blocks = nn.ModuleList(nn.Linear(128, 128) for _ in range(2))
        self.leave = nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = self.enter(x)
        value = start
        for block in self.blocks:
            value = torch.tanh(block(value)) + start
        result: torch.Tensor = self.leave(value)
        return result


def made(compress: CodecName) -> tuple[nn.Module, SplitModule]:
    torch.manual_seed(3)
    model = Skipping()
    stages = [StagePlacement(layers=(name,), device=CPU) for name in NAMES]
    return copy.deepcopy(model), SplitModule(model, stages, tracer, compress=compress)


@pytest.mark.parametrize(("compress", "most", "saved"), [("fp16", 2e-3, 1.99), ("int8", 3e-2, 3.5)])
def test_outputs_and_gradients_are_nearly_the_models(compress: CodecName, most: float, saved: float) -> None:
    model, split = made(compress)
    x, target = torch.randn(8, 16), torch.randn(8, 4)
    for each in (model, split):
        torch.autograd.backward(nn.functional.mse_loss(each(x), target))
    for one, other in zip(model.parameters(), split.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        error = (one.grad - other.grad).norm() / one.grad.norm()
        assert error < most
    assert (model(x) - split(x)).norm() / model(x).norm() < most
    traffic = traffic_of(split)
    assert traffic.plain_bytes / traffic.sent_bytes > saved


def test_a_value_is_encoded_once_on_its_way() -> None:
    _, split = made("int8")
    with torch.no_grad():
        split.eval()(torch.randn(8, 16))
    num_crossing = 3  # enter's output, which two stages read, and the blocks'
    assert traffic_of(split).plain_bytes == num_crossing * 8 * 128 * 4


def test_without_a_codec_nothing_is_counted_and_bits_are_the_models() -> None:
    model, split = made("none")
    x = torch.randn(8, 16)
    assert torch.equal(model(x), split(x))
    assert traffic_of(split).plain_bytes == 0
