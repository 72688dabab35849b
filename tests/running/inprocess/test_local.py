from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from autopart.errors import RunError, UsageError
from autopart.program import Program, Segment
from autopart.running import LocalPipeline, pipeline, stage_weights
from autopart.running.inprocess import local
from autopart.schema.codec import CodecName
from autopart.schema.job import ScheduleName
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.running.handmade import (
    Skipping,
    make_plan,
    reference,
    skipping_batch,
    skipping_loss,
    trace_skipping,
)
from tests.running.schedule_ranks import MICROBATCH, MODELS, PLACEMENTS, Blocks, cuts_of, loss_of

CUTS = [(), (3,), (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_inference_equals_the_unsplit_model(cuts: tuple[int, ...], num_microbatches: int) -> None:
    model = Skipping().eval()
    args, _ = skipping_batch(8)
    program = trace_skipping(model, 8, num_microbatches, training=False)
    output = LocalPipeline(program, make_plan(program.graph, cuts, num_microbatches=num_microbatches)).step(*args)
    with torch.no_grad():
        expected = model(*args)
    torch.testing.assert_close(output["scores"], expected["scores"])
    assert torch.equal(output["kept"], expected["kept"])


@pytest.mark.parametrize("cuts", CUTS)
def test_training_leaves_the_unsplit_models_gradients_and_buffers(cuts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    split, unsplit = Skipping(), Skipping()
    unsplit.load_state_dict(split.state_dict())
    args, targets = skipping_batch(8)
    program = trace_skipping(split, 8, 4, training=True)
    plan = make_plan(program.graph, cuts, num_microbatches=4, mode="train", schedule="1f1b")
    local = LocalPipeline(program, plan, loss_fn=skipping_loss)
    for _ in range(2):
        loss = local.step(*args, target=targets)
        torch.testing.assert_close(loss, reference(unsplit, args, targets, 4))
    for (name, one), (_, other) in zip(split.named_parameters(), unsplit.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    torch.testing.assert_close(dict(split.named_buffers()), dict(unsplit.named_buffers()))


def test_gradients_over_microbatches_are_the_full_batch_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs, labels = torch.rand(12, 4), torch.randint(0, 3, (12,))
    program = trace(model, (inputs[:3],), training=True)
    plan = make_plan(program.graph, program.graph.legal_cuts[:1], num_microbatches=4, mode="train")
    nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    expected = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    LocalPipeline(program, plan, loss_fn=nn.functional.cross_entropy).step(inputs, target=labels)
    torch.testing.assert_close([weight.grad for weight in model.parameters()], expected)


def test_the_optimizer_clears_gradients_and_steps() -> None:
    split, unsplit = Skipping(), Skipping()
    unsplit.load_state_dict(split.state_dict())
    args, targets = skipping_batch(8)
    program = trace_skipping(split, 8, 4, training=True)
    plan = make_plan(program.graph, (2,), num_microbatches=4, mode="train", optimizer="sgd")
    local = LocalPipeline(program, plan, loss_fn=skipping_loss, optimizer=lambda weights: torch.optim.SGD(weights, 0.5))
    optimizer = torch.optim.SGD(unsplit.parameters(), 0.5)
    for _ in range(3):
        local.step(*args, target=targets)
        optimizer.zero_grad()
        reference(unsplit, args, targets, 4)
        optimizer.step()
    torch.testing.assert_close(split.state_dict(), unsplit.state_dict())


def test_a_loss_that_was_not_given_is_noted() -> None:
    program = trace_skipping(Skipping(), 8, 4, training=True)
    local = LocalPipeline(program, make_plan(program.graph, (2,), num_microbatches=4, mode="train"))
    local.step(*skipping_batch(8)[0])
    assert "No loss_fn was given" in local.notes[0]


def test_pipeline_is_local_without_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    program = trace_skipping(Skipping(), 8, 4, training=False)
    plan = make_plan(program.graph, (2,), num_microbatches=4)
    made = pipeline(program, plan)
    assert isinstance(made, LocalPipeline)
    assert set(made.weights()) == {name for names in stage_weights(plan, program.graph) for name in names}


def test_a_batch_of_another_size_is_refused_with_the_shapes() -> None:
    program = trace_skipping(Skipping(), 8, 4, training=False)
    local = LocalPipeline(program, make_plan(program.graph, (2,), num_microbatches=4))
    (tokens, scale), _ = skipping_batch(8)
    with pytest.raises(UsageError, match=r"tokens has shape \(6, 5\), the plan is for \(8, 5\) in 4 micro-batches"):
        local.step(tokens[:6], scale)


def test_a_plan_of_another_model_is_refused() -> None:
    plan = make_plan(trace_skipping(Skipping(), 8, 4, training=False).graph, (2,), num_microbatches=4)
    other = trace(nn.Linear(3, 3), (torch.rand(2, 3),), training=False)
    with pytest.raises(RunError, match=r"plan is of another model: .* with 6 layers, this one has 1"):
        LocalPipeline(other, plan)


def test_a_plan_for_another_microbatch_size_is_refused() -> None:
    plan = make_plan(trace_skipping(Skipping(), 8, 4, training=False).graph, (2,), num_microbatches=4)
    with pytest.raises(RunError, match="traced at 4 samples, the plan's micro-batch has 2"):
        LocalPipeline(trace_skipping(Skipping(), 8, 2, training=False), plan)


NUM_MICROBATCHES = 4


@cache
def traced_blocks(kind: str) -> tuple[Program, torch.Tensor, torch.Tensor]:
    """A model, traced for training, with its batch and target."""
    torch.manual_seed(5)
    model = Blocks(kind)
    tokens, target = (torch.randint(0, 17, (MICROBATCH * NUM_MICROBATCHES, 3)) for _ in range(2))
    return trace(model, (tokens[:MICROBATCH],), training=True), tokens, target


def plan_blocks(program: Program, schedule: ScheduleName, ranks: tuple[int, ...]) -> Plan:
    return make_plan(
        program.graph, cuts_of(program, len(ranks)), num_microbatches=NUM_MICROBATCHES, mode="train",
        schedule=schedule, ranks=ranks,
    )


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def whole_gradients(model: nn.Module, tokens: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.autograd.backward(loss_of(model(tokens), target))
    return gradients_of(model)


@pytest.mark.parametrize(
    ("kind", "schedule", "ranks"),
    [(MODELS[index % len(MODELS)], *placement) for index, placement in enumerate(PLACEMENTS)],
)
def test_gradients_are_the_unsplit_models_in_every_order(
    kind: str, schedule: ScheduleName, ranks: tuple[int, ...]
) -> None:
    program, tokens, target = traced_blocks(kind)
    expected = whole_gradients(program.module, tokens, target)
    loss = LocalPipeline(program, plan_blocks(program, schedule, ranks), loss_fn=loss_of).step(tokens, target=target)
    torch.testing.assert_close(gradients_of(program.module), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, loss_of(program.module(tokens), target).detach())


class Elsewhere:
    """Makes every stage but the first have weights of its own, as on another device."""

    def __init__(self, plan: Plan) -> None:
        self.devices = (torch.device("cpu"), *(torch.device("cpu", 0) for _ in plan.stages[1:]))

    def stage_device(self, plan: Plan, stage: int) -> torch.device:
        return self.devices[stage]

    def stage_segment(
        self, program: Program, span: tuple[int, int], device: torch.device, placed: dict[str, torch.Tensor],
        *, dtype: str,
    ) -> Segment:
        assert not dtype
        names = {program.graph.weights[index].name for layer in program.graph.layers[slice(*span)]
                 for index in layer.weights}
        for name in names if device == torch.device("cpu", 0) else ():
            if name not in placed:
                placed[name] = nn.Parameter(program.weight(name).detach().clone())
        return program.segment(*span, weight=lambda name: placed.setdefault(name, program.weight(name)), device=device)


def test_a_tied_weight_on_two_devices_is_trained_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    program, tokens, target = traced_blocks("tied")
    model: Any = program.module
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plan = plan_blocks(program, "1f1b", (0, 1))
    elsewhere = Elsewhere(plan)
    monkeypatch.setattr(local, "stage_device", elsewhere.stage_device)
    monkeypatch.setattr(local, "stage_segment", elsewhere.stage_segment)
    split = LocalPipeline(program, plan, loss_fn=loss_of, optimizer=lambda weights: torch.optim.SGD(weights, 0.1))
    twin = Blocks("tied")
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(before[name])
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for _ in range(3):
        split.step(tokens, target=target)
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(twin(tokens), target))
        optimizer.step()
    weights = split.weights()
    assert weights["embed.weight"] is model.embed.weight
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(weights[name], weight, msg=name)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(before[name])
            weight.grad = None


def test_every_stage_keeps_no_more_microbatches_than_its_schedule_says() -> None:
    program, tokens, target = traced_blocks("plain")
    most = {}
    for schedule in ("gpipe", "1f1b"):
        split = LocalPipeline(program, plan_blocks(program, schedule, (0, 1)), loss_fn=loss_of)
        counts: list[int] = []
        first = split._stages[0]
        forward = first.forward

        def counted(*given: Any, first: Any = first, forward: Any = forward, counts: Any = counts) -> Any:
            found = forward(*given)
            counts.append(len(first._alive))
            return found

        first.forward = counted  # type: ignore[assignment, method-assign]
        split.step(tokens, target=target)
        most[schedule] = max(counts)
    program.module.zero_grad()
    assert most == {"gpipe": NUM_MICROBATCHES, "1f1b": 2}


class FirstInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = value + self.inner(value.relu_())
        return mixed


def test_an_operator_in_place_may_come_first_in_a_stage() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), FirstInPlace(), FirstInPlace())
    inputs = torch.rand(8, 4)
    program = trace(model, (inputs[:2],), training=True)
    assert len(program.graph.legal_cuts) == 2
    plan = make_plan(
        program.graph, program.graph.legal_cuts, num_microbatches=4, mode="train", schedule="1f1b"
    )
    torch.autograd.backward(model(inputs).square().mean())
    expected = gradients_of(model)
    LocalPipeline(program, plan, loss_fn=lambda output: output.square().mean()).step(inputs)
    torch.testing.assert_close(gradients_of(model), expected)


@pytest.mark.parametrize(("codec", "most"), [("fp16", 2e-3), ("bf16", 2e-2), ("int8", 2e-2)])
def test_a_codec_at_the_cuts_changes_little_and_saves_much(codec: CodecName, most: float) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 4))
    inputs, target = torch.rand(16, 32), torch.rand(16, 4)
    program = trace(model, (inputs[:4],), training=True)
    plan = make_plan(program.graph, program.graph.legal_cuts, num_microbatches=4, mode="train", schedule="1f1b")

    def step(compress: CodecName | None) -> tuple[dict[str, torch.Tensor], int, int]:
        split = LocalPipeline(program, plan, loss_fn=nn.functional.mse_loss, compress=compress)
        split.step(inputs, target=target)
        return gradients_of(model), split.traffic.sent_bytes, split.traffic.plain_bytes

    plain, sent_bytes, plain_bytes = step(None)
    assert sent_bytes == plain_bytes == 2 * 2 * 16 * 256 * 4, "two cuts, two ways"
    found, sent_bytes, plain_bytes = step(codec)
    assert plain_bytes / sent_bytes > 1.99
    for name, expected in plain.items():
        error = (found[name] - expected).norm() / expected.norm()
        assert 0 < error < most, name


def test_stages_of_one_device_have_nothing_to_compress() -> None:
    program, tokens, target = traced_blocks("plain")
    split = LocalPipeline(program, plan_blocks(program, "1f1b", (0, 0)), loss_fn=loss_of, compress="int8")
    expected = whole_gradients(program.module, tokens, target)
    split.step(tokens, target=target)
    assert split.traffic.plain_bytes == 0
    torch.testing.assert_close(gradients_of(program.module), expected)


def test_the_step_after_one_that_was_broken_off_is_whole() -> None:
    program, tokens, target = traced_blocks("skip")
    calls = 0

    def breaking(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # after two for the halves of the first micro-batch, which show whether it is a mean
            raise ArithmeticError
        return loss_of(output, target)

    split = LocalPipeline(program, plan_blocks(program, "1f1b", (0, 1)), loss_fn=breaking)
    with pytest.raises(ArithmeticError):
        split.step(tokens, target=target)
    program.module.zero_grad()
    split.step(tokens, target=target)
    found = gradients_of(program.module)
    torch.testing.assert_close(found, whole_gradients(program.module, tokens, target), rtol=1e-5, atol=1e-6)


def test_a_stage_spread_over_several_devices_is_refused() -> None:
    program = trace_skipping(Skipping(), 8, 4, training=False)
    plan = make_plan(program.graph, (2,), num_microbatches=4)
    spread = dataclasses.replace(plan.stages[0], devices=("cpu:0", "cpu:1"), data_parallel=2)
    last = dataclasses.replace(plan.stages[1], devices=("cpu:2",))
    devices = (*plan.cluster.devices, dataclasses.replace(plan.cluster.devices[0], name="cpu:2"))
    cluster = dataclasses.replace(plan.cluster, devices=devices)
    with pytest.raises(RunError, match="stage 0 is run by 2 devices together, which takes a process for each"):
        LocalPipeline(program, dataclasses.replace(plan, stages=(spread, last), cluster=cluster))
