"""The LightningModule: training.py is the paper's equation, evaluation.py what it shares with validation and test."""

from transformer2.module.scores import predicting_states
from transformer2.module.training import SVFReinforceModule

__all__ = ["SVFReinforceModule", "predicting_states"]
