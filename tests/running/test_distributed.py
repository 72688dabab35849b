from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from autopart.errors import RunError
from autopart.running import DistributedPipeline
from tests.running.handmade import (
    Skipping,
    make_plan,
    reference,
    skipping_batch,
    skipping_loss,
    trace_skipping,
)
from tests.running.ranks import BATCH, CUTS, NUM_MICROBATCHES, WORLD, seeded


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three processes found; one process group serves all tests of this module."""
    directory = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.running.ranks", str(directory)], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=200, check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(WORLD)]


def unsplit() -> Skipping:
    """The model the ranks have together: each stage's weights are its rank's own, a tied one is its first user's."""
    model = seeded(0)
    for rank, names in enumerate((("embed", "lower"), ("norm", "inner"), ("upper",))):
        for name in names:
            model.get_submodule(name).load_state_dict(seeded(rank).get_submodule(name).state_dict())
    return model


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_gradients_losses_and_buffers_are_those_of_the_unsplit_model(
    ranks: list[dict[str, Any]], schedule: str
) -> None:
    model = unsplit()
    args, targets = skipping_batch(BATCH)
    losses = [reference(model, args, targets, NUM_MICROBATCHES) for _ in range(2)]  # gradients accumulate
    expected = state(model)
    seen = set()
    for found in (rank[schedule] for rank in ranks):
        for name, gradient in found["gradients"].items():
            torch.testing.assert_close(gradient, expected[name].grad)
        for name, weight in found["weights"].items():
            torch.testing.assert_close(weight, expected[name].detach())
        seen |= set(found["weights"])
    assert seen == set(expected)
    assert ranks[0][schedule]["losses"] == ranks[1][schedule]["losses"] == [None, None]
    torch.testing.assert_close(torch.stack(ranks[2][schedule]["losses"]), torch.stack(losses))


@pytest.mark.slow
def test_the_optimizer_steps_every_copy_of_a_tied_weight_alike(ranks: list[dict[str, Any]]) -> None:
    model = unsplit()
    args, targets = skipping_batch(BATCH)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        reference(model, args, targets, NUM_MICROBATCHES)
        optimizer.step()
    expected = state(model)
    for found in (rank["adamw"] for rank in ranks):
        for name, weight in found["weights"].items():
            torch.testing.assert_close(weight, expected[name].detach())
    first, last = (ranks[rank]["adamw"]["weights"]["embed.weight"] for rank in (0, 2))
    assert torch.equal(first, last)


@pytest.mark.slow
def test_processes_with_different_plans_are_refused(ranks: list[dict[str, Any]]) -> None:
    message = (
        "process 2 has another plan than process 0: layers 3 on cpu:0, 1 on cpu:1, 2 on cpu:2, 4 micro-batches under "
        "gpipe, not layers 2 on cpu:0, 2 on cpu:1, 2 on cpu:2, 4 micro-batches under gpipe; "
    )
    for found in ranks:
        assert found["other plan"].startswith(message)


@pytest.mark.slow
def test_inference_gives_the_last_rank_the_models_output(ranks: list[dict[str, Any]]) -> None:
    args, _ = skipping_batch(BATCH)
    with torch.no_grad():
        expected = seeded(0).eval()(*args)
    assert [rank["infer"]["outputs"] for rank in ranks[:2]] == [[None, None]] * 2
    for output in ranks[2]["infer"]["outputs"]:
        assert set(output) == {"scores", "kept"}
        torch.testing.assert_close(output["scores"], expected["scores"])
        assert torch.equal(output["kept"], expected["kept"])
        assert not output["scores"].requires_grad


@pytest.mark.slow
def test_outputs_of_micro_batches_are_not_kept_beside_the_joined_one(ranks: list[dict[str, Any]]) -> None:
    last, num_outputs, num_steps = ranks[2]["infer"], 2, 2
    assert (last["made"], last["alive"]) == (num_outputs * NUM_MICROBATCHES * num_steps, 0)


@pytest.mark.slow
def test_every_part_of_a_step_is_timed(ranks: list[dict[str, Any]]) -> None:
    assert all(seconds > 0 for rank in ranks for seconds in rank["1f1b"]["seconds"])


def test_without_a_process_group_it_says_what_to_call() -> None:
    program = trace_skipping(Skipping(), BATCH, NUM_MICROBATCHES, training=False)
    plan = make_plan(program.graph, CUTS, num_microbatches=NUM_MICROBATCHES)
    with pytest.raises(RunError, match="init_process_group"):
        DistributedPipeline(program, plan, 0)


def test_one_stage_runs_in_a_group_of_one_and_another_size_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = Skipping()
        program = trace_skipping(model, BATCH, NUM_MICROBATCHES, training=True)
        plan = make_plan(program.graph, (), num_microbatches=NUM_MICROBATCHES, mode="train", schedule="1f1b")
        args, targets = skipping_batch(BATCH)
        loss = DistributedPipeline(program, plan, 0, loss_fn=skipping_loss).step(*args, target=targets)
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        model.zero_grad()
        torch.testing.assert_close(loss, reference(model, args, targets, NUM_MICROBATCHES))
        for name, weight in model.named_parameters():
            torch.testing.assert_close(gradients[name], weight.grad)
        two = make_plan(program.graph, (2,), num_microbatches=NUM_MICROBATCHES, mode="train")
        with pytest.raises(RunError, match=r"runs on 2 devices \(cpu:0, cpu:1\) and there are 1 processes"):
            DistributedPipeline(program, two, 0)
    finally:
        dist.destroy_process_group()
