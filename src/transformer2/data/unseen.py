"""The datamodules of an unseen task: a few rows to adapt with, or to train on, and other rows to score."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from transformer2.arguments import Count, check_arguments
from transformer2.data.loader import PromptLoader
from transformer2.data.modules import ExpertDataModule, hash_of, mark_of
from transformer2.errors import ConfigError, DataError
from transformer2.svf.base_folder import EMBEDDED
from transformer2.types import Example, PromptBatch
from transformer2.verifiers import warm_up

TASK = "tiny_code_math"  # of the embedded models


class UnseenTaskDataModule(ExpertDataModule):
    """A few rows to adapt with and other rows to score: no row and no prompt is both, whatever the task's splits are.

    Shots come from the task's `few_shot`, `train` or `validation` split, the first that it has (`clean`); a task with
    nothing but a test split is divided. `paper` takes the shots from the test split, as the reference code does; they
    are not scored either, but whoever chose the task's settings may have seen them.

    Args:
        task: A task's name, or the class path of your own; None, of an embedded base alone, is tiny_code_math.
        base: `tiny`, a folder or a Hub id: whose tokenizer renders the prompts (linked to `model.base`).
        data_dir: Folder with local copies of the rows; None reads the Hub (embedded tasks make their own).
        few_shot: Number of rows to adapt with.
        protocol: `clean` or `paper`.
        eval_batch_size: Prompts per batch of what is scored.
        options: The other arguments of `ExpertDataModule` but those of training; `test_limit` counts scored rows, and
            `seed` is that of the choice of shots.
    """

    def __init__(
        self,
        task: str | None = None,
        base: str = "tiny",
        data_dir: str | None = None,
        few_shot: Count = 20,
        protocol: Literal["clean", "paper"] = "clean",
        eval_batch_size: Count = 128,
        **options: Any,
    ) -> None:
        check_arguments("data", UnseenTaskDataModule.__init__, locals())
        if task is None and base not in EMBEDDED:
            raise ConfigError("name the task: data.task (only the embedded models have one of their own)")
        task = task or TASK
        super().__init__(
            task, base, data_dir, eval_batch_size=eval_batch_size, batch_size=few_shot, validation_limit=None, **options
        )
        self.few_shot, self.protocol = few_shot, protocol
        self.leave_out(protocol=protocol)
        self.test_limit = self.limits.pop("test")  # counts what is left of the split without the shots

    def setup(self, stage: str) -> None:
        """Choose the shots; what is left of the test split is scored."""
        if "test" in self._rows:
            return
        warm_up(self.task)
        clean = [s for s in ("few_shot", "train", "validation") if s in self.task.splits]
        source = clean[0] if clean and self.protocol == "clean" else "test"
        examples, ids = self._read(source)
        if len(examples) < self.few_shot + (source == "test"):
            what = f"{len(examples)} rows of {self.task.name}/{source}"
            raise ConfigError(f"data.few_shot {self.few_shot} is too many: it leaves nothing of the {what}; lower it")
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(self.seed)).tolist()
        shots = order[: self.few_shot]
        self._rows["few_shot"] = [examples[i] for i in shots], [ids[i] for i in shots]
        prompts = {hash_of(ids[i]) for i in shots}
        if source != "test":
            examples, ids = self._read("test")
        left = {id(e) for e in self._unseen("test", examples)}
        kept = [i for i, prompt in enumerate(ids) if hash_of(prompt) not in prompts]
        if (same := len(ids) - len(kept) - (self.few_shot if source == "test" else 0)) > 0:
            rank_zero_warn(f"{same} rows of {self.task.name}/test ask what a few-shot row asks; they are not scored")
        if not kept:
            raise DataError(f"every row of {self.task.name}/test asks what a few-shot row asks; there is none to score")
        kept = [i for i in kept if id(examples[i]) in left][: self.test_limit]
        self._rows["test"] = [examples[i] for i in kept], [ids[i] for i in kept]

    def provenance(self) -> dict[str, Any]:
        """See `ExpertDataModule`; the shots are of both."""
        marks = {mark_of(e) for e in self._rows["few_shot"][0]}
        return {"shots": sorted(self._shots | marks), "protocol": self.reported}

    def teardown(self, stage: str) -> None:
        """Nothing is hidden from an adaptation but by the split itself."""

    def shots(self) -> PromptBatch:
        """The few-shot rows as one batch, the same on every rank."""
        (batch,) = PromptLoader(*self._rows["few_shot"], self._pad_id(), self.few_shot)
        return batch

    def scored(self) -> list[Example]:
        """The scored rows in order."""
        return self._rows["test"][0]


class FewShotDataModule(UnseenTaskDataModule):
    """The shots of `UnseenTaskDataModule` to train on (paper, Table 8), the same ones; what it scores is tested.

    There is no validation: its rows would be shots too. So the expert of the last step is kept.

    Args:
        task: A task's name, or the class path of your own; None, of an embedded base alone, is tiny_code_math.
        base: `tiny`, a folder or a Hub id: whose tokenizer renders the prompts (linked to `model.base`).
        batch_size: Prompts per optimizer step, over all ranks; all shots where there are fewer.
        validation_limit: Of configs that validate; here nothing does.
        options: The other arguments of `UnseenTaskDataModule`; `few_shot` rows are trained on.
    """

    def __init__(
        self,
        task: str | None = None,
        base: str = "tiny",
        *,
        batch_size: Count = 64,
        validation_limit: Count | None = None,
        **options: Any,
    ) -> None:
        check_arguments("data", FewShotDataModule.__init__, locals())
        super().__init__(task, base, **options)
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Choose the shots. As in every fit, the rows to score are read before it, to be checked, and forgotten."""
        super().setup(stage)
        self._rows["train"] = self._rows["few_shot"]
        if self.objective == "next_token":
            self._read_solutions("train")
            self._rows["few_shot"] = self._rows["train"]
        count = len(self._rows["train"][0])
        self.batch_size, self.sizes = min(self.batch_size, count), {"few_shot": count, "test": len(self.scored())}
        if stage == "fit":
            try:
                self.test_dataloader()
            finally:
                del self._rows["test"]

    def val_dataloader(self) -> Any:
        """Nothing."""
        return []

    def digest(self, split: str, first: int | None = None) -> str:
        """See `ExpertDataModule`; of validation, nothing."""
        return "" if split == "validation" else super().digest(split, first)
