"""Dispatch by a classification expert watched inside `fit`."""

from __future__ import annotations

from transformer2.adaptation.dispatch import ClassifierDispatch
from transformer2.callbacks.evaluator import AdaptationEvaluator

__all__ = ["ClassifierEvaluator"]


class ClassifierEvaluator(AdaptationEvaluator, ClassifierDispatch):
    """Evaluates `ClassifierDispatch`; takes its arguments and those of `AdaptationEvaluator`."""
