"""Dispatch by likelihood watched inside `fit`: what the model thinks of every category, without an answer to parse."""

from __future__ import annotations

from transformer2.adaptation.dispatch import ScoresDispatch
from transformer2.callbacks.evaluator import AdaptationEvaluator

__all__ = ["ScoresEvaluator"]


class ScoresEvaluator(AdaptationEvaluator, ScoresDispatch):
    """Evaluates `ScoresDispatch`; takes its arguments and those of `AdaptationEvaluator`."""
