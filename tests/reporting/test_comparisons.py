from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

from autopart.reporting import comparison_csv, comparison_markdown, comparison_text
from autopart.schema.comparison import Added, Comparison, DeviceSet
from autopart.schema.job import Job


def a_set(name: str, throughput: float, rent: float | None, **more: object) -> DeviceSet:
    found = DeviceSet(
        name=name, num_devices=2, used=("l4:0", "l4:1"), num_stages=2, num_microbatches=8, step_seconds=0.1,
        throughput_per_second=throughput, latency_seconds=0.012, bubble_fraction=0.11, headroom_bytes=2 * 10**9,
        headroom_share=0.25, rent_usd_per_hour=rent, cost_per_million=None if rent is None else rent / throughput * 278,
        bottleneck="l4:0", gap=0.0, origin="estimated",
    )
    return replace(found, **more)  # type: ignore[arg-type]


def a_comparison() -> Comparison:
    return Comparison(
        model="toy", job=Job(batch=32), criteria=("throughput", "rent"),
        sets=(
            a_set("2xl4", 900.0, 1.22, pareto=True, adds=(Added(device="l4:1", kind="l4", factor=1.62),)),
            a_set("1xl4,1xt4", 700.0, None, left_out=("t4:0",),
                  adds=(Added(device="l4:0", kind="l4", factor=None),)),
            DeviceSet(name="1xt4", num_devices=1, reason="no plan fits in memory: t4:0 is short by 1.2 GB"),
        ),
        remarks=("4 of the 7 sets were not planned",),
    )


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("comparison", comparison_text(a_comparison()))
    golden("comparison_markdown", comparison_markdown(a_comparison()))


def test_csv_has_every_set_with_every_figure() -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_csv(a_comparison()))))
    assert [row["name"] for row in rows] == ["2xl4", "1xl4,1xt4", "1xt4"]
    assert rows[0]["throughput_per_second"] == "900.0" and rows[0]["adds"] == "l4:1:1.62"
    assert rows[1]["rent_usd_per_hour"] == "" and rows[2]["reason"].startswith("no plan fits")


def test_none_that_fits_is_said() -> None:
    only = replace(a_comparison(), sets=a_comparison().sets[-1:])
    assert comparison_text(only).startswith("The set cannot hold the model.")
    assert "does not fit" in comparison_markdown(only)


def test_names_cannot_break_a_markdown_table() -> None:
    one = a_comparison()
    evil = replace(one, sets=(replace(one.sets[0], name="a|b\n<img src=x>"),))
    text = comparison_markdown(evil)
    assert "a\\|b \\<img" in text and "\n<img" not in text
