"""Dispatch by prompt watched inside `fit`: the base model itself names the category of every request."""

from __future__ import annotations

from transformer2.adaptation.dispatch import PromptDispatch
from transformer2.callbacks.evaluator import AdaptationEvaluator

__all__ = ["PromptEvaluator"]


class PromptEvaluator(AdaptationEvaluator, PromptDispatch):
    """Evaluates `PromptDispatch`; takes its arguments and those of `AdaptationEvaluator`."""
