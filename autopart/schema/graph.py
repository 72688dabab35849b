"""A model on paper: its layers in execution order, its weights, and the values that flow between them.

All figures are for one micro-batch of ``batch_size`` samples.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Graph", "Layer", "Loss", "Note", "Value", "Weight", "Work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the operators of one family do in a layer's forward pass.

    FLOPs count a multiply-add as two; traffic counts every operand once, read or written, in bytes.
    """

    family: str
    """gemm, attention, convolution, normalization, softmax, elementwise, reduction, embedding, copy or other"""
    dtype: str
    """data-type name as torch spells it: float32, bfloat16, ..."""
    num_calls: int
    flops: int
    traffic_bytes: int
    operator: str = ""
    """torch's name of the operator (addmm, gelu); empty: several of the family together"""
    shape: tuple[int, ...] = ()
    """of one call; products: batch, m, n, k (m x k times k x n); convolutions: samples, channels in, channels out,
    elements of an input channel, of an output channel, of the kernel, groups; attention: batch x heads, queries, keys,
    head size; softmax and normalization: rows, elements of a row; others: tensors read, elements written;
    empty: unknown"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter or a buffer; a tied one appears once, under its first name."""

    name: str
    num_elements: int
    bytes: int
    dtype: str
    is_buffer: bool
    trainable: bool
    most_devices: int | None = None
    """that can divide it where they share the layers of a stage, 1 if they all keep it whole; None: not known"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The smallest unit that is placed."""

    name: str
    """as users know it: ``transformer.h.3.mlp``"""
    weights: tuple[int, ...]
    """indices into ``Graph.weights``; a tied weight is listed by every layer that uses it"""
    work: tuple[Work, ...]
    saved_bytes: int
    """kept from forward for backward, weights excluded, each storage charged to the first layer that saves it"""
    peak_bytes: int
    """most bytes alive at once while the layer runs forward without grad: its inputs, intermediates and outputs,
    not the weights and not the values that only pass by"""
    signature: str
    """equal for two layers that do the same work on the same shapes (repeated blocks)"""
    backward_bytes: int = 0
    """the most that the layer's backward (or its forward, inputs included) needs beyond what is saved: gradients of its
    values, temporaries, and a weight's new gradient until it is added to the one that is there; 0: not known"""
    first_backward_bytes: int = 0
    """the same where no weight has a gradient yet, so that the new ones stay"""
    cache_bytes_per_token: int | None = None
    """keys and values of one token of a sequence, where that is known; None: by its fused attention"""
    reruns: bool = True
    """where its stage recomputes, its inputs are kept and its forward is run again; False: it keeps what it saves, as
    it may save nothing, is the user's own code, or writes to what comes in"""

    @property
    def flops(self) -> int:
        """Forward FLOPs of one micro-batch."""
        return sum(work.flops for work in self.work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor that flows between layers.

    ``producer`` is a layer index, or -1 for a model input.  ``consumers`` are layer indices in ascending order;
    ``len(graph.layers)`` stands for the model's output.  A cut at boundary k (before layer k) is crossed by every
    value with ``producer < k <= max(consumers)``.
    """

    name: str
    producer: int
    consumers: tuple[int, ...]
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    differentiable: bool
    """a gradient of the same size travels back across every cut that the value crosses, in training"""
    saved_by: int | None = None
    """the layer that is charged for keeping it for backward; None: no layer keeps it"""

    def crosses(self, boundary: int) -> bool:
        """Whether a cut before layer ``boundary`` makes this value travel."""
        return self.producer < boundary <= self.consumers[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is minimised in training, as the layer after the last; of one micro-batch."""

    saved_bytes: int
    """kept for backward, the model's outputs excluded"""
    backward_bytes: int
    """as of a layer"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that tracing has to tell: a demotion to another tracer, a hazard in the model's code."""

    code: str
    message: str
    suggestion: str = ""
    where: str = ""
    """the line of the model's code, if there is one: ``model.py:12 (if x.sum() > 0:)``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The layers of a model in execution order."""

    model: str
    fingerprint: str
    """hash of the architecture (module types, names, shapes and data types of weights), not of the weights"""
    training: bool
    batch_size: int
    layers: tuple[Layer, ...]
    weights: tuple[Weight, ...]
    values: tuple[Value, ...]
    legal_cuts: tuple[int, ...]
    """boundaries k (0 < k < len(layers)) at which the model may be cut"""
    tracer: str = "torch.export"
    """what captured it"""
    notes: tuple[Note, ...] = ()
    loss: Loss | None = None
    """None: not known"""

    def __post_init__(self) -> None:
        num_layers = len(self.layers)
        if not num_layers:
            raise ValueError("a graph needs at least one layer")
        names = {layer.name for layer in self.layers}
        if len(names) != num_layers:
            raise ValueError("layer names must differ")
        for layer in self.layers:
            if any(not 0 <= index < len(self.weights) for index in layer.weights):
                raise ValueError(f"layer {layer.name} refers to a weight that is not there")
        for value in self.values:
            if not value.consumers or tuple(sorted(set(value.consumers))) != value.consumers:
                raise ValueError(f"value {value.name}: consumers must ascend and not be empty")
            if not -1 <= value.producer < value.consumers[0] or value.consumers[-1] > num_layers:
                raise ValueError(f"value {value.name}: consumed before it is produced, or outside the graph")
        if any(not 0 < cut < num_layers for cut in self.legal_cuts):
            raise ValueError("a legal cut lies between two layers")

    @property
    def num_parameters(self) -> int:
        """Number of parameter elements, tied ones once, buffers not."""
        return sum(weight.num_elements for weight in self.weights if not weight.is_buffer)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters and buffers, tied ones once."""
        return sum(weight.bytes for weight in self.weights)

    @property
    def flops(self) -> int:
        """Forward FLOPs of one micro-batch."""
        return sum(layer.flops for layer in self.layers)

    def crossing(self, boundary: int) -> tuple[Value, ...]:
        """The values that travel when the model is cut before layer ``boundary``."""
        return tuple(value for value in self.values if value.crosses(boundary))
