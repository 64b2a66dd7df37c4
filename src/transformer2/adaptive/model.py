"""A model that adapts to any prompt: a first pass chooses among experts, a second pass answers.

    model = SelfAdaptive.from_pretrained("tiny")
    for answer in model.generate(["Ida has 12 pens, ...", "Code f(x): double, ..."]):
        print(answer.choice.name, answer.text)

All prompts under way share every forward pass, whatever answers them: the base, an expert or a mixture
(rollout/continuous.py). A first pass that writes is a row like any other.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from transformer2 import tasks, tiny
from transformer2.adaptation.members import add_member
from transformer2.adaptive import request
from transformer2.adaptive.chat import Chat, Prompt, as_prompts
from transformer2.adaptive.experts import LoadedExperts, load_policy, read_experts
from transformer2.adaptive.few_shot import Rows, find_mixture
from transformer2.adaptive.first_pass import FirstPass, StrategyName, read_strategy
from transformer2.adaptive.queue import Decision, JobQueue
from transformer2.adaptive.request import BASE, USUAL_ANSWER, AdaptiveAnswer, Job, Piece, Use, read_use
from transformer2.errors import ConfigError, UserError, shown
from transformer2.experts import Expert, read_expert
from transformer2.policy import eos_token_ids, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.continuous import ContinuousBatch
from transformer2.rollout.ending import Ending
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.prefill import context_of
from transformer2.seeds import row_seed
from transformer2.svf.layer import tuned_layers
from transformer2.tasks import Task

__all__ = ["SelfAdaptive"]


class SelfAdaptive:
    """A base model with experts to choose from. Several threads may use one at the same time.

    Args:
        policy: The base with SVF layers on every matrix that some expert tunes.
        tokenizer: The base's.
        experts: Name -> expert.
        strategy: How one is chosen: `cls` (a classification expert writes the category), `scores` (the likeliest one),
            `prompt` (the base writes it); `auto` is `cls` with a classification expert, else `scores`. None chooses
            nothing: `use` or `alpha` say what answers, else the only expert or, of several, the base.
        alpha: A mixture that answers every prompt, expert -> weight, in place of a strategy (until `set_strategy`).
        classifier: The classification expert, under which the first pass of `cls` and `scores` runs.
        soft: scores: mix the experts by the probabilities of their categories instead of taking the likeliest.
        labelled: The dispatch task whose words the first pass takes; None makes them of the experts' names and tasks.
        max_rows: Prompts under way at a time.
        max_tokens: Prompts under way x tokens of the longest, at a time.

    Raises:
        ConfigError: A strategy that is unknown or lacks what it needs; a base that does not decode as it should.
        ExpertError: An expert that does not fit the base.
    """

    def __init__(
        self,
        policy: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        experts: Mapping[str, Expert],
        strategy: StrategyName | None = "auto",
        alpha: Mapping[str, float] | None = None,
        classifier: Expert | None = None,
        soft: bool = False,
        labelled: Any = None,
        max_rows: int = 64,
        max_tokens: int = 65536,
    ) -> None:
        self.policy, self.tokenizer, self._labelled = policy, tokenizer, labelled
        self.max_rows, self.usual_answer = max_rows, USUAL_ANSWER
        self._lock = threading.RLock()
        self._engine = HFEngine(tokenizer, eos_token_ids(policy, tokenizer), max_rows)
        self._engine.check(policy, policy.device)
        self._loaded = LoadedExperts(policy)
        batch = ContinuousBatch(policy, max_rows, max_tokens)
        self._queue = JobQueue(batch, self._loaded, self._decide, self._choosing)
        for name, expert in experts.items():
            self._loaded.add(name, expert)
        self._classifier = None if classifier is None else add_member(policy, classifier.deltas)
        self.longest = context_of(policy.config)
        self._first_pass_lock = threading.Lock()  # never held while the model runs: `start` must not wait for a step
        self.set_strategy(strategy, soft)
        if not isinstance(alpha, Mapping | None):
            raise UserError(f"alpha is a mapping of experts to weights, not {shown(repr(alpha), 60)}")
        self._always: Decision | None = None if alpha is None else (self._loaded.selection(alpha), None)

    @classmethod
    def from_pretrained(
        cls,
        base: str = "tiny",
        experts: Mapping[str, str | Path] | Iterable[str | Path] | str | Path | None = None,
        strategy: StrategyName | None = "auto",
        alpha: Mapping[str, float] | None = None,
        classifier: str | Path | None = None,
        soft: bool = False,
        dtype: str = "auto",
        device: str | torch.device | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> SelfAdaptive:
        """Load a base and its experts.

        Args:
            base: `tiny`, a folder, a GGUF file, or a Hub id.
            experts: Name -> expert folder, or folders alone, or one; None takes those that ship with an embedded base.
            strategy: See the class.
            alpha: See the class.
            classifier: Folder of the classification expert; None takes the one that ships with `tiny`.
            soft: See the class.
            dtype: Of the base: `auto`, or a torch dtype's name.
            device: None takes the GPU where there is one.
            model_kwargs: Of `from_pretrained` of transformers (`quantization_config`, `attn_implementation`, ...).
            options: `max_rows` and `max_tokens` of the class.

        Raises:
            ConfigError: A strategy where nothing is chosen: no experts, or `alpha`; a value that cannot be used.
            ExpertError: See the class and `read_expert`.
        """
        shipped = base == "tiny" and experts is None  # with words for the first pass, and an expert on them
        if shipped:
            classifier = classifier or tiny.expert_path(tiny.CLASSIFIER)
        chosen = read_strategy(strategy, classifier is not None, soft)
        found = read_experts(tiny.shipped(base) if experts is None else experts)
        helper = None if classifier is None else read_expert(classifier)
        if (strategy not in (None, "auto") or soft) and not (found and alpha is None):
            why = "there are no experts to choose from" if alpha is None else "alpha answers every prompt"
            raise ConfigError(f"{why}, so strategy {chosen} would not be used; leave strategy and soft out")
        everyone = [*found.values(), *([] if helper is None else [helper])]
        policy = load_policy(base, everyone, dtype, device, model_kwargs or {})
        tokenizer, labelled = load_tokenizer(base, model_kwargs), tasks.get("tiny_dispatch") if shipped else None
        return cls(policy, tokenizer, found, strategy, alpha, helper, soft, labelled, **options)

    def set_strategy(self, strategy: StrategyName | None, soft: bool = False) -> None:
        """Choose in another way from now on, in place of `alpha` and what `adapt` found, too; see the class."""
        self.strategy, self.soft = read_strategy(strategy, self._classifier is not None, soft), soft
        with self._first_pass_lock:
            self._first_pass: FirstPass | None = None
            self._always = None

    def check_use(self, use: Use) -> Use:
        """What `use` of `start` asks for; refuses names and weights that cannot answer."""
        use = read_use(use) if isinstance(use, str) else use
        self._loaded.check(use)
        return use

    @property
    def experts(self) -> list[str]:
        """Names of the experts."""
        return list(self._loaded.experts)

    @property
    def choosable(self) -> list[str]:
        """Names of the experts that the strategy can choose; the others answer where `use` names them."""
        return [] if self.strategy is None else list(self._choosing().names)

    def expert(self, name: str) -> Expert:
        """An expert and where it came from."""
        return self._loaded.expert(name)

    def z(self, name: str) -> dict[str, Tensor]:
        """Matrix -> z of an expert, fp32 (r,), in the order of the layers."""
        return {matrix: 1 + delta_R for matrix, delta_R in self.expert(name).deltas.items()}

    def add_expert(self, name: str, expert: Expert | str | Path) -> None:
        """Load one more expert, while others answer; a mixture that was searched is forgotten, with a warning.

        The strategy chooses it, too, if it has a category that no other expert has; else a warning says so.

        Raises:
            ExpertError: It cannot be read, its name is taken, or it does not fit the base.
        """
        found = expert if isinstance(expert, Expert) else read_expert(expert, name)
        with self._lock:
            if not found.deltas.keys() <= tuned_layers(self.policy).keys():
                self._queue.finish_rows()  # rows under way have no z for matrices that are new
            self._loaded.add(name, found)
            self._forget()
            _ = self.choosable  # whose warning belongs here

    def remove_expert(self, name: str) -> None:
        """Unload an expert; what is under way continues under the z that it began with.

        Raises:
            UserError: There is none of that name, or `alpha` needs it.
        """
        with self._lock:
            self._loaded.expert(name)
            if self._always is not None and self._always[1] is None and name in self._always[0].weights:
                raise UserError(f"alpha, which answers every prompt, has a weight for {name!r}; set_strategy first")
            self._loaded.remove(name)
            self._forget()

    def adapt(self, rows: Rows, task: str | Task, max_new_tokens: int | None = None, **search: Any) -> dict[str, float]:
        """Search the mixture that answers a few rows best (paper, section 3.2 C); it answers from now on.

        Args:
            rows: Examples, or mappings: question, answer, maybe `system`, `image` (a path, a `Picture`, or several).
            task: What verifies answers: a task, or its name.
            max_new_tokens: Budget of an answer, EOS included; None takes the task's.
            search: The arguments of `FewShotSearch` (`generations`, `population`, `seed`, ...).

        Returns:
            Expert -> weight, and the base's of a raw mixture: `use=` them answers as from now on. Where the weights
            differ by matrix (`granularity`), their means, which do not; `choice.averaged` of answers says so.

        Raises:
            UserError: Rows that cannot be used, or whose own answers the task does not find right; see `find_mixture`.
        """
        with self._lock:
            self._always = found = find_mixture(self._loaded, self._engine, rows, task, max_new_tokens, **search)
        return dict(found[0].weights)

    def generate(self, prompts: Prompt | Chat | Iterable[Prompt | Chat], **options: Any) -> list[AdaptiveAnswer]:
        """Answer prompts, all in one running batch.

        Args:
            prompts: One or many; see `start`.
            options: See `start`; prompt i draws from `row_seed(seed, i)`, and `ids` are of one prompt.

        Raises:
            UserError: See `start`; or the model gave non-finite logits.
        """
        jobs: list[Job] = []
        several, seed = as_prompts(prompts), options.pop("seed", 0)
        if len(several) > 1 and options.get("ids") is not None:
            raise UserError(f"ids are of one prompt, and there are {len(several)}; generate one at a time")
        try:
            for i, prompt in enumerate(several):
                jobs.append(self.start(prompt, seed=row_seed(request.plain(seed), i) if i else seed, **options))
            while not all(job.is_done for job in jobs):
                self.step()
        finally:
            for job in jobs:
                job.cancel()
        return [job.result() for job in jobs]

    def stream(self, prompt: Prompt | Chat, **options: Any) -> Iterator[Piece]:
        """The answer to one prompt in pieces, as they come; what is left unread is not drawn. Options: see `start`."""
        job = self.start(prompt, **options)
        try:
            while not job.is_done:
                self.step()
                if text := job.take():
                    yield Piece(text, job.answer)
            yield Piece(job.take(), job.result())
        finally:
            job.cancel()

    def start(
        self,
        prompt: Prompt | Chat,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        use: Use = None,
        top_logprobs: int | None = None,
        ids: Sequence[int] | None = None,
    ) -> Job:
        """Let a prompt join the running batch; `step` moves all of them.

        Args:
            prompt: Text, or a list of messages {role, content}; a base that takes pictures reads contents in parts
                (adaptive/chat.py), and they are shown to the first pass too.
            max_new_tokens: Budget, EOS included; None takes what the model has room for, 512 at most.
            temperature: 0 is greedy.
            top_p: Nucleus mass in (0, 1].
            seed: Of the draws.
            stop: A string that ends the answer, or several.
            use: `base`, an expert's name, `mix:math=0.6,code=0.9` or a mapping of weights; None or `auto`: a strategy.
            top_logprobs: Note log-probabilities, and of so many of the likeliest tokens at each step.
            ids: Token ids to continue, in place of the prompt in its chat template; the first pass reads the prompt.

        Raises:
            UnknownExpertError: No expert has that name.
            LengthError: The prompt is too long for the model, or for the budget.
            UserError: A prompt or sampling that cannot be used.
        """
        chat = prompt if isinstance(prompt, Chat) else Chat.of(prompt)
        max_new_tokens, seed, top_logprobs = request.check_draws(max_new_tokens, seed, top_logprobs, temperature, top_p)
        use = self.check_use(use)
        ids = request.prompt_ids(chat, ids, self.tokenizer)
        budget = request.answer_budget(len(ids), max_new_tokens, self.longest, self.usual_answer)
        if use is None and self._always is None and self.choosable:
            self._choosing().check_length(chat.request, self.longest)
        chat.check_pictures()  # last: their tokens are counted by now
        ending = Ending(self.tokenizer, self._engine.eos_ids, request.stop_strings(stop)) if stop else self._engine
        job = Job(chat, ids, use, Sampling(temperature, top_p, budget), ending, seed, top_logprobs)
        self._queue.add(job)
        return job

    @property
    def takes_pictures(self) -> bool:
        """Whether the base does."""
        return getattr(self.tokenizer, "family", None) is not None

    @property
    def is_idle(self) -> bool:
        """Whether no prompt is under way."""
        return self._queue.is_idle

    @property
    def rows_under_way(self) -> int:
        """Rows of the running batch."""
        return sum(row.finish_reason is None for row in self._queue.batch.rows)

    def step(self) -> list[Job]:
        """Draw one token for every prompt under way; what is under way, and what this step has ended, is returned."""
        with self._lock:
            return self._queue.step()

    def _decide(self, job: Job) -> Decision | None:
        """What answers a request; None where the first pass says so."""
        if job.use is None and (self._always is not None or self.choosable):
            return self._always
        alone = self.experts if self.strategy is None and len(self.experts) == 1 else []
        return self._loaded.selection(job.use or (*alone, BASE)[0]), None

    def _choosing(self) -> FirstPass:
        """The first pass among the experts that are loaded now."""
        with self._first_pass_lock:
            if self._first_pass is None:
                assert self.strategy is not None
                adapter = self._loaded.base if self.strategy == "prompt" else self._classifier or self._loaded.base
                made = FirstPass(self.strategy, self.soft, self._loaded, adapter, self._engine, self._labelled)
                self._first_pass = made
            return self._first_pass

    def _forget(self) -> None:
        """What was made of experts that have changed."""
        with self._first_pass_lock:
            self._first_pass = None
            if self._always is not None and self._always[1] is not None:
                self._always = None
                warnings.warn("the experts changed: what adapt found is forgotten; adapt again", stacklevel=3)
