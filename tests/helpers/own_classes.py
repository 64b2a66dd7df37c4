"""Classes of a user's own: with the names of others, and on top of ours."""

import lightning as L
import torch

from transformer2.callbacks import expert_checkpoint
from transformer2.module import natural


class NaturalGradient(torch.optim.SGD):
    """A class of the same name."""


class NotNaturalGradient(torch.optim.SGD):
    """A class whose name ends alike."""


class DampedNatural(natural.NaturalGradient):
    """A natural gradient with another damping."""

    def __init__(self, params, lr: float = 1.0, damping: float = 0.5):
        super().__init__(params, lr=lr, damping=damping)


class ModelCheckpoint(L.Callback):
    """A class of the same name."""


class Monitoring(L.Callback):
    """A class of the same name."""


class BestExpert(expert_checkpoint.ExpertCheckpoint):
    """An expert checkpoint under another name."""
