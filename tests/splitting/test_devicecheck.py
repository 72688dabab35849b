from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from autopart.errors import MismatchError
from autopart.splitting import Stitched, check_devices
from autopart.tracing import trace
from tests.zoo import BUILDERS, edges, program


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", BUILDERS)
def test_real_models_run_on_four_fake_devices(name: str, training: bool) -> None:
    traced = program(name, training)
    check_devices(traced, edges(len(traced.graph.layers), 4)[1:-1], backward=training)


@pytest.mark.parametrize("name", ["gpt2", "unet", "mlp"])
def test_a_missing_transfer_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = program(name, False)
    monkeypatch.setattr(sys.modules[Stitched.__module__], "transfer", lambda tensor, device: tensor)
    with pytest.raises(MismatchError, match="does not run on 2 devices"):
        check_devices(traced, [len(traced.graph.layers) // 2], backward=False)


class Constants(nn.Module):
    """Tensors of the code, made on the processor wherever it runs, also inside regions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x) * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])
        with torch.no_grad():
            weight = (x * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = x + torch.arange(4)
        return self.two(x * weight) * self.scale + torch.zeros(4)  # type: ignore[no-any-return]


def test_constants_follow_the_stage() -> None:
    traced = trace(Constants(), (torch.randn(2, 4),), training=True)
    check_devices(traced, range(1, len(traced.graph.layers)), backward=True)
