"""What one process has of a training: weights, their names in the user's model, and what it reads of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from autopart.errors import UsageError
from autopart.program import Program
from autopart.running import Seat, check_optimizer, rank_weights, seats
from autopart.schema.plan import Plan
from autopart.sharding import Parted
from autopart.training.checkpoints import Entries

__all__ = ["Part", "check_plan", "part_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process's share.  Every weight is written into checkpoints by one process, and counts once in the norm."""

    rank: int
    num_ranks: int
    device: torch.device
    """what its inputs and targets are placed on"""
    weights: Mapping[str, torch.Tensor]
    """all that it holds, by their first names in the model"""
    owned: frozenset[str]
    """those that it writes into checkpoints"""
    counted: frozenset[str]
    """those whose gradients, or parts of them, it counts in the norm"""
    parted: Parted
    """those of which it has a part"""
    joins: bool
    """the devices that it shares layers with join their parts for a checkpoint; not where they are further replicas"""
    keys: Mapping[str, tuple[str, ...]]
    """under which the model's state_dict has a weight; a tied one has several, one that is not saved none"""
    unused: Mapping[str, torch.Tensor]
    """what the state_dict has and no stage uses, by its keys; the first rank's"""
    reads_inputs: bool
    reads_targets: bool
    digest_weight: int = 0
    """what its digest of the targets is multiplied with, so that the sum over all processes is 0"""
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
        """What it writes into a checkpoint, whole; collective among the devices that share layers.

        Args:
            state: of its optimizer, by parameter.

        Raises:
            UsageError: a field of a parted weight is neither a number nor parted as the weight is.
        """
        whole = {name: self._joined(name, weight.detach()) for name, weight in self.weights.items()}
        fields = {name: {field: self._joined_field(name, field, value) for field, value in each.items()}
                  for name, each in state.items()}  # fmt: skip
        model = {key: weight for name, weight in whole.items() if name in self.owned for key in self.keys[name]}
        return Entries(
            model=model | {key: weight.detach() for key, weight in self.unused.items()},
            optimizer={name: each for name, each in fields.items() if name in self.owned},
        )

    def _joined(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The whole tensor where it is written, what there is elsewhere; the parts of one weight at a time."""
        whole = self.parted.join(name, tensor) if self.joins else tensor
        return whole if name in self.owned else tensor

    def _joined_field(self, name: str, field: str, value: torch.Tensor) -> torch.Tensor:
        if name not in self.parted.shards or not value.dim():
            return value
        if value.shape != self.weights[name].shape:
            raise UsageError(
                f"the optimizer keeps {field} of {name} in another shape than the weight's, so the parts that devices "
                f"have of it cannot be joined; plan with --tensor-parallel 1, or train without checkpoints"
            )
        return self._joined(name, value)

    def wanted(self, is_target: Callable[[str], bool]) -> Callable[[str], bool]:
        """Whether it reads a column of the data."""
        return lambda name: self.reads_targets if is_target(name) else self.reads_inputs


def part_of(
    program: Program, plan: Plan, weights: Mapping[str, torch.Tensor], device: torch.device, rank: int | None,
    parted: Parted | None = None,
) -> Part:  # fmt: skip
    """The share of a rank, or of the only process (``rank`` None), which holds ``weights``, some of them ``parted``.

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
    parted = parted or Parted()
    return Part(
        rank=rank or 0, num_ranks=len(seats(plan)) if seat else 1, device=device, weights=weights,
        owned=frozenset(weights) - earlier if seat is None or seat.is_first else frozenset(),
        counted=frozenset(name for name in weights if seat is None or _counts(seat, name in parted.shards)) - earlier,
        parted=parted, joins=seat is None or seat.data == 0,
        keys={name: tuple(by_tensor.get(id(program.weight(name)), ())) for name in weights},
        unused={} if rank else {
            key: state[key] for each, keys in by_tensor.items() if each not in used for key in keys
        },
        reads_inputs=seat is None or seat.rank == plan.ranks[0],
        reads_targets=seat is None or seat.rank == plan.ranks[-1], has_replicas=seat is not None and seat.num_data > 1,
        digest_weight=_digest_weight(plan, seat),
    )  # fmt: skip


def check_plan(plan: Plan) -> None:
    """Refuses plans that cannot be trained by.

    Raises:
        UsageError: it is for inference, or for an optimizer that cannot be run.
    """
    if plan.job.mode != "train":
        raise UsageError("the plan is for inference; plan with --mode train")
    check_optimizer(plan)


def _counts(seat: Seat, is_parted: bool) -> bool:
    """Whether a process counts a weight in the norm: of a parted one its own part, of replicas the first."""
    return seat.data == 0 and (is_parted or seat.tensor == 0)


def _digest_weight(plan: Plan, seat: Seat | None) -> int:
    """By which all readers' digests add up to 0 if they are equal, however many read inputs and targets."""
    if seat is None:
        return 0
    ranks = [each.rank for each in seats(plan)]
    weight = ranks.count(plan.ranks[0]) if seat.rank == plan.ranks[-1] else 0
    return weight - (ranks.count(plan.ranks[-1]) if seat.rank == plan.ranks[0] else 0)
