"""Which device accelerate's hooks would run every operator of a traced model on.

``accelerate.dispatch_model`` puts a hook on every module that the device_map names, and on those inside: it moves the
arguments of a call to the module's device (accelerate/hooks.py, ``AlignDevicesHook.pre_forward``).  The model itself
moves its inputs to the first device of the map.  A module that has parts on several devices has no hook: what it
computes itself runs where the operands are, and fails if they are on two devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

    from autopart.program import Program

__all__ = ["DeviceWord", "first_conflict"]

DeviceWord = int | str
"""what accelerate calls a device: the number of a GPU, or ``cpu``"""


def first_conflict(program: Program, device_map: Mapping[str, DeviceWord]) -> str:
    """The first operator whose operands would be on two devices, in words; empty if there is none."""
    main = next((word for word in device_map.values() if word != "cpu"), "cpu")
    running = {path: main if word == "cpu" else word for path, word in device_map.items()}
    names = dict(program.weight_names)
    where: dict[str, DeviceWord] = {}
    for node in program.captured.graph.nodes:
        if node.op == "get_attr":
            name = names.get(str(node.target))
            hooked = None if name is None else _device_of(name, running)
            if hooked is not None:
                where[node.name] = hooked
        elif node.op == "call_function":
            found = _device_of(_module_of(node), running)
            operands = {where[each.name]: each.name for each in node.all_input_nodes if each.name in where}
            if found is None and len(operands) > 1:
                return _words(node, operands)
            where[node.name] = found if found is not None else next(iter(operands), main)
            if _hands_back(node):  # the caller goes on with the tensor that it gave, not with the one moved for it
                where[node.name] = where.get(node.args[0].name, where[node.name])
        elif node.op == "placeholder":
            where[node.name] = main
    return ""


_CASTS = ("aten.to.", "aten.contiguous.", "aten.type_as.")


def _hands_back(node: fx.Node) -> bool:
    """Whether the operator returns its operand itself: a cast to the type that it has."""
    value, operand = node.meta.get("val"), next(iter(node.all_input_nodes), None)
    if operand is None or not str(node.target).startswith(_CASTS) or node.args[0] is not operand:
        return False
    return getattr(value, "dtype", None) == getattr(operand.meta.get("val"), "dtype", None)


def _words(node: fx.Node, operands: Mapping[DeviceWord, str]) -> str:
    pairs = " and ".join(f"{name} on {word}" for word, name in operands.items())
    return f"{_module_of(node) or 'the model'}, which has parts on several devices, computes {node.name} from {pairs}"


def _module_of(node: fx.Node) -> str:
    """Path of the innermost module whose own code calls the operator; empty: the model's, or not known."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(entry[0]) for entry in reversed(stack.values())), "")
    return path.partition("@")[0]


def _device_of(path: str, running: Mapping[str, DeviceWord]) -> DeviceWord | None:
    """The device of the longest prefix that the map names; None if no module there has a hook."""
    pieces = path.split(".")
    prefixes = (".".join(pieces[:depth]) for depth in range(len(pieces), 0, -1))
    return next((running[prefix] for prefix in prefixes if prefix in running), None)
