"""Answers and likelihoods of many mixtures in one batch: rows are (prompt, mixture) pairs, one z per row.

    answers           greedy completions of every prompt under every mixture, one generate call
    log_likelihood    log p(text | prompt), one text for each prompt, one forward per micro-batch: ties of a search
    log_likelihoods   the same of a few short texts after every prompt, which is run once: dispatch by `scores`

Departures from the reference code: it recomposes the weights for each candidate and runs the candidates one after the
other. Here a micro-batch holds at most `max_rows` rows, halved where memory runs out; results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from transformer2.halving import run_or_halve
from transformer2.policy import completion_states
from transformer2.rl.logprobs import Head, chunk_tokens, score_tokens
from transformer2.rl.loss import sum_by_row
from transformer2.rollout.base import Sampling
from transformer2.rollout.continuations import continuation_logprobs
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.prefill import context_of
from transformer2.svf.modes import factored_for_choice
from transformer2.svf.rows import batch_rows, z_rows
from transformer2.tasks import Task
from transformer2.types import Example, PromptBatch, Rollouts, Verdict
from transformer2.verifiers import stop_if_unverified, verify_all

__all__ = ["Scorer", "mean_credits", "right_answer", "score_members"]


def right_answer(task: Task, example: Example) -> str:
    """The whole right answer where the task has one, else the gold answer alone."""
    return task.solution(example) or example.answer


class Scorer:
    """Runs prompts under mixtures of a policy's members.

    Args:
        policy: The model, with its members loaded (`adaptation.members`).
        members: Their adapter names, the base last.
        engine: Whose tokenizer, EOS ids and stop strings are used.
        head: Hidden states -> logits.
        max_rows: Rows of one micro-batch; None takes all at once.
    """

    def __init__(
        self, policy: PeftModel, members: Sequence[str], engine: HFEngine, head: Head, max_rows: int | None = None
    ) -> None:
        self.policy, self.members, self.head = policy, list(members), head
        self.engine = HFEngine(engine.tokenizer, engine.eos_ids, max_rows, stop=engine.stop)

    def answers(self, prompts: PromptBatch, weights_LMK: Tensor, max_new_tokens: int) -> list[Rollouts]:
        """Greedy answers of all prompts under each of M mixtures.

        Args:
            prompts: B prompts.
            weights_LMK: (L, M, K + 1), or (M, K + 1) for all matrices alike.
            max_new_tokens: Completion budget.

        Returns:
            M sets of B rollouts.
        """
        m, b = weights_LMK.shape[-2], len(prompts)
        repeated = prompts.repeat(m)  # row b * M + m
        rollouts = self.rows(repeated, torch.cat([weights_LMK] * b, dim=-2), max_new_tokens)
        return [rollouts.rows(list(range(i, m * b, m))) for i in range(m)]

    def rows(self, prompts: PromptBatch, weights_LBK: Tensor, max_new_tokens: int) -> Rollouts:
        """Greedy answers, row b under weights b; one row of weights serves all."""
        sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
        with z_rows(self.policy, weights_LBK, self.members, mix="raw"):
            return self.engine.generate(self.policy, prompts, sampling, 0)

    @torch.no_grad()
    def log_likelihood(self, prompts: PromptBatch, texts: Sequence[str], weights_LBK: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each text and its EOS after its prompt, as far as the model reads.

        Args:
            prompts: B prompts.
            texts: B texts.
            weights_LBK: (L, B, K + 1) or (B, K + 1); one row of weights serves all.

        Returns:
            Sums of token log-probabilities fp32 (B,), and their numbers int64 (B,).
        """
        room_B = (context_of(self.policy.config) - prompts.attention_mask_BP.sum(-1)).tolist()
        read = [ids[:room] for ids, room in zip(self._tokens(texts), room_B, strict=True)]
        tokens = [torch.tensor(ids, device=prompts.input_ids_BP.device) for ids in read]
        ids_BC = pad_sequence(tokens, batch_first=True, padding_value=self.engine.pad_id)
        mask_BC = pad_sequence([torch.ones_like(ids) for ids in tokens], batch_first=True)
        chunk = chunk_tokens(self.policy.config.get_text_config().vocab_size)
        b = len(texts)

        def score(rows: Tensor) -> Tensor:
            select(rows)
            prompt_bP = prompts.input_ids_BP[rows], prompts.attention_mask_BP[rows]
            hidden_ND = completion_states(self.policy, *prompt_bP, ids_BC[rows], mask_BC[rows])
            sampled_bC = mask_BC[rows].bool()
            scores = score_tokens(hidden_ND, ids_BC[rows][sampled_bC], self.head, chunk=chunk)
            return sum_by_row(scores.logprobs_N, sampled_bC)

        with z_rows(self.policy, weights_LBK, self.members, mix="raw"), batch_rows(self.policy, b) as select:
            rows = torch.arange(b, device=ids_BC.device)
            pieces, fitting = run_or_halve(score, rows, "lower adapt.max_rows", at_once=self.engine.max_rows)
        self.engine.max_rows = fitting or self.engine.max_rows
        return torch.cat(pieces), mask_BC.sum(-1)

    def log_likelihoods(self, prompts: PromptBatch, texts: Sequence[str], weights_LBK: Tensor) -> Tensor:
        """log p of each of the same N texts and its EOS after each of B prompts, fp32 (B, N); weights as above."""
        with z_rows(self.policy, weights_LBK, self.members, mix="raw"):
            return continuation_logprobs(self.engine, self.policy, prompts, self._tokens(texts))

    def mean_log_likelihood(self, prompts: PromptBatch, task: Task, weights_LMK: Tensor) -> Tensor:
        """(M,): the mean over prompts of the log-likelihood per token of the right answers, under each mixture."""
        m, b = weights_LMK.shape[-2], len(prompts)
        repeated = prompts.repeat(m)
        texts = [right_answer(task, e) for e in repeated.examples]
        sums_R, counts_R = self.log_likelihood(repeated, texts, torch.cat([weights_LMK] * b, dim=-2))
        return (sums_R / counts_R).view(b, m).mean(0)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, EOS included."""
        tokenizer = self.engine.tokenizer
        eos = tokenizer.eos_token_id
        end = [self.engine.eos_ids[0] if eos is None else eos]
        return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) + end for text in texts]


def score_members(
    scorer: Scorer,
    shots: PromptBatch,
    task: Task,
    max_new_tokens: int,
    weights_LNK: Tensor,
    check: Callable[[list[Verdict]], None] = stop_if_unverified,
) -> tuple[list[float], list[float]]:
    """Mean credit of the answers and mean log-likelihood of the right ones, for each of N mixtures.

    Args:
        scorer: Runs mixtures.
        shots: The few-shot rows.
        task: Verifies the answers.
        max_new_tokens: Completion budget.
        weights_LNK: (L, N, K + 1), or (N, K + 1).
        check: Called with all verdicts, to end the run where too many are missing.

    Raises:
        UserError: Over 5 % of all answers could not be verified.
    """
    with factored_for_choice(scorer.policy):
        answers = scorer.answers(shots, weights_LNK, max_new_tokens)
        ties = scorer.mean_log_likelihood(shots, task, weights_LNK).tolist()
    verdicts = [verify_all(task, rollouts.examples, rollouts.completions) for rollouts in answers]
    check([verdict for own in verdicts for verdict in own])
    return mean_credits(verdicts), ties


def mean_credits(verdicts: Sequence[Sequence[Verdict]]) -> list[float]:
    """What mixtures are compared by: mean credits on the same rows, of which one without a verdict earns nothing."""
    return [sum(v.credit for v in own if v.reward is not None) / len(own) for own in verdicts]
