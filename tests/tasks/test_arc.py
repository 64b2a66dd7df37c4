"""ARC on its real rows: every gold accepted as people write it, every altered gold refused; schemas and odd rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rows import write_rows

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.tasks._rows import load_rows
from transformer2.types import Example

EASY, CHALLENGE = tasks.get("arc_easy"), tasks.get("arc_challenge")
SIZES = {
    ("arc_easy", "train"): 2251,
    ("arc_easy", "validation"): 570,
    ("arc_easy", "test"): 2376,
    ("arc_challenge", "train"): 1056,  # of 1119: the local copy lacks some
    ("arc_challenge", "test"): 1172,
}
NUMBERED = {("arc_easy", "train"): 102, ("arc_easy", "validation"): 21, ("arc_easy", "test"): 97}
ROW = {
    "id": "X_1",
    "question": "Which is a gas?",
    "choices": {"text": ["iron", "oxygen", "salt"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}


def right(example: Example) -> dict[str, str]:
    """The gold option in the usual phrasings."""
    letter, text = example.answer, example.fields["options"][example.answer]
    start = "First we look at each option.\n"
    phrasings = {
        "asked for": f"{start}The answer is ({letter}).",
        "letter alone": letter,
        "bold": f"{start}**{letter}**",
        "letter and text": f"{start}{letter}. {text}",
        "first line": f"{letter}. {text}\n\nThis follows from the laws of physics.",
        "boxed": rf"{start}So \boxed{{{letter}}}.",
        "boxed text": rf"{start}So \boxed{{\text{{{text}}}}}.",
        "text": f"{start}The correct answer is: {text}",
        "text alone": text,
        "letter, then text": f"The correct answer is **{letter}) {text}**",
        "option": f"The correct option is {letter}. {text}",
        "turned round": f"{start}Therefore, {letter} is the correct answer.",
        "reason": f"The answer is {letter} because nothing else fits.",
        "heading": f"**Final Answer**\n\n({letter})",
        "marker": f"{start}#### {letter}",
    }
    for key, value in example.fields["keys"].items():
        if value == letter:
            phrasings |= {"number": f"The answer is {key}.", "number alone": f"({key})"}
    return phrasings


def wrong(example: Example) -> dict[str, str]:
    """The gold option altered."""
    options, letter = example.fields["options"], example.answer
    text = options[letter]
    other = next(o for o in (*options, *options) if o > letter or letter == max(options))
    return {
        "other letter": f"The answer is ({other}).",
        "two letters": f"The answer is ({letter}) ({other}).",
        "B or C": f"The answer is {letter} or {other}.",
        "C or B": f"The answer is {other} or {letter}.",
        "all letters": f"The answer is {', '.join(options)}.",
        "all letters, a line each": "\n".join(options),
        "all options": "\n".join(f"({o}) {t}" for o, t in options.items()),
        "only in the reasoning": f"Option {letter} is worth a look, since {text} comes up in class.",
        "empty": "",
        "cut in the answer": f"The answer is ({letter}",
        "cut in the text": f"The answer is {text[: max(2, len(text) // 2)]}" if len(text) > 2 else "The answer is",
        "other text": f"The answer is {options[other]}",
        "letter with other text": f"The answer is ({letter}) {options[other]}",
        "letter, other text": f"The answer is {letter}. {options[other]}",
        "article": f"The answer is {letter.lower()} thing.",
        "not B": f"The answer is not {letter}.",
        "letter outside": "The answer is (J).",
        "taken back": f"The answer is {letter}.\nOn second thoughts, no.\nThe answer is {other}.",
    }


# Every fifth row of one split is enough for every day; all of them are a matter of `nox -s gold`.
SPLITS = [("arc_easy", "validation", 5), *(pytest.param(*key, 1, marks=pytest.mark.gold) for key in SIZES)]


@pytest.mark.parametrize(("name", "split", "step"), SPLITS)
def test_every_gold_is_accepted_and_every_altered_gold_refused(
    name: str, split: str, step: int, real_data: Path
) -> None:
    task, phrased, accepted = tasks.get(name), Counter(), Counter()
    refused_gold = []
    examples = task.examples(split, str(real_data))
    assert len(examples) == SIZES[name, split]
    for example in examples[::step]:
        for variant, text in right(example).items():
            phrased[variant] += 1
            if not task.verify(example, text).correct:
                refused_gold.append((example.id, variant))
        for variant, text in wrong(example).items():
            accepted[variant] += task.verify(example, text).correct
    n = len(examples[::step])
    numbered = NUMBERED.get((name, split), 0) if step == 1 else phrased["number"]
    assert len(phrased) == 15 + 2 * bool(numbered)
    assert phrased == {v: numbered if "number" in v else n for v in phrased}
    assert len(accepted) == 18 and accepted == dict.fromkeys(accepted, 0)
    # One question has the options (A) C, (B) NO2, (C) O2, (D) CO: a lone "C" is carbon or the third option.
    ambiguous = {("arc_challenge", "test"): {"letter alone", "bold", "boxed", "reason", "marker"}}
    assert {variant for _, variant in refused_gold} == ambiguous.get((name, split), set())
    assert len({row for row, _ in refused_gold}) == bool(refused_gold)


@pytest.mark.parametrize(("name", "split"), SIZES)
def test_rows_become_lettered_questions(name: str, split: str, real_data: Path) -> None:
    rows = load_rows(name, split, str(real_data), "allenai/ai2_arc")
    examples = tasks.get(name).examples(split, str(real_data))
    assert {len(e.fields["options"]) for e in examples} <= {3, 4, 5}
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        key = row["choices"]["label"].index(row["answerKey"])
        assert example.id == f"{name}/{split}/{i}" and example.answer == "ABCDE"[key]
        assert example.fields["options"][example.answer] == row["choices"]["text"][key].strip()
        system, user = example.messages
        assert system["role"] == "system" and user["content"].startswith(row["question"].strip())
        assert all(f"\n({o}) {t}" in user["content"] for o, t in example.fields["options"].items())


def test_numbered_and_five_options(tmp_path: Path) -> None:
    five = {"text": list("vwxyz"), "label": list("12345")}
    (example,) = CHALLENGE.examples(
        "test", write_rows(tmp_path, "test.jsonl", {**ROW, "choices": five, "answerKey": "5"})
    )
    assert example.answer == "E" and dict(example.fields["keys"])["5"] == "E"
    assert [CHALLENGE.verify(example, t).correct for t in ("The answer is (E)", "5", "z", "(F)", "6")] == [
        1,
        1,
        1,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "arc_easy/test/1: field 'question' is None"),
        ({"answerKey": "D"}, "arc_easy/test/1: field 'answerKey' is 'D', none of A, B, C"),
        ({"answerKey": ""}, "arc_easy/test/1: field 'answerKey' is ''"),
        ({"choices": ["iron"]}, "arc_easy/test/1: field 'choices' is ['iron']"),
        ({"choices": {"text": ["iron"]}}, "arc_easy/test/1, choices: field 'label' is missing"),
        (
            {"choices": {"text": ["a", "b"], "label": ["A"]}},
            "arc_easy/test/1: field 'choices' has labels A for 2 texts",
        ),
        ({"choices": {"text": ["a", " "], "label": ["A", "B"]}}, "arc_easy/test/1: field 'choices' holds an option"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "A"]}, "answerKey": "A"}, "has labels A, A for 2 texts"),
    ],
)
def test_odd_rows_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as e:
        EASY.examples("test", write_rows(tmp_path, "test.jsonl", ROW, {**ROW, **change}))
    assert message in str(e.value) and "\n" not in str(e.value)


def test_unknown_splits_are_named() -> None:
    with pytest.raises(DataError, match="arc_easy has no split 'dev'; its splits are train, validation, test"):
        EASY.examples("dev")
