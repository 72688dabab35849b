"""The exported stages run in a process that cannot import autopart, and give what the model gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autopart import tracing
from autopart.errors import UsageError
from autopart.exporting import sourcecode, to_python
from autopart.program import Program
from autopart.schema.plan import Plan
from tests.exporting.plans import with_layers


class Tangle(nn.Module):
    """Tied weights, a buffer outside of the state_dict, a lifted constant, a region of autocast, an integer input."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.h = nn.Embedding(7, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.rand(8), persistent=False)
        self.register_buffer("shift", torch.rand(8))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embed(ids) * self.scale + torch.tensor([0.5] * 8)
        with torch.autocast("cpu", torch.bfloat16):
            x = self.h[0](x)
        with torch.no_grad():
            mean = x.float().mean()
        for block in self.h[1:]:
            x = torch.relu(block(x.float())) + self.shift
        return self.head(x), mean


def a_split(model: nn.Module, *args: torch.Tensor, cuts: tuple[int, ...]) -> tuple[Plan, Program]:
    program = tracing.trace(model, args, training=False)
    names = [layer.name for layer in program.graph.layers]
    edges = (0, *cuts, len(names))
    plan = with_layers(*(tuple(names[a:b]) for a, b in pairwise(edges)))
    devices = tuple(replace(each, backend="cpu", kind="cpu-1t") for each in plan.cluster.devices)
    return replace(plan, cluster=replace(plan.cluster, devices=devices)), program


CHECK = """
import importlib.util, sys, torch
sys.modules["autopart"] = None
spec = importlib.util.spec_from_file_location("stages", sys.argv[1])
stages = importlib.util.module_from_spec(spec); spec.loader.exec_module(stages)
state, inputs, expected = torch.load(sys.argv[2])
split = stages.load(stages.build(), state)
for found, wanted in zip(stages.run(split, *inputs), expected, strict=True):
    assert torch.equal(found, wanted), (found, wanted)
names = {name for stage in split for name, _ in stage.named_parameters()}
assert names <= set(state), names - set(state)
loss = sum(out.float().sum() for out in stages.run(split, *inputs) if out.requires_grad)
loss.backward()
print("equal in", len(split), "stages")
"""


def test_it_runs_without_autopart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tangle().eval(), torch.randint(0, 7, (2, 5))
    program_length = len(tracing.trace(model, (ids,), training=False).graph.layers)
    plan, program = a_split(model, ids, cuts=(program_length // 3, 2 * program_length // 3))
    file, data = tmp_path / "stages.py", tmp_path / "data.pt"
    file.write_text(text := to_python(plan, program))
    assert "is in stages [0, 2]: to train, add up its gradients" in text
    with torch.no_grad():
        torch.save((dict(model.state_dict()), [ids], list(model(ids))), data)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(file), str(data)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout == "equal in 3 stages\n", done.stderr


def loaded(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(text, "stages.py", "exec"), names)
    return names


def test_weights_come_from_the_model_too_and_none_may_be_missing() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(3, 4)
    names = loaded(to_python(*a_split(model, x, cuts=(1,))))
    (found,) = names["run"](names["load"](names["build"](), model), x)
    assert torch.equal(found, model(x))
    with pytest.raises(KeyError, match=r"1\.weight is not among the weights"):
        names["load"](names["build"](), {"0.weight": model[0].weight, "0.bias": model[0].bias})


def test_too_large_constants_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sourcecode, "MOST_CONSTANT_BYTES", 8)
    with pytest.raises(UsageError, match="outside of its state_dict, more than the 8"):
        to_python(*a_split(Tangle().eval(), torch.randint(0, 7, (2, 5)), cuts=(1,)))


def test_code_that_only_autopart_can_call_is_refused() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return 3 * gradients[0]

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            apply: Callable[[torch.Tensor], torch.Tensor] = Doubled.apply
            return self.other(apply(self.one(x)))  # type: ignore[no-any-return]

    plan, program = a_split(Own(), torch.rand(2, 4), cuts=(1,))
    with pytest.raises(UsageError, match="only autopart can call"):
        to_python(plan, program)
