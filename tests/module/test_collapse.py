"""Signs of a collapse: silent while a policy learns, named once when it has collapsed, on real runs of a small model.

The runs are of the embedded model, from the command to the table."""

import json
from dataclasses import asdict

import pytest

from transformer2.module.collapse import Collapse

LEARNS = {"train/entropy": 0.5, "train/accuracy": 0.4, "train/finished": 1.0, "train/completion_length": 9.0}


def watched(*steps):
    """What is said over steps, each a change of the first."""
    collapse, said = Collapse(), []
    for step, change in enumerate(({}, *steps), 1):
        said.append(collapse.update(step, {**LEARNS, **{f"train/{name}": value for name, value in change.items()}}))
    return collapse, said


CERTAIN = {"entropy": 0.03, "accuracy": 0.5}
LONG = {"finished": 0.4, "completion_length": 64.0}


@pytest.mark.parametrize(
    ("steps", "sign", "words"),
    [
        ([CERTAIN] * 3, "entropy", "from 0.5 to 0.03 nats a token with 50% of the answers right"),
        ([LONG] * 3, "length", "40% of them end by themselves, 100% did at first"),
        ([{"kl": 1.2}], "KL", "1.2 nats a token"),
    ],
)
def test_each_sign_is_named_once_and_stands_until_it_is_over(steps, sign, words):
    collapse, said = watched(*steps, *steps)
    assert [bool(lines) for lines in said].count(True) == 1 and words in said[len(steps)][0]
    assert [*collapse.current_signs] == [sign]
    assert words in collapse.note(7) and "the expert is of step 7" in collapse.note(7)
    assert "no longer" not in collapse.note()
    over, _ = watched(*steps, {"kl": 0.1})
    assert not over.current_signs and "(no longer at the end)" in over.note() and words in over.note()


@pytest.mark.parametrize(
    "steps",
    [
        [{"entropy": 0.03, "accuracy": 0.95}] * 5,  # certain and right
        [{"entropy": 0.06, "accuracy": 0.5}] * 5,
        [CERTAIN, CERTAIN, {}, CERTAIN, CERTAIN],  # some bad batches
        [LONG, LONG, {}, LONG, LONG],
        [{"kl": 0.4}] * 5,
        [{"accuracy": 0.6}] * 3 + [{"kl": 3.0, "accuracy": 0.6}] * 3,  # another form of answer, and a better one
        [{"entropy": float("nan"), "accuracy": float("nan")}] * 5,  # no rewards at all: other alarms speak
    ],
    ids=str,
)
def test_learning_and_noise_are_no_collapse(steps):
    collapse, said = watched(*steps)
    assert not any(said) and not collapse.current_signs and collapse.note() is None


def test_a_budget_that_was_too_small_from_the_start_is_no_collapse():
    collapse = Collapse()
    for step in range(5):
        assert not collapse.update(step, {**LEARNS, "train/finished": 0.2})
    assert not collapse.ended_at_first


def test_a_resumed_run_says_the_same():
    whole, _ = watched(CERTAIN, CERTAIN, CERTAIN, {"kl": 2.0})
    for cut in range(5):
        first, _ = watched(*[CERTAIN] * min(cut, 3))
        again = Collapse(**json.loads(json.dumps(asdict(first))))
        for step in range(min(cut, 3) + 2, 6):
            change = {"train/kl": 2.0} if step == 5 else {f"train/{k}": v for k, v in CERTAIN.items()}
            again.update(step, {**LEARNS, **change})
        assert (again.note(), again.current_signs) == (whole.note(), whole.current_signs)
