from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autopart.running.tied import sharings


def test_weights_are_grouped_by_the_stages_that_use_them() -> None:
    found = sharings((("wte", "a", "mask"), ("b", "mask"), ("wte", "c", "mask")))
    assert [(each.stages, each.names) for each in found] == [((0, 1, 2), ("mask",)), ((0, 2), ("wte",))]


@given(st.lists(st.sets(st.sampled_from("abcdef")), max_size=5))
def test_each_shared_weight_is_in_one_group_with_all_its_users(stages: list[set[str]]) -> None:
    found = {name: each.stages for each in sharings(tuple(tuple(sorted(s)) for s in stages)) for name in each.names}
    users = {name: tuple(i for i, stage in enumerate(stages) if name in stage) for name in "abcdef"}
    assert found == {name: using for name, using in users.items() if len(using) > 1}
