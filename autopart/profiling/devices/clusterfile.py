"""cluster.yaml: devices that are not in the catalogue or not in one computer, and the links that the user knows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from autopart.errors import DeviceError, UsageError
from autopart.profiling.devices.catalogue import kinds, link_kind
from autopart.profiling.devices.devicelist import MAX_NUM_DEVICES, absent_device, read_devices, share_memory
from autopart.profiling.devices.here import LOCAL_NODE, cpu_core
from autopart.profiling.devices.linkrules import UNKNOWN_HOST_LINK, link_of_kind
from autopart.profiling.devices.overheads import overhead_of, with_reserve
from autopart.profiling.devices.ownkinds import DTYPES
from autopart.profiling.devices.yamlfile import read_yaml
from autopart.schema.device import Cluster, Device, Figure, Kind, Link, Peak
from autopart.units import format_bytes, parse_bytes, parse_bytes_per_second, parse_flops_per_second, parse_seconds

__all__ = ["read_cluster_file"]

_Quantity = StrictStr | StrictInt | StrictFloat
_Name = Annotated[str, Field(min_length=1, pattern=r"^[^,=\s]+$")]

T = TypeVar("T")
Given = TypeVar("Given")


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _DeviceRow(_Row):
    name: _Name
    kind: str | None = None
    node: _Name = LOCAL_NODE
    count: Annotated[int, Field(ge=1, le=MAX_NUM_DEVICES)] | None = None
    memory: _Quantity | None = None
    reserve: _Quantity | None = None
    bandwidth: _Quantity | None = None
    flops: Annotated[Mapping[str, _Quantity], Field(min_length=1)] | None = None
    tdp: Annotated[float, Field(gt=0)] | None = None
    rent: Annotated[float, Field(ge=0)] | None = None
    speed: Annotated[float, Field(gt=0, le=1)] | None = None
    """of an emulated device: this part of one core of this machine"""


class _LinkRow(_Row):
    within: str | None = None
    between: tuple[str, str] | None = None
    latency: _Quantity | None = None
    bandwidth: _Quantity | None = None
    kind: str | None = None


class _ClusterRow(_Row):
    devices: Annotated[tuple[_DeviceRow, ...], Field(min_length=1)]
    links: tuple[_LinkRow, ...] = ()


def read_cluster_file(path: Path, own: Sequence[Kind] = ()) -> Cluster:
    """The cluster of a YAML file: its devices, and as links only what the file gives, devices before nodes.

    Args:
        path: of the file.
        own: kinds of the user's own that its devices may be of.

    Raises:
        FileFormatError: it cannot be read, or is not YAML.
        DeviceError: a field is unknown or makes no sense; file and field are named.
    """
    rows = read_yaml(path, _ClusterRow, what="cluster file")
    read_row = partial(_read_devices, own_kinds=own)
    read = [_at(path, f"devices.{index}", read_row, row) for index, row in enumerate(rows.devices)]
    devices = share_memory([device for _, some in read for device in some])
    _at(path, "devices", _check_devices, devices)
    read_link = partial(_read_link, devices=devices)
    links = [_at(path, f"links.{index}", read_link, row) for index, row in enumerate(rows.links)]
    _at(path, "links", _check_links, links)
    by_level = sorted(links, key=lambda link: link.level == "node")
    used = dict.fromkeys(kind for some, _ in read for kind in some)
    return Cluster(devices=devices, links=tuple(by_level), kinds=tuple(used))


def _at(path: Path, where: str, act: Callable[[Given], T], given: Given) -> T:
    """What ``act`` makes of ``given``; its complaint gets the file and the field put in front."""
    try:
        return act(given)
    except UsageError as error:
        raise DeviceError(f"{path}: {where}: {error}") from error


def _read_devices(row: _DeviceRow, own_kinds: Sequence[Kind]) -> tuple[tuple[Kind, ...], tuple[Device, ...]]:
    """A row's kind, if it is not the catalogue's, and its devices."""
    if row.speed is not None and (row.kind, row.bandwidth, row.flops, row.tdp) != (None, None, None, None):
        raise DeviceError("speed is of an emulated device, a core of this machine: leave kind, bandwidth and flops out")
    if row.kind is not None and (row.bandwidth, row.flops, row.tdp) != (None, None, None):
        raise DeviceError("give either a kind, or bandwidth, flops and tdp of a kind of one's own")
    if row.kind is not None:
        one = dataclasses.replace(_only_device(row.kind, own_kinds), name=row.name, node=row.node)
        own = tuple(kind for kind in own_kinds if kind.name == one.kind)
        if row.memory is not None:
            one = _with_cap(one, parse_bytes(row.memory))
    elif row.speed is not None:
        own, one = (), dataclasses.replace(cpu_core(0, speed=row.speed), name=row.name, node=row.node)
        if row.memory is not None:
            one = _with_cap(one, parse_bytes(row.memory))
    else:
        own = (_read_kind(row),)
        one = dataclasses.replace(
            absent_device(own[0], name=row.name, node=row.node),
            memory_bytes=round(own[0].memory_bytes.value),
            overhead=dataclasses.replace(overhead_of(own[0].vendor), context_bytes=0),
            memory_origin="given in the cluster file",
        )
    if row.reserve is not None:
        one = with_reserve(one, parse_bytes(row.reserve))
    if row.rent is not None:
        one = dataclasses.replace(one, rent_usd_per_hour=row.rent)
    if row.count is None:
        return own, (one,)
    if one.backend != "absent" and row.speed is None:
        raise DeviceError(f"{row.kind} is one device of this machine; leave count out")
    return own, tuple(dataclasses.replace(one, name=f"{row.name}{index}") for index in range(row.count))


def _only_device(kind: str, own: Sequence[Kind]) -> Device:
    devices = read_devices(kind, own)
    if len(devices) != 1:
        raise DeviceError(f"{kind!r} is {len(devices)} devices; name one kind, and give count")
    return devices[0]


def _with_cap(device: Device, cap_bytes: int) -> Device:
    if cap_bytes > device.memory_bytes:
        raise DeviceError(
            f"memory {format_bytes(cap_bytes)} is more than a {device.kind} has, "
            f"{format_bytes(device.memory_bytes)} ({device.memory_origin}); give less, or leave it out"
        )
    return dataclasses.replace(device, memory_bytes=cap_bytes, memory_origin="cap given in the cluster file")


def _read_kind(row: _DeviceRow) -> Kind:
    """The kind of a device that is not in the catalogue, named as the device."""
    if row.memory is None or row.bandwidth is None or row.flops is None:
        raise DeviceError("without a kind, all of memory, bandwidth and flops must be given")
    if any(row.name == known.name for known in kinds()):
        raise DeviceError(f"{row.name} is a kind of the catalogue; give a device with own figures another name")
    return Kind(
        name=row.name,
        vendor="given",
        architecture="given",
        year=None,
        memory_bytes=_given(parse_bytes(row.memory)),
        bandwidth_bytes_per_second=_given(parse_bytes_per_second(row.bandwidth)),
        peaks=tuple(_read_peak(dtype, rate) for dtype, rate in row.flops.items()),
        link=UNKNOWN_HOST_LINK,
        host_link=UNKNOWN_HOST_LINK,
        tdp_watts=None if row.tdp is None else _given(row.tdp),
        rent_usd_per_hour=None if row.rent is None else _given(row.rent),
    )


def _read_peak(name: str, rate: _Quantity) -> Peak:
    if name not in DTYPES and name not in DTYPES.values():
        raise DeviceError(f"flops: unknown data type {name!r}; known are {', '.join(DTYPES)}")
    return Peak(dtype=DTYPES.get(name, name), flops_per_second=_given(parse_flops_per_second(rate)))


def _given(value: float) -> Figure:
    return Figure(value=value, source="given in the cluster file", confidence="high")


def _read_link(row: _LinkRow, devices: Sequence[Device]) -> Link:
    level, ends = _read_ends(row, devices)
    source = "given in the cluster file"
    if row.kind is not None:
        if row.latency is not None or row.bandwidth is not None:
            raise DeviceError("give either a kind, or latency and bandwidth")
        return link_of_kind(link_kind(row.kind), level=level, ends=ends, why=source, origin="given")
    if row.latency is None or row.bandwidth is None:
        raise DeviceError("give latency and bandwidth, or a kind (ethernet-10g, pcie-4-x16, ...)")
    return Link(
        level=level,
        ends=ends,
        latency_seconds=parse_seconds(row.latency, zero_allowed=True),
        bandwidth_bytes_per_second=parse_bytes_per_second(row.bandwidth),
        origin="given",
        source=source,
    )


def _read_ends(row: _LinkRow, devices: Sequence[Device]) -> tuple[Literal["device", "node"], tuple[str, str]]:
    """What a link row speaks of: two devices if both its names are devices, else nodes."""
    if (row.within is None) == (row.between is None):
        raise DeviceError("give either within: NODE or between: [A, B]")
    names = {device.name for device in devices}
    nodes = {device.node for device in devices}
    ends = row.between or (row.within or "", row.within or "")
    if row.between and row.between[0] == row.between[1]:
        raise DeviceError(f"between needs two different names, not {ends[0]!r} twice; write within: {ends[0]}")
    if row.between and names.issuperset(ends):
        return "device", ends
    if nodes.issuperset(ends):
        return "node", ends
    what = "two devices or two nodes" if row.between else "a node"
    known = f"nodes are {', '.join(sorted(nodes))}; devices are {', '.join(sorted(names))}"
    raise DeviceError(f"{' and '.join(dict.fromkeys(ends))} must name {what}; {known}")


def _check_devices(devices: Sequence[Device]) -> None:
    for what, names in (
        ("name", [device.name for device in devices]),
        ("device of this machine", [device.torch_device for device in devices if device.backend == "cuda"]),
    ):
        name, num_times = Counter(names).most_common(1)[0] if names else ("", 0)
        if num_times > 1:
            raise DeviceError(f"the {what} {name} is there {num_times} times; give every device another")
    if len(devices) > MAX_NUM_DEVICES:
        raise DeviceError(f"{len(devices)} devices; give at most {MAX_NUM_DEVICES}")


def _check_links(links: Sequence[Link]) -> None:
    spoken = Counter((link.level, *sorted(link.ends)) for link in links)
    for (_, one, other), num_times in spoken.items():
        if num_times > 1:
            raise DeviceError(f"{one} and {other} are joined {num_times} times; keep one of them")
