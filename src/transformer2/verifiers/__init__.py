"""Verifiers: from a completion's text to a verdict. `verify_all` is the edge where a verifier's failure is caught."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from transformer2.types import Example, Verdict

Verify = Callable[[Example, str], Verdict]


def verify_all(verify: Verify, examples: Sequence[Example], completions: Sequence[str]) -> list[Verdict]:
    """One verdict per completion, in order.

    A verifier that raises, or returns anything but a verdict with a finite reward, gives reward None: the row is left
    out of the update and counted. An exception is never a reward.
    """
    return [_verify_one(verify, e, text) for e, text in zip(examples, completions, strict=True)]


def _verify_one(verify: Verify, example: Example, completion: str) -> Verdict:
    try:
        verdict = verify(example, completion)
    except Exception as e:
        return Verdict(None, False, None, f"verifier raised {type(e).__name__}: {e}")
    if not isinstance(verdict, Verdict) or (verdict.reward is not None and not math.isfinite(verdict.reward)):
        return Verdict(None, False, None, f"verifier returned {verdict!r}")
    return verdict
