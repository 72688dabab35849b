"""Bytes of the tensors that are alive, and their peak, by watching every operator's tensors and when they go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every storage once, from the first operator that touches it until it is freed; real or fake tensors.

    Equal to what the allocator counts (torch.profiler, profile_memory) except for buffers inside of operators.
    May be entered several times; in between, what is freed is noticed and what is made is not.

    Args:
        uncounted: tensors that do not count.
    """

    supports_higher_order_operators = True

    def __init__(self, uncounted: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive = {tensor.untyped_storage()._cdata: 0 for tensor in uncounted}
        self.now_bytes = self.peak_bytes = 0

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count these from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._alive:
                self._alive[key] = storage.nbytes()
                self.now_bytes += self._alive[key]
                weakref.finalize(storage, self._release, key).atexit = False
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

    def _release(self, key: int) -> None:
        self.now_bytes -= self._alive.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.watch(leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor))
        return result
