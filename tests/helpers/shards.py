"""Callbacks of the tests' own, named in runs of several processes."""

import math

import lightning as L

from transformer2.module import step
from transformer2.rl.loss import reinforce_loss


class Poison(L.Callback):
    """At the second step the loss of the last process is NaN."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == trainer.world_size - 1:
            factor = math.nan if trainer.global_step == 1 else 1.0
            step.reinforce_loss = lambda *args, **kwargs: reinforce_loss(*args, **kwargs) * factor


class Shards(L.Callback):
    """Under ZeRO-3 each process holds a part of every matrix from its loading on, and the whole of z."""

    def on_fit_start(self, trainer, pl_module):
        self.check(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.check(pl_module)

    def check(self, module):
        for name, parameter in module.policy.named_parameters():
            if "lm_head" in name or parameter.ds_numel <= 1000:
                assert parameter.numel() == parameter.ds_numel, f"{name} must be whole"
            else:
                assert parameter.numel() == 0, f"{name} must be in shards"
                assert parameter.ds_tensor.numel() == -(-parameter.ds_numel // 2), name
