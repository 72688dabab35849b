"""A plan in whole blocks: other engines split a model between the members of its numbered list, and nowhere else."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby, pairwise

from autopart.errors import UsageError
from autopart.schema.plan import Plan

__all__ = ["Unit", "Units", "decoder_blocks", "units_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A block of a numbered list (``model.layers.3``), or a layer outside of all blocks, and the stage it is in."""

    name: str
    stage: int
    is_block: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of a plan in execution order."""

    units: tuple[Unit, ...]
    remarks: tuple[str, ...]
    """which blocks the plan cuts in two, and where they went"""

    def counts(self, num_stages: int, *, blocks_only: bool = False) -> tuple[int, ...]:
        """Units, or blocks only, of every stage."""
        found = Counter(unit.stage for unit in self.units if unit.is_block or not blocks_only)
        return tuple(found[stage] for stage in range(num_stages))


def units_of(plan: Plan) -> Units:
    """The plan with every block in one stage: in the one that has most of its layers, of equals the first.

    Raises:
        UsageError: a block is called more than once, so that it is not one place in the order.
    """
    placed = ((_block(layer) or layer, stage.index) for stage in plan.stages for layer in stage.layers)
    units: list[Unit] = []
    remarks: list[str] = []
    blocks = {block for stage in plan.stages for layer in stage.layers if (block := _block(layer))}
    for name, group in groupby(placed, key=lambda each: each[0]):
        votes = Counter(stage for _, stage in group)
        stage = max(votes, key=lambda each: (votes[each], -each))
        if len(votes) > 1:
            shares = ", ".join(f"{number} layers in stage {index}" for index, number in sorted(votes.items()))
            remarks.append(
                f"the plan cuts block {name} ({shares}); here all of it is in stage {stage}, so times and memory "
                "are no more quite the plan's"
            )
        units.append(Unit(name=name, stage=stage, is_block=name in blocks))
    _check_order(units)
    return Units(units=tuple(units), remarks=tuple(remarks))


def decoder_blocks(plan: Plan, engine: str) -> Units:
    """The units of a plan whose blocks are one list, numbered from 0 without holes.

    Raises:
        UsageError: they are not: the engine has no word for such a model.
    """
    units = units_of(plan)
    names = [unit.name for unit in units.units if unit.is_block]
    lists = Counter(name.rpartition(".")[0] for name in names)
    if len(lists) != 1:
        found = ", ".join(f"{name or 'the top'}: {number}" for name, number in lists.items()) or "none"
        raise UsageError(
            f"{engine} splits one numbered list of blocks, this model has {len(lists)} ({found}); "
            "export --to torch or --to csv, or run the plan with autopart"
        )
    numbers = [int(name.rpartition(".")[2]) for name in names]
    if numbers != list(range(len(numbers))):
        raise UsageError(
            f"{engine} numbers its blocks from 0 without holes, the plan's layers name {len(numbers)} up to "
            f"{max(numbers)}; export --to torch or --to csv"
        )
    return units


def _block(layer: str) -> str | None:
    """``model.layers.3`` of ``model.layers.3.mlp``; None for a layer outside of numbered lists."""
    pieces = layer.partition("@")[0].split(".")
    for depth, piece in enumerate(pieces):
        if piece.isdecimal() and piece.isascii():
            return ".".join(pieces[: depth + 1])
    return None


def _check_order(units: list[Unit]) -> None:
    repeated = [name for name, number in Counter(unit.name for unit in units).items() if number > 1]
    if repeated:
        raise UsageError(
            f"block {repeated[0]} is entered more than once, other engines run every block once; "
            "run the plan with autopart"
        )
    assert all(before.stage <= after.stage for before, after in pairwise(units)), "stages ascend along the layers"
