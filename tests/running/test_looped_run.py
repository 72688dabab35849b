"""A plan in which a device owns several stages, from outside; tests/cli/test_commands.py runs one that is planned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autopart.modelsource import load, with_batch
from autopart.running import run
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.running.handmade import make_plan

SOURCE = str(Path(__file__).parent / "model.py")


def make_interleaved_plan() -> Plan:
    piece = with_batch(load(SOURCE), 2)
    graph = trace(piece.model, piece.args, training=True).graph
    return make_plan(
        graph, tuple(sorted(graph.legal_cuts)[:2]), num_microbatches=4, mode="train", schedule="interleaved",
        optimizer="sgd", ranks=(0, 1, 0),
    )


@pytest.mark.slow
def test_a_device_with_two_stages_is_run_and_measured() -> None:
    found = run(make_interleaved_plan(), SOURCE, steps=2, warmup=1, single=False)
    source = load(SOURCE)
    assert source.targets is not None
    optimizer = torch.optim.SGD(source.model.parameters())
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(source.model(*source.args), *source.targets)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert found.losses == pytest.approx(losses[1:], rel=1e-5)
    assert [stage.device for stage in found.stages] == ["cpu:0", "cpu:1", "cpu:0"]
    assert all(stage.forward_seconds > 0 and stage.backward_seconds > 0 for stage in found.stages)
    assert [stage.peak_bytes > 0 for stage in found.stages] == [True, True, False]
    assert found.stages[2].memory_origin == "in that of stage 0"
