"""A callback of the tests' own: under ZeRO-3 the matrices are shared out from the moment they are loaded."""

import lightning as L


class Shards(L.Callback):
    """Fails the run unless each process holds a part of every matrix, and the whole of z."""

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
