"""The first pass of a request: what its category is, and so what answers it (paper, section 3.2 A and B).

It is asked about the last message, and is shown the pictures of that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from transformer2.adaptation import DispatchName
from transformer2.adaptation.dispatcher import Dispatcher
from transformer2.adaptation.scoring import Scorer
from transformer2.adaptive.experts import LoadedExperts
from transformer2.adaptive.request import BASE, Selection
from transformer2.data.prompts import collate, render
from transformer2.errors import ConfigError, LengthError, nearest, shown
from transformer2.experts import Expert
from transformer2.policy import lm_head
from transformer2.rollout.base import Sampling, openings
from transformer2.rollout.continuous import Row
from transformer2.rollout.hf import HFEngine
from transformer2.svf.layer import tuned_layers
from transformer2.types import Example

__all__ = ["FirstPass", "StrategyName", "read_strategy"]

StrategyName = Literal["auto", DispatchName]


class FirstPass:
    """Turns requests into selections, for one set of experts.

    Args:
        strategy: See `SelfAdaptive`.
        soft: See `SelfAdaptive`.
        experts: What to choose from. Those that share a category with an earlier one, or have none, are left out, with
            a warning: they would make a wrong choice of every other.
        adapter: Under which the first pass runs: the base's or the classification expert's.
        engine: Whose tokenizer and EOS ids are used.
        labelled: The dispatch task whose words are taken; None makes them of the experts' names and tasks.

    Attributes:
        names: The experts that it chooses among.
    """

    def __init__(
        self,
        strategy: StrategyName,
        soft: bool,
        experts: LoadedExperts,
        adapter: str,
        engine: HFEngine,
        labelled: Any = None,
    ) -> None:
        self.writes, self.soft, self.experts, self.engine = strategy != "scores", soft, experts, engine
        self.names, self.dispatcher = _told_apart(experts.experts, labelled)
        self.scorer = Scorer(experts.policy, [adapter], engine, lm_head(experts.policy), engine.max_rows)
        self.adapter = adapter

    @cached_property
    def _deltas(self) -> dict[Any, torch.Tensor]:
        return {layer: layer.detached_delta([self.adapter]) for layer in tuned_layers(self.experts.policy).values()}

    def check_length(self, request: Example, longest: int) -> None:
        """Refuse a request about which the dispatch question is longer than the model reads.

        Raises:
            LengthError: Says what to do instead.
        """
        ids = render(self.engine.tokenizer, self.dispatcher.question(request))
        if len(ids) + self.dispatcher.answer_budget(self.engine.tokenizer, self.writes) > longest:
            raise LengthError(
                f"the question which expert is to answer has {len(ids)} tokens, too many for the {longest} of this "
                "model; shorten the prompt, or say what answers (`use`)"
            )

    def begin(self, requests: Sequence[Example]) -> Sequence[Row | Selection]:
        """What the categories' probabilities choose; where the first pass writes, rows to run: `read` their texts."""
        questions = [self.dispatcher.question(request) for request in requests]
        ids = [render(self.engine.tokenizer, question) for question in questions]
        if self.writes:
            sampling = Sampling(0.0, max_new_tokens=self.dispatcher.answer_budget(self.engine.tokenizer))
            return [Row(prompt, self._deltas, sampling, self.engine) for prompt in ids]
        prompts = collate(questions, ids, self.engine.pad_id).to(self.experts.policy.device)
        logprobs_BC = self.scorer.log_likelihoods(prompts, self.dispatcher.categories, torch.ones(1, 1))
        return [self._scored(probabilities) for probabilities in logprobs_BC.softmax(-1).tolist()]

    def read(self, text: str) -> Selection:
        """What a written first pass chooses."""
        return self._selection(self.dispatcher.parse(self._opening + text), text)

    @cached_property
    def _opening(self) -> str:
        question = self.dispatcher.question(Example("", ({"role": "user", "content": "?"},), ""))
        return openings(self.engine.tokenizer, torch.tensor([render(self.engine.tokenizer, question)]))[0]

    def _scored(self, probabilities: Sequence[float]) -> Selection:
        categories = self.dispatcher.categories
        named = dict(zip(categories, probabilities, strict=True))
        likeliest = max(range(len(categories)), key=probabilities.__getitem__)
        if self.soft:
            weights = dict(zip(self.names, probabilities, strict=False))
            return Selection("mix", weights, named, categories[likeliest])
        return self._selection(likeliest, categories[likeliest], named)

    def _selection(
        self, category: int | None, text: str, probabilities: Mapping[str, float] | None = None
    ) -> Selection:
        """The expert of a category; the base for "other" and for none."""
        name = BASE if category is None else [*self.names, BASE][category]
        return Selection(name, {} if name == BASE else {name: 1.0}, probabilities, text)


def _told_apart(experts: Mapping[str, Expert], labelled: Any) -> tuple[list[str], Dispatcher]:
    """The experts with a category of their own, in the order of loading, and the dispatcher among them."""
    names: list[str] = []
    dispatcher = Dispatcher((), ())
    for name in experts:
        try:
            dispatcher = Dispatcher.of([experts[other] for other in (*names, name)], labelled)
            names.append(name)
        except ConfigError as e:
            warnings.warn(f"no strategy chooses expert {name!r} ({e.problem}); ask for it by name", stacklevel=4)
    return names, dispatcher


def read_strategy(strategy: Any, has_classifier: bool, soft: bool) -> StrategyName | None:
    """A strategy that is known and has what it needs; what `auto` stands for.

    Raises:
        ConfigError: Says what to change.
    """
    known = get_args(StrategyName)
    if not isinstance(soft, bool):
        raise ConfigError(f"soft must be true or false, not {shown(repr(soft), 60)}")
    if strategy is not None and strategy not in known:
        raise ConfigError(f"unknown strategy {strategy!r}{nearest(str(strategy), known)} Known: {', '.join(known)}")
    if strategy == "auto":
        strategy = "cls" if has_classifier and not soft else "scores"
    if strategy == "cls" and not has_classifier:
        raise ConfigError("strategy cls needs a classification expert: give classifier its folder (train one with fit)")
    if soft and strategy != "scores":
        raise ConfigError("soft mixes by the probabilities of strategy scores; set that, or leave soft out")
    return strategy
