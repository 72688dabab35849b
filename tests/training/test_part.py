from __future__ import annotations

import pytest
import torch

from autopart.errors import UsageError
from autopart.program import Program
from autopart.running import Seat, rank_weights, seats
from autopart.schema.plan import Plan
from autopart.sharding import Parted, Team, share_layers
from autopart.tracing import trace
from autopart.training.part import Part, part_of
from tests.running.group_ranks import Case, make_group_plan
from tests.running.groupmodels import MODELS, tokens_of

Groups = tuple[tuple[int, int], ...]


def parts(groups: Groups) -> tuple[Program, list[Part]]:
    """What every process of a plan would have; of parted weights parts, as a team makes them."""
    program = trace(MODELS["blocks"](), (tokens_of(2, 0),), training=True)
    plan = make_group_plan(program, Case(groups, "1f1b", "blocks"))
    return program, [made(program, plan, seat) for seat in seats(plan)]


def made(program: Program, plan: Plan, seat: Seat) -> Part:
    names = rank_weights(plan, program.graph)[seat.rank]
    weights: dict[str, torch.Tensor] = {name: program.weight(name) for name in names}
    parted = Parted()
    if seat.num_tensor > 1 and len(plan.stages) == 1:
        team = Team(None, seat.tensor, seat.num_tensor)
        shares = share_layers(program, program.segment(0, len(program.graph.layers)), team)
        parted, weights = Parted(team=team, shards=shares.shards), dict(shares.segment.named_parameters())
    return part_of(program, plan, weights, torch.device("cpu"), seat.process, parted)


@pytest.mark.parametrize("groups", [((1, 2),), ((2, 1),), ((2, 2),), ((1, 1), (2, 1)), ((3, 1), (1, 1))])
def test_every_element_counts_once_in_the_norm_and_is_written_once(groups: Groups) -> None:
    program, found = parts(groups)
    num_all = sum(weight.numel() for weight in program.module.parameters())
    assert sum(part.weights[name].numel() for part in found for name in part.counted) == num_all
    written = [name for part in found for name in part.owned]
    assert sorted(written) == sorted(dict(program.module.named_parameters()))


@pytest.mark.parametrize("groups", [((1, 1), (2, 1)), ((3, 1), (1, 1)), ((2, 1), (2, 1)), ((2, 1),)])
def test_digests_of_equal_data_add_up_to_nothing(groups: Groups) -> None:
    _, found = parts(groups)
    weights = [part.digest_weight for part in found]
    assert sum(weights) == 0
    assert all(weights) == (len(groups) > 1)


def test_a_state_that_is_not_parted_as_its_weight_is_not_saved() -> None:
    _, (first, _) = parts(((1, 2),))
    with pytest.raises(UsageError, match=r"^the optimizer keeps rows of embed.weight in another shape.*--tensor-para"):
        first._joined_field("embed.weight", "rows", torch.zeros(3))
