"""Dispatch questions: what asks a model which expert is to answer a request, and what its answer means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from transformer2 import tasks
from transformer2.errors import ConfigError, UserError
from transformer2.experts import Expert
from transformer2.tasks.dispatch import OTHER, category_prompt, check_categories, request_of
from transformer2.types import Example
from transformer2.verifiers.label import find_label

__all__ = ["OTHER", "Dispatcher"]


@dataclass(frozen=True)
class Dispatcher:
    """Turns requests into dispatch questions, and answers into choices.

    Attributes:
        names: Category of each of the K experts.
        descriptions: One line each.
        prompt: Request -> content of the user message; None generates it from names and descriptions.
        max_new_tokens: Budget of a written answer, where no name is longer.
        system: System message of the question; None sends none.
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    prompt: Callable[[str], str] | None = None
    max_new_tokens: int = 8
    system: str | None = None

    def __post_init__(self) -> None:
        """Categories must tell apart."""
        check_categories(self.names)

    @classmethod
    def of(cls, experts: Sequence[Expert], labelled: Any = None) -> Dispatcher:
        """The experts' categories, in the words of a dispatch task where there is one.

        Raises:
            ConfigError: The task has no label for an expert.
        """
        names, descriptions = zip(*(_category(e, labelled) for e in experts), strict=True)
        if labelled is None:
            return cls(names, descriptions)
        system = getattr(getattr(labelled, "wording", None), "system", None)
        return cls(names, descriptions, labelled.prompt, labelled.max_new_tokens, system)

    @property
    def categories(self) -> tuple[str, ...]:
        """The names and, last, "other"."""
        return (*self.names, OTHER)

    def question(self, example: Example) -> Example:
        """The dispatch question about an example's request: its user messages."""
        request = request_of(example)
        if self.prompt is not None:
            content = self.prompt(request)
        else:
            content = category_prompt(dict(zip(self.names, self.descriptions, strict=True)), request)
        system = () if self.system is None else ({"role": "system", "content": self.system},)
        return replace(example, messages=(*system, {"role": "user", "content": content}))

    def answer_budget(self, tokenizer: PreTrainedTokenizerBase, writes: bool = True) -> int:
        """Tokens of an answer: those of the longest name and EOS; of one that is written, `max_new_tokens` at least."""
        longest = 1 + max(map(len, tokenizer(list(self.categories), add_special_tokens=False)["input_ids"]))
        return max(self.max_new_tokens, longest) if writes else longest

    def parse(self, text: str) -> int | None:
        """Index of the one category that the answer names, else None."""
        found = find_label(self.categories, text)
        return None if found is None else self.categories.index(found)

    def weights(self, choices: Iterable[int | None]) -> Tensor:
        """Weights (B, K + 1): the chosen expert's z; the base's for "other" and for no category."""
        k = len(self.names)
        return torch.eye(k + 1)[[k if c is None else c for c in choices]]


def _category(expert: Expert, labelled: Any) -> tuple[str, str]:
    """An expert's category and what it is for, from its task where that is known."""
    try:  # by name alone: a class path would import whatever module a foreign expert names
        description = tasks.get(expert.task).description if expert.task in tasks.names() else expert.name
    except UserError:  # a task that needs options
        description = expert.name
    if labelled is None or expert.name in labelled.labels:
        return expert.name, description
    label = labelled.label_of(expert.task)
    if label is None:
        known = ", ".join(labelled.labels)
        remedy = "name its folder by one of them, or leave it out (--strategy cem mixes any)"
        raise ConfigError(f"expert {expert.name!r} fits none of the labels of {labelled.name} ({known})", remedy)
    return label, description
