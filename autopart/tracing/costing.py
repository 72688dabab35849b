"""What one layer costs, from a run on fake tensors: operators, FLOPs, traffic, live and saved bytes.

Nothing is allocated.  FLOPs come from torch.utils.flop_counter, whose table lacks the CPU attention kernel that
fake tensors run into; its formula is the one of the other attention kernels.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from autopart.schema.graph import Work
from autopart.segment import Segment

__all__ = ["Cost", "cost_segment"]

aten = torch.ops.aten

_FAMILIES = {
    "gemm": ("mm", "addmm", "bmm", "baddbmm", "_int_mm", "_scaled_mm", "addmv", "mv", "dot"),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one layer, one micro-batch, forward."""

    work: tuple[Work, ...]
    peak_bytes: int
    saved: Saved


def cost_segment(segment: Segment, inputs: Sequence[torch.Tensor], *, training: bool) -> Cost:
    """The cost of a segment; call it under the FakeTensorMode that its weights and inputs belong to."""
    weights = {_storage(tensor) for tensor in (*segment.parameters(), *segment.buffers())}
    ledger = _Ledger(inputs, weights)
    with torch.no_grad(), ledger:
        fx.Interpreter(segment.body, garbage_collect_values=True).run(*inputs)
    saved = _saved(segment, inputs, weights) if training else Saved(0, (), (), (False,) * len(segment.output_names))
    return Cost(work=ledger.work(), peak_bytes=ledger.peak_bytes, saved=saved)


def _saved(segment: Segment, inputs: Sequence[torch.Tensor], weights: set[int]) -> Saved:
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(_storage(tensor), tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
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
    return Saved(inside, tuple(sorted(saved_in)), tuple(sorted(saved_out)), tuple(out.requires_grad for out in outputs))


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books every operator that really runs: its family, FLOPs, traffic, and the bytes alive after it."""

    def __init__(self, inputs: Sequence[torch.Tensor], weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._books: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in inputs}
        self._alive = {**dict.fromkeys(weights, 0), **sizes}
        self._live_bytes = self.peak_bytes = sum(sizes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
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
        entry = self._books[_family(name), str(outputs[0].dtype).removeprefix("torch.")]
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
            Work(family=family, dtype=dtype, num_calls=calls, flops=flops, traffic_bytes=traffic)
            for (family, dtype), (calls, flops, traffic) in sorted(self._books.items())
        )


def _family(name: str) -> str:
    if "attention" in name or "flash" in name:
        return "attention"
    return _FAMILY_OF.get(name, "elementwise")


def _flops(packet: Any, args: Any, kwargs: Any, result: Any) -> int:
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    if packet.__name__ == "_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(each.shape for each in args[:3])))  # type: ignore[no-untyped-call]
    return 0


def _tensors(nest: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
