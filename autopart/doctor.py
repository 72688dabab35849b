"""The verb doctor: what of all that autopart uses is here, whether it works, and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator

import torch

import autopart
from autopart import planning, profiling
from autopart.cache import cache_directory
from autopart.schema.diagnosis import Diagnosis, Finding

__all__ = ["examine"]

_OPTIONAL = {
    "transformers": "models by hf:DIR", "torchvision": "models by torchvision:NAME", "timm": "models by timm:NAME",
    "accelerate": "running what `autopart export --to accelerate` writes",
}


def examine() -> Diagnosis:
    """This machine: torch, solvers, optional packages, the cache's folder, devices and links.

    Every solver is made to solve something; nothing else is run or measured.
    """
    cluster = profiling.read_cluster("auto")
    return Diagnosis(
        autopart=autopart.__version__, python=platform.python_version(), platform=platform.platform(),
        findings=(*_torch(), *_solvers(), *_packages(), _cache()), devices=cluster.devices,
        links=cluster.links if len(cluster.devices) > 1 else (),
    )  # fmt: skip


def _torch() -> Iterator[Finding]:
    yield Finding(area="torch", name="torch", outcome="here", needed=True, detail=torch.__version__)
    yield _cuda()
    is_here = torch.distributed.is_available()
    yield Finding(
        area="torch", name="distributed", outcome="here" if is_here else "missing", needed=False,
        detail=", ".join(_backends()) if is_here else "this build of torch has none",
        purpose="`autopart run`, and training on several devices",
        suggestion="" if is_here else "install a build of torch with it, see https://pytorch.org/get-started/locally",
    )


def _cuda() -> Finding:
    built, num_cards = torch.version.cuda or torch.version.hip, torch.cuda.device_count()
    if not built:
        detail, suggestion = "this torch is built for the processor only", (
            "with a GPU, install a CUDA or ROCm build of torch, see https://pytorch.org/get-started/locally"
        )
    elif not num_cards:
        detail, suggestion = f"torch is built for {built} and sees no GPU", (
            "with a GPU, check its driver (nvidia-smi or rocm-smi) and CUDA_VISIBLE_DEVICES"
        )
    else:
        detail, suggestion = f"{built}, {num_cards} GPU{'s' if num_cards > 1 else ''}", ""
    return Finding(
        area="torch", name="cuda", outcome="here" if num_cards else "missing", needed=False, detail=detail,
        purpose="measuring and running on GPUs; planning for them does not need it", suggestion=suggestion,
    )


def _backends() -> tuple[str, ...]:
    known = {"gloo": torch.distributed.is_gloo_available, "nccl": torch.distributed.is_nccl_available}
    return tuple(name for name, is_here in known.items() if is_here())


def _solvers() -> Iterator[Finding]:
    for each in planning.solvers_here():
        works = each.answer == "optimal"
        yield Finding(
            area="solver", name=each.name, outcome="here" if works else "broken" if each.version else "missing",
            needed=True, purpose="integer programs",
            detail=f"{each.package} {each.version}" if works else f"asked to solve a tiny program: {each.answer}",
            suggestion="" if works else f"pip install --force-reinstall {each.package}",
        )


def _packages() -> Iterator[Finding]:
    for name, purpose in _OPTIONAL.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                area="package", name=name, outcome="missing", needed=False, purpose=purpose,
                suggestion=f"pip install {name}",
            )  # fmt: skip
        else:
            yield Finding(
                area="package", name=name, outcome="here", needed=False, detail=version, purpose=purpose
            )


def _cache() -> Finding:
    """Whether the cache can be written, tried in the nearest folder that is there."""
    folder = cache_directory()
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(
            area="cache", name="cache", outcome="broken", needed=False, purpose="measured times and traced models",
            detail=f"{folder} cannot be written ({error.strerror})",
            suggestion="set AUTOPART_CACHE to a folder that can",
        )  # fmt: skip
    return Finding(
        area="cache", name="cache", outcome="here", needed=False, detail=os.fspath(folder),
        purpose="measured times and traced models",
    )  # fmt: skip
