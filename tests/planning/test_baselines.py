from __future__ import annotations

import pytest

from autopart.planning.baselines import BASELINES, DESCRIPTIONS, best_single_device, evaluate_baseline
from autopart.schema.job import Job, Method
from tests.planning.problems import candidate, chain, cluster, device

TIMES = [4e-3, 1e-3, 1e-3, 1e-3, 1e-3]


@pytest.mark.parametrize(
    ("method", "boundaries"), [("even", (0, 2, 5)), ("time-balanced", (0, 1, 5)), ("memory-fill", (0, 3, 5))]
)
def test_where_baselines_cut(method: Method, boundaries: tuple[int, ...]) -> None:
    """Five layers of which the first is slow; the first device holds three of them."""
    chosen = candidate(chain(5, weight_bytes=10_000, value_bytes=100, peak_bytes=100), {"fast": TIMES}, 1)
    devices = cluster(device("a", memory_bytes=35_000), device("b"))
    option = evaluate_baseline(method, (chosen,), devices, Job(batch=1))
    assert option is not None
    assert option.layout.boundaries == boundaries


def test_an_even_split_takes_the_nearest_legal_cut() -> None:
    chosen = candidate(chain(5, legal_cuts=(4,)), {"fast": TIMES}, 1)
    option = evaluate_baseline("even", (chosen,), cluster(device("a"), device("b")), Job(batch=1))
    assert option is not None
    assert option.layout.boundaries == (0, 4, 5)


def test_a_baseline_over_devices_without_a_link_makes_no_plan() -> None:
    chosen = candidate(chain(5), {"fast": TIMES}, 1)
    assert evaluate_baseline("even", (chosen,), cluster(device("a"), device("b"), links=()), Job(batch=1)) is None


def test_the_single_device_takes_the_whole_batch_at_once_if_it_can() -> None:
    graph = chain(5)
    whole, parts = candidate(chain(5, batch_size=4), {"fast": TIMES}, 1), candidate(graph, {"fast": TIMES}, 4)
    devices = cluster(device("a"), device("b", speed=0.5))
    single = best_single_device((parts, whole), devices, Job(batch=4))
    assert (single.layout.num_microbatches, single.layout.devices) == (1, ("a",))
    assert best_single_device((parts,), devices, Job(batch=4)).layout.num_microbatches == 4


@pytest.mark.parametrize("method", [*BASELINES, "greedy", "chain-dp"])
def test_every_stage_of_every_baseline_recomputes_if_it_has_to(method: Method) -> None:
    chosen = candidate(chain(5, training=True, saved_bytes=1000), {"fast": TIMES}, 2)
    devices, job = cluster(device("a"), device("b")), Job(batch=2, mode="train", recompute="always")
    single = best_single_device((chosen,), devices, job)
    option = evaluate_baseline(method, (chosen,), devices, job)
    assert option is not None
    assert all(each.layout.way(index).recompute for each in (option, single) for index in range(each.layout.num_stages))
    never = evaluate_baseline(method, (chosen,), devices, Job(batch=2, mode="train"))
    assert never is not None
    assert option.step_seconds > never.step_seconds


def test_every_baseline_is_described() -> None:
    assert set(DESCRIPTIONS) == {*BASELINES, "greedy", "chain-dp", "single-device"}
