from __future__ import annotations

import pytest
import torch
from torch import nn

from autopart.errors import RunError, UsageError
from autopart.running import LocalPipeline, pipeline, stage_weights
from autopart.tracing import trace
from tests.running.handmade import (
    Skipping,
    make_plan,
    reference,
    skipping_batch,
    skipping_loss,
    trace_skipping,
)

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
