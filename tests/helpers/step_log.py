"""What every step of a run logged."""

import lightning as L


class Metrics(L.Callback):
    """Keeps what every step logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *args):
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items()})
