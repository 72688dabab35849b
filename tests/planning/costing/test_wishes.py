from __future__ import annotations

import pytest

from autopart.errors import InfeasibleError, UsageError
from autopart.planning import plan
from autopart.schema.job import Job
from autopart.schema.plan import Plan
from tests.planning.problems import candidate, chain, cluster, device


def planned(**words: object) -> Plan:
    """Nine layers on a fast and a slow device; l0 .. l8."""
    chosen = candidate(chain(9), {"fast": [1e-3] * 9, "slow": [2e-3] * 9}, 4)
    return plan((chosen,), cluster(device("a"), device("b", kind="slow")), Job(batch=4, **words))  # type: ignore[arg-type]


def stage_of(result: Plan, layer: str) -> tuple[int, str]:
    return next((stage.index, stage.devices[0]) for stage in result.stages if layer in stage.layers)


def test_a_pinned_layer_is_on_its_device() -> None:
    for name in ("l0", "l8"):
        for where in ("a", "b"):
            assert stage_of(planned(pins=((name, where),)), name)[1] == where


def test_a_forbidden_device_is_not_used_for_the_layer() -> None:
    assert stage_of(planned(forbidden=(("l4", "a"),)), "l4")[1] == "b"


def test_layers_stay_together_and_the_bound_is_of_such_plans() -> None:
    result = planned(together=(("l1", "l7"),))
    assert stage_of(result, "l1") == stage_of(result, "l7")
    assert result.proof.outcome == "proven"
    assert result.proof.objective_seconds >= planned().proof.objective_seconds


def test_wishes_of_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="no device 'c'"):
        planned(pins=(("l0", "c"),))
    with pytest.raises(UsageError, match="no layer 'm'"):
        planned(together=(("m", "l0"),))


def test_wishes_that_contradict_are_infeasible_and_the_one_to_give_up_is_named() -> None:
    with pytest.raises(InfeasibleError, match="3 wishes; it fits without --pin l0=a"):
        planned(pins=(("l0", "a"), ("l4", "b"), ("l8", "a")))
    assert planned(pins=(("l4", "b"), ("l8", "a")))
    with pytest.raises(InfeasibleError, match="it fits without --forbid l3=a"):
        planned(forbidden=(("l3", "a"), ("l3", "b")))


def test_simpler_methods_refuse_wishes_and_the_dynamic_program_keeps_them() -> None:
    with pytest.raises(UsageError, match="--method even knows nothing of --pin"):
        planned(method="even", pins=(("l0", "b"),))
    assert stage_of(planned(method="chain-dp", pins=(("l0", "b"),)), "l0")[1] == "b"
