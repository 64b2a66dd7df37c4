"""Tasks -> prompts -> batches: the only place with a chat template and a tokenizer.

    Task.examples(split) -> render (chat template -> text -> ids, one BOS) -> PromptLoader -> PromptBatch

prompts.py renders and collates, loader.py draws batches, modules.py are the two datamodules.
"""

from transformer2.data.loader import PromptLoader
from transformer2.data.modules import ExpertDataModule, UnseenTaskDataModule
from transformer2.data.prompts import collate, render

__all__ = ["ExpertDataModule", "PromptLoader", "UnseenTaskDataModule", "collate", "render"]
