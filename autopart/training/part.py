"""What one process has of a training: weights, their names in the user's model, and what it reads of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from autopart.errors import UsageError
from autopart.program import Program
from autopart.running import rank_weights, seats
from autopart.schema.plan import Plan
from autopart.training.checkpoints import Entries

__all__ = ["Part", "check_plan", "part_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process's share.  Every weight is answered for by one process: in the norm, and in checkpoints."""

    rank: int
    num_ranks: int
    device: torch.device
    """what its inputs and targets are placed on"""
    weights: Mapping[str, torch.Tensor]
    """all that it holds, by their first names in the model"""
    owned: frozenset[str]
    """those that it answers for"""
    keys: Mapping[str, tuple[str, ...]]
    """under which the model's state_dict has a weight; a tied one has several, one that is not saved none"""
    unused: Mapping[str, torch.Tensor]
    """what the state_dict has and no stage uses, by its keys; the first rank's"""
    reads_inputs: bool
    reads_targets: bool
    has_replicas: bool = False
    """others hold the same weights and compute other samples; gradients then stay where torch sends them from"""

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Its parameters that have gradients, by name."""
        return {
            name: weight for name, weight in self.weights.items()
            if isinstance(weight, nn.Parameter) and weight.requires_grad
        }

    def entries(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> Entries:
        """What it writes into a checkpoint; ``state`` is of its optimizer, by parameter."""
        model = {
            key: weight.detach() for name, weight in self.weights.items() if name in self.owned
            for key in self.keys[name]
        }  # fmt: skip
        return Entries(
            model=model | {key: weight.detach() for key, weight in self.unused.items()},
            optimizer={name: fields for name, fields in state.items() if name in self.owned},
        )

    def wanted(self, is_target: Callable[[str], bool]) -> Callable[[str], bool]:
        """Whether it reads a column of the data."""
        return lambda name: self.reads_targets if is_target(name) else self.reads_inputs


def part_of(
    program: Program, plan: Plan, weights: Mapping[str, torch.Tensor], device: torch.device, rank: int | None
) -> Part:
    """The share of a rank, or of the only process (``rank`` None), which holds ``weights``.

    To be made before weights are dropped: which of the model's names mean the same tensor is seen in the tensors.
    """
    state = program.module.state_dict(keep_vars=True)
    by_tensor: dict[int, list[str]] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            by_tensor.setdefault(id(value), []).append(key)
    by_rank = rank_weights(plan, program.graph)
    seat = None if rank is None else seats(plan)[rank]
    used = {id(program.weight(name)) for names in by_rank for name in names}
    earlier = {name for names in by_rank[: seat.rank] for name in names} if seat else set()
    return Part(
        rank=rank or 0, num_ranks=len(seats(plan)) if seat else 1, device=device, weights=weights,
        owned=frozenset(weights) - earlier if seat is None or seat.is_first else frozenset(),
        keys={name: tuple(by_tensor.get(id(program.weight(name)), ())) for name in weights},
        unused={} if rank else {
            key: state[key] for each, keys in by_tensor.items() if each not in used for key in keys
        },
        reads_inputs=seat is None or seat.rank == plan.ranks[0],
        reads_targets=seat is None or seat.rank == plan.ranks[-1], has_replicas=seat is not None and seat.num_data > 1,
    )  # fmt: skip


def check_plan(plan: Plan) -> None:
    """Refuses plans that cannot be trained by.

    Raises:
        UsageError: it is for inference, or several devices share the layers of a stage.
    """
    if plan.job.mode != "train":
        raise UsageError("the plan is for inference; plan with --mode train")
    shared = [stage.index for stage in plan.stages if stage.tensor_parallel > 1]
    if shared:
        raise UsageError(
            f"the devices of stage {shared[0]} share its layers, which training cannot do yet; plan with "
            f"--tensor-parallel 1"
        )
