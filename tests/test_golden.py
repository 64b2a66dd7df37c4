"""A refactor reproduces the golden reward curve."""

import pytest
from golden import compare, measure


@pytest.mark.slow  # nox -s golden compares two fresh processes
def test_golden_curve() -> None:
    """In a fresh process, without datasets and deepspeed, and in this one, whatever other tests left in it."""
    assert compare(again=measure).startswith("bit for bit")
