"""One optimizer step from rows whose tokens are to become likelier or less likely: what all objectives share.

    micro-batches -> scores -> loss and gradient -> sum over micro-batches and ranks -> clip, step, log

Out of memory, a micro-batch is run in halves; a non-finite loss or gradient skips the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from transformer2.distributed import gather_objects, in_lockstep
from transformer2.errors import UserError
from transformer2.halving import run_or_halve
from transformer2.module.alarms import Alarms
from transformer2.module.evaluation import PolicyModule
from transformer2.module.meter import StepMeter, step_metrics, verdict_sums
from transformer2.module.natural import rows_of_z
from transformer2.module.options import LossOptions
from transformer2.module.scores import score
from transformer2.rl.advantages import GROUPED
from transformer2.rl.gradient import clipped, gradient_of, with_gradient
from transformer2.rl.loss import importance_weights, reinforce_loss
from transformer2.rl.natural import natural_gradient
from transformer2.rl.packing import pack_rows, split_rows
from transformer2.rl.step import Step
from transformer2.svf.open_rows import Rows
from transformer2.types import Rollouts, Verdict

MAX_SKIPPED_IN_A_ROW = 3
KL_MONITOR_EVERY = 10  # with kl_coef 0 the KL costs a forward pass and changes nothing, so it is only looked at


class StepModule(PolicyModule):
    """A module whose policy takes optimizer steps; settings and objective are the subclass's.

    Attributes:
        loss: What is minimised.
        max_grad_norm: Bound of the gradient's norm; None leaves it.
        damping: Of the natural gradient; None descends the plain one.
        micro_batch_tokens: Padded tokens of one forward and backward pass; halved where memory does not suffice.
        shares: Whether prompts' common tokens may be run once.
        meter: Seconds of the parts of a step.
        alarms: What a run says when it learns nothing.
        skipped_in_a_row: Steps whose loss or gradient was not finite.
    """

    loss: LossOptions
    max_grad_norm: float | None
    damping: float | None
    micro_batch_tokens: int

    def __init__(self) -> None:
        super().__init__()
        self.shares = False
        self.meter = StepMeter()
        self.alarms = Alarms()
        self.skipped_in_a_row = 0

    @property
    def in_lockstep(self) -> bool:
        """Whether all ranks must run as many passes."""
        return self._trainer is not None and in_lockstep(self.trainer.strategy)

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that training changes."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def micro_batches(self, rollouts: Rollouts) -> list[list[int]]:
        """Rows in groups of similar length, each of at most `micro_batch_tokens` padded tokens."""
        groups = pack_rows(
            rollouts.prompt_mask_BP.sum(-1).tolist(),
            rollouts.completion_mask_BC.sum(-1).tolist(),
            self.micro_batch_tokens,
            self.sampling.num_completions if self.shares else 1,
        )
        return split_rows(groups, max(gather_objects(len(groups)))) if self.in_lockstep else groups

    def part_of_step(self, rollouts: Rollouts, advantages_B: Tensor, rows: list[int]) -> Step:
        """The part that one micro-batch has in the step; out of memory, made of smaller ones."""

        def part_of(some: list[int]) -> Step:
            return self.forward_backward(rollouts.rows(some), advantages_B[some], len(rollouts))

        if self.in_lockstep:  # no rank may run forward passes of its own
            return part_of(rows)
        parts, fitting = run_or_halve(part_of, rows, "lower model.memory.micro_batch_tokens")
        if fitting is not None:
            self.micro_batch_tokens = max(1, self.micro_batch_tokens * fitting // len(rows))
        return reduce(add, parts)

    def forward_backward(self, rollouts: Rollouts, advantages_B: Tensor, rank_rows: int) -> Step:
        """Loss and gradient of some of a rank's `rank_rows` rows."""
        sampled_BC = rollouts.completion_mask_BC.bool()
        measured = bool(self.loss.kl_coef) or self.global_step % KL_MONITOR_EVERY == 0
        with self.meter.timed("logprobs"):
            kl, recompute = self.loss.kl if measured else None, self.memory.activation_checkpointing
            deltas = {} if self.damping is None else rows_of_z(self.policy, len(rollouts))
            with Rows(deltas):
                scores = score(self.policy, self.head, rollouts, kl, self.sampling.temperature, recompute, self.shares)
        logprobs_N, kl_N, entropy_N = scores
        said_N = None if rollouts.logprobs_BC is None else rollouts.logprobs_BC[sampled_BC]
        weights_N, capped = None, 0.0
        if said_N is not None and (cap := self.loss.importance_cap) is not None:
            weights_N = importance_weights(logprobs_N, said_N, cap)
            capped = float((weights_N >= cap).sum())
        num_rows = rank_rows * self.trainer.world_size
        loss = reinforce_loss(
            logprobs_N,
            kl_N,
            sampled_BC,
            advantages_B,
            kl_coef=self.loss.kl_coef,
            num_rows=num_rows,
            weights_N=weights_N,
            kl_in_reward=self.loss.kl == "k1",
        )
        with self.meter.timed("backward"):
            if self.damping is None:
                scores_BZ, gradient_Z = None, gradient_of(loss, self.trained())
            else:
                # The gradient of the loss without a penalty is a sum of the rows' own.
                bare, leaves = not self.loss.kl_coef and weights_N is None, list(deltas.values())
                scores_BZ = gradient_of(logprobs_N.sum(), leaves, by_row=True, again=not bare)
                share_B = -advantages_B / num_rows
                gradient_Z = share_B @ scores_BZ if bare else gradient_of(loss, leaves, by_row=True).sum(0)
        return Step(
            rows=len(rollouts),
            gradient_Z=gradient_Z,
            loss=float(loss.detach()),
            finished=float(rollouts.finished_B.sum()),
            tokens=len(entropy_N),
            entropy=float(entropy_N.sum()),
            kl=float(kl_N.detach().sum()) if measured else math.nan,
            mismatch=math.nan if said_N is None else float((logprobs_N.detach() - said_N).abs().sum()),
            capped=capped,
            scores_BZ=scores_BZ,
        )

    def step_of(
        self, rollouts: Rollouts, kept: Rollouts, advantages_B: Tensor, verdicts: Sequence[Verdict] = ()
    ) -> Step:
        """The step of all ranks.

        Args:
            rollouts: This rank's, as sampled.
            kept: The same without the tokens that the loss leaves out.
            advantages_B: Of the same rows.
            verdicts: On the same rows, where they were sampled.
        """
        parts = (self.part_of_step(kept, advantages_B, rows) for rows in self.micro_batches(kept))
        sampled, (abstained, credit) = float(rollouts.completion_mask_BC.sum()), verdict_sums(verdicts)
        step = replace(reduce(add, parts), sampled=sampled, abstained=abstained, credit=credit)
        with self.meter.timed("sync"):
            strategy = self.trainer.strategy
            return step.over_ranks(partial(strategy.reduce, reduce_op="sum"), strategy.all_gather)

    def update(self, step: Step, rewards_B: Tensor | None = None, verdicts: Sequence[Verdict] = ()) -> None:
        """Clip, step, decay the learning rate, log. A non-finite loss or gradient skips the step."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        scheduler = cast(LRScheduler, self.lr_schedulers())
        gradient_Z, norm = clipped(step.gradient_Z, self.max_grad_norm)
        if self.damping is not None and step.scores_BZ is not None and math.isfinite(norm):
            gradient_Z = natural_gradient(gradient_Z, step.scores_BZ, self.damping)
        finite = math.isfinite(float(gradient_Z.norm())) and math.isfinite(step.loss)
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a non-finite loss or gradient; lower model.optimizer.lr, "
                "raise model.loss.kl_coef, or use model.dtype float32 (the best expert so far is kept)"
            )
        if finite:
            self.manual_backward(with_gradient(self.trained(), gradient_Z))
        else:
            rank_zero_warn(f"step {self.global_step}: non-finite loss or gradient, step skipped")
        optimizer.step()  # without gradients it changes nothing, and steps are still counted
        optimizer.zero_grad()
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        scheduler.step()
        metrics = step_metrics(step, rewards_B, self.sampling.num_completions) | self.meter.read()
        metrics |= {"train/grad_norm": norm, "train/lr": lr, "train/skipped": float(not finite)}
        if rewards_B is not None:
            self.alarms.check(self.global_step, metrics, self.loss.baseline in GROUPED, verdicts)
        metrics["train/collapsed"] = float(len(self.alarms.collapse.current_signs))
        self.log_dict(metrics, batch_size=int(step.rows))
