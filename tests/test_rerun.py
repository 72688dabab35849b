"""Stages whose layers are run again in the backward: the same bits as the unsplit model's, with less kept."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import GPT2Config, GPT2LMHeadModel

from autopart.rerun import rerun_layers
from autopart.running import LocalPipeline
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.hazards import HAZARDS
from tests.running.handmade import make_plan


class Normed(nn.Module):
    """Batch normalisation, activations in place and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.activation, self.head = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        value = nn.functional.dropout(self.activation(self.norms[0](self.first(image))), 0.3, self.training)
        value = value + self.activation(self.norms[1](self.second(value)))
        result: torch.Tensor = self.head(value.mean((2, 3)))
        return result


def gpt2() -> nn.Module:
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=31, n_positions=16, resid_pdrop=0.2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def tokens() -> tuple[torch.Tensor]:
    return (torch.randint(0, 31, (4, 8)),)


def images() -> tuple[torch.Tensor]:
    return (torch.randn(4, 3, 6, 6),)


def loss_of(output: Any) -> torch.Tensor:
    value: torch.Tensor = getattr(output, "logits", output)
    return value.square().mean()


@pytest.fixture(autouse=True)
def chance() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Stepped:
    """What a training step has left."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]
    chance: torch.Tensor
    saved_bytes: int = 0
    notes: tuple[str, ...] = ()


@contextmanager
def counted() -> Iterator[list[torch.Tensor]]:
    """What is kept for backward within; what a rerun layer keeps are its inputs."""
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def state(model: nn.Module, loss: torch.Tensor, *rest: Any) -> Stepped:
    return Stepped(
        loss.detach(), {name: weight.grad for name, weight in model.named_parameters()},
        {name: buffer.clone() for name, buffer in model.named_buffers()}, torch.get_rng_state(), *rest,
    )  # fmt: skip


def recomputing(plan: Plan) -> Plan:
    return dataclasses.replace(plan, stages=tuple(dataclasses.replace(stage, recompute=True) for stage in plan.stages))


def stepped(
    model: nn.Module, args: tuple[Any, ...], *, num_microbatches: int = 1, autocast: torch.dtype | None = None
) -> tuple[Stepped, Stepped]:
    """One step of two stages in this process, without and with recomputation."""
    before = copy.deepcopy(model.state_dict())
    program = trace(model, tuple(each[: len(each) // num_microbatches] for each in args), training=True)
    program = dataclasses.replace(program, autocast=autocast)
    middle = sorted(program.graph.legal_cuts)[len(program.graph.legal_cuts) // 2]
    plan = make_plan(program.graph, (middle,), num_microbatches=num_microbatches, mode="train", schedule="1f1b")
    found = []
    for each in (plan, recomputing(plan)):
        model.load_state_dict(before)
        model.zero_grad()
        pipeline = LocalPipeline(program, each, loss_fn=loss_of)
        torch.manual_seed(7)
        random.seed(7)
        with counted() as kept:
            loss = pipeline.step(*args)
        weights = {weight.data_ptr() for weight in model.parameters()}
        found.append(state(model, loss, sum(k.nbytes for k in kept if k.data_ptr() not in weights), pipeline.notes))
    return found[0], found[1]


def equal(one: Stepped, other: Stepped) -> None:
    torch.testing.assert_close(
        (one.loss, one.gradients, one.buffers, one.chance), (other.loss, other.gradients, other.buffers, other.chance),
        rtol=0.0, atol=0.0,
    )  # fmt: skip


MODELS = {"gpt2 with dropout": (gpt2, tokens), "batch normalisation": (Normed, images)}


@pytest.mark.parametrize(("name", "autocast"), [("gpt2 with dropout", torch.bfloat16), ("batch normalisation", None)])
def test_several_micro_batches_give_what_they_give_without_and_keep_less(name: str, autocast: Any) -> None:
    build, inputs = MODELS[name]
    plain, again = stepped(build().train(), inputs(), num_microbatches=2, autocast=autocast)
    equal(plain, again)
    assert again.saved_bytes < 0.5 * plain.saved_bytes
    assert again.notes == plain.notes, "every layer is run again"


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_the_unsplit_models(name: str) -> None:
    build, inputs = MODELS[name]
    model, args = build().train(), inputs()
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    loss = loss_of(twin(*args))
    torch.autograd.backward(loss)
    equal(stepped(model, args)[1], state(twin, loss))


@pytest.mark.parametrize("name", ["FunctionInPlace", "CheckpointedBatchNorm", "SpectralNorm"])
def test_functions_regions_and_written_buffers_work(name: str) -> None:
    equal(*stepped(HAZARDS[name].build().train(), HAZARDS[name].inputs()))


@pytest.mark.parametrize("name", ["PythonNoise", "Branching"])
def test_the_users_own_code_is_run_once_and_that_is_said(name: str) -> None:
    plain, again = stepped(HAZARDS[name].build().train(), HAZARDS[name].inputs())
    equal(plain, again)
    assert not plain.notes or plain.notes[0] == again.notes[0]
    assert any("cannot be run again in the backward without side effects (" in note for note in again.notes)


class Tripled(nn.Module):
    """A layer that writes to what another reads later."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        value.mul_(3.0)
        for layer in self.layers:
            value = torch.tanh(layer(value))
        return value


def test_a_layer_that_writes_to_what_comes_in_is_run_once() -> None:
    program = trace(Tripled().train(), (torch.randn(2, 8),), training=True)
    assert len(program.graph.layers) > 1
    assert rerun_layers(program.segment(0, len(program.graph.layers))).kept == (0,)
    assert [layer.reruns for layer in program.graph.layers] == [index > 0 for index in range(len(program.graph.layers))]


def test_each_layer_keeps_what_comes_in_and_runs_twice() -> None:
    """Which is what planning counts on."""
    calls: list[str] = []
    program = trace(gpt2().train(), tokens(), training=True)
    num_layers = len(program.graph.layers)
    segment = rerun_layers(program.segment(0, num_layers)).segment
    for name, body in segment.body.named_children():
        body.register_forward_pre_hook(_noting(calls, name))
    with counted() as kept:
        outputs = segment(*tokens())
    entering = {value.shape for k in range(num_layers) for value in program.graph.crossing(k)}
    masks = {tuple(node.meta["val"].shape) for node in segment.body.graph.nodes if node.meta.get("constant")}
    assert {tuple(each.shape) for each in kept} <= entering | masks
    assert len(calls) == num_layers
    torch.autograd.backward(torch.stack([each.square().mean() for each in outputs]).sum())
    again = {name for name in calls if calls.count(name) == 2}
    assert len(calls) == num_layers + len(again), "none more than twice"
    assert again == {f"layer_{index}" for index, layer in enumerate(program.graph.layers) if layer.reruns}
    assert all(layer.reruns for layer in program.graph.layers if layer.saved_bytes)


def _noting(calls: list[str], name: str) -> Callable[[nn.Module, Any], None]:
    return lambda *_: calls.append(name)
