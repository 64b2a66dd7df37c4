"""MATH on its real rows: every gold accepted, every altered gold refused; splits; sources and their faults."""

from __future__ import annotations

import re
import sys
import types
from collections import Counter

import pytest
from rows import write_rows

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.tasks._rows import load_rows
from transformer2.tasks.math import BY_SUBJECT, HUB, MATH, REVISIONS, SUBJECTS
from transformer2.verifiers import verify_all

TASK = tasks.get("math")
ROW = {"problem": "How many?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\frac{1}{2}}$."}

# Rows whose own solution is refused, and why: it boxes what the question wants listed in different places, ...
SCATTERED = {f"math/test/{i}" for i in (2152, 2656, 4562)}
# ... or it boxes both of two points where the question wants either; as everywhere, the last one is the gold.
EITHER = {f"math/test/{i}" for i in (2716, 2912)}

NUMBER = re.compile(r"\d+")
SWAPS = {"A": "B", "B": "C", "x": "y", "a": "b", "Saturday": "Sunday", "even": "odd", "odd": "even"}


def one_more(gold: str) -> str | None:
    return NUMBER.sub(lambda m: str(int(m[0]) + 1), gold, count=1) if NUMBER.search(gold) else None


def other_sign(gold: str) -> str | None:
    if gold == "0" or not re.fullmatch(r"-?[\d.]+|-?\\[dt]?frac\{\d+\}\{\d+\}|-?\d*\\sqrt\{?\d+\}?|-?\d*\\pi", gold):
        return None
    return gold[1:] if gold[0] == "-" else "-" + gold


def swapped_letter(gold: str) -> str | None:
    words = [w for w in re.findall(r"(?<!\\)\b[A-Za-z]+\b", gold) if w in SWAPS and "\\" + w not in gold]
    return re.sub(rf"\b{words[0]}\b", SWAPS[words[0]], gold) if words else None


def swapped_digits(gold: str) -> str | None:
    return f"{gold[1]}{gold[0]}" if re.fullmatch(r"[1-9]\d", gold) and gold[0] != gold[1] else None


def turned_fraction(gold: str) -> str | None:
    turned = re.sub(r"\\([dt]?)frac\{([^{}]+)\}\{([^{}]+)\}", r"\\\1frac{\3}{\2}", gold, count=1)
    return None if turned == gold else turned


def other_unit(gold: str) -> str | None:
    changed = re.sub(r"\^\{?\\circ\}?$", r"\%", gold)
    changed = re.sub(r"(?<=\d)\s*\\%$", r"^\\circ", gold) if changed == gold else changed
    changed = re.sub(r"^\\\$\s*(.*)", r"\1\\text{ cents}", gold) if changed == gold else changed
    if changed == gold and "m." not in gold:
        changed = re.sub(r"(?<=[\d}])(\s|\\,)*\\(text|mbox)\s*\{[ a-z]+\}(\^[23])?$", r"\\text{ parsecs}", gold)
    return None if changed == gold else changed


def rounded(gold: str) -> str | None:
    fraction = re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", gold)
    if not fraction or 10**6 * int(fraction[2]) % int(fraction[3]) == 0:
        return None
    return f"{fraction[1]}{int(fraction[2]) / int(fraction[3]):.6f}"


ALTERED = {
    "one number changed": one_more,
    "other sign": other_sign,
    "swapped letter": swapped_letter,
    "swapped digits": swapped_digits,
    "numerator and denominator swapped": turned_fraction,
    "other unit": other_unit,
    "rounded": rounded,
    "one added": lambda gold: None if re.search(r"text|mbox|[=,<_:]|matrix|^[A-Z]$|infty", gold) else f"{gold} + 1",
    "an extra answer listed": lambda gold: f"{gold}, 9173",
    "an alternative": lambda gold: rf"{gold} \text{{ or }} 9173",
}
ELSEWHERE = {
    "only in the reasoning": lambda gold: f"We find ${gold}$ and are done.",
    "empty": lambda gold: "",
    "an empty box": lambda gold: r"So it is $\boxed{}$.",
    "cut inside the box": lambda gold: rf"So it is $\boxed{{{gold}",
    "a second box with another answer": lambda gold: rf"\boxed{{{gold}}} or \boxed{{9173}}",
    "taken back": lambda gold: rf"It is \boxed{{{gold}}}. No, that was wrong, it is \boxed{{9173}}.",
}


def boxed(answer: str) -> str:
    return rf"So it is $\boxed{{{answer}}}$."


@pytest.fixture(scope="module")
def real(real_data):
    rows = load_rows("math", "test", str(real_data), HUB)
    return TASK.examples("test", str(real_data)), [row["solution"] for row in rows]


def refused(examples, texts) -> set[str]:
    verdicts = verify_all(TASK, examples, texts)
    assert {v.reward for v in verdicts} <= {1.0, -1.0}  # no infra error
    return {e.id for e, v in zip(examples, verdicts, strict=True) if not v.correct}


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.gold), 10])
def test_every_gold_is_accepted(real, step):
    examples, solutions = (whole if step == 1 else whole[2::step] for whole in real)
    assert len(examples) == 5000 // step
    assert refused(examples, solutions) == (SCATTERED | EITHER) & {e.id for e in examples} != set()
    assert refused(examples, [boxed(e.answer) for e in examples]) == set()
    assert refused(examples, [f"Hence the answer is ${e.answer}$." for e in examples]) == set()


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 25])
def test_every_altered_gold_is_refused(real, step):
    examples = real[0][6::step] if step > 1 else real[0]
    pairs = [
        (name, e, text)
        for e in examples
        for name, alter in (ALTERED | ELSEWHERE).items()
        if (altered := alter(e.answer)) is not None
        for text in [altered if name in ELSEWHERE else boxed(altered)]
    ]
    verdicts = verify_all(TASK, [e for _, e, _ in pairs], [text for _, _, text in pairs])
    tried = Counter(name for name, _, _ in pairs)
    passed = [(n, e.id, e.answer, v.extracted) for (n, e, _), v in zip(pairs, verdicts, strict=True) if v.correct]
    assert {v.reward for v in verdicts} <= {1.0, -1.0}
    assert passed == []
    assert step > 1 or tried == {
        **dict.fromkeys([*ELSEWHERE, "an extra answer listed", "an alternative"], 5000),
        "one number changed": 4912,
        "one added": 4441,
        "other sign": 3829,
        "swapped digits": 1033,
        "numerator and denominator swapped": 732,
        "rounded": 329,
        "other unit": 163,
        "swapped letter": 96,
    }


def test_splits_and_prompts(tmp_path):
    rows = [{**ROW, "problem": f"How many of {i}?"} for i in range(300)]
    folder = write_rows(tmp_path, "train.jsonl", *rows)
    write_rows(tmp_path, "test.jsonl", ROW)
    splits = {s: TASK.examples(s, folder) for s in TASK.splits}
    sizes = {s: len(e) for s, e in splits.items()}
    assert sizes["test"] == 1 and sizes["train"] + sizes["validation"] == 300 and 10 <= sizes["validation"] <= 30
    asked = {s: {e.messages[-1]["content"] for e in ex} for s, ex in splits.items()}
    assert not asked["train"] & asked["validation"] and len({e.id for ex in splits.values() for e in ex}) == 301
    (example,) = splits["test"]
    assert [m["role"] for m in example.messages] == ["system", "user"] and r"\boxed{}" in example.messages[0]["content"]
    assert example.answer == r"\frac{1}{2}" and example.fields["level"] == "Level 1"
    assert TASK.verify(example, r"\boxed{0.5}").correct and not TASK.verify(example, "0.5").correct


def test_answers_boxed_one_by_one_are_all_wanted(tmp_path):
    wanted = "Find all x. Enter all the solutions, separated by commas."
    solution = r"So $x = \boxed{1}$ and then $x = \boxed{2}$."
    folder = write_rows(
        tmp_path, "test.jsonl", {**ROW, "solution": solution}, {**ROW, "problem": wanted, "solution": solution}
    )
    last, listed = TASK.examples("test", folder)
    assert (last.answer, listed.answer) == ("2", "1, 2")
    (row,) = TASK.examples(
        "test", write_rows(tmp_path, "test.jsonl", {**ROW, "problem": wanted, "solution": r"\boxed{70,110}"})
    )
    assert TASK.verify(row, r"\boxed{110, 70}").correct and not TASK.verify(row, r"\boxed{70110}").correct


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "problem": ""}, "math/test/0: field 'problem' is ''"),
        ({**ROW, "level": 3}, "math/test/0: field 'level' is 3"),
        ({k: v for k, v in ROW.items() if k != "solution"}, "math/test/0: field 'solution' is missing"),
        ({**ROW, "solution": "It is 5."}, "math/test/0: field 'solution' has no \\boxed{answer}"),
        ({**ROW, "solution": r"\boxed{"}, "math/test/0: field 'solution' has no \\boxed{answer}"),
    ],
)
def test_odd_rows_are_named(tmp_path, row, message):
    with pytest.raises(DataError) as e:
        TASK.examples("test", write_rows(tmp_path, "test.jsonl", row))
    assert message in str(e.value) and "\n" not in str(e.value)


def test_sources_are_named(tmp_path):
    with pytest.raises(DataError, match="no split 'dev'"):
        TASK.examples("dev", str(tmp_path))
    write_rows(tmp_path, "test.jsonl", ROW)
    with pytest.raises(DataError, match=r"no math/train\.jsonl.*copy of DigitalLearningGmbH/MATH-lighteval"):
        TASK.examples("train", str(tmp_path))


@pytest.mark.parametrize("hub", [HUB, BY_SUBJECT])
def test_the_hub_is_asked_for_pinned_rows(monkeypatch, hub):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((*args, kwargs["split"], kwargs["revision"]))
        return [ROW]

    monkeypatch.setitem(
        sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=types.SimpleNamespace())
    )
    examples = MATH(hub).examples("test")
    configs = SUBJECTS if hub == BY_SUBJECT else [None]
    assert asked == [(hub, config, "test", REVISIONS[hub]) for config in configs] and len(examples) == len(asked)
    assert MATH(hub, revision="abc").revision == "abc" and MATH("someone/else").revision is None
