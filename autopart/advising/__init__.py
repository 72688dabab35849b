"""What would make a plan better, and what would change it: each solved or simulated; no torch here."""

from autopart.advising.advice import advised

__all__ = ["advised"]
