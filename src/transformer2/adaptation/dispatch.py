"""Dispatch: the model names the category of a request; the category's expert answers (paper, section 3.2 A and B).

    generate     the model names one category (`verifiers.label` reads it); none or two are no category
    constrained  argmax_c log p(name of c, EOS | dispatch prompt): one forward, nothing to parse, always a category

"other", and whatever is no category, is the base model exactly (z = 1); in the reference code it keeps the weights of
the request before. The categories are the experts', however many: their names and one-line descriptions are the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from transformer2.adaptation.scoring import Scorer
from transformer2.tasks.dispatch import OTHER, category_prompt, check_categories, request_of
from transformer2.types import Example, PromptBatch
from transformer2.verifiers.label import find_label

__all__ = ["OTHER", "Dispatcher", "first_pass"]


@dataclass(frozen=True)
class Dispatcher:
    """Turns requests into dispatch questions, and answers into choices.

    Attributes:
        names: Category of each of the K experts.
        descriptions: One line each.
        prompt: Request -> content of the user message; None generates it from names and descriptions.
        max_new_tokens: Budget of a written answer.
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

    def parse(self, text: str) -> int | None:
        """Index of the one category that the answer names, else None."""
        found = find_label(self.categories, text)
        return None if found is None else self.categories.index(found)

    def weights(self, choices: Iterable[int | None]) -> Tensor:
        """Weights (B, K + 1): the chosen expert's z; the base's for "other" and for no category."""
        k = len(self.names)
        return torch.eye(k + 1)[[k if c is None else c for c in choices]]


def first_pass(
    dispatcher: Dispatcher, scorer: Scorer, prompts: PromptBatch, weights_1K: Tensor, constrained: bool = False
) -> tuple[list[int | None], list[str]]:
    """Choose a category for every prompt.

    Args:
        dispatcher: The categories.
        scorer: Runs the model.
        prompts: B rendered dispatch questions.
        weights_1K: The z of the first pass: the base's, or the classification expert's.
        constrained: Score the categories instead of parsing what the model writes.

    Returns:
        B indices of categories (None: no category), and B first-pass texts.
    """
    if not constrained:
        texts = scorer.rows(prompts, weights_1K, dispatcher.max_new_tokens).completions
        return [dispatcher.parse(text) for text in texts], list(texts)
    count = len(dispatcher.categories)
    sums_R, _ = scorer.log_likelihood(prompts.repeat(count), dispatcher.categories * len(prompts), weights_1K)
    choices = sums_R.view(len(prompts), count).argmax(-1).tolist()
    return choices, [dispatcher.categories[c] for c in choices]
