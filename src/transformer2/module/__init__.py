"""The LightningModule: training.py is the paper's equation, evaluation.py what it shares with validation and test."""

from transformer2.module.training import SVFReinforceModule, predicting_states

__all__ = ["SVFReinforceModule", "predicting_states"]
