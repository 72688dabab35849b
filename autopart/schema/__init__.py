"""Things: data on paper.  Frozen dataclasses, JSON on disk, no torch."""
