from __future__ import annotations

from collections.abc import Callable

from autopart.reporting import devices_text, kind_text
from autopart.schema.device import Figure, Kind, Peak
from tests.paper import a_device


def a_kind(name: str, year: int | None, rent: float | None) -> Kind:
    def figure(value: float) -> Figure:
        return Figure(value=value, source="maker's data sheet", confidence="high")

    return Kind(
        name=name, vendor="nvidia", architecture="turing", year=year, memory_bytes=figure(16e9),
        bandwidth_bytes_per_second=figure(320e9),
        peaks=(
            Peak(dtype="float32", flops_per_second=figure(8.1e12)),
            Peak(dtype="float16", flops_per_second=figure(65e12)),
        ),
        link="pcie3-x16", host_link="pcie3-x16", tdp_watts=figure(70), price_usd=figure(2299),
        rent_usd_per_hour=None if rent is None else figure(rent),
    )


def test_golden(golden: Callable[[str, str], None]) -> None:
    kinds = (a_kind("zeta", 2020, None), a_kind("t4", 2018, 0.35))
    golden("devices", devices_text((a_device("cpu", "cpu-2t", backend="cpu"),), kinds))
    golden("kind", kind_text(kinds[1]))


def test_unknown_figures_are_left_empty() -> None:
    assert "None" not in devices_text((), (a_kind("t4", None, None),))
    assert "rent" not in kind_text(a_kind("t4", None, None))
