"""A refactor reproduces the golden reward curve."""

from golden import compare


def test_golden_curve() -> None:
    assert compare().startswith("bit for bit")
