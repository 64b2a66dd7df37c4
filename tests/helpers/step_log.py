"""Callbacks of tests: what every step of a run logged; a run that ends early."""

import lightning as L


class StopAt(L.Callback):
    """Ends a run early, as a signal does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step >= self.step


class Metrics(L.Callback):
    """Keeps what every step logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *args):
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items()})
