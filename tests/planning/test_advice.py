from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopart.planning import plan
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, cluster, device, profile


def make(num: int = 4, *, seconds: Sequence[float] = (1e-3,) * 8, weight_bytes: int = 1000) -> Candidate:
    graph = chain(8, weight_bytes=weight_bytes)
    return candidate(graph, {"fast": seconds, "slow": [3 * time for time in seconds]}, num)


def codes(result: Plan) -> set[str]:
    return {warning.code for warning in result.warnings}


def test_a_good_plan_has_no_warnings() -> None:
    result = plan((make(64),), cluster(device("a"), device("b")), Job(batch=64))
    assert codes(result) == set()
    assert result.verdict.startswith("Use a and b with 64 micro-batches")
    assert "1.97x faster than the best single device (a)" in result.verdict


def test_few_micro_batches() -> None:
    result = plan((make(2),), cluster(*(device(f"d{k}") for k in range(4))), Job(batch=2, stages=4))
    assert {"few-microbatches", "bubble", "low-utilisation"} <= codes(result)


def test_tight_memory() -> None:
    graph = chain(8, weight_bytes=10**6, value_bytes=4, peak_bytes=4)
    chosen = candidate(graph, {"fast": [1e-3] * 8}, 1)
    assert "memory-tight" in codes(plan((chosen,), cluster(device("a", memory_bytes=8_100_000)), Job(batch=1)))


def test_estimated_times_of_used_kinds_only() -> None:
    graph = chain(8)
    times = {"fast": [1e-3] * 8, "slow": [3e-3] * 8}
    chosen = Candidate(num_microbatches=64, graph=graph, profile=profile(graph, times, origin="estimated"))
    found = [w for w in plan((chosen,), cluster(device("a")), Job(batch=64)).warnings if w.code == "estimated-profile"]
    assert len(found) == 1
    assert "times on fast are estimated" in found[0].message


def test_1f1b_is_said_to_be_ignored_in_inference() -> None:
    result = plan((make(64),), cluster(device("a"), device("b")), Job(batch=64, schedule="1f1b"))
    assert result.schedule.name == "gpipe"
    assert "schedule-ignored" in codes(result)


def test_a_device_too_small_for_any_stage_is_told_its_numbers() -> None:
    chosen = make(4, weight_bytes=10**6)
    result = plan((chosen,), cluster(device("a"), device("b", memory_bytes=500_000)), Job(batch=4))
    assert result.excluded[0].reason.startswith("does not help: the smallest stage needs 1.0")
    assert "it has 500" in result.excluded[0].reason


def test_a_model_no_single_device_holds() -> None:
    chosen = make(16, weight_bytes=10**6)
    small = cluster(device("a", memory_bytes=5 * 10**6), device("b", memory_bytes=5 * 10**6))
    assert "which no single device can hold" in plan((chosen,), small, Job(batch=16)).verdict


def test_rent_is_counted_where_it_is_known() -> None:
    def rented(name: str) -> Cluster:
        return Cluster(devices=(replace(device(name), rent_usd_per_hour=3.6),))

    result = plan((make(1),), rented("a"), Job(batch=1))
    assert result.prediction.cost_per_million is not None
    assert abs(result.prediction.cost_per_million - 1e-3 * 8e-3 * 1e6) < 1e-9
    assert plan((make(1),), cluster(device("a")), Job(batch=1)).prediction.cost_per_million is None


def test_a_stage_says_which_type_computes_it_where_its_kind_lacks_one() -> None:
    chosen = candidate(chain(6), {"fast": [1.0] * 6, "slow": [2.0] * 6}, 4)
    kinds = tuple(
        replace(row, computes_as=(("bfloat16", "float32"),)) if row.kind == "slow" else row
        for row in chosen.profile.kinds
    )
    chosen = replace(chosen, profile=replace(chosen.profile, kinds=kinds))
    found = plan((chosen,), cluster(device("a"), device("b", kind="slow")), Job(batch=4, stages=2))
    by_device = {stage.devices[0]: stage.computes_as for stage in found.stages}
    assert by_device == {"a": (), "b": (("bfloat16", "float32"),)}
    (warning,) = [each for each in found.warnings if each.code == "no-such-dtype"]
    assert "slow has no units for bfloat16: 1 device of the plan computes in float32" in warning.message
    alone = plan((chosen,), cluster(device("a")), Job(batch=4))
    assert not [each for each in alone.warnings if each.code == "no-such-dtype"]
