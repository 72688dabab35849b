"""The stages of a plan as one Python file that needs torch and nothing else."""

from __future__ import annotations

import base64
import re
import textwrap
import types
import zlib
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise

import torch
from torch import fx, nn

from autopart.errors import UsageError
from autopart.exporting.export import refuse_stage_dtypes
from autopart.exporting.scripts import comments, is_cpu, stage_devices
from autopart.program import Program
from autopart.schema.graph import Value
from autopart.schema.plan import Plan
from autopart.segment import Segment

__all__ = ["MOST_CONSTANT_BYTES", "to_python"]

MOST_CONSTANT_BYTES = 64 * 2**20
"""of tensors that the state_dict does not hold and that so stand in the file itself"""

_PLAIN = {"inf": "from math import inf", "nan": "from math import nan", "NoneType": "NoneType = type(None)",
          "device": "from torch import device"}


def to_python(plan: Plan, program: Program) -> str:
    """Python source: a module class per stage, ``build``, ``load`` and ``run``.

    Weights are not in it: ``load`` fills them from the model's ``state_dict()`` (or the model) by their own names.
    Tensors that a ``state_dict`` does not hold (lifted constants, buffers that are not persistent) are in the file.

    Args:
        plan: the plan.
        program: the model traced for one of the plan's micro-batches.

    Raises:
        UsageError: the model has code that could not be traced and runs inside autopart, or too large constants.
    """
    refuse_stage_dtypes(plan, "python")
    bounds = (0, *accumulate(len(stage.layers) for stage in plan.stages))
    segments = [program.segment(first, last, device=torch.device("cpu")) for first, last in pairwise(bounds)]
    embedded = _embedded(program, segments)
    classes = [_class(f"Stage{index}", segment.body) for index, segment in enumerate(segments)]
    imports = {line for segment in segments for graph in _graphs(segment.body) for line in _imports(graph)}
    ends = {value.name: value for value in program.graph.crossing(len(program.graph.layers))}
    results = _results(program, ends)
    names = "".join(f"Stage{index}, " for index in range(len(segments)))
    graph = program.graph
    return (
        comments([
            f"{plan.model.name} in {len(segments)} stages, traced for {graph.batch_size} samples "
            f"({'training' if graph.training else 'inference'}); needs torch {torch.__version__.partition('+')[0]} "
            "or a near one.",
            "stages = load(build(), model.state_dict());  outputs = run(stages, *inputs)",
            *_interface("inputs", graph.crossing(0)), *_interface("outputs", tuple(ends[name] for name in results)),
            *_tied(segments),
        ])
        + "\n".join(["import base64", "import zlib", "", "import torch", "from torch import nn", *sorted(imports)])
        + f"\n\nDEVICES = {_device_names(plan)!r}\nRESULTS = {[list(ends).index(name) for name in results]!r}\n"
        + "CONSTANTS = {\n"
        + "".join(f"    {name!r}: {_packed(value)},\n" for name, value in embedded.items()) + "}\n"
        + "\n\n".join((_SUPPORT, *classes, _ENTRY.format(classes=names)))
    )


def _results(program: Program, ends: Mapping[str, Value]) -> list[str]:
    """The tensors that the model returns, in its order, by name; what is None in it is left out.

    Raises:
        UsageError: it returns a weight itself, which no stage computes.
    """
    leaves = next(iter(reversed(program.captured.graph.nodes))).args[0]
    nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    strange = [node.name for node in nodes if node.name not in ends]
    if strange:
        raise UsageError(f"the model returns {strange[0]}, which no layer computes; run the plan with autopart")
    return [node.name for node in nodes]


def _device_names(plan: Plan) -> list[str]:
    """What torch calls the plan's devices; GPUs that are not here are numbered in the plan's order."""
    used = [stage_devices(plan, stage)[0] for stage in plan.stages]
    absent = [each.name for each in used if each.torch_device is None and not is_cpu(each)]
    return [
        "cpu" if is_cpu(each) else each.torch_device or f"cuda:{absent.index(each.name)}" for each in used
    ]


def _embedded(program: Program, segments: list[Segment]) -> dict[str, torch.Tensor]:
    """What the model's state_dict does not hold, where it has values."""
    held = set(program.module.state_dict(keep_vars=True))
    found: dict[str, torch.Tensor] = {}
    for segment in segments:
        for name, tensor in _tensors(segment.body):
            if name not in held and not tensor.is_meta:
                found[name] = tensor.detach().cpu()
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if size > MOST_CONSTANT_BYTES:
        raise UsageError(
            f"the model holds {size} bytes outside of its state_dict, more than the {MOST_CONSTANT_BYTES} that a "
            "source file should; register them as persistent buffers, or run the plan with autopart"
        )
    return found


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers and constants of a segment and of its regions, by dotted name."""
    for prefix, each in module.named_modules():
        own = {**each._parameters, **each._buffers}
        own |= {name: value for name, value in vars(each).items() if isinstance(value, torch.Tensor)}
        for name, value in own.items():
            if value is not None:
                yield (f"{prefix}.{name}" if prefix else name), value


def _graphs(body: fx.GraphModule) -> Iterator[fx.Graph]:
    for each in body.modules():
        if isinstance(each, fx.GraphModule):
            yield each.graph


def _imports(graph: fx.Graph) -> Iterator[str]:
    """Import lines for the names that a graph's code uses.

    Raises:
        UsageError: it calls what only autopart has, or what cannot be imported by name.
    """
    code = graph.python_code("self")
    for name, value in code.globals.items():
        module = getattr(value, "__module__", None) or ""
        if name == "torch" or not re.search(rf"(?<![\w.]){re.escape(name)}\b(?!\s*=)", _placed(code.src)):
            continue
        if name in _PLAIN:
            yield _PLAIN[name]
        elif isinstance(value, types.ModuleType):
            yield f"import {value.__name__} as {name}"
        elif module and not module.startswith("autopart") and getattr(value, "__qualname__", "").isidentifier():
            yield f"from {module} import {value.__qualname__} as {name}"
        else:
            raise UsageError(
                f"the model has code that was not traced and that only autopart can call ({name}); "
                "run the plan with autopart"
            )


def _regions(body: fx.GraphModule) -> dict[str, fx.GraphModule]:
    """The regions (of autocast, of gradients switched off) that the code calls, not those inside of them."""
    found = {path: each for path, each in body.named_modules() if path and isinstance(each, fx.GraphModule)}
    return {path: each for path, each in found.items() if not any(path.startswith(f"{other}.") for other in found)}


def _class(name: str, body: fx.GraphModule) -> str:
    regions = _regions(body)
    children = {path: f"{name}_{re.sub(r'[^0-9A-Za-z]', '_', path)}" for path in regions}
    parts = [_class(children[path], region) for path, region in regions.items()]
    weights = "".join(
        f"        ({path!r}, {tuple(tensor.shape)}, {tensor.dtype}, {isinstance(tensor, nn.Parameter)}),\n"
        for path, tensor in _tensors(body) if not any(path.startswith(f"{region}.") for region in regions)
    )
    code = _placed(body.graph.python_code("self").src.strip())
    called = "".join(f"        ({path!r}, {child}),\n" for path, child in children.items())
    parts.append(
        f"class {name}(Stage):\n    WEIGHTS = (\n{weights}    )\n    REGIONS = (\n{called}    )\n\n"
        + textwrap.indent(code, "    ") + "\n"
    )
    return "\n\n".join(parts)


def _placed(code: str) -> str:
    """Code that runs on the device of its stage instead of the processor."""
    code = code.replace("device(type='cpu')", "self.placed_on")
    return code.replace("wrap_with_autocast('cpu'", "wrap_with_autocast(self.placed_on.type")


def _packed(tensor: torch.Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"({base64.b64encode(zlib.compress(raw, 9)).decode()!r}, {tensor.dtype}, {tuple(tensor.shape)})"


def _interface(what: str, values: tuple[Value, ...]) -> list[str]:
    return [f"{what}: " + ", ".join(f"{value.name} {list(value.shape)} {value.dtype}" for value in values)]


def _tied(segments: list[Segment]) -> list[str]:
    seen: dict[str, list[int]] = {}
    for index, segment in enumerate(segments):
        for name, tensor in _tensors(segment.body):
            if isinstance(tensor, nn.Parameter):
                seen.setdefault(name, []).append(index)
    return [
        f"{name} is in stages {stages}: to train, add up its gradients" for name, stages in seen.items() if stages[1:]
    ]


_SUPPORT = '''
class Stage(nn.Module):
    """Tensors in, a tuple of tensors out; parameters and buffers under the names they have in the model."""

    WEIGHTS = ()
    REGIONS = ()

    def __init__(self, device):
        super().__init__()
        for name, shape, dtype, is_parameter in self.WEIGHTS:
            *path, leaf = name.split(".")
            owner = _owner(self, path)
            tensor = torch.empty(shape, dtype=dtype, device=device)
            if is_parameter:
                owner.register_parameter(leaf, nn.Parameter(tensor, dtype.is_floating_point or dtype.is_complex))
            else:
                owner.register_buffer(leaf, tensor)
        for name, region in self.REGIONS:
            *path, leaf = name.split(".")
            _owner(self, path).add_module(leaf, region(device))
        object.__setattr__(self, "placed_on", torch.device(device))


def _owner(module, path):
    for piece in path:
        if piece not in module._modules:
            module.add_module(piece, nn.Module())
        module = module._modules[piece]
    return module
'''

_ENTRY = '''def build(devices=DEVICES):
    """The stages, their weights not filled yet."""
    return [stage(device) for stage, device in zip(({classes}), devices, strict=True)]


def load(stages, weights):
    """Fill the stages from the model's state_dict(), or from the model; gives the stages."""
    if isinstance(weights, nn.Module):
        weights = {{
            **dict(weights.named_parameters(remove_duplicate=False)),
            **dict(weights.named_buffers(remove_duplicate=False)),
        }}
    with torch.no_grad():
        for stage in stages:
            for name, tensor in (*stage.named_parameters(), *stage.named_buffers()):
                if name in weights:
                    tensor.copy_(weights[name])
                elif name in CONSTANTS:
                    packed, dtype, shape = CONSTANTS[name]
                    raw = bytearray(zlib.decompress(base64.b64decode(packed)))
                    tensor.copy_(torch.frombuffer(raw, dtype=dtype).reshape(shape))
                else:
                    raise KeyError(f"{{name}} is not among the weights")
    return stages


def run(stages, *inputs):
    """The tensors that the model returns, in its order, one stage after the other."""
    for stage in stages:
        inputs = stage(*(value.to(stage.placed_on) for value in inputs))
    return tuple(inputs[index] for index in RESULTS)
'''
