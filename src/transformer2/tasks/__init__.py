"""The registry of tasks: `SHIPPED` names the class of each, which is imported when first asked for."""

from __future__ import annotations

import importlib
import inspect
import re
from difflib import get_close_matches
from typing import Any

from transformer2.errors import ConfigError, nearest
from transformer2.tasks.base import Task

__all__ = ["Task", "get", "names"]

SHIPPED = {
    "arc_challenge": "arc.ARCChallenge",
    "arc_easy": "arc.ARCEasy",
    "dispatch": "dispatch.Dispatch",
    "easy_vqa": "easy_vqa.EasyVQA",
    "gsm8k": "gsm8k.GSM8K",
    "humaneval": "humaneval.HumanEval",
    "humanevalplus": "humaneval.HumanEvalPlus",
    "jsonl": "jsonl.JSONL",
    "math": "math.MATH",
    "mbpp": "mbpp.MBPP",
    "mbpp_pro": "mbpp.MBPPPro",
    "mbpp_sanitized": "mbpp.SanitizedMBPP",
    "okvqa": "vqa.OKVQA",
    "textvqa": "vqa.TextVQA",
    "tiny_code": "tiny.TinyCode",
    "tiny_code_math": "tiny.TinyCodeMath",
    "tiny_dispatch": "tiny.TinyDispatch",
    "tiny_math": "tiny.TinyMath",
    "tiny_math_hard": "tiny.TinyMathHard",
    "tiny_okvqa": "tiny_signs.TinyOKVQA",
    "tiny_reasoning": "tiny.TinyReasoning",
    "tiny_reasoning_hard": "tiny.TinyReasoningHard",
    "tiny_textvqa": "tiny_signs.TinyTextVQA",
}
OWN = "a task of your own is a class, named module.Class (docs/tasks.md)"


def names() -> list[str]:
    """Names of the tasks that ship with the package, sorted."""
    return list(SHIPPED)


def get(name: str, **options: Any) -> Task:
    """The task of that name (`gsm8k`, `tiny_math`, ...) or of that class path (`mypackage.mytask.MyTask`).

    Args:
        name: Name or class path.
        options: Arguments of the task's constructor.

    Raises:
        ConfigError: Unknown name or option (the message says the nearest one), or a class that is not a whole task.
    """
    cls = _find(name)
    signature = inspect.signature(cls)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        known = list(signature.parameters)
        for option in options:
            if option not in known:
                most = "; it takes none" if not known else "; it takes none but system and prompt"
                hint = most if set(known) <= {"system", "prompt"} else nearest(option, known)
                raise ConfigError(f"task {name!r} has no option {option!r}{hint}")
    try:
        signature.bind(**options)
    except TypeError as e:
        missing = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name not in options]
        flag = f", as --data.task_options.{missing[0]}" if missing else ""
        raise ConfigError(f"task {name!r}: {e}; give it in task_options{flag}") from e
    return cls(**options)


def _find(name: str) -> type[Task]:
    if name in SHIPPED:
        module, _, attribute = SHIPPED[name].partition(".")
        cls: type[Task] = getattr(importlib.import_module(f"transformer2.tasks.{module}"), attribute)
        return cls
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        near = get_close_matches(name, names(), n=1) if re.fullmatch(r"[\w-]+", name) else []
        hint = f"did you mean {near[0]!r}?" if near else f"{OWN}."
        raise ConfigError(f"unknown task {name!r}; {hint} Known: {', '.join(names())}")
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as e:
        raise ConfigError(f"task {name!r} cannot be imported ({e}); {OWN}") from e
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"{name!r} is not a class derived from transformer2.tasks.Task; docs/tasks.md shows one")
    missing = [*sorted(cls.__abstractmethods__), *(a for a in ("name", "description") if not hasattr(cls, a))]
    if missing:
        raise ConfigError(f"task {name!r} lacks {', '.join(missing)}; docs/tasks.md shows a whole one")
    return cls
