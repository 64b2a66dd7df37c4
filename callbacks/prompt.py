"""Dispatch by prompt as a callback: the base model itself names the category of every request."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Literal

from torch import Tensor

from transformer2 import tasks
from transformer2.adaptation.dispatch import Dispatcher, first_pass
from transformer2.adaptation.mixture import base_row
from transformer2.adaptation.scoring import Scorer
from transformer2.arguments import Count, check_arguments
from transformer2.callbacks.evaluator import AdaptationEvaluator, Choice
from transformer2.data import collate, render
from transformer2.errors import ConfigError, UserError
from transformer2.experts import Expert
from transformer2.metrics import UNPARSED, Confusion
from transformer2.report.adaptation import confusion_figure
from transformer2.types import Example, PromptBatch

__all__ = ["PromptEvaluator"]


class PromptEvaluator(AdaptationEvaluator):
    """Chooses one expert per prompt, or the base, by asking the base model.

    Args:
        first_pass: `generate` (the answer is parsed) or `constrained` (each category's tokens are scored).
        dispatch_task: A task whose `labels` are the experts' categories and whose `prompt` is the dispatch question;
            its test rows measure the dispatch itself. None: tiny_dispatch for the embedded model, else a prompt made of
            the experts' names and descriptions.
        dispatch_options: Options of that task; its rows are looked for in `data.data_dir`.
        dispatch_limit: Measure the dispatch on at most this many rows.
        options: The arguments of `AdaptationEvaluator`.
    """

    strategy: ClassVar[str] = "prompt"
    picture: ClassVar[str] = "dispatch/confusion"

    def __init__(
        self,
        first_pass: Literal["generate", "constrained"] = "generate",
        dispatch_task: str | None = None,
        dispatch_options: dict[str, Any] | None = None,
        dispatch_limit: Count | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_arguments("adapt", PromptEvaluator.__init__, locals())
        task = None if dispatch_task is None else tasks.get(dispatch_task, **(dispatch_options or {}))
        if task is not None and not hasattr(task, "labels"):
            raise ConfigError(f"{dispatch_task} has no labels, so it is no dispatch task; use dispatch or null")
        self.constrained = first_pass == "constrained"
        self.dispatch_task, self.dispatch_limit = task, dispatch_limit

    def adapt_to_task(self, few_shot: PromptBatch) -> None:
        """Needs no shots; measures the dispatch where there are labelled requests."""
        labelled: Any = self.dispatch_task or (tasks.get("tiny_dispatch") if self.on_tiny else None)
        names, descriptions = zip(*(self._category(e, labelled) for e in self.experts), strict=True)
        asked: dict[str, Any] = {}
        if labelled is not None:
            system = getattr(getattr(labelled, "wording", None), "system", None)
            asked = {"prompt": labelled.prompt, "max_new_tokens": labelled.max_new_tokens, "system": system}
        self.dispatcher = Dispatcher(names, descriptions, **asked)
        self.measured: Confusion | None = None
        if labelled is None:
            return
        self.measured = Confusion(labelled.labels).to(self.device)
        examples = labelled.examples("test", self.data.data_dir)[: self.dispatch_limit]
        mine = examples[self.rank :: self.world_size]
        for start in range(0, len(mine), self.data.eval_batch_size):
            part = mine[start : start + self.data.eval_batch_size]
            choices, _ = self._choose(part)  # its rows are dispatch questions already
            self.measured.update((e.answer, self._name(c)) for e, c in zip(part, choices, strict=True))

    def adapt_to_batch(self, batch: PromptBatch) -> Choice:
        """One expert, or the base, per row."""
        choices, texts = self._choose([self.dispatcher.question(e) for e in batch.examples])
        columns = [{"first_pass": t, "choice": self._name(c)} for t, c in zip(texts, choices, strict=True)]
        return Choice(self.dispatcher.weights(choices), columns)

    def first_scorer(self) -> tuple[Scorer, Tensor]:
        """What runs the first pass, and the z it runs under: the base's."""
        return self.scorer, base_row(len(self.experts))

    def facts(self) -> dict[str, Any]:
        """What was chosen, and how good the dispatch is."""
        counts = self._chosen()
        share = {name: round(count / len(self.records), 4) for name, count in counts.items()}
        details: dict[str, Any] = {"first_pass": "constrained" if self.constrained else "generate", "chosen": share}
        if self.measured is not None:
            details |= {"dispatch": self.measured.scores(), "confusion": self.measured.table()}
        return {"details": details}

    def figure(self) -> Any:
        """The confusion of labelled requests, and what the scored task was taken for."""
        table = {} if self.measured is None else self.measured.table()
        table[self.data.task.name] = self._chosen()
        columns = [*self.dispatcher.categories, UNPARSED]
        if not any(UNPARSED in row for row in table.values()):
            columns.remove(UNPARSED)
        return confusion_figure(table, columns, f"dispatch by {self.strategy}")

    def _chosen(self) -> dict[str, int]:
        return dict(Counter(r["choice"] for r in self.records))

    def _name(self, choice: int | None) -> str:
        return UNPARSED if choice is None else self.dispatcher.categories[choice]

    def _choose(self, questions: list[Example]) -> tuple[list[int | None], list[str]]:
        scorer, weights_1K = self.first_scorer()
        ids = [render(scorer.tokenizer, question, self.data.template) for question in questions]
        prompts = collate(questions, ids, scorer.engine.pad_id).to(self.device)
        return first_pass(self.dispatcher, scorer, prompts, weights_1K, self.constrained)

    def _category(self, expert: Expert, labelled: Any) -> tuple[str, str]:
        """An expert's category and what it is for, from its task where that is known."""
        try:
            description = tasks.get(expert.task).description if expert.task else expert.name
        except UserError:  # a task of somebody else's code
            description = expert.name
        if labelled is None or expert.name in labelled.labels:
            return expert.name, description
        label = labelled.label_of(expert.task)
        if label is None:
            known = ", ".join(labelled.labels)
            raise ConfigError(f"expert {expert.name!r} fits none of the labels of {labelled.name} ({known}); rename it")
        return label, description
