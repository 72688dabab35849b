"""The fastest chain of stages, and a bound that nothing is faster than."""
