"""The hostile corpus, in an outer jail, as an unprivileged user (`nox -s sandbox`): none passes or leaves a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.sandbox


@pytest.mark.parametrize("without", [(), ("--without", "namespaces")], ids=["full", "no-namespaces"])
def test_no_hostile_program_passes_or_leaves_anything_behind(
    jailed: Callable[..., dict[str, object]], without: tuple[str, ...]
) -> None:
    found = jailed(*without)
    outcomes = found["outcomes"]
    assert isinstance(outcomes, list) and found["refused"] is None
    hostile = [o for o in outcomes if o["kind"] != "honest"]
    honest = [o for o in outcomes if o["kind"] == "honest"]
    print(found["level"], Counter((o["kind"], o["outcome"]) for o in outcomes))
    assert len(hostile) >= 40 and [o for o in hostile if o["outcome"] == "passed"] == []
    assert len(honest) >= 10 and [o for o in honest if o["outcome"] != "passed"] == []
    # A program that could not be judged was not judged right either: attacks must not look like our own failures.
    assert [o for o in outcomes if o["outcome"] == "infra_error"] == []
    assert found["left"] == {"files": [], "processes": [], "sockets": [], "shared": []}
    assert found["level"] == ("no-namespaces" if without else "full")
