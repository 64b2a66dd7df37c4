"""A trainer, a module and data for the training step on a real small model."""

import lightning as L
import pytest
from fakes import grouped
from step_log import Metrics

from transformer2.data import ExpertDataModule
from transformer2.module import SVFReinforceModule

ALL = {"peft_type": "SVF", "target_modules": "all-linear"}


@pytest.fixture
def make(llama, tmp_path):
    def make(task="toy_task.FirstLetter", callbacks=(), max_steps=3, val_check_interval=100, **module):
        L.seed_everything(0, verbose=False)
        options = {"adapter": ALL, "lr": 0.05, "dtype": "float32", **module}
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            max_epochs=-1,
            val_check_interval=val_check_interval,
            limit_val_batches=None if val_check_interval <= max_steps else 0,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[Metrics(), *callbacks],
        )
        objective = options.get("objective", "reinforce")
        data = ExpertDataModule(task, str(llama), batch_size=32, seed=0, objective=objective)
        return trainer, SVFReinforceModule(str(llama), **grouped(**options)), data

    return make
