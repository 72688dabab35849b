"""What one layer costs, from a run on fake tensors: operators, FLOPs, traffic, live and saved bytes.

Nothing is allocated.  FLOPs come from torch.utils.flop_counter, whose table lacks the CPU attention kernel that
fake tensors run into; its formula is the one of the other attention kernels.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from autopart.opaque import OpaqueCall
from autopart.rerun import may_run_again
from autopart.schema.graph import Work
from autopart.segment import Segment
from autopart.tracing.backwardcost import TrainingBytes, training_bytes
from autopart.tracing.operatorshape import operator_shape

__all__ = ["Cost", "booked", "cost_segment"]

aten = torch.ops.aten

_FAMILIES = {
    "gemm": ("mm", "addmm", "bmm", "baddbmm", "_int_mm", "_scaled_mm", "_grouped_mm", "addmv", "mv", "dot"),
    "convolution": ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"),
    "normalization": (
        "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
        "native_group_norm", "cudnn_batch_norm", "_fused_rms_norm",
    ),
    "softmax": ("_softmax", "_log_softmax", "_safe_softmax"),
    "reduction": ("sum", "mean", "amax", "amin", "var", "var_mean", "cumsum", "max", "min", "argmax", "norm", "prod",
                  "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"),
    "embedding": ("embedding", "index", "gather", "index_select", "_embedding_bag"),
    "copy": ("clone", "copy_", "_to_copy", "cat", "stack", "constant_pad_nd", "fill_", "zeros_like", "ones_like",
             "index_put", "scatter", "slice_scatter", "repeat", "roll", "flip"),
}  # fmt: skip
_FAMILY_OF = {name: family for family, names in _FAMILIES.items() for name in names}
_READS_ROWS = {"embedding", "index", "gather", "index_select"}
_FREE = {"_unsafe_view", "lift_fresh", "scalar_tensor", "detach_"}
"""no kernel worth counting, though the schema does not call them views"""


@dataclass(frozen=True, slots=True)
class Saved:
    """What autograd keeps of one layer, each storage once, weights left out."""

    inside_bytes: int
    """seen by no other layer"""
    inputs: tuple[int, ...]
    """positions of the inputs that are kept"""
    outputs: tuple[int, ...]
    differentiable: tuple[bool, ...]
    """of each output, whether a gradient comes back for it"""
    has_any: bool = False
    """whether anything is kept, weights included"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one layer, one micro-batch, forward."""

    work: tuple[Work, ...]
    peak_bytes: int
    saved: Saved
    backward: TrainingBytes
    reruns: bool = True
    """in training, whether its forward is run again where its stage recomputes"""


def cost_segment(segment: Segment, inputs: Sequence[torch.Tensor], *, training: bool) -> Cost:
    """The cost of a segment; call it under the FakeTensorMode that its weights and inputs belong to."""
    weights = {_storage(tensor) for tensor in (*segment.parameters(), *segment.buffers())}
    ledger = _Ledger(inputs, weights)
    with torch.no_grad(), _WithoutKernel(), ledger:  # type: ignore[no-untyped-call]
        fx.Interpreter(segment.body, garbage_collect_values=True).run(*inputs)
    saved = _saved(segment, inputs, weights) if training else Saved(0, (), (), (False,) * len(segment.output_names))
    with _WithoutKernel():  # type: ignore[no-untyped-call]
        backward = training_bytes(segment, inputs) if training else TrainingBytes()
    return Cost(
        work=_with_recorded(ledger.work(), segment), peak_bytes=ledger.peak_bytes, saved=saved, backward=backward,
        reruns=not training or (saved.has_any and may_run_again(segment)),
    )


def _with_recorded(work: tuple[Work, ...], segment: Segment) -> tuple[Work, ...]:
    """The work with that of opaque calls for which nothing ran, as recorded on real tensors."""
    calls = [node.target for node in segment.body.graph.nodes if isinstance(node.target, OpaqueCall)]
    return (*work, *(each for call in calls if not call.runs_on_fakes for each in call.work))


@contextlib.contextmanager
def booked(inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> Iterator[Recorded]:
    """Books what is run within, real or fake."""
    own = {_storage(tensor) for tensor in weights}
    ledger, recorded = _Ledger(inputs, own), Recorded()
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        whole = _unmapped(tensor)
        kept.setdefault(_storage(whole), whole)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), ledger:
        yield recorded
    recorded.work, recorded.peak_bytes = ledger.work(), ledger.peak_bytes
    known = own | {_storage(tensor) for tensor in inputs}
    recorded.saved_inputs = tuple(index for index, tensor in enumerate(inputs) if _storage(tensor) in kept)
    recorded.saved_bytes = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


@dataclass(slots=True)
class Recorded:
    """What was run, once it is over."""

    work: tuple[Work, ...] = ()
    peak_bytes: int = 0
    saved_bytes: int = 0
    """kept for backward, inputs and weights excluded"""
    saved_inputs: tuple[int, ...] = ()


def _saved(segment: Segment, inputs: Sequence[torch.Tensor], weights: set[int]) -> Saved:
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(_storage(tensor), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.enable_grad(), _WithoutKernel(), hooks:  # type: ignore[no-untyped-call]
        outputs = segment(*inputs)
    sources = {_storage(tensor): position for position, tensor in reversed(list(enumerate(inputs)))}
    results = {_storage(tensor): position for position, tensor in reversed(list(enumerate(outputs)))}
    saved_in: set[int] = set()
    saved_out: set[int] = set()
    inside = 0
    for key, tensor in kept.items():
        if key in sources:
            saved_in.add(sources[key])
        elif key in results:
            saved_out.add(results[key])
        elif key not in weights:
            inside += tensor.untyped_storage().nbytes()
    gradients = tuple(out.requires_grad for out in outputs)
    return Saved(inside, tuple(sorted(saved_in)), tuple(sorted(saved_out)), gradients, bool(kept))


class _WithoutKernel(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets operators run that a trace for another device chose and that the processor has no kernel for.

    ``histc`` of integers: so mixtures of experts in transformers count their tokens, except on the processor.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.histc.default and not args[0].is_floating_point():
            return func(args[0].float(), *args[1:], **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books every operator that really runs: its family, FLOPs, traffic, and the bytes alive after it."""

    def __init__(self, inputs: Sequence[torch.Tensor], weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._books: dict[tuple[str, str, str, tuple[int, ...]], list[int]] = defaultdict(lambda: [0, 0, 0])
        sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in inputs}
        self._alive = {**dict.fromkeys(weights, 0), **sizes}
        self._live_bytes = self.peak_bytes = sum(sizes.values())

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(func, torch._ops.HigherOrderOperator):  # torch.cond: which branch will run is not known
            return result
        outputs = _tensors(result)
        if outputs and not func.is_view and func.overloadpacket.__name__ not in _FREE:
            self._book(func, args, kwargs, result, outputs)
        for tensor in outputs:
            self._watch(tensor.untyped_storage())
        return result

    def _book(self, func: Any, args: Any, kwargs: Any, result: Any, outputs: list[torch.Tensor]) -> None:
        packet, name = func.overloadpacket, func.overloadpacket.__name__
        inputs = _tensors((args, kwargs))
        written = sum(map(_bytes, outputs))
        read = written if name in _READS_ROWS else sum(map(_bytes, inputs))
        family, dtype = _family(name), str(outputs[0].dtype).removeprefix("torch.")
        entry = self._books[family, dtype, name, operator_shape(family, args, inputs, outputs)]
        entry[0] += 1
        entry[1] += _flops(packet, args, kwargs, result)
        entry[2] += read + written

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._live_bytes -= self._alive.pop(key, 0)

    def work(self) -> tuple[Work, ...]:
        return tuple(
            Work(
                family=family, dtype=dtype, num_calls=calls, flops=flops, traffic_bytes=traffic, operator=name,
                shape=shape,
            )
            for (family, dtype, name, shape), (calls, flops, traffic) in sorted(self._books.items())
        )


def _family(name: str) -> str:
    if "attention" in name or "flash" in name:
        return "attention"
    return _FAMILY_OF.get(name, "elementwise")


def _flops(packet: Any, args: Any, kwargs: Any, result: Any) -> int:
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    if packet.__name__ == "_grouped_mm":  # every row meets one expert's matrix
        groups = result.shape[0] if args[0].dim() == args[1].dim() == 2 else 1
        return 2 * int(result.numel()) // int(groups) * int(args[0].shape[-1])
    if packet.__name__ == "_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(each.shape for each in args[:3])))  # type: ignore[no-untyped-call]
    return 0


def _tensors(nest: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unmapped(tensor: torch.Tensor) -> torch.Tensor:
    """The whole batch that a tensor in a function mapped with ``torch.vmap`` is a member of."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
