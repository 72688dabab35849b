"""Two network namespaces train together, as two machines would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autopart.modelsource import load
from autopart.schema.store import save_plan
from tests.benchmarks.drillmodel import BATCH, data, loss_fn
from tests.benchmarks.faults import SOURCE, drill_plan
from tests.running.namespaces import two_hosts, why_not

STEPS, PORT = 4, 29613


def unsplit_losses() -> list[float]:
    """By plain torch, in one process."""
    model = load(SOURCE).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens, labels = data()
    losses = []
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad()
        loss = loss_fn(model(tokens[rows]), labels[rows])
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.timeout(240)  # 15 s of processor time; on a busy machine that is a minute
def test_two_hosts_train_together_through_torchruns_rendezvous(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(f"no network namespaces here: {reason}")
    save_plan(drill_plan(), tmp_path / "plan.json")
    with two_hosts() as hosts:
        launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two",
                    "--rdzv-endpoint", f"{hosts[0].address}:{PORT}"]  # fmt: skip
        words = ["train", str(tmp_path / "plan.json"), SOURCE, "--data", f"{SOURCE}:data", "--steps", str(STEPS),
                 "--lr", "0.01", "--no-shuffle", "--metrics", str(tmp_path / "metrics.jsonl"), "--json"]  # fmt: skip
        processes = [
            subprocess.Popen(
                host.command(sys.executable, "-m", "torch.distributed.run", *launcher, "--local-addr", host.address,
                             "--rdzv-conf", f"is_host={int(host is hosts[0])}",  # namespaces share a host name
                             "-m", "autopart.cli.main", *words),
                env=host.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for host in hosts
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=200) for process in processes]
        finally:
            for process in processes:
                process.terminate()  # torchrun then ends its rank
    assert [process.returncode for process in processes] == [0, 0], said
    (spoken,) = [json.loads(out) for out, _ in said if out]  # one rank speaks for all
    assert spoken["losses"] == pytest.approx(unsplit_losses(), rel=1e-5)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["loss"] for each in steps] == spoken["losses"]
