"""Two "hosts" on one machine: network namespaces with a link of their own between them, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Host", "two_hosts", "why_not"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace and its end of the link."""

    name: str
    interface: str
    address: str

    def command(self, *words: str) -> list[str]:
        """The words that run a command there."""
        return ["ip", "netns", "exec", self.name, *words]

    @property
    def environment(self) -> Mapping[str, str]:
        """What gloo has to be told."""
        return {**os.environ, "GLOO_SOCKET_IFNAME": self.interface, "TORCH_CPP_LOG_LEVEL": "ERROR"}


def why_not(rate: str = "") -> str:
    """Why there can be no such hosts here; empty if there can."""
    if shutil.which("ip") is None or (rate and shutil.which("tc") is None):
        return "ip and tc are not installed"
    try:
        with two_hosts(rate):
            return ""
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return f"{' '.join(error.cmd)}: {said[-1] if said else 'failed'}"


@contextmanager
def two_hosts(rate: str = "") -> Iterator[tuple[Host, Host]]:
    """Two hosts and a pair of veth between them; ``rate``: of both ends by ``tc tbf``, as 100mbit."""
    number = os.getpid()  # so that two runs do not meet
    hosts = tuple(
        Host(name=f"ap{number}{side}", interface=f"av{number}{side}", address=f"10.77.3.{last}")
        for last, side in enumerate("AB", start=1)
    )
    shaping = ("tbf", "rate", rate, "burst", "64kb", "latency", "200ms")
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.name)
        one, other = hosts
        _run("ip", "link", "add", one.interface, "netns", one.name, "type", "veth", "peer", "name", other.interface,
             "netns", other.name)  # fmt: skip
        for host in hosts:
            _run(*host.command("ip", "addr", "add", f"{host.address}/24", "dev", host.interface))
            for interface in (host.interface, "lo"):
                _run(*host.command("ip", "link", "set", interface, "up"))
            if rate:
                _run(*host.command("tc", "qdisc", "add", "dev", host.interface, "root", *shaping))
        yield one, other
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
