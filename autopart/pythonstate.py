"""What a model keeps in Python objects from call to call, which no graph holds: attributes, lists, dice."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["Dice", "PythonState", "dice_of"]

Dice = random.Random | np.random.Generator | np.random.RandomState | torch.Generator
"""makers of random numbers"""
_DICE = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_CONTAINERS = (list, dict, set, deque)
_REGISTERS = frozenset(vars(nn.Module()))
"""attributes that torch itself keeps in every module"""
_ABSENT = object()


class PythonState:
    """A module tree's attributes, containers among them, and the dice in reach, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._attributes = [dict(vars(module)) for module in self._modules]
        self._contents = [(each, _copied(each)) for each in _containers(self._attributes)]
        self._dice = [(each, _roll(each)) for each in dice_of(model)]
        self.rolled: tuple[Dice, ...] = ()
        """the dice that had been thrown when ``note`` was called"""
        self.changed: tuple[tuple[nn.Module, str], ...] = ()
        """the attributes that had been assigned, or whose content had changed, with their owners"""

    def restore(self) -> None:
        """Put all of it back."""
        for module, attributes in zip(self._modules, self._attributes, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
        for container, content in self._contents:
            _refill(container, content)
        for dice, roll in self._dice:
            _unroll(dice, roll)

    def thrown(self) -> tuple[Dice, ...]:
        """The dice that have been thrown since."""
        return tuple(dice for dice, roll in self._dice if not _same_roll(roll, _roll(dice)))

    def note(self) -> None:
        """Remember what is different now."""
        contents = {id(container): content for container, content in self._contents}
        self.rolled = self.thrown()
        self.changed = tuple(
            (module, name)
            for module, before in zip(self._modules, self._attributes, strict=True)
            for name, value in vars(module).items()
            if name not in _REGISTERS and _differs(before.get(name, _ABSENT), value, contents)
        )


def dice_of(model: nn.Module) -> tuple[Dice, ...]:
    """Python's, numpy's, those that modules hold, and those of the Python files that the modules are from."""
    found: list[Any] = [random._inst, np.random.mtrand._rand]
    files = {type(module).__module__ for module in model.modules() if not type(module).__module__.startswith("torch.")}
    spaces: list[Mapping[str, Any]] = [vars(module) for module in model.modules()]
    spaces += [vars(sys.modules[file]) for file in sorted(files) if file in sys.modules]
    found += [value for space in spaces for value in list(space.values()) if isinstance(value, _DICE)]
    return tuple({id(each): each for each in found}.values())


def _containers(spaces: list[dict[str, Any]]) -> Iterator[Any]:
    for space in spaces:
        for name, value in space.items():
            if isinstance(value, _CONTAINERS) and name not in _REGISTERS:
                yield value


def _copied(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _refill(container: Any, content: Any) -> None:
    if _same_content(content, container):
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _differs(before: Any, now: Any, contents: Mapping[int, Any]) -> bool:
    if before is now:
        return id(now) in contents and not _same_content(contents[id(now)], now)
    plain = (bool, int, float, complex, str, bytes, tuple, torch.Size, torch.dtype, torch.device, type(None))
    return not (type(before) is type(now) and isinstance(now, plain) and _equal(before, now))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return one is other
    return bool(one == other)


def _same_content(content: Any, container: Any) -> bool:
    now = _copied(container)
    if len(content) != len(now):
        return False
    if isinstance(content, dict):
        return content.keys() == now.keys() and all(content[key] is now[key] for key in content)
    return all(one is other for one, other in zip(content, now, strict=True))


def _roll(dice: Dice) -> Any:
    if isinstance(dice, random.Random):
        return dice.getstate()
    if isinstance(dice, np.random.RandomState):
        return dice.get_state(legacy=False)
    if isinstance(dice, np.random.Generator):
        return dice.bit_generator.state
    with _disable_current_modes(), torch._C.DisableTorchFunction():  # a trace may be going on
        return dice.get_state().numpy().tobytes()


def _unroll(dice: Dice, roll: Any) -> None:
    if isinstance(dice, random.Random):
        dice.setstate(roll)
    elif isinstance(dice, np.random.Generator):
        dice.bit_generator.state = roll
    elif isinstance(dice, torch.Generator):
        dice.set_state(torch.frombuffer(bytearray(roll), dtype=torch.uint8))
    else:
        dice.set_state(roll)


def _same_roll(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_same_roll(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    return bool(one == other)
