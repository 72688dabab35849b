from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

from autopart.program import Program
from autopart.tracing import trace
from tests.zoo import BUILDERS, case, program


def _names(traced: Program) -> list[str]:
    return [layer.name for layer in traced.graph.layers]


@pytest.fixture(scope="module")
def gpt2() -> Program:
    """In its real size, on the meta device."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model, tokens = GPT2LMHeadModel(GPT2Config(use_cache=False)), torch.zeros(4, 64, dtype=torch.long)
    return trace(model, (), {"input_ids": tokens}, training=True)


def test_layers_have_the_names_that_users_know(gpt2: Program) -> None:
    blocks = [f"transformer.h.{index}.{part}" for index in range(12) for part in ("attn", "mlp")]
    assert _names(gpt2) == ["transformer.wte", "transformer.wpe", *blocks, "lm_head"]


def test_repeated_blocks_share_a_signature(gpt2: Program) -> None:
    by_name = {layer.name: layer.signature for layer in gpt2.graph.layers}
    assert len({by_name[f"transformer.h.{index}.mlp"] for index in range(12)}) <= 2  # the last ends in ln_f
    assert len({by_name[f"transformer.h.{index}.attn"] for index in range(1, 12)}) == 1
    assert by_name["transformer.h.1.attn"] != by_name["transformer.h.1.mlp"]


def test_light_layers_join_where_most_bytes_would_cross() -> None:
    """The pooling is cut from what comes after it, which is narrow, not from what comes before."""
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64))
    traced = trace(model, (torch.randn(4, 8),), training=False)
    assert _names(traced) == ["0", "2", "4"]
    assert [value.shape for cut in (1, 2) for value in traced.graph.crossing(cut)] == [(4, 64), (4, 8)]

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.pool, self.two = nn.Linear(8, 64), nn.AvgPool1d(8), nn.Linear(8, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.pool(self.one(x)))  # type: ignore[no-any-return]

    traced = trace(Narrow(), (torch.randn(4, 8),), training=False)
    assert _names(traced) == ["one", "two"]
    assert [value.shape for value in traced.graph.crossing(1)] == [(4, 8)]


@pytest.mark.parametrize("name", BUILDERS)
def test_train_eval_and_other_batches_have_the_same_layers(name: str) -> None:
    each = case(name)
    if name in ("mlp", "unet", "resnet", "gpt2"):
        args = tuple(torch.cat([tensor] * 3) for tensor in each.args)
        kwargs = {key: torch.cat([tensor] * 3) for key, tensor in each.kwargs.items()}
        assert _names(trace(each.model, args, kwargs, training=False)) == _names(program(name, False))
    assert _names(program(name, True)) == _names(program(name, False))


class Parts(nn.Module):
    """Takes apart a tuple late, and writes into memory and a buffer made early."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.kind = kind
        self.register_buffer("state", torch.zeros(8))
        self.state: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two, three, four = self.linears
        x = one(x)
        halves = x.chunk(2, 1)
        kept = x * 2
        seen = self.state + 1
        x = three(two(x))
        if self.kind == "tuple":
            x = x + torch.cat([halves[1], halves[0]], 1)
        elif self.kind == "write":
            kept[:, :4].add_(x[:, :4])
            x = x + kept
        elif self.kind == "buffer":
            self.state.add_(x.detach().mean(0))
            x = x + seen
        return four(x)  # type: ignore[no-any-return]


def test_a_tuple_is_never_cut_from_its_parts() -> None:
    traced = trace(Parts("tuple"), (torch.randn(2, 8),), training=True)
    assert _names(traced) == ["linears.0", "linears.1", "linears.2", "linears.3"]
    layer_of = {node: index for index, nodes in enumerate(traced.layer_nodes) for node in nodes}
    parts = [node for node in layer_of if node.target is operator.getitem]
    assert len(parts) == 2
    assert all(layer_of[node] == layer_of[node.all_input_nodes[0]] < 3 for node in parts)


@pytest.mark.parametrize("kind", ["write", "buffer"])
def test_what_is_written_stays_with_its_writers_and_readers(kind: str) -> None:
    traced = trace(Parts(kind), (torch.randn(2, 8),), training=True)
    assert _names(traced) == ["linears.0", "linears.1", "linears.3"]
    layer_of = {node: index for index, nodes in enumerate(traced.layer_nodes) for node in nodes}
    writes = [node for node in layer_of if "add_" in str(node.target)]
    assert [layer_of[node] for node in writes] == [1]
    assert not any(value.producer < 1 and value.consumers[-1] > 1 for value in traced.graph.values)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("positions", torch.arange(8))
        self.positions: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = (torch.ones(8, 8).tril() * self.positions).sum(0)
        return self.two(self.one(x) * mask) * mask  # type: ignore[no-any-return]


def test_constants_are_made_where_they_are_read() -> None:
    traced = trace(Masked(), (torch.randn(4, 8),), training=True)
    assert _names(traced) == ["one", "two"]
    assert [value.shape for value in traced.graph.crossing(1)] == [(4, 8)]
    positions = [weight.name for weight in traced.graph.weights].index("positions")
    assert all(positions in layer.weights for layer in traced.graph.layers)
    assert traced.shared_constants() == ((), ("sum_1",))


def test_random_numbers_are_no_constants() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            noise = torch.rand(8, 8)
            return self.two(self.one(x) @ noise) @ noise  # type: ignore[no-any-return]

    traced = trace(Noisy(), (torch.randn(4, 8),), training=True)
    assert {value.shape for value in traced.graph.crossing(1)} == {(4, 8), (8, 8)}


def test_a_module_called_twice_is_two_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(self.two(self.one(x)))  # type: ignore[no-any-return]

    traced = trace(Twice(), (torch.randn(4, 8),), training=True)
    assert _names(traced) == ["one", "two", "one@2"]
    assert traced.graph.layers[0].weights == traced.graph.layers[2].weights


def test_a_bare_layer_is_a_model() -> None:
    assert _names(trace(nn.Linear(4, 4), (torch.randn(2, 4),), training=True)) == ["model"]
