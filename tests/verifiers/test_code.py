"""From a completion to its program."""

from __future__ import annotations

import ast
import contextlib
import textwrap

import pytest

from transformer2.sandbox import Program, Sandbox
from transformer2.verifiers.code import extract_code

PROMPT = 'from typing import List\n\n\ndef f(x: int) -> int:\n    """ Square. """\n'
CODE = "def f(x):\n    y = x * x\n    return y"


def runs(source: str | None) -> bool:
    space: dict[str, object] = {}
    exec(source or "", space)
    f = space.get("f")
    return callable(f) and f(7) == 49


BLOCK = "```python\n{}\n```\n"
WRONG = "def f(x):\n    return x"
HELPED = "def f(x):\n    return g(x, x)"
HELPER = "def g(x, y):\n    return x * y"
TABS = CODE.replace("    ", "\t")
ITEM = textwrap.indent(BLOCK.format(CODE), "   ")
FENCED_DOC = 'def f(x):\n    """Square.\n\n    ```\n    >>> f(3)\n    9\n    ```\n    """\n    return x * x'
SESSION = ">>> def f(x):\n...     y = x * x\n...     return y\n...\n>>> f(3)\n9"
SOLUTION = "class Solution:\n    def f(self, x):\n        return x * x"
SWITCH = "if x:\n        y = x\n    else:\n        y = 0\n    return y * y"  # only the first line lost its indentation

ANSWERS = {
    # fences
    "python": BLOCK.format(CODE),
    "within prose": f"Here it is:\n\n{BLOCK.format(CODE)}It squares x.",
    "no language": f"```\n{CODE}\n```",
    "py": f"```py\n{CODE}\n```",
    "python3": f"```python3\n{CODE}\n```",
    "Python": f"```Python\n{CODE}\n```",
    "a language of its own": f"```sage\n{CODE}\n```",
    "tildes": f"~~~python\n{CODE}\n~~~",
    "four backticks": f"````python\n{CODE}\n````",
    "words after the language": f"```python title='f.py'\n{CODE}\n```",
    "never closed": f"```python\n{CODE}",
    "closed on the last line": f"```python\n{CODE}```",
    "closed by another opening": f"```python\n{CODE}\n```python\nprint(f(3))\n```",
    "Windows": BLOCK.format(CODE).replace("\n", "\r\n"),
    "an item of a list": f"1. The function:\n\n{ITEM}",
    "an item with tabs": "- The function:\n\n" + textwrap.indent(BLOCK.format(CODE), "\t"),
    "a fence in a docstring": BLOCK.format(FENCED_DOC) + "Done.",
    "a fence with a language in a docstring": BLOCK.format(FENCED_DOC.replace("```", "```python", 1)),
    "a shell block before": f"```bash\npip install f\n```\n{BLOCK.format(CODE)}",
    "an output block after": f"{BLOCK.format(CODE)}\n```\n9\n```\n",
    "a text block after": f"{BLOCK.format(CODE)}\n```text\nf(3) gives 9\n```\n",
    "prose within the block": BLOCK.format(f"{CODE}\n\nThis squares its argument."),
    "prose before the code in the block": BLOCK.format(f"Here is the function:\n\n{CODE}"),
    "thoughts": f"<think>\n{BLOCK.format(WRONG)}\nno, wrong\n</think>\n{BLOCK.format(CODE)}",
    "the end of thoughts": f"{BLOCK.format(WRONG)}</think>\n{CODE}",
    # several blocks
    "an example of use": f"{BLOCK.format(CODE)}\nUse it so:\n\n{BLOCK.format('print(f(3))')}",
    "a draft": f"First try:\n{BLOCK.format(WRONG)}Better:\n{BLOCK.format(CODE)}",
    "a draft in the same block": BLOCK.format(f"{WRONG}\n\n{CODE}"),
    "cut off after a complete one": f"{BLOCK.format(CODE)}Or:\n```python\ndef f(x):\n    return (x",
    "a stub after it": BLOCK.format(CODE) + BLOCK.format("def f(x):\n    ..."),
    "a stub before it": BLOCK.format("def f(x):\n    pass") + BLOCK.format(CODE),
    "a helper before": BLOCK.format(HELPER) + "And:\n" + BLOCK.format(HELPED),
    "a helper after": BLOCK.format(HELPED) + "where\n" + BLOCK.format(HELPER),
    "a helper of a helper": BLOCK.format("def h(x):\n    return x")
    + BLOCK.format("def g(x, y):\n    return h(x) * y")
    + BLOCK.format(HELPED),
    "a decorated helper": BLOCK.format(f"import functools\n\n@functools.cache\n{HELPER}") + BLOCK.format(HELPED),
    "a helper alongside calls": BLOCK.format(f"{HELPER}\n\nprint(f(3))\nassert f(3) == 9") + BLOCK.format(HELPED),
    "imports before": BLOCK.format("import operator as o") + BLOCK.format("def f(x):\n    return o.mul(x, x)"),
    "a constant before": BLOCK.format("POWER = 2") + BLOCK.format("def f(x):\n    return x ** POWER"),
    "a class before": BLOCK.format("class P:\n    n = 2") + BLOCK.format("def f(x):\n    return x ** P.n"),
    "the last helper": BLOCK.format("def g(x, y):\n    return 0") + BLOCK.format(HELPER) + BLOCK.format(HELPED),
    "a test block after": BLOCK.format(CODE) + BLOCK.format("def test_f():\n    assert f(3) == 10\n\ntest_f()"),
    # what follows the function
    "a main guard": BLOCK.format(f"{CODE}\n\nif __name__ == '__main__':\n    print(f(int(input())))"),
    "examples": BLOCK.format(f"{CODE}\n\nprint(f(3))\nprint(f(4))"),
    "right asserts": BLOCK.format(f"{CODE}\n\nassert f(3) == 9"),
    "wrong asserts": BLOCK.format(f"{CODE}\n\nassert f(3) == 10\nassert (\n    f(4) == 15\n)"),
    "broken examples": BLOCK.format(f"{CODE}\n\nprint(f('a'))"),
    "called tests of its own": BLOCK.format(f"{CODE}\n\ndef test_f():\n    assert f(3) == 10\n\ntest_f()"),
    "a called main": BLOCK.format(f"{CODE}\n\ndef main():\n    print(f(int(input())))\n\nmain()"),
    "a result": BLOCK.format(f"{CODE}\n\nn = int(input())\nresult = f(n)\nassert result == 10"),
    "a loop of examples": BLOCK.format(f"{CODE}\n\nfor x, y in [(3, 10)]:\n    assert f(x) == y"),
    "a tried example": BLOCK.format(f"{CODE}\n\ntry:\n    f('a', 1)\nfinally:\n    print(f('a'))"),
    "MBPP's marks": f"[BEGIN]\n{CODE}\n[DONE]",
    "MBPP's last mark": f"{CODE}\n[DONE]\n\nYou are an expert",
    "Code Llama's marks": f"Sure:\n[PYTHON]\n{CODE}\n[/PYTHON]\n[TESTS]\nassert f(3) == 10\n[/TESTS]",
    "what it needs behind it": BLOCK.format(
        "def f(x):\n    return x * x if x in known else f.first + known.get(-x, 0)\n\ndef g(n):\n    return f(n)\n\n"
        "known = {}\nf.first = 0\nfor i in range(9):\n    known[i] = f(i) or i * i\n    print(i)"
    ),
    "a function that sets a global": BLOCK.format(
        "LIMIT = 1\n\ndef f(x):\n    return x * x if x < LIMIT else 0\n\ndef setup(n):\n    global LIMIT\n"
        "    LIMIT = n\n    assert f(0) == 0\n\nsetup(50)"
    ),
    "a function that fills a table": BLOCK.format(
        "T = [0]\n\ndef f(x):\n    return T[abs(x)]\n\ndef build():\n    while len(T) < 60:\n"
        "        T.append(f(len(T) - 1) + 2 * len(T) - 1)\n\nbuild()"
    ),
    "input": BLOCK.format(f"{CODE}\n\nprint(f(int(input())))"),
    "wrapped afterwards": BLOCK.format(f"{WRONG}\n\ndef g(h):\n    return lambda x: h(x) * x\n\nf = g(f)"),
    # kinds of definitions
    "a lambda": BLOCK.format("f = lambda x: x * x"),
    "a lambda without a fence": "f = lambda x: x * x",
    "an annotated lambda": BLOCK.format("from typing import Callable\n\nf: Callable = lambda x: x * x"),
    "decorated": BLOCK.format(f"from functools import cache\n\n@cache\n{CODE}"),
    "a class Solution": BLOCK.format(SOLUTION),
    "a static method": BLOCK.format(SOLUTION.replace("    def f(self, x)", "    @staticmethod\n    def f(x)")),
    "a class Solution without a fence": f"Here:\n\n{SOLUTION}\n\nDone.",
    "a nested function of the same name": BLOCK.format(
        "def f(x):\n    def f(y):\n        return y * y\n    return f(x)"
    ),
    "nested in another": BLOCK.format(f"def k(x):\n    def f(x):\n        return 0\n    return f(x)\n\n{CODE}"),
    "with two blanks": BLOCK.format(CODE.replace("    ", "  ")),
    "with tabs": BLOCK.format(TABS),
    # without a fence
    "bare": CODE,
    "bare within prose": f"Sure! Here is the function.\n\n{CODE}\n\nIt works because x * x is the square.",
    "bare with an import": f"import math\n{CODE}\n",
    "prose that begins like code": f"import the module and write:\n\n{CODE}\n",
    "bare and indented": f"The function:\n\n{textwrap.indent(CODE, '    ')}\n\nIt squares x.",
    "bare with tabs": TABS,
    "bare with a helper": f"{HELPER}\n\n\n{HELPED}\n\nThat is all.",
    "bare with a closing fence": f"{CODE}\n```\nThis function squares x.",
    "bare, a closing fence and an example": f"{CODE}\n```\n\nUse it so:\n```python\nprint(f(3))\n```\n",
    "a session": SESSION,
    "a session in a block": f"```pycon\n{SESSION}\n```",
    "an unfenced draft": f"from typing import List\n\n{WRONG}\n\nWait, fix:\n\n{CODE}\n\nDone.",
    "two unfenced drafts": f"{WRONG}\n\nNo:\n\n{WRONG}\n\nWait, fix:\n\n{CODE}",
    "an unfenced draft in a block": BLOCK.format(f"{WRONG}\n\nWait, fix it:\n\n{CODE}"),
    "an unfenced draft with the import": "import operator as o\n\n"
    f"{WRONG}\n\nBetter, I think:\n\ndef f(x):\n    return o.mul(x, x)",
    "unfenced, and one that was cut off": f"{CODE}\n\nOr shorter so:\n\ndef f(x):\n    return (x",
    "a session in prose": f"Try it:\n\n{SESSION}\n\nIt works.",
    "a doctest": BLOCK.format('def f(x):\n    """\n    >>> f(3)\n    9\n    """\n    return x * x'),
}
BODIES = {
    "the prompt again": f"{PROMPT}    return x * x\n",
    "the prompt again in a block": BLOCK.format(f"{PROMPT}    return x * x"),
    "the prompt again, then a body in a block": f"{PROMPT}\n{BLOCK.format('    return x * x')}",
    "one line": "    return x * x\n",
    "two lines": "    y = x * x\n    return y",
    "without indentation": "return x * x",
    "two lines without indentation": "y = x * x\nreturn y",
    "the first line without": "y = x * x\n    return y",
    "the first line of a compound without": SWITCH,
    "a compound without": "y = 0\nfor _ in range(abs(x)):\n    y += abs(x)\nreturn y",
    "two blanks": "  y = x * x\n  return y",
    "eight blanks": "        y = x * x\n        return y",
    "a tab": "\ty = x * x\n\treturn y",
    "a line first": "\n    return x * x",
    "on and on": "    y = x * x\n\n    return y\n\n\ndef g(x):\n    return broken(\n",
    "on to its examples": "    return x * x\n\n\nprint(f(3))\nassert f(3) == 10\n",
    "with its helper": f"    return g(x, x)\n\n\n{HELPER}\n",
    "with its helper, and prose": f"    return g(x, x)\n\n\n{HELPER}\n\nThat is all.",
    "with prose": "    return x * x\n\nThis returns the square.",
    "without indentation, with prose": "y = x * x\nreturn y\n\nThis returns the square.",
    "a closing fence": "    y = x * x\n    return y\n```\n\nThis returns the square of x.",
    "a closing fence, without indentation": "y = x * x\nreturn y\n```\n\nThis returns the square of x.",
    "a closing fence and an example": "    return x * x\n```\nUse it so:\n```python\nprint(f(3))\n```",
    "fenced": BLOCK.format("    return x * x"),
    "fenced, two lines": BLOCK.format("    y = x * x\n    return y"),
    "fenced, without indentation": BLOCK.format("y = x * x\nreturn y"),
    "fenced, the first line without": BLOCK.format("y = x * x\n    return y"),
    "fenced, a compound without": BLOCK.format("if x:\n    return x * x\nreturn 0"),
    "fenced, within prose": "Complete it so:\n\n" + BLOCK.format("y = x * x\nreturn y") + "\nDone.",
    "fenced, with an import before": BLOCK.format("import math") + BLOCK.format("return int(math.pow(x, 2))"),
    "thoughts": "<think>return 0</think>\n    return x * x",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_it_finds_the_program(name: str) -> None:
    assert runs(extract_code(ANSWERS[name], ["f"], PROMPT))
    assert runs(extract_code(ANSWERS[name], ["f"]))


@pytest.mark.parametrize("name", BODIES)
def test_it_continues_the_prompt(name: str) -> None:
    assert runs(extract_code(BODIES[name], ["f"], PROMPT))


def test_the_body_takes_the_prompt_s_indentation() -> None:
    for unit in ("\t", "  "):
        prompt = PROMPT.replace("    ", unit)
        for body in ("y = x * x\nreturn y", "    y = x * x\n    return y", f"{unit}y = x * x\n{unit}return y"):
            assert runs(extract_code(body, ["f"], prompt)), (unit, body)


def test_the_sandbox_agrees() -> None:
    box = Sandbox(size=2)
    texts = [*list(ANSWERS.values())[::3], *list(BODIES.values())[::3]]
    codes = [str(extract_code(text, ["f"], PROMPT)) for text in texts]
    outcomes = box.run([Program(code, ("assert f(7) == 49", "assert f(-2) == 4"), ("f",)) for code in codes])
    box.pool.close()
    assert [text for text, o in zip(texts, outcomes, strict=True) if o.outcome != "passed"] == []


@pytest.mark.parametrize(
    "completion",
    [
        BLOCK.format(WRONG),
        BLOCK.format(CODE) + BLOCK.format(WRONG),  # the last one counts
        BLOCK.format(HELPED),
        BLOCK.format("def k(x):\n    def f(x):\n        return x * x\n    return f(x)"),
        f"<think>{BLOCK.format(CODE)}</think>",
        f"<think>{BLOCK.format(CODE)}",
        "The function f has to return x * x.",
        BLOCK.format(f"{CODE}\n\ndef f(x):\n    raise ValueError"),
        BLOCK.format(f"{CODE}\n\ndel f"),
    ],
)
def test_what_is_wrong_stays_wrong(completion: str) -> None:
    with contextlib.suppress(Exception):
        assert not runs(extract_code(completion, ["f"]))


def test_the_last_unfenced_definition_counts() -> None:
    for between in ("Wait, fix:", "Corrected version below", "A shorter one, which I prefer:"):
        text = f"from typing import List\n\n{CODE}\n\n{between}\n\n{WRONG}\n"
        assert not runs(extract_code(text, ["f"])) and not runs(extract_code(text, ["f"], PROMPT))


def test_a_long_broken_answer_is_parsed_a_few_times_and_not_once_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, parse = [], ast.parse
    monkeypatch.setattr(ast, "parse", lambda source: (parsed.append(len(source)), parse(source))[1])
    text = "def f(x):\n    return [\n" + "1,\n" * 10_000
    assert extract_code(text, ["f"]) == text
    assert 0 < len(parsed) < 100


@pytest.mark.parametrize("completion", ["", "   \n", "x" * 60_000])
def test_there_is_none(completion: str) -> None:
    assert extract_code(completion, ["f"], PROMPT) is None


def test_without_a_prompt_prose_is_no_program() -> None:
    assert extract_code("I cannot do that.", ["f"]) is None
    assert extract_code("```python\nx = 1\n```", ["f"]) == "x = 1\n"


def test_what_was_cut_off_stays_cut_off() -> None:
    code = extract_code("```python\ndef f(x):\n    return (x *", ["f"], PROMPT)
    with pytest.raises(SyntaxError):
        compile(str(code), "", "exec")
