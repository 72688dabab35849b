from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from autopart.program import Program
from autopart.sharding.collectives import Gather, OwnPart, Share, Team, Total, VocabularyPart
from autopart.sharding.shards import Shard
from autopart.sharding.sharing import Shares, sharded_weights, share_layers
from autopart.tracing import trace
from tests.running.groupmodels import MODELS, NUM_WORDS, tokens_of


def traced(model: nn.Module, *args: torch.Tensor) -> Program:
    return trace(model, args or (tokens_of(2, 0),), training=True)


def shared(program: Program, index: int = 0, size: int = 2, pinned: tuple[str, ...] = ()) -> Shares:
    segment = program.segment(0, len(program.graph.layers))
    return share_layers(program, segment, Team(None, index, size), pinned=pinned)


def messages(shares: Shares) -> dict[str, int]:
    """What is sent in a forward, by kind; of ``Share`` in a backward."""
    kinds = (Gather, OwnPart, Share, Total, VocabularyPart)
    targets = [type(node.target) for node in shares.segment.body.graph.nodes]
    return {kind.__name__: number for kind, number in Counter(targets).items() if kind in kinds}


def test_pairs_of_products_need_one_sum_each() -> None:
    found = shared(traced(MODELS["blocks"]()))
    assert messages(found) == {"VocabularyPart": 1, "Total": 3, "Gather": 1, "Share": 4}
    assert found.whole == ()
    assert found.shards["up.0.weight"] == Shard(0, (16,)) and found.shards["down.0.weight"] == Shard(1, (16,))
    assert found.shards["up.0.bias"] == Shard(0, (16,)) and "down.0.bias" not in found.shards
    assert found.shards["embed.weight"] == Shard(0, (NUM_WORDS,))


def test_attention_is_shared_by_heads_however_it_is_written() -> None:
    found = shared(traced(MODELS["fused"]()))
    assert messages(found) == {"VocabularyPart": 1, "Total": 4, "Gather": 2, "Share": 8}
    assert found.shards["all.weight"] == Shard(0, (16, 16, 16)), "of queries, keys and values some of each"
    assert found.shards["gates.weight"] == Shard(0, (32, 32))
    assert found.whole == ()


@pytest.mark.parametrize("name", MODELS)
def test_what_would_be_sharded_is_known_without_devices(name: str) -> None:
    program = traced(MODELS[name]())
    assert sharded_weights(program, 2) == shared(program).shards.keys()
    assert "mix" not in sharded_weights(program, 2)


def test_the_last_device_has_what_is_left() -> None:
    program = traced(MODELS["blocks"]())
    held = [dict(shared(program, index).segment.named_parameters())["embed.weight"] for index in range(2)]
    assert [weight.shape[0] for weight in held] == [10, 9]
    assert torch.equal(torch.cat(tuple(held)), program.weight("embed.weight"))


def test_a_weight_that_must_stay_whole_does() -> None:
    found = shared(traced(MODELS["blocks"]()), pinned=("embed.weight",))
    assert "embed.weight" not in found.shards and found.whole == ("embed.weight",)
    assert "VocabularyPart" not in messages(found)


def test_the_users_weights_are_left_as_they_are() -> None:
    program = traced(MODELS["blocks"]())
    before = {name: (weight, weight.clone()) for name, weight in program.module.named_parameters()}
    shared(program)
    for name, weight in program.module.named_parameters():
        assert weight is before[name][0] and torch.equal(weight, before[name][1])


@pytest.mark.parametrize("size", [3, 4, 5])
def test_more_devices_than_heads_gather_them(size: int) -> None:
    found = shared(traced(MODELS["fused"]()), size=size)
    assert not found.whole and found.shards["query.weight"].dim == 0
