"""The sandbox on honest and broken programs: outcomes, levels, refusals. Hostile ones are in test_hostile.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from transformer2.errors import SandboxError
from transformer2.sandbox import Outcome, Program, Sandbox
from transformer2.sandbox.judge import level_of

SQUARE = Program("def f(x):\n    return x * x\n", ("assert f(7) == 49", "assert f(-2) == 4"), ("f",))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox(size=2)
    yield box
    box.pool.close()


def outcome(sandbox: Sandbox, code: str, *tests: str, **fields: object) -> Outcome:
    program = Program(code, tests or SQUARE.tests, ("f",), **fields)  # type: ignore[arg-type]
    return sandbox.run([program])[0]


def test_this_machine_gives_the_required_layers(sandbox: Sandbox) -> None:
    found = sandbox.check()
    assert not found["refused"] and not found["failed"], found
    assert not {"seccomp", "landlock", "no_new_privs", "rlimits"} & set(found["missing"])
    assert sandbox.level.startswith(("full", "no-namespaces"))


@pytest.mark.parametrize(
    ("code", "expected", "reason"),
    [
        ("def f(x):\n    return x * x\n", "passed", "2 of 2 tests"),
        ("def f(x):\n    return abs(x) * 7\n", "failed", "test 2 of 2: AssertionError"),
        ("def f(x):\n    return 1 / 0\n", "failed", "ZeroDivisionError"),
        ("def g(x):\n    return 1\n", "failed", "KeyError"),
        ("def f(x:\n", "failed", "SyntaxError"),
        ("while True:\n    pass\n", "timeout", "out of time"),
        ("import time\ndef f(x):\n    time.sleep(100)\n", "timeout", "out of time"),
        ("def f(x):\n    return bytearray(1 << 40)\n", "memory", "out of memory"),
        ("def f(x):\n    return 'x' * (2 << 20)\n", "output_limit", "too large"),
        ("import ctypes\ndef f(x):\n    return ctypes.string_at(0)\n", "crashed", "killed by signal 11"),
        ("import os\nos._exit(0)\n", "crashed", "ended itself"),
        ("import sys\nsys.exit(0)\n", "failed", "SystemExit"),
        ("def f(x):\n    return type('E', (), {'__eq__': lambda s, o: True})()\n", "failed", "AssertionError"),
    ],
)
def test_outcomes(sandbox: Sandbox, code: str, expected: str, reason: str) -> None:
    result = outcome(sandbox, code, *SQUARE.tests, cpu_seconds=1)
    assert result.outcome == expected and reason in result.reason, result


def test_values_keep_their_types_on_the_way(sandbox: Sandbox) -> None:
    values = (
        "[None, True, 2**200, -0.1, 1e308, 3j, 'é\\ud800\\n', "
        "b'\\x00', (1, [2]), {3}, frozenset({4}), {(5,): {6: []}}, int]"
    )
    tests = (
        f"a = {values}",
        "b = f(a)",
        "assert a == b and [type(x) for x in a] == [type(x) for x in b]",
        "n = f(float('nan'))\nassert n != n",
    )
    assert outcome(sandbox, "def f(x):\n    return x\n", *tests).outcome == "passed"


def test_numbers_ranges_and_views_travel_too(sandbox: Sandbox) -> None:
    code = (
        "from decimal import Decimal\nfrom fractions import Fraction\nfrom collections import deque, Counter\n"
        "def f(i):\n    return [Decimal('2.50'), Fraction(1, 2), range(1, 9, 2), deque([1]),\n"
        "            {1: 2}.keys(), {1: 2}.items(), Counter('aab'), True][i]\n"
    )
    tests = (
        "from collections import deque\nfrom decimal import Decimal",
        "assert f(0) == Decimal('2.5') and f(1) == 0.5 and f(2) == range(1, 9, 2) and f(3) == deque([1])",
        "assert f(4) == {1} and (1, 2) in f(5) and f(6) == {'a': 2, 'b': 1} and f(7) is True",
    )
    assert outcome(sandbox, code, *tests).reason == "3 of 3 tests"


def test_objects_answer_questions(sandbox: Sandbox) -> None:
    code = (
        "class Bag:\n    def __init__(self, *a): self.a = a\n    def __len__(self): return len(self.a)\n"
        "    def __getitem__(self, i): return self.a[i]\n    def __eq__(self, o): return True\n"
        "def f(*a):\n    return Bag(*a)\n"
        "def g(n):\n    yield from range(n)\n"
        "class Own(KeyError): pass\n"
        "def h(x):\n    if x == 'all': raise ExceptionGroup(x, [ValueError(x)])\n"
        "    raise Own(x) if x == 'own' else ValueError(x)\n"
        "def apply(fn, x):\n    return fn(x)\n"
    )
    tests = (
        "b = f(4, 5)\nassert len(b) == 2 and b[1] == 5 and b.a == (4, 5)",
        "it = g(2)\nassert next(it) == 0 and next(it) == 1",
        "try:\n    h('no')\n    raise SystemExit\nexcept ValueError as e:\n    assert str(e) == 'no'\n"
        "try:\n    h('own')\n    raise SystemExit\nexcept LookupError as e:\n    assert str(e) == \"'own'\"\n"
        "try:\n    h('all')\n    raise SystemExit\nexcept Exception as e:\n    assert 'all' in str(e)",
        "assert len(apply(f, 3)) == 1",
        "assert f(1) == f(1)",  # an equality of its own is not believed
    )
    result = sandbox.run([Program(code, tests, ("f", "g", "h", "apply"))])[0]
    assert result.reason == "test 5 of 5: AssertionError"


def test_objects_stay_where_they_are(sandbox: Sandbox) -> None:
    code = (
        "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\n"
        "def f(n):\n    return [n.v] + (f(n.left) if n.left else [])\n"
        "def count(n):\n    yield from range(n)\n"
    )
    tests = (
        "r = Node(1)\nr.left = Node(2)\nr.left.left = Node(3)\nassert f(r) == [1, 2, 3]\nassert r.left.v == 2",
        "assert list(count(3)) == [0, 1, 2]",
        "assert r",
        "assert r == 1",
    )
    result = sandbox.run([Program(code, tests, ("Node", "f", "count"))])[0]
    assert result.reason == "test 4 of 4: AssertionError"


def test_a_broken_test_is_nobodys_fault(sandbox: Sandbox) -> None:
    assert outcome(sandbox, SQUARE.code, "assert f(").outcome == "infra_error"
    assert outcome(sandbox, SQUARE.code, setup="import nothing_of_that_name").outcome == "infra_error"
    for test in (
        "assert f(undefined)",
        "f(lambda: 1)",
        "f('x' * (2 << 20))",
        "try:\n    f(lambda: 1)\nexcept Exception:\n    pass",
    ):
        assert outcome(sandbox, SQUARE.code, test).outcome == "infra_error", test


def test_no_answer_is_a_failure_of_ours(sandbox: Sandbox) -> None:
    """An answer that breaks its reader, or has itself killed, would otherwise dodge its -1."""
    lowered = "import resource\ntry: resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nexcept Exception: pass\n"
    assert outcome(sandbox, lowered + "while True: pass\n").outcome == "timeout"
    stack = "import resource\nresource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))\n"
    assert outcome(sandbox, stack + SQUARE.code).outcome == "passed"
    for test in ("assert f(7) == 1, f(7)", "{1: 2}[f(7)]", "raise ValueError(f(7))"):
        assert outcome(sandbox, "def f(x):\n    return 1 << (1 << 20)\n", test).outcome == "failed", test
    result = outcome(sandbox, "def f(x):\n    raise ValueError('\\x1b[2J\\n' * 100000)\n")
    assert result.outcome == "failed" and len(result.reason) <= 200 and result.reason.isprintable()


def test_a_test_that_swallows_the_end_does_not_pass(sandbox: Sandbox) -> None:
    code = "import os\ndef f(x):\n    os._exit(0)\n"
    assert outcome(sandbox, code, "try:\n    f(1)\nexcept BaseException:\n    pass").outcome == "crashed"


def test_tests_may_compare_with_numpy(sandbox: Sandbox) -> None:
    tests = ("import numpy as np\nassert np.allclose(f(3), 9)",)
    assert outcome(sandbox, SQUARE.code, *tests).outcome == "passed"
    assert (
        outcome(sandbox, SQUARE.code, "import numpy as np\nnp.testing.assert_allclose(f(3), 9.0)").outcome == "passed"
    )
    assert outcome(sandbox, SQUARE.code, "assert np.allclose(f(3), 9)", setup="import numpy as np").outcome == "passed"


def test_candidates_do_not_share_their_threads(sandbox: Sandbox) -> None:
    code = (
        "import threading\ndef f(n):\n    all_here = threading.Barrier(n)\n"
        "    ts = [threading.Thread(target=all_here.wait) for _ in range(n)]\n"
        "    [t.start() for t in ts]\n    [t.join() for t in ts]\n    return n\n"
    )
    assert {o.outcome for o in sandbox.run([Program(code, ("assert f(32) == 32",), ("f",))] * 6)} == {"passed"}


def test_event_loops_run_and_reach_nothing(sandbox: Sandbox) -> None:
    code = (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return await asyncio.to_thread(pow, x, 2)\n"
        "def g(x):\n    return asyncio.run(f(x))\n"
        "def h():\n    async def go():\n        return await asyncio.open_connection('127.0.0.1', 22)\n"
        "    try:\n        asyncio.run(go())\n    except OSError as e:\n        return e.errno\n"
    )
    tests = ("assert [g(7), g(-2)] == [49, 4]", "assert h() == 1")  # EPERM
    assert sandbox.run([Program(code, tests, ("g", "h"))])[0].reason == "2 of 2 tests"


def test_the_current_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sched.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    box = Sandbox(size=1)
    assert box.run([SQUARE])[0].outcome == "passed"
    box.pool.close()
    assert not (tmp_path / "ran").exists()


def test_a_batch_keeps_its_order_and_leaves_no_process() -> None:
    others, box = set(descendants()), Sandbox(size=2)
    wrong = replace(SQUARE, code="def f(x):\n    return 0\n")
    outcomes = box.run([SQUARE, wrong] * 12)
    assert [o.outcome for o in outcomes] == ["passed", "failed"] * 12
    # Judge and zygote of each of the two, and no supervisor, checker or candidate, once the self-tests are over.
    end, quiet = time.monotonic() + 10, 0
    while quiet < 5 and time.monotonic() < end:
        quiet = quiet + 1 if len({*descendants()} - others) == 4 else 0
        time.sleep(0.1)
    box.pool.close()
    assert quiet == 5


def descendants() -> list[int]:
    """Living processes that descend from this one's judges, the judges included."""
    parents: dict[int, int] = {}
    judges = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if state != "Z":
            parents[int(folder.name)] = int(parent)
            if b"sandbox.judge" in command and int(parent) == os.getpid():
                judges.append(int(folder.name))
    for pid in judges:
        judges += [child for child, parent in parents.items() if parent == pid]
    return judges


def test_closing_the_pool_ends_everything() -> None:
    before = descendants()
    box = Sandbox(size=1)
    box.run([SQUARE])
    pids = set(descendants()) - set(before)
    assert len(pids) >= 2
    box.pool.close()
    end = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("missing", "level"),
    [
        ({}, "full"),
        ({"net": "x"}, "no-namespaces"),
        ({"landlock": "x"}, "unsafe"),
        ({"seccomp": "x", "pid": "x"}, "unsafe"),
        ({"no_new_privs": "x"}, "unsafe"),
        ({"user": "x"}, "unsafe"),
        ({"descriptors": "x"}, "unsafe"),
    ],
)
def test_levels(missing: dict[str, str], level: str) -> None:
    assert level_of(missing) == level


@pytest.mark.parametrize("layer", ["seccomp", "landlock"])
def test_it_refuses_where_a_required_layer_is_missing(jailed: Callable[..., dict[str, object]], layer: str) -> None:
    found = jailed("--only", "plain", "--without", layer)
    assert found["level"] == "unsafe" and layer in found["missing"]  # type: ignore[operator]
    assert found["outcomes"] == [] and "allow_unsafe_code_execution" in str(found["refused"])
    assert layer in str(found["refused"]) and "\n" not in str(found["refused"])


def test_it_works_without_namespaces_and_says_so(jailed: Callable[..., dict[str, object]]) -> None:
    found = jailed("--only", "plain", "--without", "namespaces")
    assert found["level"] == "no-namespaces" and set(found["missing"]) == {"pid", "net", "ipc", "uts", "mnt"}  # type: ignore[call-overload]
    assert [o["outcome"] for o in found["outcomes"]] == ["passed"]  # type: ignore[attr-defined]


def test_unsafe_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox(allow_unsafe=True, size=1)
    found = {"level": "unsafe", "missing": {"landlock": "none"}, "failed": [], "refused": False}
    monkeypatch.setattr(box, "_checked", found)
    with pytest.warns(UserWarning, match="UNPROTECTED.*landlock"):
        box.require()
    monkeypatch.setattr(box, "_checked", {**found, "missing": {}, "failed": ["attacks: passed (mount)"]})
    with pytest.warns(UserWarning, match="UNPROTECTED.*mount"):
        box.require()
    monkeypatch.setattr(box, "_checked", {**found, "refused": True})
    with pytest.raises(SandboxError, match="lacks landlock"):
        box.run([SQUARE])
