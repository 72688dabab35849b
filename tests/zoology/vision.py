"""timm and torchvision: one small variant of every timm family, every torchvision model; small images, batch 2."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.zoology.specimen import Case, NotBuiltError, Specimen

__all__ = ["timm_specimens", "torchvision_specimens"]

MAX_PARAMETERS = 350_000_000
BATCH = 2

_SMALL = (
    "test_", "zepto", "atto", "femto", "pico", "nano", "micro", "xxsmall", "xxs", "xxtiny", "xtiny", "xsmall", "mini",
    "_xs", "_s0", "tiny", "_t", "small", "_s", "050", "035", "_m0", "_b0", "lite",
)  # fmt: skip


def timm_specimens() -> list[Specimen]:
    """The variant that sounds smallest of every module and of every family of names in it."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm

    families: dict[tuple[str, str], list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            stem = re.match(r"(test_)?([a-z]+)", name)
            families.setdefault((module, stem[2] if stem else name), []).append(name)
    return [
        Specimen(name=f"timm:{module}.{stem}/{name}", build=functools.partial(_timm, name))
        for (module, stem), names in families.items() for name in [min(names, key=_size)]
    ]


def _size(name: str) -> tuple[int, int, str]:
    """Order of size, as far as names tell."""
    hint = next((index for index, word in enumerate(_SMALL) if word in name), len(_SMALL))
    numbers = [int(each) for each in re.findall(r"\d+", name)]
    return hint, max(numbers, default=0), name


def _timm(name: str) -> Case:
    import timm

    def tries() -> Iterator[tuple[Callable[[], nn.Module], tuple[int, ...]]]:
        small = functools.partial(timm.create_model, name, pretrained=False, img_size=64)
        yield functools.partial(small, depth=4), (3, 64, 64)  # equal blocks, where it has a depth
        yield small, (3, 64, 64)
        for size in (64, 96, 128):
            yield functools.partial(timm.create_model, name, pretrained=False), (3, size, size)
        config = timm.get_pretrained_cfg(name)
        own = config.input_size if config else (3, 224, 224)
        yield functools.partial(timm.create_model, name, pretrained=False), own

    return _first_that_runs(tries())


def _first_that_runs(tries: Iterator[tuple[Callable[[], nn.Module], tuple[int, ...]]]) -> Case:
    first: Exception | None = None
    for make, shape in tries:
        try:
            torch.manual_seed(0)
            case = Case(model=make(), args=(torch.randn(BATCH, *shape),), kwargs={})
            _check(case)
            return case
        except NotBuiltError:
            raise
        except Exception as error:
            first = first or error
    raise NotBuiltError(f"{type(first).__name__}: {str(first)[:300]}") from first


def _check(case: Case) -> None:
    count = sum(each.numel() for each in case.model.parameters())
    if count > MAX_PARAMETERS:
        raise NotBuiltError(f"{count / 1e6:.0f} million parameters")
    for training in (True, False):
        case.model.train(training)
        with torch.no_grad():
            case.model(*case.args, **case.kwargs)


def torchvision_specimens() -> list[Specimen]:
    """Classification, segmentation, video, detection, optical flow; the quantizable ones as they train."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    import torchvision

    return [
        Specimen(name=f"torchvision:{name}", build=functools.partial(_torchvision, name))
        for name in torchvision.models.list_models()
    ]


def _torchvision(name: str) -> Case:
    import torchvision

    make = functools.partial(torchvision.models.get_model, name, weights=None)
    kind = torchvision.models.get_model_builder(name).__module__
    if "detection" in kind:
        return _detection(functools.partial(make, weights_backbone=None))
    if "optical_flow" in kind:
        return _pair_of_images(make)
    if "segmentation" in kind:
        return _first_that_runs(iter([(functools.partial(make, weights_backbone=None), (3, 64, 64))]))
    if "video" in kind:
        small = functools.partial(make, spatial_size=(64, 64), temporal_size=4)
        shapes = ((3, 4, 64, 64), (3, 16, 64, 64), (3, 16, 224, 224))
        return _first_that_runs(iter([(small, (3, 4, 64, 64)), *((make, shape) for shape in shapes)]))
    sizes = ((3, size, size) for size in (64, 96, 224, 299))
    vit = functools.partial(make, image_size=64)
    return _first_that_runs(iter([(vit, (3, 64, 64)), *((make, shape) for shape in sizes)]))


def _detection(make: Callable[..., nn.Module]) -> Case:
    torch.manual_seed(0)
    model: Any = make()
    transform = model.transform
    if getattr(transform, "fixed_size", None) is None:
        transform.min_size, transform.max_size = (96,), 128
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 20.0, 70.0, 60.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": torch.ones(2, 96, 96, dtype=torch.uint8)}
    target["keypoints"] = torch.tensor([[[10.0, 12.0, 1.0]] * 17, [[30.0, 30.0, 1.0]] * 17])
    images = [torch.rand(3, 96, 96) for _ in range(BATCH)]
    targets = [{name: each.clone() for name, each in target.items()} for _ in images]
    case = Case(model=model, args=(images, targets), kwargs={})
    _check(case)
    return case


def _pair_of_images(make: Callable[[], nn.Module]) -> Case:
    torch.manual_seed(0)
    images = [torch.rand(BATCH, 3, 128, 128) for _ in range(2)]
    case = Case(model=make(), args=tuple(images), kwargs={"num_flow_updates": 2})
    _check(case)
    return case
