"""One row of every task that reads a data set, in the schema of the Hub."""

import json
from pathlib import Path

MBPP = {"code": "def f():\n    return 1", "test_list": ["assert f() == 1"]}
ROWS = {  # task -> name of its file, a row of it
    "gsm8k": ("test", {"question": "How many?", "answer": "It is 1+2=3.\n#### 3"}),
    "math": ("test", {"problem": "1+2?", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{3}"}),
    "mbpp": ("full", {"task_id": 11, "text": "Write f.", **MBPP}),
    "mbpp_sanitized": ("sanitized", {"task_id": 11, "prompt": "Write f.", **MBPP, "test_imports": ["import math"]}),
    "mbpp_pro": ("test", {"task_id": "Mbpp/11", "prompt": "Write f.", **MBPP, "test": "assert f() == 1"}),
    "humaneval": (
        "test",
        {
            "task_id": "HumanEval/0",
            "prompt": 'def f():\n    """One."""\n',
            "entry_point": "f",
            "canonical_solution": "    return 1\n",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
        },
    ),
    "arc_easy": ("test", {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}),
}
ROWS["humanevalplus"] = ROWS["humaneval"]
ROWS["arc_challenge"] = ROWS["arc_easy"]
# Beside these lies a picture, sign.png.
PICTURED = {"question": "What does it say?", "image": "sign.png", "answers": ["stop"] * 10}
PICTURED_ROWS = {"textvqa": ("validation", PICTURED), "okvqa": ("val2014", PICTURED)}
SPLITS = {"mbpp_pro": "train"}  # whose split of one row is train


def own_rows(count):
    """Rows as people write them for the task jsonl."""
    return [{"question": f"What is number {i} called?", "answer": f"name {i}"} for i in range(count)]


def write_rows(folder: Path, name: str, *rows: object) -> str:
    """A file of rows as JSON lines; gives back its folder, as a config names it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)
