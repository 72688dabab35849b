"""The cluster that the user means, from a device list or a file, with caps on memory and a link for every pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from autopart.errors import DeviceError, UsageError
from autopart.profiling.devices.catalogue import kind
from autopart.profiling.devices.clusterfile import read_cluster_file
from autopart.profiling.devices.devicelist import read_devices
from autopart.profiling.devices.linkrules import assumed_links
from autopart.profiling.devices.overheads import with_reserve
from autopart.profiling.devices.ownkinds import own_kinds
from autopart.schema.device import Cluster, Device, Kind
from autopart.units import format_bytes, parse_bytes

__all__ = ["read_cluster"]


def read_cluster(
    devices: str | Sequence[str] | Cluster | None = None,
    *,
    max_memory: str | Sequence[str] = (),
    reserve: str | Sequence[str] = (),
    cluster_file: Path | None = None,
    folder: Path | None = None,
) -> Cluster:
    """The devices to plan for and the rules of their links, every pair covered.

    >>> cluster = read_cluster("2xt4", max_memory="t4=12GiB")
    >>> [(device.name, device.memory_bytes) for device in cluster.devices]
    [('t4:0', 12884901888), ('t4:1', 12884901888)]

    Args:
        devices: a comma list or several (see ``read_devices``), a cluster, or None for all that is here.
        max_memory: caps, ``cuda:0=20GiB`` for a device or ``t4=12GiB`` for all of a kind; a comma list or several.
        reserve: what is left to others, a desktop or another job: ``cuda:0=3GiB``, in the same words.
        cluster_file: a YAML file instead of ``devices``.
        folder: the model's, where kinds of the user's own may lie (see ``own_kinds``).

    Raises:
        DeviceError: a device is unknown, absent or named twice, or the file makes no sense.
        FileFormatError: the file cannot be read.
        UsageError: a cap makes no sense, or is above what the device has.
    """
    if devices is not None and cluster_file is not None:
        raise UsageError(f"devices are given twice, as a list and in {cluster_file}; give one of them")
    if isinstance(devices, Cluster):
        cluster = devices
    elif cluster_file is not None:
        cluster = read_cluster_file(cluster_file, own_kinds(folder))
    else:
        own = own_kinds(folder)
        read = read_devices("auto" if devices is None else devices, own)
        cluster = Cluster(devices=read, kinds=kinds_used(own, read))
    assumed = tuple(link for link in assumed_links(cluster) if link not in cluster.links)
    covered = dataclasses.replace(cluster, links=cluster.links + assumed)
    kept = _by_device(covered, _read_sizes(reserve, "reserve", "left"), "reserve")
    left = tuple(with_reserve(each, kept[each.name]) if each.name in kept else each for each in covered.devices)
    return _with_caps(dataclasses.replace(covered, devices=left), _read_sizes(max_memory, "memory cap", "capped"))


def kinds_used(own: Sequence[Kind], devices: Sequence[Device]) -> tuple[Kind, ...]:
    """Of the user's own kinds those that a device is of."""
    names = {device.kind for device in devices}
    return tuple(kind for kind in own if kind.name in names)


def _read_sizes(words: str | Sequence[str], what: str, done: str) -> Mapping[str, int]:
    lists = (words,) if isinstance(words, str) else tuple(words)
    sizes: dict[str, int] = {}
    for word in (word.strip() for part in lists for word in part.split(",")):
        name, equals, size = (part.strip() for part in word.partition("="))
        if not name or not equals:
            raise UsageError(f"the {what} {word!r} must be DEVICE=SIZE; write for example cuda:0=20GiB or t4=12GiB")
        if name in sizes:
            raise UsageError(f"the memory of {name} is {done} twice; keep one of the {what}s")
        sizes[name] = parse_bytes(size)
    return sizes


def _by_device(cluster: Cluster, sizes: Mapping[str, int], what: str) -> Mapping[str, int]:
    """Device → size; a device's own goes before that of its kind."""
    by_name = {name: size for name, size in sizes.items() if any(device.name == name for device in cluster.devices)}
    by_kind = {_kind_meant(name, cluster, what): size for name, size in sizes.items() if name not in by_name}
    both = {device.name: by_name.get(device.name, by_kind.get(device.kind)) for device in cluster.devices}
    return {name: size for name, size in both.items() if size is not None}


def _with_caps(cluster: Cluster, caps: Mapping[str, int]) -> Cluster:
    meant = _by_device(cluster, caps, "memory cap")
    capped = tuple(
        _with_cap(device, meant[device.name]) if device.name in meant else device for device in cluster.devices
    )
    return dataclasses.replace(cluster, devices=capped)


def _kind_meant(name: str, cluster: Cluster, what: str) -> str:
    kinds = {device.kind for device in cluster.devices}
    if name in kinds:
        return name
    try:
        meant = kind(name, cluster.kinds).name
    except DeviceError:
        meant = ""
    if meant not in kinds:
        names = ", ".join(dict.fromkeys(device.name for device in cluster.devices[:12]))
        raise UsageError(f"the {what} of {name!r} fits no device; devices are {names}")
    return meant


def _with_cap(device: Device, cap_bytes: int) -> Device:
    if cap_bytes > device.memory_bytes:
        raise UsageError(
            f"the memory cap of {device.name}, {format_bytes(cap_bytes)}, is above the "
            f"{format_bytes(device.memory_bytes)} it has ({device.memory_origin}); give less, or no cap"
        )
    return dataclasses.replace(
        device, memory_bytes=cap_bytes, memory_origin="cap given by the user", uncapped_bytes=device.memory_bytes
    )
