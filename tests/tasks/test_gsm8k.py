"""GSM8K on its real rows: every gold accepted, every altered gold refused; splits; local files and their faults."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rows import write_rows

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.tasks._rows import load_rows
from transformer2.types import Example

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_rows = pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason=f"no real rows at {DATA}/gsm8k")
GSM8K = tasks.get("gsm8k")
ROW = {"question": "How many?", "answer": "It is 1+2=<<1+2=3>>3.\n#### 3"}


def real(split: str) -> dict[str, tuple[Example, str]]:
    """question -> (example, gold solution) for a Hub split."""
    ours = ["test"] if split == "test" else ["train", "validation"]
    examples = {e.messages[-1]["content"]: e for s in ours for e in GSM8K.examples(s, str(DATA))}
    rows = load_rows("gsm8k", split, str(DATA), "openai/gsm8k")
    return {row["question"].strip(): (examples[row["question"].strip()], row["answer"]) for row in rows}


WHOLE = [pytest.param(*whole, 1, marks=pytest.mark.gold) for whole in (("test", 1319), ("train", 7473))]


@needs_rows
@pytest.mark.parametrize(("split", "n", "step"), [("test", 1319, 5), *WHOLE])
def test_every_gold_is_accepted_and_every_altered_gold_refused(split: str, n: int, step: int) -> None:
    pairs = real(split)
    rows = list(pairs.values())[::step]
    accepted: Counter[str] = Counter()
    for example, solution in rows:
        body, _, gold = solution.rpartition("####")
        gold = gold.strip()
        value = int(gold.replace(",", ""))
        variants = {
            "gold": solution,
            "gold, boxed": body + rf"So it is $\boxed{{{gold}}}$.",
            "gold, said": body + f"**The answer is ${gold}.00.**",
            "gold, last line": body + f"\n{gold}",
            "one more": body + f"#### {value + 1}",
            "one less": body + f"#### {value - 1}",
            "other sign": body + f"#### {-value}",
            "second answer": body + f"#### {gold} {value + 1}",
            "either": body + f"#### {value + 1} or {gold}",
            "list of lines": body + f"#### {value + 1}\n#### {gold}",
            "list of boxes": body + rf"\boxed{{{value + 1}}}, \boxed{{{gold}}}",
            "taken back": solution + f"\nThe answer is {value + 1}.",
            "only in the reasoning": body,
            "empty": "",
            "cut in the number": solution[:-1],
            "cut before the number": body + "####",
        }
        if split == "train":  # seven thousand rows: the variants that differ most
            kept = (
                "gold",
                "one more",
                "other sign",
                "second answer",
                "only in the reasoning",
                "empty",
                "cut in the number",
            )
            variants = {variant: variants[variant] for variant in kept}
        for variant, text in variants.items():
            accepted[variant] += GSM8K.verify(example, text).correct
    assert len(pairs) == n
    right = {v: c for v, c in accepted.items() if v.startswith("gold")}
    assert right == dict.fromkeys(right, len(rows))
    wrong = {v: c for v, c in accepted.items() if not v.startswith("gold") and c}
    # Train holds one gold 0 (-0 is 0), and three solutions that say "the answer is N" before their `####` line.
    assert wrong == ({} if split == "test" else {"other sign": 1, "only in the reasoning": 3})


@needs_rows
def test_validation_is_carved_out_of_train() -> None:
    splits = {s: GSM8K.examples(s, str(DATA / "gsm8k")) for s in GSM8K.splits}
    assert {s: len(e) for s, e in splits.items()} == {"train": 6935, "validation": 538, "test": 1319}
    questions = {s: {e.messages[-1]["content"] for e in ex} for s, ex in splits.items()}
    assert not questions["train"] & questions["validation"]
    assert len({e.id for ex in splits.values() for e in ex}) == 7473 + 1319
    first = splits["test"][0]
    assert (
        first.id == "gsm8k/test/0"
        and first.answer == "18"
        and [m["role"] for m in first.messages] == ["system", "user"]
    )


def test_rows_are_found_in_the_folder_its_parent_and_every_format(tmp_path: Path) -> None:
    write_rows(tmp_path / "a" / "gsm8k", "test.jsonl", ROW)
    packed = tmp_path / "b"
    packed.mkdir()
    with gzip.open(packed / "test.jsonl.gz", "wt") as f:
        f.write(json.dumps(ROW) + "\n\n")
    for folder in (tmp_path / "a", tmp_path / "a" / "gsm8k", packed):
        (example,) = GSM8K.examples("test", str(folder))
        assert example.answer == "3" and example.messages[-1]["content"] == "How many?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q"}, "gsm8k/test/1: field 'answer' is missing"),
        ({"question": " ", "answer": "#### 3"}, "gsm8k/test/1: field 'question' is ' '"),
        ({"question": 5, "answer": "#### 3"}, "gsm8k/test/1: field 'question' is 5"),
        ({"question": "Q", "answer": "three"}, "gsm8k/test/1: field 'answer' does not end on"),
        ({"question": "Q", "answer": "#### 3 or 4"}, "gsm8k/test/1: field 'answer' does not end on"),
        ([1], "line 2 is not a JSON object"),
    ],
)
def test_odd_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    write_rows(tmp_path, "test.jsonl", ROW, row)
    with pytest.raises(DataError) as e:
        GSM8K.examples("test", str(tmp_path))
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(("said", "gold"), [("1,234", "1234"), ("1.234,5", "1.234,5"), ("$1,234.50", "$1234.50")])
def test_a_gold_number_is_what_the_row_says(said: str, gold: str, tmp_path: Path) -> None:
    write_rows(tmp_path, "test.jsonl", {**ROW, "answer": f"#### {said}"})
    (example,) = GSM8K.examples("test", str(tmp_path))
    assert example.answer == gold and GSM8K.verify(example, f"#### {said}").correct


def test_unreadable_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"has no gsm8k/test\.jsonl"):
        GSM8K.examples("test", str(tmp_path))
    with pytest.raises(DataError, match="no split 'dev'; its splits are train, validation, test"):
        GSM8K.examples("dev", str(tmp_path))
    (tmp_path / "test.jsonl").write_text('{"question": \n')
    with pytest.raises(DataError, match=r"test\.jsonl: line 1 is not JSON"):
        GSM8K.examples("test", str(tmp_path))
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode() * 99)[:-20])
    with pytest.raises(DataError, match=r"test\.jsonl\.gz: "):
        GSM8K.examples("test", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)  # not installed
    with pytest.raises(DataError, match="give data_dir"):
        GSM8K.examples("test")


def test_it_imports_no_torch() -> None:
    code = "import sys; from transformer2.tasks import get; get('gsm8k'); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0
