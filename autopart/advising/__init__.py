"""What would make a plan better, and what would change it: each solved or simulated; no torch here."""

from autopart.advising.advice import Finder, advised
from autopart.advising.crossover import WORTH
from autopart.advising.whatif import Case, Problem

__all__ = ["WORTH", "Case", "Finder", "Problem", "advised"]
