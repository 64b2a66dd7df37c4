"""Requests to be named by category: trains and measures the classification expert (paper, section 3.2 B).

Example, with the categories math and code:

    user       There are experts for these kinds of requests:
               - math: grade-school mathematics: word problems answered with a number
               - code: short Python functions
               - other: anything else

               Request:
               A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?

               Which kind of request is it? Answer with one word of this list and nothing else: math, code or other.
    assistant  math

The rows are those of other tasks, under their category, and a category "other". Per category there are 399 prompts, as
in the reference code: every fifth is for `test`, the rest is halved between `train` and `validation`.

    clean   all rows are train rows of the expert tasks: nothing that another task scores was seen
    paper   all rows are test rows of the expert tasks, as in the reference code, which trains its classifier on them
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from transformer2 import tasks
from transformer2.errors import ConfigError
from transformer2.pictures import Picture
from transformer2.tasks import _other
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict, text_of
from transformer2.verifiers.label import verify_label

__all__ = ["OTHER", "Dispatch", "category_prompt", "check_categories", "request_of"]

OTHER = "other"
EXPERTS = MappingProxyType({"math": "gsm8k", "code": "mbpp_pro", "reasoning": "arc_easy"})
PROMPT = """\
There are experts for these kinds of requests:
{categories}

Request:
{request}

Which kind of request is it? Answer with one word of this list and nothing else: {names}."""


def category_prompt(descriptions: Mapping[str, str], request: str, fill: Callable[..., str] = PROMPT.format) -> str:
    """The user message that asks for the category of a request, among those described and "other"."""
    lines = [f"- {name}: {text}" for name, text in descriptions.items()]
    lines.append(f"- {OTHER}: anything else")
    names = f"{', '.join(descriptions)} or {OTHER}"
    return fill(categories="\n".join(lines), request=request, names=names)


def request_of(example: Example) -> str:
    """What a dispatcher sees of an example: the texts of its user messages; its pictures go with it."""
    return "\n\n".join(text_of(m) for m in example.messages if m["role"] == "user")


def check_categories(names: Sequence[str]) -> None:
    """Refuse categories that cannot be told apart.

    Raises:
        ConfigError: Two are equal but for case, or one is "other".
    """
    if len({name.lower() for name in (*names, OTHER)}) != len(names) + 1:
        raise ConfigError(
            f"categories {', '.join(names)} must differ from each other and from {OTHER!r}",
            "rename one, or leave it out",
        )


class _Request(NamedTuple):
    text: str
    source: str
    held_out: bool = False
    images: tuple[Picture, ...] = ()


class Dispatch(Task):
    """Categories; the answer must name the right one and no other.

    Args:
        experts: Category -> task, or tasks that are categories by their own names; None takes the paper's three.
        other: Tasks whose rows count as "other"; None makes requests up, half of those in `test` of kinds that stand in
            no other split.
        protocol: `clean` or `paper`: whose rows (see above).
        prompts_per_category: Rows of each category, over all splits; fewer where a task has fewer.
        seed: Of the choice of rows and of their order.
        system: System message; None sends none.
        prompt: Template of the user message, with `{request}` and, where wanted, `{categories}` (described, one a line)
            and `{names}` (in a row).
    """

    name: ClassVar[str] = "dispatch"
    description: ClassVar[str] = "names the category of a request"
    max_new_tokens: ClassVar[int] = 8

    def __init__(
        self,
        experts: Mapping[str, str] | Sequence[str] | None = None,
        other: Sequence[str] | None = None,
        protocol: str = "clean",
        prompts_per_category: int = 399,
        seed: int = 0,
        system: str | None = None,
        prompt: str = PROMPT,
    ) -> None:
        self.wording = Wording(self.name, system, prompt, ("request",), ("categories", "names"))
        if protocol not in ("clean", "paper"):
            raise ConfigError(f"unknown protocol {protocol!r} of task dispatch; use clean or paper")
        if not isinstance(prompts_per_category, int) or prompts_per_category < 5:
            raise ConfigError(f"prompts_per_category of task dispatch must be at least 5, not {prompts_per_category!r}")
        if isinstance(experts, str) or isinstance(other, str):
            raise ConfigError("experts and other of task dispatch are lists of task names, or experts maps categories")
        named = EXPERTS if experts is None else experts
        self.experts = dict(named) if isinstance(named, Mapping) else {task: task for task in named}
        check_categories(list(self.experts))
        if not self.experts:
            raise ConfigError("experts of task dispatch names no task; give at least one")
        for task in (*(self.experts.values() if experts is not None else ()), *(other or ())):
            tasks.get(task)  # a typo is refused before anything is read
        self.other, self.protocol = other, protocol
        self.prompts_per_category, self.seed = prompts_per_category, seed

    @property
    def labels(self) -> tuple[str, ...]:
        """The categories, "other" last."""
        return (*self.experts, OTHER)

    @property
    def folders(self) -> tuple[str, ...]:
        """Those of the tasks whose requests it sorts."""
        its_tasks = (*self.experts.values(), *(self.other or ()))
        return tuple(folder for task in its_tasks for folder in tasks.get(task).folders)

    def label_of(self, task: str | None) -> str | None:
        """The category of a task's requests; None when it is none of the experts'."""
        return next((label for label, name in self.experts.items() if name == task), None)

    @cached_property
    def _descriptions(self) -> dict[str, str]:
        return {label: tasks.get(task).description for label, task in self.experts.items()}

    def prompt(self, request: str) -> str:
        """The content of the user message that asks for the category of a request."""
        return category_prompt(self._descriptions, request, self.wording.fill)

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """The rows of a split, categories mixed, in a fixed order; `data_dir` holds the rows of all tasks."""
        self.check_split(split)
        rows = [(label, r) for label in self.labels for r in _part(self._requests(label, data_dir), split)]
        random.Random(f"{self.seed}/{split}").shuffle(rows)
        return [
            Example(
                f"dispatch/{split}/{i}",
                self.wording.around(self.prompt(request.text)),
                label,
                MappingProxyType({"source": request.source, "held_out": "yes" if request.held_out else "no"}),
                request.images,
            )
            for i, (label, request) in enumerate(rows)
        ]

    def verify(self, example: Example, completion: str) -> Verdict:
        """The one category that is named."""
        return verify_label(example.answer, self.labels, completion)

    def solution(self, example: Example) -> str:
        """The category."""
        return example.answer

    def _requests(self, label: str, data_dir: str | None) -> list[_Request]:
        """All requests of a category; those of `test` last."""
        rng = random.Random(f"{self.seed}/{label}")
        n = self.prompts_per_category
        if label != OTHER:
            return _draw(self._rows(self.experts[label], data_dir), n, rng)
        if self.other:
            share = -(-n // len(self.other))
            drawn = [r for task in self.other for r in _draw(self._rows(task, data_dir), share, rng)]
            return _draw(drawn, n, rng)
        held_out = n // 5 // 2
        familiar = _other.requests(_other.KINDS, n - held_out, rng)
        new = _other.requests(_other.HELD_OUT, held_out, rng)
        return [_Request(text, "made up") for text in familiar] + [_Request(text, "made up", True) for text in new]

    def _rows(self, name: str, data_dir: str | None) -> list[_Request]:
        task, split = tasks.get(name), "test" if self.protocol == "paper" else "train"
        if split not in task.splits:
            raise ConfigError(
                f"task {name} has no {split} split for dispatch's {self.protocol} protocol; leave it out, or say "
                f"protocol: {'paper' if split == 'train' else 'clean'}"
            )
        # Equal requests count once.
        asked = {(request_of(e), tuple(e.images)): e.id for e in task.examples(split, data_dir)}
        return [_Request(text, source, images=images) for (text, images), source in asked.items()]


def _draw(requests: list[_Request], count: int, rng: random.Random) -> list[_Request]:
    return rng.sample(requests, min(count, len(requests)))


def _part(requests: Sequence[_Request], split: str) -> Sequence[_Request]:
    """4 : 1 into what is trained with and `test`; every second row of the former is for `validation`."""
    cut = len(requests) - len(requests) // 5
    return {"train": requests[:cut:2], "validation": requests[1:cut:2], "test": requests[cut:]}[split]
