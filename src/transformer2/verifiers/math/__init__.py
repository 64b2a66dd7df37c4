r"""Mathematical answers: is the one answer that a completion ends on the gold one, however it is written?

What counts is the last `\boxed{...}` (or `\fbox`, or `\boxed5`), or, without any box, what the last "answer is" says,
unless it is taken back behind that (`final`). One answer is demanded: a list is refused unless the gold answer is one;
boxes side by side are a list, and so is `6 or \boxed{5}`. Answers are compared in three stages, each only with what the
one before left open:

1. spelling: LaTeX brought to one form, units, and exact numbers (text work in linear time, in this process);
2. a refusal of what no final answer needs and a reader may choke on: length, nesting, long numbers, towers of
   exponents, anything not worked out, variables that the gold answer does not have;
3. values (`expression`), in worker processes that are killed after two seconds. Running out of time is a wrong answer:
   the model chose to write what cannot be checked.

What is decided for each kind, compared with the graders of MATH (Hendrycks et al. 2021), PRM800K, Minerva (Lewkowycz
et al. 2022, appendix) and math-verify 0.9; where they differ, the stricter reading holds, since a reward rests on it:

- Numbers are equal exactly: 0.5 is 1/2 and 0.\overline{3} is 1/3, but 0.333 is not (PRM800K; math-verify rounds). A
  mixed number is a sum, anything else side by side a product. Any form of an expression is accepted, factored or not
  (all four).
- Thousands: `2,100` and `2{,}100` are 2100, `2, 100` is a list; where the gold answer is a list, `2,100` may be one
  too.
- Units may be left out or added, but not exchanged, nor one power of them for another (Hendrycks drops them). A percent
  sign, a degree, a currency is a unit: 20% is 20, not 0.2. Words that change a number ("dozen", "thirds") are no units.
- Left-hand sides name the value (Minerva): `x =`, `f'(2) =`, `\bar{x} =`, `x + y =`, `x \in`, `x \approx`, and a point
  (`P(3,5)`). `2x = 5` does not say 5, and all sides of `2 + 3 = 5` must be equal. A gold `y = 2x` is `2x` too; other
  equations hold up to a factor. `x \equiv 5 \pmod 7` says 5. `(y,x) = (3,5)` is the point (5,3), and `y < 3` is not
  `x < 3`, though (-\infty,3) is both.
- Lists and sets have no order; points, intervals and matrices do, and their brackets count. A gold list that repeats a
  root wants it as often. `3 < x \le 4` is (3,4], an "or" of inequalities a union; `\pm` is two answers.
- pmatrix, bmatrix, matrix and array in brackets are one matrix; vmatrix is a determinant, Vmatrix a norm: another
  thing.
- Functions of real variables are equal where both are real: |x| is \sqrt{x^2}, and not x.
- A number in a base is its digits and its base: 52_8 is neither 52 nor 42. So is a ratio; 6:2 is not 3:1.
- `\text{(C)}`, `C` and `(C)\ 12` are the choice C; words are equal but for case, fonts and articles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from transformer2.sandbox.pool import Lost, WorkerPool, cores
from transformer2.sandbox.python import python_worker
from transformer2.types import Verdict
from transformer2.verifiers.math.final import final_expression
from transformer2.verifiers.math.latex import normal
from transformer2.verifiers.math.limits import refusal, unreadable
from transformer2.verifiers.math.parts import equal
from transformer2.verifiers.math.scalars import compare_scalars
from transformer2.verifiers.workers import batch_deadline

__all__ = ["SECONDS", "start_workers", "verify_math", "verify_math_many"]

SECONDS = 2.0  # of one answer


def verify_math(gold: str, completion: str) -> Verdict:
    """Whether the final answer of a completion equals the gold one; within about `SECONDS`, in any thread."""
    (verdict,) = verify_math_many([gold], [completion])
    return verdict


def verify_math_many(golds: Sequence[str], completions: Sequence[str], deadline: float | None = None) -> list[Verdict]:
    """Verdicts on many completions, side by side on the cores that this process may use.

    Args:
        golds: Gold answers in LaTeX.
        completions: The model's texts.
        deadline: Seconds for the whole batch; None takes twice what it may need at most.

    Raises:
        PoolError: The workers cannot be started, or die again and again.
    """
    verdicts = [_without_algebra(gold, text) for gold, text in zip(golds, completions, strict=True)]
    hard = [i for i, verdict in enumerate(verdicts) if isinstance(verdict, str)]
    if hard:
        pool = _pool()
        limit = batch_deadline(len(hard), SECONDS, pool.size) if deadline is None else deadline
        requests = [json.dumps([normal(golds[i]), normal(str(verdicts[i]))]).encode() for i in hard]
        for i, found in zip(hard, pool.map(requests, SECONDS, limit), strict=True):
            verdicts[i] = _with_algebra(golds[i], str(verdicts[i]), found)
    return [verdict for verdict in verdicts if isinstance(verdict, Verdict)]


def _without_algebra(gold: str, completion: str) -> Verdict | str:
    """The verdict of the first two stages; the answer as written when they leave it open."""
    if reason := unreadable(gold):
        return Verdict.failed(f"the gold answer {gold[:40]!r} cannot be read: {reason}")
    found = final_expression(completion)
    if found.value is None:
        return Verdict.of(False, None, found.reason)
    text = found.value.text
    if reason := unreadable(text):
        return Verdict.of(False, text[:80], f"refused: {reason}")
    expected, answer = normal(gold), normal(text)
    if answer == expected:
        return Verdict.of(True, text, "equal as written")
    if reason := refusal(expected, answer):
        return Verdict.of(False, text[:80], f"refused: {reason}")
    same = equal(expected, answer, compare_scalars)
    return text if same is None else Verdict.of(same, text, "equal" if same else f"expected {gold}")


def _with_algebra(gold: str, answer: str, found: bytes | Lost) -> Verdict:
    if found in (Lost.TIMEOUT, Lost.DIED):  # a model must not escape a verdict by an answer that kills its checker
        return Verdict.of(False, answer, f"could not be compared: {found.value}")
    if isinstance(found, Lost):
        return Verdict.failed(f"comparing {answer!r}: {found.value}")
    return Verdict.of(found == b"equal", answer, "equal" if found == b"equal" else f"expected {gold}")


def start_workers() -> None:
    """Start the processes that compare answers, without waiting for them."""
    _pool().start()


@cache
def _pool() -> WorkerPool:
    command, env = python_worker("transformer2.verifiers.math.worker")
    return WorkerPool(command, max(2, cores()), env=env)  # two: while one is replaced, the next answer has a warm one
