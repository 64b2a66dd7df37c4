"""Few-shot search watched inside `fit`."""

from __future__ import annotations

from transformer2.adaptation.few_shot import FewShotSearch
from transformer2.callbacks.evaluator import AdaptationEvaluator

__all__ = ["FewShotEvaluator"]


class FewShotEvaluator(AdaptationEvaluator, FewShotSearch):
    """Evaluates `FewShotSearch`; takes its arguments and those of `AdaptationEvaluator`."""
