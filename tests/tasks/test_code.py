"""The programming tasks on real rows: reference solutions pass, altered ones fail; splits and odd rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rows import write_rows

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.tasks._code import check_tests
from transformer2.types import Example
from transformer2.verifiers import verify_all

BLOCK = "Here is the function.\n\n```python\n{}\n```\n"
PERTURB = """
def _other(v):
    if v is None: return 0
    if isinstance(v, bool): return not v
    if isinstance(v, (int, float, complex)): return v + 1
    if isinstance(v, str): return v + 'x'
    if isinstance(v, (list, tuple)): return v + type(v)([0])
    if isinstance(v, dict): return {**v, '_': 0}
    if isinstance(v, (set, frozenset)): return v | {'_'}
_old = NAME
def NAME(*a, **k): return _other(_old(*a, **k))
"""
CONSTANT = """
_old, _first = NAME, []
def NAME(*a, **k):
    _first or _first.append(_old(*a, **k))
    return _first[0]
"""


def solution(example: Example) -> str:
    return example.fields["prompt"] + example.answer


def altered(code: str, name: str) -> dict[str, str]:
    """Ten ways to be wrong, as completions."""
    broken = {
        "off by one": code + PERTURB.replace("NAME", name),
        "always the first answer": code + CONSTANT.replace("NAME", name),
        "returns nothing": code + f"\n_old = {name}\ndef {name}(*a, **k): _old(*a, **k)\n",
        "prints": code + f"\n_old = {name}\ndef {name}(*a, **k): print(_old(*a, **k))\n",
        "raises": code + f"\ndef {name}(*a, **k): raise ValueError\n",
        "another name": code + f"\n{name}_ = {name}\ndel {name}\n",
        "exits": code + f"\nimport sys\ndef {name}(*a, **k): sys.exit(0)\n",
        "cut off": code[: len(code) * 2 // 3].rstrip() + " (",
    }
    return {way: BLOCK.format(text) for way, text in broken.items()} | {
        "only said": f"The function {name} has to loop over its input and return the result.",
        "empty": "",
    }


def accepted(name: str, data: Path, splits: tuple[str, ...]) -> tuple[int, list[str]]:
    task = tasks.get(name)
    examples = [e for split in splits for e in task.examples(split, str(data))]
    verdicts = verify_all(task, examples, [BLOCK.format(solution(e)) for e in examples])
    return len(examples), [f"{e.id}: {v.reason}" for e, v in zip(examples, verdicts, strict=True) if not v.correct]


@pytest.mark.gold
@pytest.mark.parametrize(
    ("name", "splits", "n"),
    [
        ("humaneval", ("test",), 164),
        ("mbpp", ("train", "validation", "test", "few_shot"), 974),
        ("mbpp_sanitized", ("train", "validation", "test", "few_shot"), 427),
    ],
)
def test_every_reference_solution_passes(real_data: Path, name: str, splits: tuple[str, ...], n: int) -> None:
    assert accepted(name, real_data, splits) == (n, [])


@pytest.mark.gold
def test_bodies_pass_as_continuations(real_data: Path) -> None:
    task = tasks.get("humaneval")
    examples = task.examples("test", str(real_data))
    verdicts = verify_all(task, examples, [e.answer for e in examples])
    assert [e.id for e, v in zip(examples, verdicts, strict=True) if not v.correct] == []


@pytest.mark.gold
@pytest.mark.parametrize(("name", "every"), [("humaneval", 1), ("mbpp", 10)])
def test_altered_solutions_fail(real_data: Path, name: str, every: int) -> None:
    """humaneval: each solution in all ten ways; mbpp: each solution in one of the ten."""
    task = tasks.get(name)
    examples = [e for split in task.splits for e in task.examples(split, str(real_data))]
    cases = []
    for i, example in enumerate(examples):
        ways = altered(solution(example), example.fields["names"][-1])
        cases += [(example, way, text) for j, (way, text) in enumerate(ways.items()) if (i + j) % every == 0]
    verdicts = verify_all(task, [e for e, _, _ in cases], [text for _, _, text in cases])
    assert all(v.reward is not None for v in verdicts)
    counts = Counter(way for _, way, _ in cases)
    passed = {(e.id, way) for (e, way, _), v in zip(cases, verdicts, strict=True) if v.correct}
    print(f"{name}: {len(cases) - len(passed)} of {len(cases)} refused; {dict(counts)}; passed: {sorted(passed)}")
    assert passed == EXCEPTIONS[name]


# HumanEval/34 has one assertion: a function that always gives its first answer passes it.
EXCEPTIONS = {"humaneval": {("humaneval/test/34", "always the first answer")}, "mbpp": set[tuple[str, str]]()}

HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\ndef f(x: int) -> float:\n    """Half of the root."""\n',
    "entry_point": "f",
    "canonical_solution": "    return half(math.sqrt(x))\n",
    "test": "def check(candidate):\n    assert candidate(16) == half(4) == 2.0\n",
}
# The form of EvalPlus: NumPy for tolerance, inputs and results in lists.
PLUS_TEST = """import numpy as np
from math import inf

def is_floats(x) -> bool:
    return isinstance(x, float) or (isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x))

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        np.testing.assert_allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"

"""
MBPP_PLUS_ROW = {
    "task_id": 2,
    "code": "def g(a, b):\n    return [(a + b) / 3]\n",
    "prompt": "Write a function to find a third of a sum.",
    "test_imports": [],
    "test_list": ["assert g(1, 2) == [1.0]"],
    "test": PLUS_TEST
    + "for inp, exp in zip([[1, 2], [1, 0]], [[1.0], [0.33333333]]):\n    assertion(g(*inp), exp, 0)\n",
}
MBPP_ROW = {"task_id": 11, "text": "Square.", "code": "def f(x):\n    return x * x", "test_list": ["assert f(2) == 4"]}


def verdict(task: tasks.Task, example: Example, code: str) -> tuple[bool, str]:
    v = task.verify(example, BLOCK.format(code))
    return v.correct, v.reason


def test_helpers_of_the_prompt_and_a_bare_function(tmp_path: Path) -> None:
    for name in ("humaneval", "humanevalplus"):
        task = tasks.get(name)
        (example,) = task.examples("test", write_rows(tmp_path / name, "test.jsonl", HUMANEVAL_ROW))
        assert "Half of the root" in example.messages[-1]["content"] and example.id == f"{name}/test/0"
        assert verdict(task, example, solution(example)) == (True, "1 of 1 tests")
        assert verdict(task, example, "def f(x):\n    return half(math.sqrt(x))\n")[0]
        assert verdict(task, example, "from __future__ import annotations\ndef f(x):\n    return half(math.sqrt(x))\n")[
            0
        ]
        assert not verdict(task, example, "def f(x):\n    return half(x)\n")[0]


def test_mbpp_pro_reads_the_rows_of_mbpp_plus(tmp_path: Path) -> None:
    rows = [{**MBPP_PLUS_ROW, "task_id": n} for n in range(2, 602)]
    data = write_rows(tmp_path / "mbpp_pro", "test.jsonl", *rows)
    task = tasks.get("mbpp_pro")
    splits = {s: task.examples(s, data) for s in task.splits}
    ids = {s: {e.id.rpartition("/")[2] for e in examples} for s, examples in splits.items()}
    assert len(ids["test"]) == 99 and all(11 <= int(n) <= 510 for n in ids["test"])
    assert (
        not ids["test"] & ids["train"] and not ids["test"] & ids["validation"] and not ids["train"] & ids["validation"]
    )
    assert sum(map(len, ids.values())) == 600 and 50 < len(ids["validation"]) < 100
    (example,) = splits["test"][:1]
    assert (
        "assert g(1, 2) == [1.0]" in example.messages[-1]["content"] and "0.333" not in example.messages[-1]["content"]
    )
    assert verdict(task, example, "def g(a, b):\n    return [(a + b) * (1 / 3)]\n")[0]
    assert not verdict(task, example, "def g(a, b):\n    return [round((a + b) / 3, 3)]\n")[0]


def test_mbpp_keeps_the_data_sets_splits(real_data: Path) -> None:
    for name, sizes in (("mbpp", (374, 90, 500, 10)), ("mbpp_sanitized", None)):
        task = tasks.get(name)
        found = {s: task.examples(s, str(real_data)) for s in task.splits}
        if sizes:
            assert tuple(map(len, found.values())) == sizes
        assert sum(map(len, found.values())) == (974 if sizes else 427)
        assert len({e.id.rpartition("/")[2] for examples in found.values() for e in examples}) == (
            974 if sizes else 427
        )
        shown = found["test"][0].messages[-1]["content"]
        assert found["test"][0].fields["tests"][0].strip() in shown
        assert found["test"][0].fields["tests"][1].strip() not in shown


@pytest.mark.parametrize(
    ("name", "file", "row", "message"),
    [
        (
            "humaneval",
            "test",
            {**HUMANEVAL_ROW, "entry_point": "g"},
            "humaneval/test/0: field 'prompt' does not begin 'g'",
        ),
        ("humaneval", "test", {"prompt": "def f(): pass"}, "humaneval/test/0: field 'entry_point' is missing"),
        ("mbpp", "full", {**MBPP_ROW, "test_list": []}, "mbpp/test/11: field 'test_list' is empty"),
        ("mbpp", "full", {**MBPP_ROW, "task_id": "x"}, "mbpp/0: field 'task_id' is 'x'"),
        ("mbpp", "full", {**MBPP_ROW, "code": "def f(:"}, "mbpp/test/11: its code or tests are no Python"),
        ("mbpp", "full", {**MBPP_ROW, "test_list": ["assert g(2)"]}, "mbpp/test/11: its tests use nothing"),
        ("mbpp", "full", {k: v for k, v in MBPP_ROW.items() if k != "text"}, "field 'text' is missing"),
    ],
)
def test_odd_rows_are_named(tmp_path: Path, name: str, file: str, row: object, message: str) -> None:
    data = write_rows(tmp_path / name, f"{file}.jsonl", row)
    with pytest.raises(DataError) as e:
        tasks.get(name).examples("test", data)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_unknown_splits_and_missing_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="humaneval has no split 'train'; its splits are test"):
        tasks.get("humaneval").examples("train", str(tmp_path))
    with pytest.raises(DataError, match="mbpp has no split 'dev'"):
        tasks.get("mbpp").examples("dev", str(tmp_path))
    with pytest.raises(DataError, match=r"has no mbpp_pro/test\.jsonl.*evalplus/mbppplus"):
        tasks.get("mbpp_pro").examples("test", str(tmp_path))


def test_the_sanitized_tasks_lie_in_the_folder_of_the_others() -> None:
    """By its folders a study knows which rows a run has read."""
    assert {name: tasks.get(name).folders for name in ("mbpp", "mbpp_sanitized", "mbpp_pro")} == {
        "mbpp": ("mbpp",),
        "mbpp_sanitized": ("mbpp",),
        "mbpp_pro": ("mbpp_pro",),
    }


@pytest.mark.parametrize("test", ["if net(4) != 2: exit(1)", "net(4) == 2 or quit(1); raise SystemExit", "check(net)"])
def test_a_test_that_ends_the_program_can_fail(test):
    check_tests([test], ("net",), "row 1")
