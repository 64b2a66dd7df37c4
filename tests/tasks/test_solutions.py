"""Every task's verifier finds the task's own solutions right: what next-token training learns from."""

import json
from pathlib import Path

import pytest
from PIL import Image
from rows import PICTURED_ROWS, ROWS, SPLITS, own_rows

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.tasks import Task
from transformer2.verifiers import verify_all

REAL = {
    "gsm8k": ("train", "validation", "test"),
    "math": ("test",),
    "arc_easy": ("train", "validation", "test"),
    "arc_challenge": ("train", "test"),
    "mbpp": ("few_shot", "test", "validation", "train"),
    "mbpp_sanitized": ("few_shot", "test", "validation", "train"),
    "humaneval": ("test",),
}
DISPATCH = {"experts": {"math": "gsm8k", "code": "mbpp", "reasoning": "arc_easy"}}


def judged_wrong(task, examples):
    """Ids and reasons of the solutions that the task does not find right."""
    solutions = [task.solution(e) for e in examples]
    assert examples and all(solutions)
    verdicts = verify_all(task, examples, solutions)
    return [(e.id, v.reason) for e, v in zip(examples, verdicts, strict=True) if not v.correct]


def test_every_task_that_ships_says_its_solutions():
    for name in tasks.names():
        options = {"path": "x.jsonl"} if name == "jsonl" else {}
        tasks.get(name, **options).check_solutions()


@pytest.mark.parametrize("name", [name for name in tasks.names() if name.startswith("tiny_")])
def test_those_of_the_embedded_worlds(name):
    task = tasks.get(name)
    for split in task.splits:
        assert judged_wrong(task, task.examples(split)[:64]) == []


@pytest.mark.parametrize("name", [*ROWS, *PICTURED_ROWS])
def test_those_of_a_row_in_the_schema_of_the_hub(name, tmp_path):
    file, row = {**ROWS, **PICTURED_ROWS}[name]
    (tmp_path / f"{file}.jsonl").write_text(json.dumps(row))
    Image.new("RGB", (8, 8)).save(tmp_path / "sign.png")
    task = tasks.get(name)
    assert judged_wrong(task, task.examples(SPLITS.get(name, "test"), str(tmp_path))) == []


@pytest.mark.parametrize(
    ("name", "split", "count"), [("gsm8k", "test", 300), ("math", "test", 100), ("mbpp", "train", 8)]
)
def test_those_of_some_real_rows(name, split, count, real_data: Path):
    task = tasks.get(name)
    assert judged_wrong(task, task.examples(split, str(real_data))[:count]) == []


@pytest.mark.gold
@pytest.mark.parametrize(("name", "split"), [(name, split) for name, splits in REAL.items() for split in splits])
def test_those_of_all_real_rows(name, split, real_data: Path):
    task = tasks.get(name)
    assert judged_wrong(task, task.examples(split, str(real_data))) == []


@pytest.mark.gold
def test_those_of_dispatch(real_data: Path):
    task = tasks.get("dispatch", **DISPATCH)
    for split in task.splits:
        assert judged_wrong(task, task.examples(split, str(real_data))) == []


def test_solutions_read_as_the_prompt_asks(real_data: Path):
    gsm8k = tasks.get("gsm8k")
    robes = next(e for e in gsm8k.examples("test", str(real_data)) if e.question.startswith("A robe takes 2 bolts"))
    assert gsm8k.solution(robes).splitlines()[0] == "It takes 2/2=1 bolt of white fiber"
    assert gsm8k.solution(robes).splitlines()[-1] == "#### 3"
    arc, mbpp, humaneval = (tasks.get(name) for name in ("arc_easy", "mbpp", "humaneval"))
    assert arc.solution(arc.examples("test", str(real_data))[0]).startswith("The answer is (")
    code = mbpp.solution(mbpp.examples("train", str(real_data))[0])
    assert code.startswith("```python\n") and code.endswith("\n```") and "\r" not in code
    whole = humaneval.solution(humaneval.examples("test", str(real_data))[0])
    assert "def has_close_elements(" in whole and "return False" in whole


def test_a_solution_that_boxes_its_answers_one_by_one_ends_on_all_of_them(tmp_path):
    row = {**ROWS["math"][1], "problem": "Roots, separated by commas?", "solution": r"$\boxed{1}$ and $\boxed{2}$"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    task = tasks.get("math")
    examples = task.examples("test", str(tmp_path))
    assert task.solution(examples[0]).endswith("\n" + r"\boxed{1, 2}") and judged_wrong(task, examples) == []


KINDS = {
    "exact": ({}, "name 0"),
    "numeric": ({"answer": 3}, "#### 3"),
    "choice": ({"answer": "no", "choices": ["yes", "no"]}, "The answer is (B)"),
    "code": (
        {"answer": "def f():\n    return 1", "tests": ["assert f() == 1"]},
        "```python\ndef f():\n    return 1\n```",
    ),
}


@pytest.mark.parametrize("verifier", KINDS)
def test_those_of_rows_of_ones_own(verifier, tmp_path):
    more, solution = KINDS[verifier]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({**row, **more}) for row in own_rows(60)))
    task = tasks.get("jsonl", path=str(path), verifier=verifier)
    examples = sorted((e for split in task.splits for e in task.examples(split)), key=lambda e: e.question)
    assert task.solution(examples[0]) == solution and judged_wrong(task, examples[:8]) == []


def test_worked_solutions_of_rows_of_ones_own_are_read_from_the_field_that_is_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{**row, "answer": 3, "why": "1 + 2 = 3\n#### 3", "solution": "of no use"} for row in own_rows(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    options = {"path": str(path), "verifier": "numeric"}
    task = tasks.get("jsonl", **options)
    assert {task.solution(e) for e in task.examples("train")} == {"#### 3"}
    task = tasks.get("jsonl", **options, keys={"solution": "why"})
    assert {task.solution(e) for e in task.examples("train")} == {"1 + 2 = 3\n#### 3"}
    rows[7]["why"] = "#### 4"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"solution is judged wrong .*line 8"):
        task.examples("train")


def test_a_row_without_a_reference_solution_has_none(tmp_path):
    file, row = ROWS["humaneval"]
    (tmp_path / f"{file}.jsonl").write_text(json.dumps({k: v for k, v in row.items() if k != "canonical_solution"}))
    task = tasks.get("humaneval")
    assert [task.solution(e) for e in task.examples("test", str(tmp_path))] == [None]
    assert Task.solution(task, task.examples("test", str(tmp_path))[0]) is None
