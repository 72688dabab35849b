"""Imported once by the server from which every examination is forked, so that each starts in no time.

The first trace of a process costs seconds of imports and operator tables that it would otherwise spend again and again.
"""

from __future__ import annotations

import contextlib
import importlib

import torch

from tests.zoology.catalogue import find
from tests.zoology.examine import examine

torch.set_num_threads(1)  # no threads: they would not survive the fork
for _name in (
    "torch._dynamo", "torch.distributed.pipelining", "torch._inductor.config", "torch.utils.flop_counter",
    "transformers.modeling_utils", "transformers.generation", "transformers.masking_utils",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert", "transformers.models.clip.modeling_clip", "torchvision", "timm",
):  # fmt: skip
    with contextlib.suppress(ImportError):  # what is not installed is not examined either
        importlib.import_module(_name)
examine(find("unet:plain"), key="")
