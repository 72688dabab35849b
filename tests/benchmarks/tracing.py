"""What tracing costs: models of the largest shapes from config to Graph, and whether that is the full trace's Graph.

    python -m tests.benchmarks.tracing [--json] [--no-full] [CASE ...]

Every row is a process of its own: its CPU seconds with all imports, those of building and tracing, its peak resident
memory.  The baseline is the full trace (every block traced by itself) in the same run.  Goals: 15 CPU seconds for 80
layers, 20 for 126, 1.5 GB.  CPU seconds grow when others use the machine: the load average is printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

SHAPES: dict[str, dict[str, Any]] = {
    "llama-70b": {
        "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28_672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192,
    },
    "llama-405b": {
        "num_hidden_layers": 126, "hidden_size": 16_384, "intermediate_size": 53_248, "num_attention_heads": 128,
        "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192,
    },
}  # fmt: skip
BATCH, TOKENS = 8, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One traced model."""

    case: str
    way: str
    """once: equal blocks traced once; full: all"""
    cpu_seconds: float
    """of the process, imports included"""
    trace_cpu_seconds: float
    peak_bytes: int
    num_layers: int
    num_operators: int
    flops: int
    fingerprint: str
    """of everything in the Graph"""


def measure(case: str, way: str) -> Row:
    """In this process: build the model on the meta device and trace it."""
    import hashlib

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from autopart.tracing import repeats, trace

    if way == "full":
        repeats.FEWEST = 1 << 30
    before = time.process_time()
    with torch.device("meta"):
        config: Any = LlamaConfig(**SHAPES[case], use_cache=False, dtype="bfloat16")
        model: torch.nn.Module = LlamaForCausalLM(config)
        model = model.to(torch.bfloat16)
        tokens = torch.zeros(BATCH, TOKENS, dtype=torch.long)
    program = trace(model, (), {"input_ids": tokens}, training=False)
    after = time.process_time()
    return Row(
        case=case,
        way=way,
        cpu_seconds=after,
        trace_cpu_seconds=after - before,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        num_layers=len(program.graph.layers),
        num_operators=len(program.captured.graph.nodes),
        flops=program.graph.flops,
        fingerprint=hashlib.sha256(repr(program.graph).encode()).hexdigest()[:12],
    )


def in_process(case: str, way: str) -> Row:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.tracing", "--one", case, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints the rows, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--no-full", action="store_true", help="leave the baseline out: it takes minutes")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(*options.one))))
        return
    ways = ("once",) if options.no_full else ("once", "full")
    rows = [in_process(case, way) for case in options.cases for way in ways]
    if options.json:
        print(json.dumps({"load_average": os.getloadavg(), "rows": [asdict(row) for row in rows]}, indent=2))
        return
    full = {row.case: row for row in rows if row.way == "full"}
    table = [
        {
            "case": row.case, "way": row.way, "CPU s": row.cpu_seconds, "of it trace": row.trace_cpu_seconds,
            "full / this": full[row.case].trace_cpu_seconds / row.trace_cpu_seconds if row.case in full else None,
            "GB": row.peak_bytes / 1e9, "layers": row.num_layers, "operators": row.num_operators,
            "same Graph": row.fingerprint == full[row.case].fingerprint if row.case in full else None,
        }
        for row in rows
    ]  # fmt: skip
    print(tabulate(table, headers="keys", floatfmt=".2f"))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
