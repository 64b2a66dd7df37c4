"""Every value that crosses a module boundary, and the axis legend.

Axes, used as name suffixes throughout the package:

    B  rows of a batch (prompts, or completions: one completion is one row)
    P  prompt tokens (left-padded)        C  completion tokens (right-padded)
    T  tokens of prompt + completion      V  vocabulary
    D  hidden size                        R  singular values of one matrix, r = min(m, n)
    K  experts                            m, n  rows (out) and columns (in) of a weight matrix W

This module imports torch for annotations only, so that tasks and verifiers stay importable without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transformer2.pictures import Picture

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        id: Stable identifier, `<task>/<split>/<row>`. A task's own ids may repeat: rows are told apart by position.
        messages: Chat messages (`role`, `content`) before the answer; content is a text, or parts with a `type`: `text`
            (and its `text`), or `image`.
        answer: Gold answer, as the task's verifier reads it.
        fields: What the verifier needs besides the answer (tests, entry point, option letters).
        images: In the order of the image parts; without such parts they stand before the text of the last user message.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    fields: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    images: tuple[Picture, ...] = ()

    @property
    def question(self) -> str:
        """What was asked: the text of the last user message."""
        return next((text_of(m) for m in reversed(self.messages) if m["role"] == "user"), "")


def text_of(message: Message) -> str:
    """The text of a message, its pictures left out."""
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion.

    Attributes:
        reward: +1 or -1 (PAPER: r in {-1, +1}); None when nobody knows, because the verifier failed (an infra error)
            or because it abstains: such a row is left out of the update and the score and counted, never scored 0.
        correct: Whether the completion answers the question.
        extracted: The answer found in the completion, None when there was none.
        reason: One short phrase, for records and logs.
        abstained: Whether `reward` is None by the task's own choice. Failures stop a run when there are many of them,
            abstentions do not.
        score: How right the completion is, in [0, 1], where a task tells more than right and wrong; None: 1 or 0, by
            `correct`. Every accuracy is a mean of scores.
    """

    reward: float | None
    correct: bool
    extracted: str | None
    reason: str
    abstained: bool = False
    score: float | None = None

    @property
    def credit(self) -> float:
        """What the completion counts for in an accuracy: its score, or whether it is right."""
        return self.correct if self.score is None else self.score

    @classmethod
    def of(cls, correct: bool, extracted: str | None, reason: str) -> Verdict:
        """A verdict with the paper's reward: +1 for a right answer, -1 for a wrong one."""
        return cls(1.0 if correct else -1.0, correct, extracted, reason)

    @classmethod
    def abstain(cls, reason: str, extracted: str | None = None) -> Verdict:
        """No verdict, by choice: the question has no usable gold answer, or the answer cannot be judged fairly."""
        return cls(None, False, extracted, reason, abstained=True)

    @classmethod
    def failed(cls, reason: str) -> Verdict:
        """No verdict, because the verifier failed (an infra error): nothing is known about the answer."""
        return cls(None, False, None, reason)

    @property
    def is_failure(self) -> bool:
        """Whether there is no reward because the verifier failed."""
        return self.reward is None and not self.abstained


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as the policy reads them: left-padded, one row each.

    Attributes:
        examples: The B questions, in row order.
        input_ids_BP: int64, left-padded with the tokenizer's pad id.
        attention_mask_BP: int64, 1 on prompt tokens.
        row_ids: Number of each row in the batch over all ranks; its random numbers follow from it. Empty: 0 to B - 1.
        positions: Position of each row in its split, which tells rows apart whatever their ids. Empty: 0 to B - 1.
        solutions: Token ids of each row's solution, without the end of the turn; empty where none is trained on.
    """

    examples: tuple[Example, ...]
    input_ids_BP: Tensor
    attention_mask_BP: Tensor
    row_ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    solutions: tuple[Sequence[int], ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def repeat(self, times: int) -> PromptBatch:
        """Every prompt `times` times, copies side by side: the groups of `rloo` and `group_norm`."""
        if times == 1:
            return self
        return PromptBatch(
            tuple(e for e in self.examples for _ in range(times)),
            self.input_ids_BP.repeat_interleave(times, dim=0),
            self.attention_mask_BP.repeat_interleave(times, dim=0),
            tuple(row * times + copy for row in self.row_ids for copy in range(times)),
            tuple(position for position in self.positions for _ in range(times)),
        )

    def to(self, device: torch.device | str) -> PromptBatch:
        """The same batch with its tensors on `device` (Lightning moves batches through this)."""
        return replace(
            self, input_ids_BP=self.input_ids_BP.to(device), attention_mask_BP=self.attention_mask_BP.to(device)
        )


@dataclass(frozen=True)
class Rollouts:
    """Sampled completions. Ids and masks are used as sampled; nothing is ever re-tokenised.

    Attributes:
        examples: The B questions, in row order.
        prompt_ids_BP: int64, left-padded.
        prompt_mask_BP: int64, 1 on prompt tokens.
        completion_ids_BC: int64, right-padded.
        completion_mask_BC: int64, 1 on every sampled token, EOS and the tokens of a stop string included.
        completions: The B decoded texts, without special tokens, up to the stop string where there is one; after a
            `<think>` where the prompt ends on one.
        finished_B: bool, True where EOS or a stop string was sampled within `max_new_tokens`.
        logprobs_BC: The sampler's own log-probabilities of its tokens, fp32; None where it does not say them.
    """

    examples: tuple[Example, ...]
    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    completion_ids_BC: Tensor
    completion_mask_BC: Tensor
    completions: tuple[str, ...]
    finished_B: Tensor
    logprobs_BC: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: list[int]) -> Rollouts:
        """The rollouts of these rows, in this order, trimmed to their own longest prompt and completion."""
        prompt_mask_BP, completion_mask_BC = self.prompt_mask_BP[index], self.completion_mask_BC[index]
        p = int(prompt_mask_BP.sum(-1).max())
        c = int(completion_mask_BC.sum(-1).max())
        return Rollouts(
            examples=tuple(self.examples[i] for i in index),
            prompt_ids_BP=self.prompt_ids_BP[index][:, self.prompt_ids_BP.shape[1] - p :],
            prompt_mask_BP=prompt_mask_BP[:, prompt_mask_BP.shape[1] - p :],
            completion_ids_BC=self.completion_ids_BC[index][:, :c],
            completion_mask_BC=completion_mask_BC[:, :c],
            completions=tuple(self.completions[i] for i in index),
            finished_B=self.finished_B[index],
            logprobs_BC=None if self.logprobs_BC is None else self.logprobs_BC[index][:, :c],
        )


@dataclass(frozen=True)
class Answer:
    """One completion of a question and the verdict on it.

    Attributes:
        completion: The text.
        finished: Whether it ended within the budget.
        verdict: On the text.
        samples: Of further completions, sampled for pass@k: how many are right, and how many have a verdict.
    """

    completion: str
    finished: bool
    verdict: Verdict
    samples: tuple[int, int] | None = None

    @property
    def correct(self) -> bool | None:
        """None where there is no verdict: such an answer is not scored."""
        return None if self.verdict.reward is None else self.verdict.correct

    @property
    def credit(self) -> float | None:
        """What it counts for in an accuracy (`Verdict.credit`); None where there is no verdict."""
        return None if self.verdict.reward is None else self.verdict.credit

    def columns(self, prefix: str = "") -> dict[str, Any]:
        """The answer's columns of records.jsonl; of the base's, which have a prefix, no more than its score."""
        columns: dict[str, Any] = {
            "completion": self.completion,
            "correct": self.correct,
            **({} if self.verdict.score is None else {"score": self.credit}),
            "finished": self.finished,
            **({"abstained": True} if self.verdict.abstained else {}),
            **({} if prefix else {"extracted": self.verdict.extracted, "reason": self.verdict.reason}),
            **({} if self.samples is None else {"samples": self.samples[1], "right": self.samples[0]}),
        }
        return {prefix + name: value for name, value in columns.items()}


@dataclass(frozen=True)
class Record:
    """One scored question: a line of records.jsonl.

    Attributes:
        row: Its position in the split.
        id: See `Example`.
        question: What was asked.
        gold: The right answer.
        images: The pictures that it was asked about.
        base: The base model's answer.
        result: The answer of the expert, or of what a strategy chose.
        prompt: The rendered prompt, where records keep it.
        strategy: Name of the strategy that chose; None where nothing was chosen.
        choice: What it chose for this question: its columns of the record.
        controls: Name of a control -> its credit (`Verdict.credit`), None where the verifier did not say.
    """

    row: int
    id: str
    question: str
    gold: str
    base: Answer
    result: Answer
    images: tuple[Picture, ...] = ()
    prompt: str | None = None
    strategy: str | None = None
    choice: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        soft = self.result.verdict.score is not None or self.base.verdict.score is not None
        named = {"controls_score" if soft else "controls_correct": dict(self.controls)}
        return {
            **{"row": self.row, "id": self.id, "question": self.question, "answer": self.gold},
            **({"images": [p.name for p in self.images]} if self.images else {}),
            **({} if self.prompt is None else {"prompt": self.prompt}),
            **({} if self.strategy is None else {"strategy": self.strategy, **self.choice}),
            **self.base.columns("base_"),
            **self.result.columns(),
            **({} if self.strategy is None and not self.controls else named),
        }


@dataclass(frozen=True)
class Score:
    """An accuracy with its sampling error.

    Attributes:
        accuracy: Share of right answers, or mean of their scores, in [0, 1].
        se: Standard error, sqrt(variance / n), which for right and wrong is sqrt(a (1 - a) / n).
        n: Number of scored answers.
    """

    accuracy: float
    se: float
    n: int

    @classmethod
    def of(cls, credits: Sequence[float]) -> Score:
        """The score of n verdicts, right or wrong or in between (`Verdict.credit`); NaN for none."""
        n = len(credits)
        if not n:
            return cls(float("nan"), float("nan"), 0)
        accuracy = sum(credits) / n
        within = sum(c * (1 - c) for c in credits) / n  # 0 where all are right or wrong
        return cls(accuracy, (max(0.0, accuracy * (1 - accuracy) - within) / n) ** 0.5, n)

    def __str__(self) -> str:
        return "not scored" if not self.n else f"{100 * self.accuracy:.1f} ± {100 * self.se:.1f} %"


@dataclass(frozen=True)
class Report:
    """What a `fit`, `test` or `adapt` found: the content of report.json.

    Attributes:
        task: Name of the task.
        protocol: `clean` (no choice was made on scored rows) or `paper`.
        n: Questions scored for both base and result.
        base: The base model.
        result: The expert or the adapted model.
        paired_p: Two-sided p-value of result against base on the same questions: exact McNemar, or, where answers have
            scores between right and wrong, a sign-flip permutation test (`details["paired_test"]` says so).
        controls: Other scores to compare the result with.
        alpha: Mixing weights, where there are any.
        evaluations: Few-shot evaluations spent, where there are any.
        seconds: Wall-clock seconds by part.
        seeds: Every seed used.
        versions: Library versions.
        sandbox: Isolation level reached when model-written code was run; None when none was run.
        details: What there is to say besides: settings, rejected members, dispatch accuracy, the share of `unfinished`
            answers, counts of `abstained` and `infra_errors`, and `notes`, lines on what the scores do not say.
    """

    task: str
    protocol: str
    n: int
    base: Score
    result: Score
    paired_p: float
    controls: Mapping[str, Score] = field(default_factory=dict)
    alpha: Mapping[str, Any] | None = None
    evaluations: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    sandbox: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with scores as {accuracy, se, n}; an accuracy of nothing is None."""
        return asdict(self, dict_factory=lambda items: {k: None if v != v else v for k, v in items})
