"""Dispatch by a classification expert: the first pass runs under a z trained on {(request, category)}."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from transformer2 import tiny
from transformer2.adaptation.mixture import expert_rows
from transformer2.adaptation.scoring import Scorer
from transformer2.callbacks.prompt import PromptEvaluator
from transformer2.callbacks.two_pass import refuse_missing
from transformer2.errors import ConfigError
from transformer2.experts import Expert, read_expert

__all__ = ["ClassifierEvaluator"]


class ClassifierEvaluator(PromptEvaluator):
    """As `PromptEvaluator`, with an expert for the dispatch itself (for one, `fit --config conf/tiny_dispatch.yaml`).

    Args:
        classifier: Folder of the classification expert; None takes the embedded model's.
        options: The arguments of `PromptEvaluator`.
    """

    strategy: ClassVar[str] = "cls"

    def __init__(self, classifier: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        if classifier is not None:
            refuse_missing(classifier, "classifier")
        self.classifier = classifier

    def helpers(self) -> list[Expert]:
        """The classification expert, which is not chosen from."""
        if self.classifier is None and not self.on_tiny:
            raise ConfigError("name the classification expert's folder: adapt.classifier (train one with fit)")
        return [read_expert(self.classifier or tiny.expert_path(tiny.CLASSIFIER))]

    def first_scorer(self) -> tuple[Scorer, Tensor]:
        """The classification expert's z."""
        members = [*self.helper_names, self.scorer.members[-1]]
        own = Scorer(self.scorer.policy, members, self.scorer.engine, self.scorer.head, self.scorer.engine.max_rows)
        return own, expert_rows(1)
