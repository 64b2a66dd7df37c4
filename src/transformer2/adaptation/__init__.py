"""Adaptation at test time. Which strategies there are is said here, once; nothing heavy is imported to know it."""

from typing import Literal, get_args

__all__ = ["DISPATCHED", "NO_CLASSIFIER", "STRATEGIES", "DispatchName"]

DispatchName = Literal["prompt", "cls", "scores"]  # those that choose for each request
DISPATCHED: tuple[DispatchName, ...] = get_args(DispatchName)
STRATEGIES = {
    "cem": "transformer2.adaptation.few_shot.FewShotSearch",
    "prompt": "transformer2.adaptation.dispatch.PromptDispatch",
    "cls": "transformer2.adaptation.dispatch.ClassifierDispatch",
    "scores": "transformer2.adaptation.dispatch.ScoresDispatch",
}
NO_CLASSIFIER = "name the classification expert's folder: adapt.classifier (train one with fit)"
