from __future__ import annotations

import gc

import pytest

from autopart.cli.loading import THRESHOLDS, rare_collections


def test_garbage_is_collected_as_before_afterwards_whatever_happens() -> None:
    before = gc.get_threshold()
    with pytest.raises(ImportError), rare_collections():
        assert gc.get_threshold() == THRESHOLDS
        raise ImportError
    assert gc.get_threshold() == before
