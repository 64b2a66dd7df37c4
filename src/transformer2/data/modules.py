"""The datamodule of an expert task; its parts are those of every other, too."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from transformer2 import tasks
from transformer2.arguments import Count, Objective, Seed, check_arguments
from transformer2.data.loader import PromptLoader, batches_within
from transformer2.data.pictures import check_pictures
from transformer2.data.prompts import DATE, ChatTemplate, plain_ids, render, solution_ids
from transformer2.errors import ConfigError, DataError
from transformer2.files import source_digest
from transformer2.policy import load_config, load_tokenizer
from transformer2.rollout.prefill import context_of
from transformer2.types import Example, PromptBatch
from transformer2.verifiers import warm_up
from transformer2.vision import as_image_ids

# Options are bare dicts: jsonargparse would read a text inside dict[str, Any] as YAML, `Q: {question}` as a mapping.


def hash_of(ids: array[int]) -> bytes:
    """What tells prompts apart."""
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def mark_of(example: Example) -> str:
    """What a row asks, whatever base and task it is asked of: a digest of its text and pictures."""
    asked = "\n".join([example.question, *(picture.digest() for picture in example.images)])
    return hashlib.sha256(asked.encode(errors="replace")).hexdigest()[:16]


class ExpertDataModule(L.LightningDataModule):
    """Prompts of one expert task. The test split is read by `test` alone and cannot be reached during `fit`.

    Args:
        task: A task's name, or the class path of your own (`mypackage.mytask.MyTask`).
        base: `tiny`, a folder or a Hub id: whose tokenizer renders the prompts (linked to `model.base`).
        data_dir: Folder with local copies of the rows; None reads the Hub (embedded tasks make their own).
        task_options: Options of the task's constructor, e.g. `{system: null, prompt: "Q: {question}"}`.
        batch_size: Prompts per optimizer step, over all ranks (paper: 256).
        eval_batch_size: Prompts per batch of validation and test.
        validation_limit: Score at most this many validation questions; None scores all.
        test_limit: Score at most this many test questions; None scores all.
        drop_long_prompts: Leave out prompts that do not fit the model's context, and rows whose solution does not fit
            the budget, instead of refusing them.
        chat_template: `model` takes the tokenizer's and demands one; `none` prompts with the messages' contents alone.
        chat_template_kwargs: Variables of the chat template, e.g. `{enable_thinking: false}`.
        template_date: The date that a chat template prints as today's, so that prompts are the same tomorrow.
        keep_prompts: Keep the rendered prompts in records.jsonl.
        max_new_tokens: Completion budget (linked to `model.sampling.max_new_tokens`); None takes the task's.
        seed: Seed of the order of prompts (linked to `seed_everything`).
        model_kwargs: Which files of the base, e.g. `{revision: v1}` (linked to `model.model_kwargs`).
        objective: With `next_token`, batches to train on hold the rows' solutions (linked to `model.objective`).

    Attributes:
        reported: The protocol that a report on its rows names: `paper` where the data, the task, or an expert is of it.
    """

    def __init__(
        self,
        task: str = "tiny_math",
        base: str = "tiny",
        data_dir: str | None = None,
        task_options: dict | None = None,
        batch_size: Count = 64,
        eval_batch_size: Count = 256,
        validation_limit: Count | None = None,
        test_limit: Count | None = None,
        drop_long_prompts: bool = False,
        chat_template: Literal["model", "none"] = "model",
        chat_template_kwargs: dict | None = None,
        template_date: str = DATE,
        keep_prompts: bool = False,
        max_new_tokens: Count | None = None,
        seed: Seed = 0,
        model_kwargs: dict[str, Any] | None = None,
        objective: Objective = "reinforce",
    ) -> None:
        super().__init__()
        check_arguments("data", ExpertDataModule.__init__, locals())
        if chat_template == "none" and chat_template_kwargs:
            raise ConfigError("data.chat_template_kwargs are for a chat template, and data.chat_template is none")
        self.task, self.task_options = tasks.get(task, **(task_options or {})), task_options or {}
        source = source_digest(type(self.task))  # now: an edit from here on is not what runs
        self.task_source = source and source[:16]
        self.base, self.seed, self.objective = base, seed, objective
        self.data_dir = None if data_dir is None else os.path.expanduser(data_dir)
        self.model_kwargs = model_kwargs
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.limits = {"validation": validation_limit, "test": test_limit}
        self.prompting: dict[str, Any] = {  # for another task in the same run
            "base": base,
            "model_kwargs": model_kwargs,
            "max_new_tokens": max_new_tokens,
            "drop_long_prompts": drop_long_prompts,
            "chat_template": chat_template,
            "chat_template_kwargs": chat_template_kwargs,
            "template_date": template_date,
        }
        template = ChatTemplate(chat_template_kwargs or {}, template_date)
        self.template = None if chat_template == "none" else template
        self.keep_prompts, self.max_new_tokens = keep_prompts, max_new_tokens or self.task.max_new_tokens
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: dict[str, tuple[list[Example], list[array[int]]]] = {}
        self._solutions: list[array[int]] = []  # of the rows to train on
        self._digests: dict[tuple[str, int | None], str] = {}
        self.sizes: dict[str, int] = {}  # questions of the splits that were read
        self.reported = self.task.protocol
        self._shots: set[str] = set()  # marks of rows that experts were made with

    def leave_out(self, shots: Iterable[str] | None = None, protocol: str | None = None) -> None:
        """Score none of the rows that an expert was made with: its `shots` and `protocol`. Before `setup`."""
        self._shots |= {*map(str, shots or ())}
        self.reported = "paper" if protocol == "paper" else self.reported

    def provenance(self) -> dict[str, Any]:
        """What an expert that is made with these rows keeps of them: `shots` and `protocol`."""
        return {"shots": sorted(self._shots) or None, "protocol": self.reported}

    def _unseen(self, split: str, examples: list[Example]) -> list[Example]:
        """Rows that no expert was made with.

        Raises:
            DataError: There is none.
        """
        kept = [e for e in examples if mark_of(e) not in self._shots] if self._shots else examples
        if len(kept) < len(examples):
            what = f"{len(examples) - len(kept)} of {len(examples)} rows of {self.task.name}/{split}"
            if not kept:
                raise DataError(f"{what} were shots of the expert, and none is left to score; choose another task")
            rank_zero_warn(f"{what} were shots of the expert; they are not scored")
        return kept

    def setup(self, stage: str) -> None:
        """Read and render the splits that the stage may see.

        Raises:
            UserError: A split cannot be used; before training, this holds of the test split too.
        """
        warm_up(self.task)
        wanted = {"fit": ["train", "validation"], "validate": ["validation"], "test": ["test"]}.get(stage, [])
        for split in wanted:
            if split not in self._rows:
                self._rows[split] = self._read(split)
                if split == "train" and self.objective == "next_token":
                    self._read_solutions(split)
        if stage == "fit":
            self._warn_of_shared_rows("validation", self._rows["validation"][1])
            self._rows["test"] = self._read("test")  # what is wrong with it must not be found after hours of training
            try:
                self.test_dataloader()
                self._warn_of_shared_rows("test", self._rows["test"][1])
            finally:
                del self._rows["test"]

    def _warn_of_shared_rows(self, split: str, prompts: Sequence[array[int]]) -> None:
        """Warn of questions that are trained on and scored."""
        trained = {hash_of(ids): i for i, ids in reversed(list(enumerate(self._rows["train"][1])))}
        shared = [(i, trained[hash_of(ids)]) for i, ids in enumerate(prompts) if hash_of(ids) in trained]
        if shared:
            rank_zero_warn(
                f"{len(shared)} of {len(prompts)} questions of {self.task.name}/{split} are in train too (first: row "
                f"{shared[0][0]} is row {shared[0][1]} of train); what is scored on them was trained on"
            )

    def teardown(self, stage: str) -> None:
        """Forget the test split once it has been scored."""
        if stage == "test":
            self._rows.pop("test", None)

    def _read(self, split: str) -> tuple[list[Example], list[array[int]]]:
        if split not in self.task.splits:
            raise DataError(
                f"task {self.task.name} has no {split} split, only {', '.join(self.task.splits)}; choose another task"
            )
        try:
            examples = self.task.examples(split, self.data_dir)
        except (OSError, UnicodeError) as e:  # of a task of the user's own
            raise DataError(f"{self.task.name}/{split} cannot be read ({e}); check data.data_dir") from e
        # (What an unseen task scores is chosen after its shots.)
        examples = self._unseen(split, examples)[: self.limits[split]] if split in self.limits else examples
        self._warn_of_repeated_ids(split, examples)
        self.tokenizer = self.tokenizer or load_tokenizer(self.base, self.model_kwargs)
        if self.tokenizer.chat_template is None and self.template is not None:
            raise DataError(
                f"the tokenizer of {self.base!r} has no chat template; use an instruct model, or say "
                "data.chat_template: none to prompt with the bare text"
            )
        check_pictures(examples)
        ids = [array("q", render(self.tokenizer, e, self.template)) for e in examples]  # a picture has thousands
        prompts, asked = len({hash_of(prompt) for prompt in ids}), {e.question for e in examples}
        told = {tuple(plain_ids(self.tokenizer, text)) for text in asked} if prompts < len(asked) else asked
        if not all(ids) or prompts == 1 < len(told):
            raise DataError(
                f"prompts of {self.task.name}/{split} are all alike or empty: the chat template of {self.base!r} "
                "leaves the question out; correct it, or set data.chat_template: none"
            )
        if again := len(ids) - prompts:
            why = f" to {self.base!r}, which has no token for some of their words" if len(told) < len(asked) else ""
            what = f"{again} of {len(ids)} questions of {self.task.name}/{split}"
            rank_zero_warn(f"{what} repeat an earlier one{why}; each counts")
        if examples:
            self._warn_of_unread_variables(examples[0])
        context = context_of(load_config(self.base, self.model_kwargs))
        room = context - self.max_new_tokens
        long = [e.id for e, prompt in zip(examples, ids, strict=True) if len(prompt) > room]
        if long and not self.prompting["drop_long_prompts"]:
            raise DataError(
                f"{len(long)} prompts of {self.task.name}/{split} leave no room for {self.max_new_tokens} new "
                f"tokens in a context of {context} ({', '.join(long[:5])}{', ...' if len(long) > 5 else ''}); "
                "set data.drop_long_prompts: true, lower model.sampling.max_new_tokens, or choose a model "
                "with a longer context"
            )
        kept = [(e, prompt) for e, prompt in zip(examples, ids, strict=True) if len(prompt) <= room]
        if not kept:
            raise DataError(f"{self.task.name}/{split} holds no prompt; check data.data_dir and the limits")
        self.sizes[split] = len(kept)
        return [e for e, _ in kept], [prompt for _, prompt in kept]

    def _read_solutions(self, split: str) -> None:
        """The solutions of a split that is trained on; rows whose solution is too long are left out, or refused."""
        self.task.check_solutions()
        assert self.tokenizer is not None, "a split that was read has been rendered"
        examples, prompts = self._rows[split]
        solutions = [array("q", solution_ids(self.tokenizer, e, self.task.solution(e))) for e in examples]
        kept = [i for i, ids in enumerate(solutions) if len(ids) < self.max_new_tokens]  # the end of the turn counts
        if len(kept) < len(examples) and not self.prompting["drop_long_prompts"]:
            long = [examples[i].id for i in sorted({*range(len(examples))} - {*kept})]
            raise DataError(
                f"{len(long)} solutions of {self.task.name}/{split} have more than {self.max_new_tokens} tokens, their "
                f"end included ({', '.join(long[:5])}{', ...' if len(long) > 5 else ''}); raise "
                "model.sampling.max_new_tokens, or set data.drop_long_prompts: true to leave these rows out"
            )
        if not kept:
            raise DataError(f"no solution of {self.task.name}/{split} has at most {self.max_new_tokens} tokens")
        self._rows[split] = [examples[i] for i in kept], [prompts[i] for i in kept]
        self._solutions, self.sizes[split] = [solutions[i] for i in kept], len(kept)

    def _warn_of_repeated_ids(self, split: str, examples: list[Example]) -> None:
        """Warn of ids that tell no rows apart; positions do."""
        first: dict[str, int] = {}
        again = [i for i, e in enumerate(examples) if first.setdefault(e.id, i) != i]
        if again:
            name = examples[again[0]].id
            rank_zero_warn(
                f"{len(again)} rows of {self.task.name}/{split} repeat an earlier id (first: {name!r} in rows "
                f"{first[name]} and {again[0]}); they are told apart by their position"
            )

    def _warn_of_unread_variables(self, example: Example) -> None:
        """Warn of variables that the chat template ignores, as it does with any that it does not know."""
        if (template := self.template) is None:
            return
        for name in template.variables:
            without = replace(template, variables={k: v for k, v in template.variables.items() if k != name})
            if render(self.tokenizer, example, without) == render(self.tokenizer, example, template):
                rank_zero_warn(
                    f"data.chat_template_kwargs.{name} changes no prompt: the chat template of {self.base!r} does not "
                    "know it, or does so by itself"
                )

    def shown_prompts(self, batch: PromptBatch) -> list[str | None]:
        """The B prompts of a batch as text, for records; None each without `keep_prompts`."""
        if not self.keep_prompts:
            return [None] * len(batch)
        assert self.tokenizer is not None
        rows = zip(batch.input_ids_BP, batch.attention_mask_BP, strict=True)
        image_id = getattr(getattr(self.tokenizer, "family", None), "image_id", 0)
        texts = [as_image_ids(ids[mask.bool()].tolist(), image_id, once=True) for ids, mask in rows]
        return [self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in texts]

    def digest(self, split: str, first: int | None = None) -> str:
        """Of what a split asks and how it is judged: the same model scores otherwise only where this is another one.

        Args:
            split: The split.
            first: So many of its rows alone.
        """
        if (split, first) not in self._digests:
            words = [json.dumps([self.task.name, self.task_options, self.max_new_tokens], default=str)]
            for e, ids in islice(zip(*self._rows[split], strict=True), first):
                pictures = [picture.digest() for picture in e.images]
                tokens = as_image_ids(ids, -1)  # those of pictures have other numbers in other processes
                fields = json.dumps(dict(e.fields), default=str) if e.fields else ""
                words.append(f"{[*map(dict, e.messages)]} {e.answer} {tokens}{pictures or ''}{fields}")
            self._digests[split, first] = hashlib.sha256("\n".join(words).encode(errors="replace")).hexdigest()[:16]
        return self._digests[split, first]

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of the splits that are open."""
        return max(len(prompt) for _, ids in self._rows.values() for prompt in ids)

    def _loader(self, split: str, batch_size: int, shuffle_seed: int | None = None) -> PromptLoader:
        if split not in self._rows:
            raise DataError(f"split {split!r} of {self.task.name} is not open at this stage")
        more: dict[str, Any] = {"solutions": self._solutions} if shuffle_seed is not None else {}
        if self.trainer is not None:
            more |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return PromptLoader(*self._rows[split], self._pad_id(), batch_size, shuffle_seed, **more)

    def _pad_id(self) -> int:
        assert self.tokenizer is not None, "a split that was read has been rendered"
        return int(self.tokenizer.pad_token_id or 0)

    def train_dataloader(self) -> PromptLoader:
        """Prompts of one optimizer step per batch, equally many for each rank."""
        ranks = 1 if self.trainer is None else self.trainer.world_size
        if self.batch_size % ranks:
            raise ConfigError(
                f"data.batch_size {self.batch_size} is not a multiple of the {ranks} processes; change either"
            )
        return self._loader("train", self.batch_size, self.seed)

    def val_dataloader(self) -> PromptLoader:
        """The validation split in order."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> PromptLoader:
        """The test split, or the scored rows of an unseen task, in order; open in `test` and `adapt` only.

        Raises:
            ConfigError: `trainer.limit_test_batches` is a share of it that is less than a batch.
        """
        loader = self._loader("test", self.eval_batch_size)
        # An evaluator inside `fit` scores all of its own rows.
        limit = self.trainer.limit_test_batches if getattr(self.trainer, "datamodule", None) is self else 0
        if limit and not batches_within(loader, limit):
            raise ConfigError(f"trainer.limit_test_batches {limit} leaves nothing to score; raise it")
        return loader
