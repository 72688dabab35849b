"""accelerate's infer_auto_device_map beside the planner, same model, same caps: where it fits, and how fast it is.

    python -m tests.benchmarks.device_maps [--json]

Two Llama-like models without weights, two devices each.  "smallest cap" is the least equal cap per device, over half
of the weights, at which all is on the two devices, for one sequence of 512 tokens: accelerate counts weights only, the
planner activations and buffers too.  "step" (batch 8) is what the cost model predicts for each map with as many
micro-batches as are best for it; accelerate's map is made with its ``get_balanced_memory`` under 14 GB each.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
from accelerate.utils import get_balanced_memory

from autopart.errors import InfeasibleError
from autopart.modelsource import Source, load
from autopart.verbs import plan_source

BLOCK = ["LlamaDecoderLayer"]
SHARES = [share / 100 for share in range(100, 201, 2)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and two devices."""

    name: str
    devices: str
    names: tuple[str, str]
    config: dict[str, int]


CASES = (
    Case(name="8 wide blocks, 2 x L4", devices="2xl4", names=("l4:0", "l4:1"),
         config={"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 8, "vocab_size": 32_000}),
    Case(name="24 blocks, L4 and T4", devices="1xl4,1xt4", names=("l4:0", "t4:0"),
         config={"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "vocab_size": 32_000}),
)


def source_of(case: Case, folder: Path) -> Source:
    """The model on the meta device, with a batch of 8 sequences."""
    config: dict[str, object] = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 16,
        "num_key_value_heads": 16, "tie_word_embeddings": False, "max_position_embeddings": 512, **case.config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return load(f"hf:{folder}", dtype="float16")


def theirs_fits(source: Source, caps: dict[int | str, int]) -> bool:
    """Whether accelerate leaves nothing to the CPU."""
    device_map = accelerate.infer_auto_device_map(
        source.model, max_memory={**caps, "cpu": 10**12}, no_split_module_classes=BLOCK
    )
    return "cpu" not in device_map.values()


def ours_fits(source: Source, case: Case, cap: int) -> bool:
    """Whether there is a plan under the cap."""
    try:
        plan_source(source, devices=case.devices, max_memory=[f"{name}={cap}" for name in case.names], batch=1,
                    verify=False)
    except InfeasibleError:
        return False
    return True


def smallest(fits: Any, half_bytes: float) -> float | None:
    """The first share of half the weights at which it fits."""
    low, high = 0, len(SHARES)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(int(SHARES[middle] * half_bytes)) else (middle + 1, high)
    return SHARES[low] if low < len(SHARES) else None


def their_step(source: Source, case: Case, layers: Sequence[str]) -> float:
    """Predicted step of accelerate's balanced map: everything pinned where the map has it."""
    caps = get_balanced_memory(source.model, max_memory={0: 14 * 10**9, 1: 14 * 10**9, "cpu": 10**12},
                               no_split_module_classes=BLOCK)
    device_map = accelerate.infer_auto_device_map(source.model, max_memory=caps, no_split_module_classes=BLOCK)
    # a prefix without a layer of its own (rotary tables, a norm) cannot be pinned; its work is in a neighbour
    pins = tuple(
        (prefix, case.names[int(word)]) for prefix, word in device_map.items()
        if any(f"{layer}.".startswith(f"{prefix}.") for layer in layers)
    )
    return plan_source(source, devices=case.devices, batch=8, verify=False, pins=pins).prediction.step_seconds


def measured(case: Case) -> dict[str, object]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        source = source_of(case, Path(folder))
        half = sum(each.numel() * each.element_size() for each in source.model.parameters()) / 2
        plan = plan_source(source, devices=case.devices, batch=8, verify=False)
        ours = plan.prediction.step_seconds
        theirs = their_step(source, case, [name for stage in plan.stages for name in stage.layers])
        return {
            "case": case.name,
            "their_smallest_cap": smallest(lambda cap: theirs_fits(source, {0: cap, 1: cap}), half),
            "our_smallest_cap": smallest(lambda cap: ours_fits(source, case, cap), half),
            "their_step_seconds": theirs, "our_step_seconds": ours, "factor": theirs / ours,
        }


def main() -> None:
    """Prints a table, or JSON."""
    rows = [measured(case) for case in CASES]
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'case':28}{'smallest cap: theirs':>22}{'ours':>7}{'step: theirs':>15}{'ours':>10}{'factor':>8}")
    for row in rows:
        their, our = (float(str(row[name])) * 1e3 for name in ("their_step_seconds", "our_step_seconds"))
        print(f"{row['case']:28}{row['their_smallest_cap']!s:>22}{row['our_smallest_cap']!s:>7}"
              f"{their:>12.1f} ms{our:>7.1f} ms{row['factor']:>8.2f}")


if __name__ == "__main__":
    main()
