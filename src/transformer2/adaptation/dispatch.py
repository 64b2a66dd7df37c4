"""Dispatch: the model names the category of a request; the category's expert answers (paper, section 3.2 A and B).

    prompt, cls  the model names one category (`verifiers.label` reads it); none or two are no category
    scores       l_c = log p(name of c, EOS | dispatch prompt): the prompt is run once, nothing to parse;
                 hard: argmax_c l_c, always a category; soft: every category's z by its probability, softmax_c l_c

l_c is the log-probability of the whole answer, so softmax is what the model thinks of the categories given that it
answers with one of them; a longer name has no advantage that it has not as an answer, and EOS tells "math" from the
beginning of "mathematics". "other", and whatever is not a category, is the base model exactly (z = 1); in the reference
code it keeps the weights of the previous request. The categories are the experts', however many: their names and
one-line descriptions are the prompt. `scores` is not part of the paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from transformer2 import tasks, tiny
from transformer2.adaptation import NO_CLASSIFIER
from transformer2.adaptation.context import EvaluationContext
from transformer2.adaptation.dispatcher import OTHER, Dispatcher
from transformer2.adaptation.strategy import AdaptedPolicy, Choice, Strategy
from transformer2.arguments import Count, check_arguments
from transformer2.data.prompts import collate, render
from transformer2.errors import ConfigError
from transformer2.experts import Expert, read_expert
from transformer2.files import check_directory
from transformer2.metrics import UNPARSED, Confusion
from transformer2.report.adaptation import confusion_figure
from transformer2.report.build import Facts
from transformer2.rollout.prefill import context_of
from transformer2.types import Example, PromptBatch, Record

__all__ = ["ClassifierDispatch", "PromptDispatch", "ScoresDispatch"]


class PromptDispatch(Strategy):
    """Chooses one expert per prompt, or the base, by asking the base model.

    Args:
        dispatch_task: A task whose `labels` are the experts' categories and whose `prompt` is the dispatch question;
            its test rows measure the dispatch itself. None: tiny_dispatch for the embedded model, else a prompt made of
            the experts' names and descriptions.
        dispatch_options: Options of that task; its rows are looked for in `data.data_dir`.
        dispatch_limit: Measure the dispatch on at most this many rows.
        options: The arguments of `Strategy`.
    """

    name: ClassVar[str] = "prompt"
    picture: ClassVar[str] = "dispatch/confusion"

    def __init__(
        self,
        dispatch_task: str | None = None,
        dispatch_options: dict[str, Any] | None = None,
        dispatch_limit: Count | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_arguments("adapt", PromptDispatch.__init__, locals())
        if dispatch_task is None and dispatch_options:
            raise ConfigError("adapt.dispatch_options are those of adapt.dispatch_task; name it too")
        task = None if dispatch_task is None else tasks.get(dispatch_task, **(dispatch_options or {}))
        if task is not None and not hasattr(task, "labels"):
            raise ConfigError(f"{dispatch_task} has no labels, so it is not a dispatch task; use dispatch or null")
        self.dispatch_task, self.dispatch_limit = task, dispatch_limit

    def load(self, base: str) -> list[Expert]:
        """The experts to choose from, each of a category of its own."""
        experts = super().load(base)
        Dispatcher.of(experts, self.labelled(base))
        return experts

    def labelled(self, base: str) -> Any:
        """The task that words the question and has labelled requests; None makes it of the experts' names."""
        return self.dispatch_task or (tasks.get("tiny_dispatch") if base == "tiny" else None)

    def adapt_to_task(self, context: EvaluationContext) -> AdaptedPolicy:
        """Needs no shots; where there are labelled requests, the report says how many are dispatched right."""
        return _DispatchedPolicy(context, self)


class ClassifierDispatch(PromptDispatch):
    """As `PromptDispatch`, with an expert for the dispatch itself (for one, `fit --config conf/tiny_dispatch.yaml`).

    Args:
        classifier: Folder of the classification expert; None takes the embedded model's for cls, and the base model for
            scores.
        options: The arguments of `PromptDispatch`.
    """

    name: ClassVar[str] = "cls"

    def __init__(self, classifier: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_arguments("adapt", ClassifierDispatch.__init__, locals())
        if classifier is not None:
            check_directory(classifier, "adapt.classifier", "train it with fit, or name its folder", ConfigError)
        self.classifier = classifier

    def load_helpers(self, base: str) -> list[Expert]:
        """The classification expert, which is not chosen from."""
        if self.classifier is None and base != "tiny":
            raise ConfigError(NO_CLASSIFIER)
        return [read_expert(self.classifier or tiny.expert_path(tiny.CLASSIFIER))]


class ScoresDispatch(ClassifierDispatch):
    """Chooses one expert per prompt, or the base, by the likelihood of every category; or mixes them by it.

    Args:
        soft: Mix the experts and the base by the probabilities of their categories instead of choosing one.
        options: The arguments of `ClassifierDispatch`.
    """

    name: ClassVar[str] = "scores"

    def __init__(self, soft: bool = False, **options: Any) -> None:
        super().__init__(**options)
        check_arguments("adapt", ScoresDispatch.__init__, locals())
        self.soft = soft

    def load_helpers(self, base: str) -> list[Expert]:
        """The classification expert, where there is one."""
        return [] if self.classifier is None else [read_expert(self.classifier)]

    def adapt_to_task(self, context: EvaluationContext) -> AdaptedPolicy:
        """As `PromptDispatch`."""
        return _ScoredPolicy(context, self)


class _DispatchedPolicy(AdaptedPolicy):
    """One expert, or the base, per row. The first pass runs under the classification expert where there is one."""

    writes: ClassVar[bool] = True  # the category, rather than score each

    def __init__(self, context: EvaluationContext, settings: PromptDispatch) -> None:
        super().__init__(context, settings.name)
        self.settings, self.scorer = settings, context.helpers
        self.weights_1K = torch.eye(len(self.scorer.members))[:1]  # the helper's; the base's where it is alone
        self.labelled = settings.labelled(context.data.base)
        self.dispatcher = Dispatcher.of(context.experts, self.labelled)

    @cached_property
    def measured(self) -> Confusion | None:
        """The predicted category of labelled requests; each rank takes every world_size-th of them."""
        if self.labelled is None:
            return None
        data, answerer = self.context.data, self.context.answerer
        measured = Confusion(self.labelled.labels).to(answerer.device)
        examples = self.labelled.examples("test", data.data_dir)[: self.settings.dispatch_limit]
        mine = examples[answerer.rank :: answerer.world_size]
        for start in range(0, len(mine), data.eval_batch_size):
            part = mine[start : start + data.eval_batch_size]
            columns = self._choose(part).columns  # its rows are dispatch questions already
            measured.update((e.answer, column["choice"]) for e, column in zip(part, columns, strict=True))
        return measured

    def adapt_to_batch(self, batch: PromptBatch) -> Choice:
        return self._choose([self.dispatcher.question(e) for e in batch.examples])

    def facts(self, records: Sequence[Record]) -> Facts:
        share = {name: round(count / len(records), 4) for name, count in _chosen(records).items()}
        details = {**super().facts(records).details, "chosen": share}
        if self.measured is not None:
            details |= {"dispatch": self.measured.scores(), "confusion": self.measured.table()}
        long = sum(r.choice.get("too_long", False) for r in records)
        which = f"{long} of {len(records)} requests, whose dispatch question is longer than this model reads"
        return Facts(details=details, notes=[f"{self.name}: the base answered {which}"] if long else ())

    def figure(self, records: Sequence[Record]) -> Any:
        """The confusion of labelled requests, and the predicted categories of the scored task."""
        table = {} if self.measured is None else self.measured.table()
        table[self.context.data.task.name] = _chosen(records)
        columns = [*self.dispatcher.categories, UNPARSED]
        if not any(UNPARSED in row for row in table.values()):
            columns.remove(UNPARSED)
        return confusion_figure(table, columns, f"dispatch by {self.name}")

    def _choose(self, questions: Sequence[Example]) -> Choice:
        """What the model says to dispatch questions; the column `choice` is a category, or that there is none."""
        engine = self.scorer.engine
        ids = [render(engine.tokenizer, question, self.context.data.template) for question in questions]
        room = context_of(self.answerer.policy.config) - self.dispatcher.answer_budget(engine.tokenizer, self.writes)
        read = [b for b, prompt in enumerate(ids) if len(prompt) <= room]
        weights_BK, columns = self.dispatcher.weights([None] * len(ids)), dict[int, dict[str, Any]]()
        if read:
            prompts = collate([questions[b] for b in read], [ids[b] for b in read], engine.pad_id)
            weights_BK[read], found = self._ask(prompts.to(self.answerer.device))
            columns = dict(zip(read, found, strict=True))
        return Choice(weights_BK, [columns.get(b, {"choice": UNPARSED, "too_long": True}) for b in range(len(ids))])

    def _ask(self, prompts: PromptBatch) -> tuple[Tensor, list[dict[str, Any]]]:
        """Weights (B, K + 1) and columns."""
        budget = self.dispatcher.answer_budget(self.scorer.engine.tokenizer)
        texts = self.scorer.rows(prompts, self.weights_1K, budget).completions
        choices = [self.dispatcher.parse(text) for text in texts]
        names = [UNPARSED if c is None else self.dispatcher.categories[c] for c in choices]
        columns = [{"first_pass": text, "choice": name} for text, name in zip(texts, names, strict=True)]
        return self.dispatcher.weights(choices), columns


class _ScoredPolicy(_DispatchedPolicy):
    """One expert, or the base, or a mixture of all, per row."""

    settings: ScoresDispatch
    writes: ClassVar[bool] = False

    def facts(self, records: Sequence[Record]) -> Facts:
        facts = super().facts(records)
        details = dict(facts.details)
        if self.settings.soft:
            of_all = [r.choice.get("probabilities", {OTHER: 1.0}) for r in records]
            mean = {c: round(sum(p.get(c, 0.0) for p in of_all) / len(of_all), 4) for c in self.dispatcher.categories}
            details |= {"likeliest": details.pop("chosen"), "mean_weights": mean}
        return replace(facts, details=details)

    def _ask(self, prompts: PromptBatch) -> tuple[Tensor, list[dict[str, Any]]]:
        logprobs_BK = self.scorer.log_likelihoods(prompts, self.dispatcher.categories, self.weights_1K)
        likeliest, probabilities_BK = logprobs_BK.argmax(-1).tolist(), logprobs_BK.softmax(-1).cpu()
        categories = self.dispatcher.categories
        columns = [
            {"choice": categories[c], "probabilities": dict(zip(categories, (round(p, 6) for p in row), strict=True))}
            for c, row in zip(likeliest, probabilities_BK.tolist(), strict=True)
        ]
        return probabilities_BK if self.settings.soft else self.dispatcher.weights(likeliest), columns


def _chosen(records: Sequence[Record]) -> dict[str, int]:
    return dict(Counter(r.choice["choice"] for r in records))
