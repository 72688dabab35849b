"""Do the layers' times add up to the whole model's, and how long does costing a large model take?

    python -m tests.benchmarks.profiling [--json] [--pairs N] [MODEL ...]

The layers of GPT-2, ResNet-50 and ViT are run as `autopart profile` runs them and the unsplit model as its user would,
in turn, on one thread, timed by processor time of that thread: a machine that drifts, or that others use too, meets
both alike.  A row is the median of (sum of the layers) / (whole model) over the pairs, and its quartiles.  Below it the
costing of a Llama of 70B shape for twelve kinds of the catalogue, in processor seconds from the Graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from autopart.profiling import estimate, kinds
from autopart.profiling.measuring.layerwise import layer_runner
from autopart.profiling.measuring.timing import num_threads_set
from autopart.profiling.measuring.weights import kept, weights_on
from autopart.tracing import trace

NUM_KINDS = 12
GOAL, COSTING_GOAL_SECONDS = 0.05, 10.0
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Layers against the whole model; seconds are medians."""

    model: str
    mode: str
    num_layers: int
    pairs: int
    layers_seconds: float
    whole_seconds: float
    ratio: float
    """median over the pairs"""
    low: float
    high: float
    goal: str = f"within {GOAL:.0%}"


def gpt2() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    return model, {"input_ids": torch.randint(0, 50_257, (2, 128))}


def resnet50() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig()), {"pixel_values": torch.rand(4, 3, 224, 224)}


def vit() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig()), {"pixel_values": torch.rand(4, 3, 224, 224)}


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    "gpt2": gpt2, "resnet50": resnet50, "vit": vit,
}  # fmt: skip


def main() -> None:
    """Prints the tables, or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"some of {', '.join(MODELS)}; default: all")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs, after one that warms up")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    with num_threads_set(1):
        rows = [
            compared(name, training=training, pairs=options.pairs)
            for name in options.models or MODELS
            for training in (False, True)
        ]
    costing = costing_seconds()
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "costing_cpu_seconds": costing}, indent=2))
        return
    print(tabulate([_printed(row) for row in rows], headers="keys", disable_numparse=True))
    print(f"\ncosting 70B, {NUM_KINDS} kinds, CPU seconds (goal <= {COSTING_GOAL_SECONDS:g}): "
          + ", ".join(f"{mode} {seconds:.2f}" for mode, seconds in costing.items()))


def compared(name: str, *, training: bool, pairs: int) -> Row:
    """One model in one mode."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.train(training)
    program = trace(model, (), inputs, training=training)
    weights = weights_on(program, CPU)
    layers = layer_runner(program, program.flatten_inputs((), inputs), weights, CPU, time.thread_time)
    found: list[tuple[float, float]] = []
    with kept(weights):
        for _ in range(1 + pairs):
            one = sum(map(sum, layers()))
            found.append((one, _whole_seconds(model, inputs, training)))
    found = found[1:]
    print(f"{name}, {'train' if training else 'infer'}: done", file=sys.stderr, flush=True)
    ratios = [one / other for one, other in found]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(
        model=name, mode="train" if training else "infer", num_layers=len(program.graph.layers), pairs=pairs,
        layers_seconds=statistics.median(one for one, _ in found),
        whole_seconds=statistics.median(other for _, other in found), ratio=middle, low=low, high=high,
    )  # fmt: skip


def _whole_seconds(model: nn.Module, inputs: dict[str, torch.Tensor], training: bool) -> float:
    """Forward, and in training backward from a gradient of ones; gradients are added to those that are there."""
    started = time.thread_time()
    with torch.set_grad_enabled(training):
        output: Any = model(**inputs)
    if training:
        output.logits.backward(torch.ones_like(output.logits))
    return time.thread_time() - started


def costing_seconds() -> dict[str, float]:
    """Mode → CPU seconds to estimate a Llama of 70B shape on twelve kinds, from its Graph."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config)
        tokens = torch.zeros(8, 2048, dtype=torch.long)
    graph = trace(model.to(torch.bfloat16), (), {"input_ids": tokens}, training=True).graph
    taken = {}
    for mode, training in (("infer", False), ("train", True)):
        started = time.process_time()
        for kind in kinds()[:NUM_KINDS]:
            estimate(graph, kind, training=training, optimizer="adamw" if training else "none")
        taken[mode] = time.process_time() - started
    return taken


def _printed(row: Row) -> dict[str, str | int]:
    return {
        "model": row.model, "mode": row.mode, "layers": row.num_layers, "pairs": row.pairs,
        "sum of layers s": f"{row.layers_seconds:.3f}", "whole s": f"{row.whole_seconds:.3f}",
        "sum / whole": f"{row.ratio:.3f}", "quartiles": f"{row.low:.3f} - {row.high:.3f}", "goal": row.goal,
    }  # fmt: skip


if __name__ == "__main__":
    main()
