"""CPU time of the codecs on one core: ``python -m tests.benchmarks.codecs [--json]``.

Milliseconds per MiB of float32 activations, 4 x 128 x 768, to encode and to decode; medians of 7, with the most.
``pays_below_megabit_per_second`` is the link at which the bytes saved take as long as encoding and decoding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from tabulate import tabulate

from autopart.codecs import CODECS

NUM_REPEATS = 7


def milliseconds(work: Callable[[], object]) -> list[float]:
    """CPU time of each repeat."""
    work()
    found = []
    for _ in range(NUM_REPEATS):
        start = time.thread_time()
        work()
        found.append(1e3 * (time.thread_time() - start))
    return found


def main() -> None:
    """Prints the figures, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    value = torch.randn(4, 128, 768)
    mebibytes = value.nbytes / 2**20
    rows = []
    for name, codec in CODECS.items():
        wire = codec.encode(value)
        encode = milliseconds(lambda c=codec: c.encode(value))  # type: ignore[misc]
        decode = milliseconds(lambda c=codec, w=wire: c.decode(w, value.shape, value.dtype))  # type: ignore[misc]
        both = statistics.median(encode) + statistics.median(decode)
        rows.append({
            "codec": name, "ratio": value.nbytes / wire.nbytes,
            "encode_ms_per_mib": statistics.median(encode) / mebibytes, "most_encode": max(encode) / mebibytes,
            "decode_ms_per_mib": statistics.median(decode) / mebibytes, "most_decode": max(decode) / mebibytes,
            "pays_below_megabit_per_second": 8 * (value.nbytes - wire.nbytes) / 1e6 / (both / 1e3),
        })  # fmt: skip
    print(json.dumps(rows) if options.json else tabulate(rows, headers="keys", floatfmt=".2f"))


if __name__ == "__main__":
    main()
