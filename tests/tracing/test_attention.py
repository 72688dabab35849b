from __future__ import annotations

import pytest
import torch
from torch import nn

from autopart.errors import MismatchError
from autopart.fusedattention import attention_in_parts
from autopart.program import Program
from autopart.splitting import SplitModule, verify
from autopart.tracing import trace
from tests.zoo import edges, stages_of

WIDTH, LAYERS = 32, 8


class Reader(nn.Module):
    """torch's own encoder, of more layers than verification may blame one by one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, LAYERS), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        found: torch.Tensor = self.head(self.encoder(x, src_key_padding_mask=padding))
        return found


class Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.heads = nn.Linear(WIDTH, WIDTH), nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        found: torch.Tensor = x + self.heads(x, x, x, need_weights=False)[0]
        return found


def split_of(
    model: nn.Module, args: tuple[torch.Tensor, ...], *opaque: str, program: Program | None = None
) -> SplitModule:
    program = program or trace(model, args, {}, training=model.training, opaque=opaque)
    return SplitModule(model, stages_of(program, edges(len(program.graph.layers), 2)), lambda *_: program)


def test_an_encoder_is_split_in_inference_and_what_it_does_otherwise_is_said() -> None:
    torch.manual_seed(0)
    model, x = Reader().eval(), torch.randn(2, 5, WIDTH)
    program = trace(model, (x,), {}, training=False)
    assert program.graph.tracer == "torch.export" and len(program.graph.layers) > LAYERS
    assert [note.code for note in program.graph.notes] == ["attention-in-parts"]
    split = split_of(model, (x,), program=program)
    verify(split, model, (x,), {})
    with torch.no_grad():
        torch.testing.assert_close(split(x), model(x))
        with attention_in_parts():
            assert torch.equal(split(x), model(x))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_is_told_of_padding_runs_as_it_is_written() -> None:
    """Its fused form gives zeros there."""
    model, x, padding = Reader().eval(), torch.randn(2, 5, WIDTH), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with pytest.raises(MismatchError) as caught:
        verify(split_of(model, (x, padding)), model, (x, padding), {})
    assert caught.value.layer == "encoder"
    split = split_of(model, (x, padding), "encoder")
    verify(split, model, (x, padding), {})
    with torch.no_grad():
        assert torch.equal(split(x, padding), model(x, padding))


def test_in_training_there_is_nothing_to_say() -> None:
    assert not trace(Reader().train(), (torch.randn(2, 5, WIDTH),), {}, training=True).graph.notes


def test_attention_that_runs_as_it_is_written_is_recorded_as_it_will_run() -> None:
    """On fake tensors its fused form gives an empty tensor where the real one gives None."""
    model, x = Looking().eval(), torch.randn(2, 5, WIDTH)
    split = split_of(model, (x,), "heads")
    with torch.no_grad():
        assert torch.equal(split(x), model(x))
