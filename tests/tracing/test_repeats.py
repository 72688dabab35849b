"""A graph with its repeated blocks traced once is the graph of a full trace, or the blocks were traced one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autopart.program import Program
from autopart.tracing import repeats, trace
from autopart.tracing.likeness import blocks_of

WIDTH, DEPTH = 8, 7
TRACED: list[int] = []
"""numbers of the blocks whose code really ran"""


def _both(model: nn.Module, *args: Any, training: bool, **kwargs: Any) -> tuple[Program, Program]:
    """Traced with repeated blocks once, and in full."""
    once = trace(model, args, kwargs, training=training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "blocks_of", lambda model, fewest: ())
        return once, trace(model, args, kwargs, training=training)


def _assert_equal(once: Program, full: Program) -> None:
    for field in ("layers", "weights", "values", "legal_cuts", "fingerprint"):
        assert getattr(once.graph, field) == getattr(full.graph, field), field
    ones, others = (_spelled(program) for program in (once, full))
    assert ones == others


def _spelled(program: Program) -> list[str]:
    """Names, operators, arguments, weights and module calls of the captured graph."""
    nodes = [node for node in program.captured.graph.nodes if node.op != "get_attr"]
    return [
        f"{node.name} {node.op} {node.target} {node.args} {node.kwargs} "
        f"{[each.target for each in node.all_input_nodes]} {list((node.meta.get('nn_module_stack') or {}).items())}"
        for node in nodes
    ]


def _tokens(rows: int = 2, columns: int = 12) -> torch.Tensor:
    return torch.zeros(rows, columns, dtype=torch.long, device="meta")


SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 101,
}  # fmt: skip
DECODER: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False}


def _llama() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **DECODER)), {"input_ids": _tokens()}


def _gemma3() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Sliding and full attention in turn, chosen by the layer's number in lists of the config."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"] * 4
    config = Gemma3TextConfig(num_hidden_layers=8, sliding_window=4, layer_types=kinds, **DECODER)
    return Gemma3ForCausalLM(config), {"input_ids": _tokens()}


def _t5() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The first block makes the position bias, the others pass it on."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(num_layers=5, d_model=32, d_ff=64, num_heads=2, d_kv=16, vocab_size=101, use_cache=False)
    return T5ForConditionalGeneration(config), {"input_ids": _tokens(), "decoder_input_ids": _tokens(2, 6)}


def _bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_hidden_layers=4, **SMALL)), {"input_ids": _tokens()}


def _qwen2_moe() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        num_hidden_layers=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=2,
        shared_expert_intermediate_size=16, **DECODER,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config), {"input_ids": _tokens()}


ZOO = {"llama": (_llama, False), "gemma3": (_gemma3, True), "t5": (_t5, False), "bert": (_bert, True),
       "qwen2_moe": (_qwen2_moe, False)}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_is_that_of_a_full_trace(name: str) -> None:
    build, training = ZOO[name]
    with torch.device("meta"):
        model, inputs = build()
    assert blocks_of(model, fewest=repeats.FEWEST), "there is something to trace once"
    once, full = _both(model, training=training, **inputs)
    assert once.graph.notes == full.graph.notes
    assert {note.code for note in full.graph.notes} <= {"as-traced"}  # experts in float32
    _assert_equal(once, full)


class Block(nn.Module):
    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        TRACED.append(0)
        one, two = self.linear(self.norm(x)).chunk(2, -1)
        return x + torch.cat([two.relu(), one], -1)


class Model(nn.Module):
    def __init__(self, kind: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(kind(index) for index in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def _check(model: nn.Module, num_traced: int, *, training: bool = True) -> Program:
    """Equal to the full trace, and so many blocks were really run."""
    model = model.to("meta")
    x = torch.zeros(4, WIDTH, device="meta")
    TRACED.clear()
    trace(model, (x,), training=training)
    assert len(TRACED) == num_traced
    once, full = _both(model, x, training=training)
    _assert_equal(once, full)
    return once


@pytest.mark.parametrize("training", [False, True])
def test_of_equal_blocks_two_are_traced(training: bool) -> None:
    assert _check(Model(Block), 2, training=training).graph.notes == ()


def test_cost_grows_with_distinct_blocks_not_with_depth() -> None:
    model = Model(Block)
    model.blocks.extend([Block(7), nn.Sequential(nn.Linear(8, 8)), *(Block(index) for index in range(9, 30))])
    assert len(_check(model, 2).layer_nodes) > 20


class Numbered(Block):
    """Its code depends on its number: no trace of it may stand for another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 + self.index % 3)


class Indexed(Block):
    TABLE = tuple(0.5 * index for index in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.TABLE[self.index]


class Compared(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1 if self.index >= DEPTH - 2 else super().forward(x)


class Keeping(Block):
    """Leaves something for others to read."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        return super().forward(x)


class Writing(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return super().forward(x)


class Viewing(Block):
    """What it returns shares memory with a larger tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(x), x], -1)[:, :WIDTH]


class Counting(Block):
    """Writes a buffer."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.register_buffer("count", torch.zeros(()))
        self.count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return super().forward(x)


@pytest.mark.parametrize("kind", [Numbered, Indexed, Compared, Viewing])
def test_blocks_that_only_look_alike_are_all_traced(kind: type[Block]) -> None:
    assert _check(Model(kind), DEPTH, training=False).graph.notes == ()


def test_a_block_that_leaves_something_behind_stands_for_no_other() -> None:
    x = torch.zeros(4, WIDTH, device="meta")
    _assert_equal(*_both(Model(Keeping).to("meta"), x, training=False))


@pytest.mark.parametrize("kind", [Writing, Counting])
def test_who_writes_is_traced_in_full_and_that_is_said(kind: type[Block]) -> None:
    """Two blocks are traced, that shows what they write, then all."""
    (note,) = _check(Model(kind), 2 + DEPTH, training=False).graph.notes
    assert note.code == "blocks-traced-one-by-one" and "writes into" in note.message


def test_a_block_that_uses_what_is_no_argument_is_traced_in_full() -> None:
    box: list[torch.Tensor] = []

    class Reaching(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + box[0]

    class Boxing(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            box[:] = [x * 2]
            return super().forward(x)

    (note,) = _check(Boxing(Reaching), 2 + DEPTH).graph.notes
    assert "neither arguments nor results" in note.message


def test_a_block_that_differs_from_call_to_call_is_traced_in_full() -> None:
    class Moody(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * len(TRACED)

    model = Model(Moody).to("meta")
    TRACED.clear()
    (note,) = trace(model, (torch.zeros(4, WIDTH, device="meta"),), training=False).graph.notes
    assert "do other things" in note.message and len(TRACED) == 2 + DEPTH


def test_blocks_in_a_region_are_traced_in_full() -> None:
    class Frozen(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = super().forward(x)
            return self.first(x)  # type: ignore[no-any-return]

    (note,) = _check(Frozen(Block), 2 + DEPTH).graph.notes
    assert "region" in note.message


def test_arguments_that_differ_make_other_traces() -> None:
    class Scaled(Block):
        def forward(self, x: torch.Tensor, scale: int = 1) -> torch.Tensor:
            return super().forward(x) * scale

    class Scaling(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for index, block in enumerate(self.blocks):
                x = block(x, scale=index % 2)
            return x

    assert _check(Scaling(Scaled), 4).graph.notes == ()


def test_a_shared_weight_is_not_renamed() -> None:
    model = Model(Block)
    for block in model.blocks:
        block.linear = model.blocks[0].linear
    _check(model, DEPTH)


def test_frozen_blocks_are_others() -> None:
    model = Model(Block)
    model.blocks[0].requires_grad_(False)
    model.blocks.append(Block())
    graph = _check(model, 3).graph
    assert sum(not weight.trainable for weight in graph.weights) == 4


def test_blocks_inside_blocks() -> None:
    class Outer(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.inner = nn.Sequential(*(Block(each) for each in range(5)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + x  # type: ignore[no-any-return]

    assert _check(Model(Outer), 2).graph.notes == ()


def test_checkpointed_blocks_stay_regions_of_their_own() -> None:
    class Saving(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    once = _check(Saving(Block), 2)
    regions = {node.meta.get("checkpoint") for node in once.captured.graph.nodes} - {None}
    assert len(regions) == DEPTH


def test_models_with_weights_are_traced_in_full() -> None:
    TRACED.clear()
    assert trace(Model(Block), (torch.zeros(4, WIDTH),), training=False).graph.notes == ()
    assert len(TRACED) == DEPTH


def test_classes_and_modules_are_left_as_they_were() -> None:
    model = Model(Numbered).to("meta")
    before = [dict(vars(module)) for module in model.modules()]
    forward = Numbered.forward
    trace(model, (torch.zeros(4, WIDTH, device="meta"),), training=False)
    assert Numbered.forward is forward and "forward" not in vars(Model(Block).blocks[0])
    assert [dict(vars(module)) for module in model.modules()] == before
