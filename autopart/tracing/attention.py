"""What is to be said of attention that is traced in other operators than inference takes."""

from __future__ import annotations

from torch import nn

from autopart.fusedattention import fusing
from autopart.schema.graph import Note

__all__ = ["attention_notes"]


def attention_notes(model: nn.Module, *, training: bool) -> tuple[Note, ...]:
    """A note if the unsplit model may take torch's fused attention for inference."""
    found = () if training else fusing(model)
    if not found:
        return ()
    some = ", ".join(found[:2]) + (", ..." if len(found) > 2 else "")
    return (
        Note(
            code="attention-in-parts",
            message=f"torch's fused attention for inference cannot be traced: {some} ({len(found)} in all) take the "
            "operators of training, so without gradients the outputs differ from the unsplit model's by rounding",
            suggestion="nothing to do; torch.backends.mha.set_fastpath_enabled(False) lets the unsplit model do so too",
        ),
    )
