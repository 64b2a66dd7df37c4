"""Tasks -> prompts -> batches: the only place with a chat template and a tokenizer.

    Task.examples(split) -> render (chat template -> text -> ids, one BOS) -> PromptLoader -> PromptBatch

prompts.py renders and collates, loader.py draws batches, modules.py is the datamodule of an expert's task, unseen.py
has those of an unseen one.
"""

from transformer2.data.loader import PromptLoader
from transformer2.data.modules import ExpertDataModule
from transformer2.data.prompts import collate, render
from transformer2.data.unseen import FewShotDataModule, UnseenTaskDataModule

__all__ = ["ExpertDataModule", "FewShotDataModule", "PromptLoader", "UnseenTaskDataModule", "collate", "render"]
