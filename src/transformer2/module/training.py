"""SVF by REINFORCE as a LightningModule.

    J(z) = E_x, y~pi_z(.|x) [ A(y) log pi_z(y|x) ] - lambda KL(pi_z || pi_1)      (paper, section 3.2, equation 1)

One optimizer step = one global batch of prompts, sampled, verified, scored and forgotten. Departures from the paper
and the reference code:
    1. Rollouts are sampled at temperature 1; the reference code decodes greedily: not the policy's own gradient.
    2. The sampled ids are scored as sampled, EOS included; the reference code re-tokenises text and drops EOS.
    3. A batch-mean baseline by default; the paper has none.
    4. The KL is the paper's KL(pi || pi_0); the reference code computes the reverse one.
    5. The reference model is the policy with its adapter off; the reference code keeps a second model.
Presets: conf/preset/paper.yaml sets what the paper says.

Manual optimisation, because rollouts are drawn once for the whole global batch (generation is fastest in big batches)
while the loss runs over micro-batches bounded by tokens (memory), whose number differs from step to step (see
docs/adr/0001-manual-optimisation.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from transformer2.arguments import Count, NotNegativeInt, Positive, Seed, Share, Temperature, check_arguments
from transformer2.data.loader import PromptLoader
from transformer2.data.prompts import open_turn_end
from transformer2.errors import ConfigError, UserError
from transformer2.module.alarms import Alarms
from transformer2.module.evaluation import PolicyModule
from transformer2.module.identity import KEY, OPTIMIZER, check_identity, identity
from transformer2.policy import (
    DType,
    adapter_config,
    build_policy,
    check_halves,
    checkpointed,
    eos_token_ids,
    expert_adapter,
    hidden_states,
    lm_head,
    load_base,
    load_expert,
    load_tokenizer,
    reference,
)
from transformer2.rl.advantages import Baseline, advantages, equal_groups
from transformer2.rl.gradient import clipped, gradient_of, with_gradient
from transformer2.rl.halving import run_or_halve
from transformer2.rl.kl import KL
from transformer2.rl.logprobs import chunk_tokens, score_tokens
from transformer2.rl.loss import importance_weights, reinforce_loss, sum_by_row
from transformer2.rl.meter import StepMeter
from transformer2.rl.packing import pack_rows, split_rows
from transformer2.rollout.base import EngineName, RolloutEngine
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.paged import PagedEngine
from transformer2.rollout.server import VLLMOptions
from transformer2.rollout.vllm import VLLMEngine
from transformer2.strategies import check_packed, gather_objects, in_lockstep
from transformer2.svf.base_folder import base_folder
from transformer2.svf.config import SVFConfig
from transformer2.svf.quantised import check_gradient
from transformer2.types import PromptBatch, Rollouts, Verdict

MAX_SKIPPED_IN_A_ROW = 3
VLLM_DEFAULTS = VLLMOptions()
TIMED = ("weight_sync", "rollout", "verify", "logprobs", "backward", "sync")
# Over ranks, before a step is logged.
SUMMED = ("rows", "length", "finished", "abstained", "tokens", "loss", "entropy", "kl", "mismatch", "capped")
KL_MONITOR_EVERY = 10  # with kl_coef 0 the KL costs a forward pass and changes nothing, so it is only looked at


class SVFReinforceModule(PolicyModule):
    """Trains one expert on verifiable rewards.

    Args:
        base: `tiny` (the embedded model), a folder, or a Hub id.
        adapter: What is trained, written like an adapter_config.json: `peft_type` (SVF by default; LORA, IA3, ... are
            baselines through the same step) and the options of its PEFT config.
        dtype: The base's dtype: `auto` (as stored), `float32`, `bfloat16`, ...
        model_kwargs: Which files of the base are read, by everything that reads it (`revision`, `subfolder`,
            `cache_dir`, `token`, `trust_remote_code`), and what else `from_pretrained` takes (`attn_implementation`,
            `device_map`, ...; `quantization_config` as in conf/quantisation/).
        lr: Peak learning rate of AdamW (paper: 2e-3).
        lr_schedule: `cosine` decays to 0 over the run; `constant`.
        warmup_steps: Linear warm-up.
        betas: AdamW's moments.
        eps: AdamW's epsilon; larger values damp the coordinates with little signal.
        weight_decay: Decay of the trainable, for SVF of z towards 1.
        max_grad_norm: Clip the gradient's norm (paper: 1e-3); None leaves it.
        baseline: `none`, `batch_mean`, `rloo`, `group_norm` (rl/advantages.py).
        num_completions: Completions per prompt; the global batch is `data.batch_size` times as many rows.
        kl: `full`, `full_reverse`, `k1`, `k2`, `k3` (rl/kl.py).
        kl_coef: lambda (paper: swept over 0, 0.1, 0.2, 0.3). With 0 the KL is still measured every 10th step.
        temperature: Sampling temperature of training rollouts; 0 decodes greedily as the reference code does.
        max_new_tokens: Completion budget; None takes the task's.
        stop: What ends a completion besides the model's EOS: strings and token ids, e.g. `['<|im_end|>']` for a model
            whose chat template ends a turn with a token that is no EOS. Verified is the text before a stop string.
        mask_truncated: Leave completions that did not finish within the budget out of the loss, as DAPO and TRL do: an
            answer is then not punished for the budget. Their rewards still count in the baseline.
        micro_batch_tokens: Padded tokens of one forward and backward pass.
        max_rollout_rows: Rows generated at a time; None takes the whole batch.
        merge_rollouts: Compose W' for rollouts: they run at the base's speed and hold the tuned weights twice. False
            draws in the form of training, for cards that have no room for the copy.
        rollout: What draws completions: `hf` (batches, everywhere), `paged` (transformers' continuous batching, one
            GPU), `vllm` (a server of its own). Adaptation, whose rows differ in z, draws with `hf` always.
        vllm: The vLLM server, with `rollout: vllm`.
        importance_cap: Weigh each token's log-probability by its ratio to the sampler's, at most this (2.0 is usual);
            merged weights in bf16 are another policy by a little, too. None trains as if the sampler were the policy;
            the mismatch is logged either way.
        activation_checkpointing: Keep each decoder layer's input only and compute the rest again in the backward pass:
            a tenth of the activations for a third more seconds.
        test_samples: Also draw so many completions of each test question, for pass@k; 0 scores greedy answers alone.
        test_temperature: Their temperature.
        seed: Seed of sampling (linked to `seed_everything`).
    """

    def __init__(
        self,
        base: str = "tiny",
        adapter: dict[str, Any] | None = None,
        dtype: DType = "auto",
        model_kwargs: dict[str, Any] | None = None,
        lr: Annotated[float, "> 0", "<= 10"] = 1e-2,
        lr_schedule: Literal["cosine", "constant"] = "cosine",
        warmup_steps: NotNegativeInt = 0,
        betas: tuple[Share, Share] = (0.9, 0.999),
        eps: Annotated[float, "> 0", "<= 1"] = 1e-8,
        weight_decay: Annotated[float, ">= 0", "<= 100"] = 0.0,
        max_grad_norm: Positive | None = None,
        baseline: Baseline = "batch_mean",
        num_completions: Count = 1,
        kl: KL = "full",
        kl_coef: Annotated[float, ">= 0", "<= 1000"] = 0.0,
        temperature: Temperature = 1.0,
        max_new_tokens: Count | None = None,
        stop: list[str | int] | None = None,
        mask_truncated: bool = False,
        micro_batch_tokens: Count = 8192,
        max_rollout_rows: Count | None = None,
        merge_rollouts: bool = True,
        rollout: EngineName = "hf",
        vllm: VLLMOptions = VLLM_DEFAULTS,
        importance_cap: Positive | None = None,
        activation_checkpointing: bool = False,
        test_samples: NotNegativeInt = 0,
        test_temperature: Temperature = 0.8,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        check_arguments("model", SVFReinforceModule.__init__, locals())
        if baseline in ("rloo", "group_norm") and num_completions < 2:
            raise ConfigError(
                f"model.baseline {baseline!r} compares completions of one prompt; set model.num_completions >= 2"
            )
        if test_samples and not test_temperature:
            raise ConfigError("model.test_samples are all alike at model.test_temperature 0; use one above 0")
        if any("\\n" in str(end) for end in stop or []):
            rank_zero_warn(
                f"model.stop {stop} holds a backslash and an n; YAML reads a line break in double quotes only"
            )
        _refuse_whole_modules(adapter_config(adapter or {}))  # a typo is refused before the model is loaded, too
        self.save_hyperparameters(logger=False, ignore=["vllm"])
        self.vllm = vllm
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what is trained, not the base
        self.micro_batch_tokens = micro_batch_tokens  # halved when memory does not suffice
        self.meter = StepMeter()
        self.gradient_Z: Tensor | None = None  # of the step in progress, on this rank
        self.alarms = Alarms()
        self.last_verdicts: list[Verdict] = []  # of this rank's rollouts
        self.skipped_in_a_row = 0
        self.changed: set[str] = set()  # settings that a resumed run does not share with its checkpoint
        self.base_fingerprint: str | None = None
        self.expert: Path | None = None  # an expert folder to start from, or to score
        self.began_with: str | None = None  # SHA-256 of that expert's weights, for who resumes

    def configure_model(self) -> None:
        """Load the base, wrap it with a fresh adapter and build the rollout engine, once."""
        if self.policy is not None:
            return
        h = self.hparams
        if self._trainer is not None:
            check_packed(self.trainer.strategy, h["model_kwargs"])
        options = h["model_kwargs"] or {}
        tokenizer = load_tokenizer(h["base"], options)
        base = load_base(h["base"], h["dtype"], **options)
        given = h["adapter"] or {}
        config = adapter_config(given) if self.expert is None else expert_adapter(self.expert, given, base)
        self.policy = build_policy(base, config)
        # Experts name their base as the user did: `tiny` is the same model on every machine, its folder is not.
        self.policy.peft_config["default"].base_model_name_or_path = h["base"]
        self.policy.peft_config["default"].revision = options.get("revision")
        self.head = lm_head(self.policy)
        lockstep = partial(self.trainer.strategy.reduce_boolean_decision, all=False) if self._in_lockstep() else None
        eos, rows, merge = eos_token_ids(self.policy, tokenizer), h["max_rollout_rows"], h["merge_rollouts"]
        # Also what draws rows of different z.
        self.engine = HFEngine(tokenizer, eos, rows, lockstep, merge, h["stop"] or ())
        data = getattr(self._trainer, "datamodule", None)
        bare = getattr(data, "chat_template", "model") == "none"
        if not bare and (end := open_turn_end(tokenizer, self.engine.eos_ids, self.engine.stop)) is not None:
            rank_zero_warn(
                f"the chat template of {h['base']!r} ends an answer with {end!r}, which is no EOS of the model: "
                f'answers run on to max_new_tokens; set --model.stop "[{end!r}]"'
            )
        self.sampler = self._sampler(self.engine)
        if lockstep is None:
            self._check_model()
        if self.expert is not None:
            load_expert(self.policy, self.expert)
            weights = b"".join(p.detach().float().cpu().numpy().tobytes() for p in self.trained())
            self.began_with = hashlib.sha256(weights).hexdigest()

    def _sampler(self, engine: HFEngine) -> RolloutEngine:
        """The engine that draws completions under one z."""
        h = self.hparams
        if h["rollout"] == "hf":
            return engine
        if h["rollout"] == "vllm":
            trusted = bool((h["model_kwargs"] or {}).get("trust_remote_code"))
            return VLLMEngine(
                engine.tokenizer,
                engine.eos_ids,
                str(base_folder(h["base"], h["model_kwargs"])),
                self.policy,
                replace(self.vllm, args=[*self.vllm.args, "--trust-remote-code"]) if trusted else self.vllm,
                share=gather_objects,
                rank=self.global_rank,
                stop=engine.stop,
            )
        if engine.in_lockstep:
            raise ConfigError("model.rollout: paged runs on whole weights; under ZeRO-3 use hf or vllm")
        return PagedEngine(engine.tokenizer, engine.eos_ids, engine.max_rows, engine.merge, engine.stop)

    # ------------------------------------------------------------------ the equation

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """One step of REINFORCE on one global batch."""
        rollouts = self.rollout(prompts)
        rewards_B = self.rewards(rollouts)
        advantages_B = self.advantages(rewards_B)
        scored = self.scored(rollouts, rewards_B)
        for rows in self.micro_batches(scored):
            self.add_gradient(scored, advantages_B, rows)
        self.update(rewards_B)

    def rollout(self, prompts: PromptBatch) -> Rollouts:
        """Completions of the whole batch under the current z, `num_completions` per prompt."""
        seed = (self.hparams["seed"] * 1_000_003 + self.global_step) * 4096
        with self.meter.timed("weight_sync"):
            self.sampler.sync(self.policy)
        with self.meter.timed("rollout"):
            return self.sample(prompts.repeat(self.hparams["num_completions"]), self.hparams["temperature"], seed)

    def rewards(self, rollouts: Rollouts) -> Tensor:
        """Rewards of the whole batch, of all ranks; NaN where there is none: the verifier failed, or abstained."""
        with self.meter.timed("verify"):
            verdicts = self.last_verdicts = self.verify(rollouts)
        self.meter.add("abstained", sum(v.abstained for v in verdicts))
        mine = torch.tensor([math.nan if v.reward is None else v.reward for v in verdicts], device=self.device)
        # Prompt p of rank r is prompt p * world_size + r of the batch (data/loader.py); its completions are neighbours.
        by_rank = self.trainer.strategy.all_gather(mine).view(
            self.trainer.world_size, -1, self.hparams["num_completions"]
        )
        return by_rank.transpose(0, 1).flatten()

    def advantages(self, rewards_B: Tensor) -> Tensor:
        """Advantages of this rank's rows, against the baseline over the whole batch."""
        return self._mine(advantages(rewards_B, self.hparams["baseline"], self.hparams["num_completions"]))

    def _mine(self, all_B: Tensor) -> Tensor:
        """This rank's rows of the whole batch."""
        return all_B.view(-1, self.trainer.world_size, self.hparams["num_completions"])[:, self.global_rank].flatten()

    def scored(self, rollouts: Rollouts, rewards_B: Tensor) -> Rollouts:
        """The rollouts without the tokens of rows that the loss leaves out: no reward, or `mask_truncated`."""
        self.meter.add("rows", len(rollouts))
        self.meter.add("length", int(rollouts.completion_mask_BC.sum()))
        self.meter.add("finished", float(rollouts.finished_B.sum()))
        kept_B = ~self._mine(rewards_B).isnan()
        if self.hparams["mask_truncated"]:
            kept_B = kept_B & rollouts.finished_B
        return replace(rollouts, completion_mask_BC=rollouts.completion_mask_BC * kept_B[:, None])

    def micro_batches(self, rollouts: Rollouts) -> list[list[int]]:
        """Rows in groups of similar length, each of at most `micro_batch_tokens` padded tokens."""
        groups = pack_rows(
            rollouts.prompt_mask_BP.sum(-1).tolist(),
            rollouts.completion_mask_BC.sum(-1).tolist(),
            self.micro_batch_tokens,
        )
        return split_rows(groups, max(gather_objects(len(groups)))) if self._in_lockstep() else groups

    def add_gradient(self, rollouts: Rollouts, advantages_B: Tensor, rows: list[int]) -> None:
        """Add the gradient of one micro-batch to the step's; out of memory, of its parts."""

        def forward_backward(part: list[int]) -> None:
            logprobs_b, kl_b = self.logprobs_and_kl(rollouts.rows(part))
            self.backward_of(self.loss(logprobs_b, advantages_B[part], kl_b))

        if self._in_lockstep():  # no rank may run forward passes of its own
            forward_backward(rows)
            return
        size = run_or_halve(forward_backward, rows, self._back_to_now(), "lower model.micro_batch_tokens")
        if size < len(rows):
            self.micro_batch_tokens = max(1, self.micro_batch_tokens * size // len(rows))

    def _back_to_now(self) -> Callable[[], None]:
        """A function that puts the gradient and the sums of the step back to what they are now."""
        gradient_Z, sums = self.gradient_Z, dict(self.meter.sums)

        def undo() -> None:
            self.gradient_Z = gradient_Z
            self.meter.sums.clear()
            self.meter.sums.update(sums)

        return undo

    def logprobs_and_kl(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """log pi(y|x), its tokens weighed (`sampler_weights`), and the KL to the base, summed per completion."""
        sampled_BC = rollouts.completion_mask_BC.bool()
        with self.meter.timed("logprobs"):
            ref_hidden_ND = None
            if self.hparams["kl_coef"] or self.global_step % KL_MONITOR_EVERY == 0:
                with torch.no_grad(), reference(self.policy):
                    ref_hidden_ND = predicting_states(self.policy, rollouts)
            with checkpointed(self.policy, self.hparams["activation_checkpointing"]):
                hidden_ND = predicting_states(self.policy, rollouts)
            scores = score_tokens(
                hidden_ND,
                rollouts.completion_ids_BC[sampled_BC],
                self.head,
                ref_hidden_ND,
                kl=self.hparams["kl"],
                temperature=self.hparams["temperature"] or 1.0,
                chunk=chunk_tokens(self.policy.config.get_text_config().vocab_size),
            )
        self.meter.add("tokens", len(scores.entropy_N))
        self.meter.add("entropy", float(scores.entropy_N.sum()))
        self.meter.add("kl", float(scores.kl_N.detach().sum()) if ref_hidden_ND is not None else math.nan)
        logprobs_N = scores.logprobs_N
        if rollouts.logprobs_BC is None:
            self.meter.add("mismatch", math.nan)
        else:
            logprobs_N = logprobs_N * self.sampler_weights(logprobs_N, rollouts.logprobs_BC[sampled_BC])
        return sum_by_row(logprobs_N, sampled_BC), sum_by_row(scores.kl_N, sampled_BC)

    def sampler_weights(self, logprobs_N: Tensor, sampler_logprobs_N: Tensor) -> Tensor:
        """Importance weights (N,) of the policy over the sampler, 1 without a cap; notes how far apart the two are."""
        self.meter.add("mismatch", float((logprobs_N.detach() - sampler_logprobs_N).abs().sum()))
        cap = self.hparams["importance_cap"]
        if cap is None:
            return torch.ones_like(sampler_logprobs_N)
        weights_N = importance_weights(logprobs_N, sampler_logprobs_N, cap)
        self.meter.add("capped", float((weights_N >= cap).sum()))
        return weights_N

    def loss(self, logprobs_B: Tensor, advantages_B: Tensor, kl_B: Tensor) -> Tensor:
        """This micro-batch's part of the loss of the step."""
        loss, _ = reinforce_loss(
            logprobs_B,
            advantages_B,
            kl_B,
            kl_coef=self.hparams["kl_coef"],
            num_rows=int(self.meter.sums["rows"]) * self.trainer.world_size,
            kl_in_reward=self.hparams["kl"] == "k1",
        )
        self.meter.add("loss", float(loss.detach()))
        return loss

    def backward_of(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch to the step's."""
        with self.meter.timed("backward"):
            gradient_Z = gradient_of(loss, self.trained())
            self.gradient_Z = gradient_Z if self.gradient_Z is None else self.gradient_Z + gradient_Z

    def update(self, rewards_B: Tensor) -> None:
        """Sum over ranks, clip, step, decay the learning rate, log. A non-finite loss or gradient skips the step."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        scheduler = cast(LRScheduler, self.lr_schedulers())
        gradient_Z, norm = clipped(self._sum_over_ranks(), self.hparams["max_grad_norm"])
        finite = math.isfinite(norm) and math.isfinite(self.meter.sums["loss"])
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a non-finite loss or gradient; lower model.lr, raise "
                "model.kl_coef, or use model.dtype float32 (the best expert so far is kept)"
            )
        if not finite:
            rank_zero_warn(f"step {self.global_step}: non-finite loss or gradient, step skipped")
        else:
            self.manual_backward(with_gradient(self.trained(), gradient_Z))
        optimizer.step()  # without gradients it changes nothing, and steps are still counted
        optimizer.zero_grad()
        scheduler.step()
        self._log_step(rewards_B, norm, skipped=not finite)

    def _sum_over_ranks(self) -> Tensor:
        """The step's gradient over all ranks; the meter's sums become those of all ranks."""
        assert self.gradient_Z is not None, "a step has at least one micro-batch"
        strategy = self.trainer.strategy
        with self.meter.timed("sync"):
            gradient_Z = strategy.reduce(self.gradient_Z, reduce_op="sum")
            sums = torch.tensor([self.meter.sums[name] for name in SUMMED], device=self.device)
            self.meter.sums.update(zip(SUMMED, strategy.reduce(sums, reduce_op="sum").tolist(), strict=True))
        self.gradient_Z = None
        return gradient_Z

    def _log_step(self, rewards_B: Tensor, grad_norm: float, skipped: bool) -> None:
        m, group = self.meter, self.hparams["num_completions"]
        rewarded_B = rewards_B[~rewards_B.isnan()]
        all_equal = len(rewards_B) > 1 and equal_groups(rewards_B, len(rewards_B)) == 1
        metrics = {
            "train/reward": float(rewards_B.nanmean()),
            "train/accuracy": float((rewarded_B > 0).float().mean()),
            "train/loss": m.sums["loss"],
            "train/entropy": m.mean("entropy", per="tokens"),
            "train/completion_length": m.mean("length", per="rows"),
            "train/finished": m.mean("finished", per="rows"),
            "train/grad_norm": grad_norm,
            "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train/skipped": float(skipped),
            "reward/zero_std": float(all_equal),
            "reward/infra_errors": len(rewards_B) - len(rewarded_B) - m.sums["abstained"],
            "reward/abstained": m.sums["abstained"],
            "reward/truncated": m.sums["rows"] - m.sums["finished"],
            **{f"time/{name}": m.seconds[name] for name in TIMED},
        }
        if group > 1:
            metrics["reward/equal_groups"] = equal_groups(rewards_B, group)
        measured = {
            "train/kl": m.mean("kl", per="tokens"),  # nats per token
            "rollout/mismatch": m.mean("mismatch", per="tokens"),  # |log pi - log mu|, nats per token
            "rollout/capped": m.mean("capped", per="tokens"),  # share of tokens whose weight met the cap
        }
        metrics |= {name: value for name, value in measured.items() if math.isfinite(value)}
        in_groups = self.hparams["baseline"] in ("rloo", "group_norm") and metrics["reward/equal_groups"] == 1
        self.alarms.look(self.global_step, metrics, all_equal or in_groups, self.last_verdicts)
        self.log_dict(metrics, batch_size=len(rewards_B))
        m.reset()

    # ------------------------------------------------------------------ Lightning's joints

    def on_fit_start(self) -> None:
        """A model in shards can be run from here on; a quantised one must let gradients through."""
        if self._in_lockstep():
            self._check_model()
        check_gradient(self.policy)
        _refuse_whole_modules(self.policy.peft_config["default"])

    def _check_model(self) -> None:
        """Refuse a base that decodes or scores otherwise than it should."""
        check_halves(self.policy, self.head)
        if self.sampler is self.engine:  # else it draws for some adaptations only, and checks by itself
            self.engine.check(self.policy, self.policy.device)

    def _in_lockstep(self) -> bool:
        return self._trainer is not None and in_lockstep(self.trainer.strategy)

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that training changes."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine decay over the run."""
        h = self.hparams
        optimizer = torch.optim.AdamW(
            self.trained(), lr=h["lr"], betas=tuple(h["betas"]), eps=h["eps"], weight_decay=h["weight_decay"]
        )
        total = self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (h["warmup_steps"] + 1))
            progress = min(1.0, step / max(1.0, float(total)))
            return warm * (0.5 * (1 + math.cos(math.pi * progress)) if h["lr_schedule"] == "cosine" else 1.0)

        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: the base and its basis are found again by name."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint.get("state_dict", {})  # DeepSpeed keeps its own
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}
        checkpoint[KEY] = identity(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another policy or task (module/identity.py)."""
        self.changed = check_identity(self, checkpoint)

    def on_train_start(self) -> None:
        """A resumed run goes on with its next batch, and at its own rate, not at the one in the optimizer's state."""
        super().on_train_start()
        if isinstance(loader := self.trainer.train_dataloader, PromptLoader):
            loader.batches_seen = self.global_step  # counting batches for max_epochs, Lightning forgets the position
        if self.changed & {*OPTIMIZER, "trainer.max_steps"}:
            h, scheduler = self.hparams, cast(LambdaLR, self.lr_schedulers())
            scheduler.base_lrs = [h["lr"]]
            now = {"lr": h["lr"] * scheduler.lr_lambdas[0](scheduler.last_epoch), "initial_lr": h["lr"]}
            for group in self.trainer.optimizers[0].param_groups:
                group.update(now, betas=tuple(h["betas"]), eps=h["eps"], weight_decay=h["weight_decay"])

    def train(self, mode: bool = True) -> SVFReinforceModule:
        """Lightning's switch, except that the policy stays in evaluation mode.

        Dropout would make the policy that is scored another one than the policy that sampled.
        """
        super().train(mode)
        if self.policy is not None:
            self.policy.eval()
        return self


def _refuse_whole_modules(config: PeftConfig) -> None:
    """An SVF expert is z and nothing else, so that experts can be mixed."""
    if isinstance(config, SVFConfig) and config.modules_to_save:
        raise ConfigError(
            f"model.adapter.modules_to_save {config.modules_to_save} would be trained whole, and an SVF expert keeps z "
            "alone; leave it out, or use peft_type LORA"
        )


def predicting_states(policy: Any, rollouts: Rollouts) -> Tensor:
    """Hidden states that predict the sampled tokens, packed: (N, D), row-major over `completion_mask_BC`."""
    hidden_BTD = hidden_states(
        policy,
        torch.cat([rollouts.prompt_ids_BP, rollouts.completion_ids_BC], dim=1),
        torch.cat([rollouts.prompt_mask_BP, rollouts.completion_mask_BC], dim=1),
    )
    # The state at position t - 1 predicts token t.
    return hidden_BTD[:, rollouts.prompt_ids_BP.shape[1] - 1 : -1][rollouts.completion_mask_BC.bool()]
