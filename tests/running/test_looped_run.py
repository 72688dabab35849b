"""Plans in which a device owns several stages, from outside: the run, and the command line from plan to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autopart.modelsource import load, with_batch
from autopart.running import run
from autopart.schema.plan import Plan
from autopart.schema.store import load_plan
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


@pytest.mark.slow
def test_from_the_command_line_plan_to_run(tmp_path: Path) -> None:
    def autopart(*words: str) -> str:
        command = [sys.executable, "-m", "autopart.cli.main", *words]
        environment = os.environ | {"AUTOPART_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=570, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    job = ("--mode", "train", "--batch", "8", "--microbatches", "4", "--schedule", "interleaved", "--stages", "3")
    autopart("plan", SOURCE, "--devices", "cpu:0,cpu:1", *job, "--no-verify", "-o", "plan.json")
    plan = load_plan(tmp_path / "plan.json")
    assert plan.ranks == (0, 1, 0)
    measured = json.loads(autopart("run", "plan.json", SOURCE, "--steps", "2", "--no-single", "--json"))
    assert measured["schedule"] == "interleaved"
    assert len(measured["stages"]) == 3
