"""torch's stage, its messages as slow as emulated links are."""

from __future__ import annotations

from typing import Any

from torch.distributed.pipelining import PipelineStage

from autopart.running.emulating.limitedlinks import LimitedLinks, Way

__all__ = ["LimitedStage"]


class LimitedStage(PipelineStage):
    """torch's stage, which tells ``links`` of its messages where there are any."""

    links: LimitedLinks | None = None

    def get_fwd_recv_ops(self, microbatch: int) -> Any:
        """As torch's."""
        self._post("forward", self.stage_index - 1, microbatch, sends=False)
        return super().get_fwd_recv_ops(microbatch)

    def get_fwd_send_ops(self, microbatch: int) -> Any:
        """As torch's."""
        self._post("forward", self.stage_index, microbatch, sends=True)
        return super().get_fwd_send_ops(microbatch)

    def get_bwd_recv_ops(self, microbatch: int) -> Any:
        """As torch's."""
        self._post("backward", self.stage_index, microbatch, sends=False)
        return super().get_bwd_recv_ops(microbatch)

    def get_bwd_send_ops(self, microbatch: int) -> Any:
        """As torch's."""
        self._post("backward", self.stage_index - 1, microbatch, sends=True)
        return super().get_bwd_send_ops(microbatch)

    def await_message(self, way: Way, microbatch: int) -> None:
        """Before a micro-batch is computed: returns when what it needs would have come."""
        if self.links is not None:
            self.links.wait(way, self.stage_index - (way == "forward"), microbatch)

    def _post(self, way: Way, cut: int, microbatch: int, *, sends: bool) -> None:
        if self.links is not None:
            self.links.post(way, cut, microbatch, sends=sends)
