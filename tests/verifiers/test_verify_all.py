"""The edge where verifiers fail: each kind of failure is None and counted, none is a reward, and the rest is judged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
import toy_task
from toy_task import Apart, Broken, Unstartable

from transformer2.errors import ConfigError, UserError
from transformer2.sandbox import Program, shared
from transformer2.types import Example, Verdict
from transformer2.verifiers import isolation, stop_if_unverified, verify_all, warm_up, workers

TASK = Apart()
EXAMPLES = TASK.examples("train")[:6]
TEXTS = ["apple", "zebra", "", "bee", "yak", "cow"]
RIGHT = [True, False, False, True, False, True]


def broken(monkeypatch, fault: str, rows: int) -> Broken:
    monkeypatch.setattr(Broken, "broken", rows)
    monkeypatch.setattr(Broken, "fault", fault)
    return Broken()


def test_a_users_task_is_judged_in_processes_of_its_own():
    verdicts = verify_all(TASK, EXAMPLES, TEXTS)
    assert [v.correct for v in verdicts] == RIGHT
    assert verdicts == [TASK.verify(e, text) for e, text in zip(EXAMPLES, TEXTS, strict=True)]
    assert verify_all(TASK, [], []) == []


@pytest.mark.parametrize("fault", Broken.faults)
def test_a_failure_is_none_and_the_rest_is_judged(monkeypatch, fault):
    verdicts = verify_all(broken(monkeypatch, fault, rows=2), EXAMPLES, TEXTS)
    assert [v.reward for v in verdicts[:2]] == [None, None] and not any(v.correct for v in verdicts[:2])
    assert all(v.reason.startswith("verif") for v in verdicts[:2])
    assert [v.correct for v in verdicts[2:]] == RIGHT[2:]


@pytest.mark.parametrize("fault", ["raises", "returns None", "returns NaN"])
def test_an_inline_task_fails_the_same_way(monkeypatch, fault):
    task = broken(monkeypatch, fault, rows=2)
    monkeypatch.setattr(Broken, "verify_in", "inline")
    verdicts = verify_all(task, EXAMPLES, TEXTS)
    assert [v.reward is None for v in verdicts] == [True, True, False, False, False, False]


class Own(Apart):
    """Judges whole batches with machinery of its own."""

    def __init__(self, answer):
        self.answer = answer

    def verify_many(self, examples, completions, deadline=None):
        return self.answer(examples)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda examples: [Verdict.of(True, "a", "")] * (len(examples) - 1), "verify_many returned 5 verdicts for 6"),
        (lambda examples: [Verdict.of(True, "a", "")] * (len(examples) + 1), "verify_many returned 7 verdicts for 6"),
        (lambda examples: None, "verify_many returned NoneType for 6"),
        (lambda examples: 1 / 0, "verify_many raised ZeroDivisionError"),
        (lambda examples: [1.0] * len(examples), "verifier returned 1.0"),
    ],
)
def test_machinery_that_fails_judges_nobody(answer, reason):
    verdicts = verify_all(Own(answer), EXAMPLES, TEXTS)
    assert [v.reward for v in verdicts] == [None] * 6 and all(v.reason.startswith(reason) for v in verdicts)


class Squares(Apart):
    """Answers are programs; an answer without one is wrong."""

    verify_in = "sandbox"
    allow_unsafe_code_execution = False

    def program(self, example, completion):
        return Program(completion, ("assert f(3) == 9",), ("f",)) if completion else None


def test_a_users_programs_run_in_the_sandbox():
    texts = ["def f(x): return x * x", "def f(x): return x", "", "1 +"]
    verdicts = verify_all(Squares(), EXAMPLES[:4], texts)
    assert [v.reward for v in verdicts] == [1.0, -1.0, -1.0, -1.0]
    assert [v.extracted for v in verdicts] == [*texts[:2], None, texts[3]]
    assert verdicts[0].reason == "1 of 1 tests" and verdicts[2].reason == "no program"
    warm_up(Squares())
    assert isolation(Squares()).startswith(("full", "no-namespaces")) and isolation(TASK) is None
    shared(False).pool.close()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"verify_in": "inlin"}, "task Odd: verify_in is 'inlin'; use inline, workers, sandbox"),
        ({"bounded": True}, 'task Odd: `bounded = True` is now `verify_in = "inline"`'),
    ],
)
def test_where_verdicts_are_made_is_checked(said, message):
    with pytest.raises(ConfigError) as e:
        type("Odd", (Apart,), said)
    assert str(e.value) == message


def test_counts_of_all_processes_stop_a_run():
    wrong, hung = Verdict.of(False, None, ""), Verdict.failed("hung")
    stop_if_unverified([hung], failed=5, total=100)
    with pytest.raises(UserError, match=r"6 of 100 answers could not be verified \(hung\)"):
        stop_if_unverified([wrong, hung], failed=6, total=100)
    with pytest.raises(UserError, match="another process says why"):
        stop_if_unverified([wrong], failed=6, total=100)


def test_a_deadline_ends_the_batch(monkeypatch):
    task = broken(monkeypatch, "hangs", rows=6)
    monkeypatch.setattr(Broken, "verify_seconds", 60.0)
    verdicts = verify_all(task, EXAMPLES, TEXTS, deadline=1.0)
    assert {(v.reward, v.reason) for v in verdicts} == {(None, "verifier: not answered before the batch's deadline")}


def test_every_batch_has_a_deadline():
    assert workers.batch_deadline(1, 5.0, 8) == 60.0
    assert workers.batch_deadline(256, 5.0, 2) == 1280.0


def test_a_pool_that_dies_stops_the_run():
    with pytest.raises(UserError, match=r"answers of first_letter cannot be verified: .* died 4 times .*status 9"):
        verify_all(Unstartable(), EXAMPLES, TEXTS)


def test_a_task_that_cannot_be_sent_is_named():
    task = Apart()
    task.lock = __import__("threading").Lock()
    with pytest.raises(UserError, match=r"task Apart cannot be pickled"):
        verify_all(task, EXAMPLES, TEXTS)


def test_examples_with_read_only_fields_reach_the_workers():
    example = Example("e/0", (MappingProxyType({"role": "user", "content": "q"}),), "a", MappingProxyType({"k": [1]}))
    (verdict,) = verify_all(TASK, [example], ["apple"])
    assert verdict.correct


def test_a_script_and_a_file_outside_the_package(tmp_path):
    """A task in a file next to the script works; one in the script itself is refused with the remedy."""
    body = Path(toy_task.__file__).read_text()
    (tmp_path / "mine.py").write_text("print('hello from the task')\n" + body)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import mine\nfrom transformer2.verifiers import verify_all\n"
        "class Here(mine.Apart): pass\n"
        "e = mine.Apart().examples('train')[:1]\n"
        "assert verify_all(mine.Apart(), e, ['apple'])[0].correct\n"
        "verify_all(Here(), e, ['apple'])\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd="/")
    assert "task Here is defined in the script that runs" in done.stderr and "AssertionError" not in done.stderr


def test_verifying_needs_no_torch():
    code = "import sys; import transformer2.verifiers.workers; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
