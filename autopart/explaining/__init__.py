"""What explaining a plan takes the model for: a layer's costs, and the next best cuts."""

from autopart.explaining.cuts import layer_terms, next_best, stage_of, with_advice

__all__ = ["layer_terms", "next_best", "stage_of", "with_advice"]
