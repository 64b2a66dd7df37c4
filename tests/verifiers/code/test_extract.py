"""From a completion to its program."""

from __future__ import annotations

import textwrap
import time

import pytest

from transformer2.verifiers.code.extract import extract_code

PROMPT = 'from typing import List\n\n\ndef f(x: int) -> int:\n    """ Square. """\n'
CODE = "def f(x):\n    y = x * x\n    return y"


def runs(source: str | None) -> bool:
    space: dict[str, object] = {}
    exec(source or "", space)
    f = space.get("f")
    return callable(f) and f(7) == 49


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{CODE}\n```",
        f"Here it is:\n\n```python\n{CODE}\n```\nIt squares x.",
        f"```\n{CODE}\n```",
        f"```py\n{CODE}\n```\n\nUse it so:\n\n```python\nprint(f(3))\n```",
        f"First try:\n```python\ndef f(x):\n    return x\n```\nBetter:\n```python\n{CODE}\n```",
        f"```bash\npip install f\n```\n```python\n{CODE}\n```",
        f"~~~python\n{CODE}\n~~~",
        f"1. The function:\n\n{textwrap.indent('```python' + chr(10) + CODE + chr(10) + '```', '   ')}",
        f"```python\n{CODE}",
        CODE,
        f"Sure! Here is the function.\n\n{CODE}\n\nIt works because x * x is the square.",
        f"import math\n{CODE}\n",
        f"{PROMPT}    return x * x\n",
        "    return x * x\n",
        "    y = x * x\n\n    return y\n\n\ndef g(x):\n    return broken(\n",
        "return x * x",
        "```python\n    return x * x\n```",
    ],
)
def test_it_finds_the_program(completion: str) -> None:
    assert runs(extract_code(completion, ["f"], PROMPT))


def test_a_long_broken_answer_takes_no_time() -> None:
    text = "def f(x):\n    return [\n" + "1,\n" * 10_000
    start = time.process_time()
    assert extract_code(text, ["f"]) == text  # parsed a few times, not once a line: that would take minutes
    assert time.process_time() - start < 5


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
