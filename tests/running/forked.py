"""Worlds of forked gloo ranks that work through lists of cases.

One process imports torch and traces models, which takes longer than the cases, and forks before any thread is started.

Importing this module keeps autograd from starting any: it counts devices once, at the first backward, and starts a
thread for each; from torch 2.14 on fake tensors, which tracing uses, make a processor look as if it had CUDA devices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

torch.autograd.backward(torch.zeros((), requires_grad=True))


class Named(Protocol):
    """A case."""

    @property
    def name(self) -> str: ...


def fork_worlds(directory: Path, cases: Mapping[int, Sequence[Any]], figures_of: Callable[[Any, int], Any]) -> None:
    """For each size of world its cases, on ranks of its own; what they found is left in the directory."""
    for world in cases:
        fork_ranks(world, partial(_work, directory, cases[world], figures_of, world))


def fork_ranks(world: int, act: Callable[[int], None]) -> int:
    """``act(rank)`` in a child for each rank, which computes on one thread; how many failed, and have said why."""
    torch.set_num_threads(1)  # before they are forked: what another thread holds would be held for ever
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            try:
                act(rank)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def launch(module: str, directory: Path, worlds: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """What every rank of every world of a module found, by case: figures, or ``{"failed": traceback}``."""
    command = [sys.executable, "-m", module, str(directory)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=580, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        world: [json.loads((directory / f"{world}.{rank}.json").read_text()) for rank in range(world)]
        for world in worlds
    }


def figures(found: dict[int, list[dict[str, Any]]], name: str) -> list[Any]:
    """Of a case, by rank."""
    ranks = next((ranks for ranks in found.values() if all(name in rank for rank in ranks)), None)
    everything = [each for ranks in found.values() for rank in ranks for each in rank.values()]
    failures = [each["failed"] for each in everything if isinstance(each, dict) and "failed" in each]
    assert ranks is not None, "an earlier case failed:\n" + "\n".join(failures)
    assert not any(isinstance(rank[name], dict) and "failed" in rank[name] for rank in ranks), "\n".join(failures)
    return [rank[name] for rank in ranks]


def largest(tensor: torch.Tensor | None) -> float:
    """The largest absolute value."""
    assert tensor is not None
    return float(tensor.detach().abs().max())


def relative(found: torch.Tensor, expected: torch.Tensor | None, least: float = 0.0) -> float:
    """The largest error, over the largest absolute value (or ``least``, of what is 0 but for rounding)."""
    assert expected is not None
    return largest(found.detach() - expected.detach()) / max(largest(expected), least)


def _work(
    directory: Path, cases: Sequence[Named], figures_of: Callable[[Any, int], Any], world: int, rank: int
) -> None:
    found: dict[str, Any] = {}
    for index, case in enumerate(cases):
        dist.init_process_group(  # for each case anew: groups have threads, which would become hundreds
            "gloo", init_method=f"file://{directory}/rendezvous{world}.{index}", rank=rank, world_size=world,
            timeout=timedelta(seconds=60),
        )  # fmt: skip
        try:
            found[case.name] = figures_of(case, rank)
        except Exception:
            found[case.name] = {"failed": traceback.format_exc()}
            break
        finally:
            (directory / f"{world}.{rank}.json").write_text(json.dumps(found))
        dist.destroy_process_group()
