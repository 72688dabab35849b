from __future__ import annotations

import re

import pytest

from autopart.errors import DeviceError
from autopart.profiling.devices import catalogue
from autopart.schema.device import Cluster, Device, Figure, Kind, LinkKind

DTYPES = {"float32", "tf32", "float16", "bfloat16", "float8", "int8"}


def figures(kind: Kind) -> list[Figure]:
    optional = (kind.link_bytes_per_second, kind.tdp_watts, kind.price_usd, kind.rent_usd_per_hour)
    peaks = [peak.flops_per_second for peak in kind.peaks]
    return [kind.memory_bytes, kind.bandwidth_bytes_per_second, *peaks, *(one for one in optional if one)]


def test_names_differ_and_are_slugs() -> None:
    names = [kind.name for kind in catalogue.kinds()]
    assert len(names) == 56 == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


@pytest.mark.parametrize("kind", catalogue.kinds(), ids=lambda kind: kind.name)
def test_every_kind_is_plausible(kind: Kind) -> None:
    assert all(figure.value > 0 and figure.source for figure in figures(kind))
    assert 4e9 <= kind.memory_bytes.value <= 512e9
    assert 40e9 <= kind.bandwidth_bytes_per_second.value <= 10e12
    assert {peak.dtype for peak in kind.peaks} <= DTYPES
    peaks = {peak.dtype: peak.flops_per_second.value for peak in kind.peaks}
    assert all(1e11 <= peak <= 1e16 for peak in peaks.values())
    if "float32" in peaks:
        ridge = peaks["float32"] / kind.bandwidth_bytes_per_second.value
        assert 5 <= ridge <= 150, "FLOPs per byte of memory traffic"
    assert 2015 <= (kind.year or 2020) <= 2030
    assert catalogue.link_kind(kind.link) and catalogue.link_kind(kind.host_link)


@pytest.mark.parametrize("kind", catalogue.kinds(), ids=lambda kind: kind.name)
def test_what_was_not_cross_checked_is_not_trusted(kind: Kind) -> None:
    for figure in figures(kind):
        if "not cross-checked" in figure.source or "low confidence" in figure.source:
            assert figure.confidence != "high"


def test_known_figures() -> None:
    t4, a100 = catalogue.kind("t4"), catalogue.kind("a100-sxm-80gb")
    assert t4.memory_bytes.value == 16e9 and t4.bandwidth_bytes_per_second.value == 320e9
    assert t4.peaks[0].dtype == "float32" and t4.peaks[0].flops_per_second.value == 8.1e12
    assert a100.rent_usd_per_hour is not None and a100.rent_usd_per_hour.value == pytest.approx((1.39 + 2.45) / 2)
    assert a100.peaks[2].flops_per_second.value == 312e12


@pytest.mark.parametrize("kind", catalogue.link_kinds(), ids=lambda kind: kind.name)
def test_every_link_kind_is_plausible(kind: LinkKind) -> None:
    assert 1e-6 <= kind.latency_seconds.value <= 1e-3
    assert 1e8 <= kind.bandwidth_bytes_per_second.value <= 1e12
    assert 0.3 <= kind.efficiency.value <= 1


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("3090", "rtx-3090"),
        ("3090ti", "rtx-3090ti"),
        ("h100-sxm", "h100-sxm-80gb"),
        ("H100SXM", "h100-sxm-80gb"),
        ("l40", "l40"),
        ("l40s", "l40s"),
        ("apple-m1", "apple-m1"),
        ("2080ti", "rtx-2080ti"),
        ("cpu-generic", "cpu-generic-16c-avx2"),
    ],
)
def test_what_people_type(typed: str, name: str) -> None:
    assert catalogue.kind(typed).name == name


def test_every_kind_answers_to_its_name() -> None:
    assert all(catalogue.kind(kind.name) is kind for kind in catalogue.kinds())


@pytest.mark.parametrize(
    ("typed", "candidates"),
    [
        ("h100", ["h100-sxm-80gb", "h100-pcie-80gb", "h100-nvl-94gb"]),
        ("a100-80gb", ["a100-sxm-80gb", "a100-pcie-80gb"]),
        ("m1", ["apple-m1", "apple-m1-max-32c"]),
    ],
)
def test_an_ambiguous_name_lists_its_candidates(typed: str, candidates: list[str]) -> None:
    with pytest.raises(DeviceError) as refused:
        catalogue.kind(typed)
    assert all(candidate in str(refused.value) for candidate in candidates)


def test_an_unknown_name_is_told_its_neighbours() -> None:
    with pytest.raises(DeviceError, match=r"did you mean rtx-4090 .*autopart devices"):
        catalogue.kind("rtx-4091")
    with pytest.raises(DeviceError, match="no device kind is called 'xyzzy'"):
        catalogue.kind("xyzzy")
    with pytest.raises(DeviceError, match="nvlink-4"):
        catalogue.link_kind("nvlink")


def test_what_torch_calls_a_card() -> None:
    called = catalogue.kind_called_by_torch
    h100 = called("NVIDIA H100 80GB HBM3", 85_024_243_712)
    assert h100 is not None and h100.name == "h100-sxm-80gb"
    assert called("NVIDIA GeForce RTX 3080", 12_600_000_000) is None  # the one with 12 GB is another card
    assert called("Some Card", 8_000_000_000) is None


def test_own_kinds_come_first() -> None:
    t4 = catalogue.kind("t4")
    device = Device(name="d", kind="odd", node="n", memory_bytes=1, memory_origin="", backend="absent")
    own = Kind(
        name="odd",
        vendor="given",
        architecture="given",
        year=None,
        memory_bytes=t4.memory_bytes,
        bandwidth_bytes_per_second=t4.bandwidth_bytes_per_second,
        peaks=t4.peaks,
        link=t4.link,
        host_link=t4.host_link,
    )
    cluster = Cluster(devices=(device,), kinds=(own,))
    assert catalogue.kind_in(cluster, "odd") is own
    assert catalogue.kind_in(cluster, "t4") is t4
    assert catalogue.kind_in(cluster, "cpu-1t") is None
