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

`objective: next_token` takes the paper's other objective (Table 4) through the same step, on the task's own solutions:

    L(z) = -(1 / T) sum_b sum_t log pi_z(y_bt | x_b, y_b<t)      T tokens of the whole global batch, each turn's end too

The mean is over tokens, as in transformers and TRL: a long solution weighs as much more as it has more to predict.

Manual optimisation, because rollouts are drawn once for the whole global batch (generation is fastest in big batches)
while the loss runs over micro-batches bounded by tokens (memory), whose number differs from step to step (see
docs/adr/0001-manual-optimisation.md).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from transformer2.arguments import Objective, Positive, Seed, check_arguments, check_natural, check_objective
from transformer2.data.loader import PromptLoader
from transformer2.data.prompts import turn_end
from transformer2.distributed import check_packed, check_precision
from transformer2.errors import ConfigError
from transformer2.module.alarms import Alarms
from transformer2.module.identity import KEY, check_identity, identity, other_validation
from transformer2.module.loading import begin_with, check_trained_whole, has_no_template, load_policy, make_engines
from transformer2.module.meter import LearningCurve
from transformer2.module.natural import damping_of
from transformer2.module.optimizers import WarmupCosine, build, restart, settings
from transformer2.module.options import LossOptions, MemoryOptions, SamplingOptions, TestOptions, group
from transformer2.module.step import StepModule
from transformer2.policy import DType, adapter_config, check_halves, lm_head
from transformer2.rl.advantages import GROUPED, advantages
from transformer2.rollout.base import EngineName
from transformer2.rollout.probe import can_share
from transformer2.rollout.server import VLLMOptions
from transformer2.seeds import rollout_seed
from transformer2.svf.quantised import check_gradient
from transformer2.types import PromptBatch, Rollouts, Verdict

ALARMS = "transformer2_alarms"  # key of their state in a checkpoint
CURVE = "transformer2_curve"


class SVFReinforceModule(StepModule):
    """Trains one expert on verifiable rewards. Groups of settings may be given as dicts: `loss={"kl_coef": 0.1}`.

    Args:
        base: `tiny` (the embedded model), `smollm2`, a folder, a GGUF file, or a Hub id.
        adapter: What is trained, written like an adapter_config.json: `peft_type` (SVF by default; LORA, IA3, ... are
            baselines through the same step) and the options of its PEFT config.
        dtype: The base's: `auto` (as stored; on a CPU, 16 bits in what it runs fast), `float32`, `bfloat16`, ...
        model_kwargs: Which files of the base are read, by everything that reads it (`revision`, `subfolder`,
            `cache_dir`, `token`, `trust_remote_code`), and what else `from_pretrained` takes (`attn_implementation`,
            `device_map`, ...; `quantization_config` as in conf/quantisation/).
        optimizer: Any of torch.optim or your own, by class name, and its settings: `optimizer.lr` (paper:
            2e-3), `optimizer.eps`, ...
        lr_scheduler: Any that follows the steps; `WarmupCosine` decays to 0 over the run, `Warmup` stays; both take
            `lr_scheduler.warmup_steps`.
        max_grad_norm: Clip the gradient's norm (paper: 1e-3); None leaves it.
        sampling: How completions are drawn.
        loss: What is minimised.
        memory: What is held in memory at a time.
        test: What a test draws in addition to greedy answers.
        rollout: What draws completions: `hf` (batches, everywhere), `paged` (transformers' continuous batching, one
            GPU), `vllm` (a server of its own). Adaptation, whose rows differ in z, draws with `hf` always.
        vllm: The vLLM server, with `rollout: vllm`.
        seed: Seed of sampling (linked to `seed_everything`).
        objective: `reinforce` learns from rewards of sampled completions, `next_token` from the task's solutions.
    """

    turn_end: int  # the id that ends a solution; like `engine` there once the policy is

    def __init__(
        self,
        base: str = "tiny",
        adapter: dict[str, Any] | None = None,
        dtype: DType = "auto",
        model_kwargs: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-2, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupCosine,
        max_grad_norm: Positive | None = None,
        sampling: SamplingOptions = SamplingOptions(),
        loss: LossOptions = LossOptions(),
        memory: MemoryOptions = MemoryOptions(),
        test: TestOptions = TestOptions(),
        rollout: EngineName = "hf",
        vllm: VLLMOptions = VLLMOptions(),
        seed: Seed = 0,
        objective: Objective = "reinforce",
    ) -> None:
        super().__init__()
        check_arguments("model", SVFReinforceModule.__init__, locals())
        self.sampling, self.loss = group(SamplingOptions, sampling), group(LossOptions, loss)
        self.memory, self.test = group(MemoryOptions, memory), group(TestOptions, test)
        self.vllm = group(VLLMOptions, vllm)
        check_objective(objective, asdict(self.sampling), asdict(self.loss))
        if self.loss.baseline in GROUPED and self.sampling.num_completions < 2:
            raise ConfigError(
                f"model.loss.baseline {self.loss.baseline!r} compares completions of one prompt; set "
                "model.sampling.num_completions >= 2"
            )
        check_trained_whole(adapter_config(adapter or {}))  # a typo is refused before the model is loaded, too
        self.base, self.adapter, self.base_dtype, self.model_kwargs = base, adapter or {}, dtype, model_kwargs or {}
        self.optimizer, self.lr_scheduler, self.max_grad_norm = optimizer, lr_scheduler, max_grad_norm
        self.engine_name, self.seed, self.objective = rollout, seed, objective
        self.rate = settings(optimizer, lr_scheduler)
        self.damping = damping_of(optimizer)
        if self.damping is not None:
            lr, recomputes = self.rate.get("model.optimizer.lr"), self.memory.activation_checkpointing
            check_natural(self.rate["model.optimizer"], lr, self.adapter, recomputes, objective, max_grad_norm)
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what is trained, not the base
        self.micro_batch_tokens = self.memory.micro_batch_tokens  # halved when memory does not suffice
        self.changed: set[str] = set()  # settings that a resumed run does not share with its checkpoint
        self.base_fingerprint: str | None = None
        self.expert: Path | None = None  # an expert folder to start from, or to score
        self.began_with: str | None = None  # SHA-256 of that expert's weights, for who resumes

    def configure_model(self) -> None:
        """Load the base, wrap it with a fresh adapter and build the rollout engine, once."""
        if self.policy is not None:
            return
        if self._trainer is not None:
            check_precision(self.trainer.precision)
            check_packed(self.trainer.strategy, self.model_kwargs)
        tokenizer, self.policy = load_policy(self)
        self.head = lm_head(self.policy)
        lockstep = partial(self.trainer.strategy.reduce_boolean_decision, all=False) if self.in_lockstep else None
        self.engine, self.sampler = make_engines(self, tokenizer, lockstep)
        self.turn_end = turn_end(tokenizer, self.engine.eos_ids, has_no_template(self))
        if lockstep is None:
            self._check_model()
        if self.expert is not None:
            self.began_with = begin_with(self.policy, self.expert)

    # ------------------------------------------------------------------ the equation

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """One step on one global batch."""
        with self.curve.timed():
            {"reinforce": self.reinforce, "next_token": self.next_token}[self.objective](prompts)

    def reinforce(self, prompts: PromptBatch) -> None:
        """One step of REINFORCE."""
        rollouts = self.rollout(prompts)
        verdicts = self.verdicts(rollouts)
        rewards_B = self.rewards(verdicts)
        advantages_B = self.advantages(rewards_B)
        step = self.step_of(rollouts, self.kept(rollouts, rewards_B), advantages_B, verdicts)
        self.update(step, rewards_B, verdicts)

    def next_token(self, prompts: PromptBatch) -> None:
        """One step of maximum likelihood: REINFORCE's on solutions, with B / T as the advantage of all."""
        solutions = self.solutions(prompts)
        advantages_B = self.per_token(solutions)
        self.update(self.step_of(solutions, solutions, advantages_B))

    def solutions(self, prompts: PromptBatch) -> Rollouts:
        """The task's solutions as completions of a batch, each with the end of its turn."""
        if not prompts.solutions:
            raise ConfigError("the batch holds no solutions; give the datamodule objective next_token, too")
        return self.engine.packed(prompts, [[*ids, self.turn_end] for ids in prompts.solutions])

    def per_token(self, solutions: Rollouts) -> Tensor:
        """B / T for each of this rank's rows, B rows and T tokens of the whole batch."""
        tokens = solutions.completion_mask_BC.sum().float()
        rows = len(solutions) * self.trainer.world_size
        return (rows / self.trainer.strategy.reduce(tokens, reduce_op="sum")).expand(len(solutions))

    def rollout(self, prompts: PromptBatch) -> Rollouts:
        """Completions of the whole batch under the current z, `num_completions` per prompt."""
        with self.meter.timed("weight_sync"):
            self.sampler.sync(self.policy)
        with self.meter.timed("rollout"):
            prompts = prompts.repeat(self.sampling.num_completions)
            seed = rollout_seed(self.seed, self.global_step)
            return self.answerer().sample(prompts, self.sampling.temperature, seed)

    def verdicts(self, rollouts: Rollouts) -> list[Verdict]:
        """Verdicts on this rank's rollouts."""
        with self.meter.timed("verify"):
            return self.answerer().verify(rollouts)

    def rewards(self, verdicts: Sequence[Verdict]) -> Tensor:
        """Rewards of the whole batch, of all ranks; NaN where there is none: the verifier failed, or abstained."""
        mine = torch.tensor([math.nan if v.reward is None else v.reward for v in verdicts], device=self.device)
        # Prompt p of rank r is prompt p * world_size + r of the batch (data/loader.py); its completions are neighbours.
        all_B = self.trainer.strategy.all_gather(mine)
        return all_B.view(self.trainer.world_size, -1, self.sampling.num_completions).transpose(0, 1).flatten()

    def advantages(self, rewards_B: Tensor) -> Tensor:
        """Advantages of this rank's rows, against the baseline over the whole batch."""
        return self._mine(advantages(rewards_B, self.loss.baseline, self.sampling.num_completions))

    def _mine(self, all_B: Tensor) -> Tensor:
        """This rank's rows of the whole batch."""
        return all_B.view(-1, self.trainer.world_size, self.sampling.num_completions)[:, self.global_rank].flatten()

    def kept(self, rollouts: Rollouts, rewards_B: Tensor) -> Rollouts:
        """The rollouts without the tokens of rows that the loss leaves out: no reward, or `mask_truncated`."""
        kept_B = ~self._mine(rewards_B).isnan()
        if self.loss.mask_truncated:
            kept_B = kept_B & rollouts.finished_B
        return replace(rollouts, completion_mask_BC=rollouts.completion_mask_BC * kept_B[:, None])

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, but for the policy's, what is in `rate`, and how a server is reached."""
        others = {"self", "base", "adapter", "optimizer", "lr_scheduler", "vllm"}
        own = {"dtype": self.base_dtype, "rollout": self.engine_name}  # whose names are taken by Lightning and a method
        names = [name for name in inspect.signature(SVFReinforceModule.__init__).parameters if name not in others]
        return {name: own[name] if name in own else getattr(self, name) for name in names}

    @property
    def method(self) -> str:
        """PEFT's name of what is trained."""
        return str(getattr(self.policy.peft_config["default"].peft_type, "value", ""))

    # ------------------------------------------------------------------ Lightning's hooks

    def on_fit_start(self) -> None:
        """A model in shards can be run from here on; a quantised one must let gradients through."""
        if self.in_lockstep:
            self._check_model()
        check_gradient(self.policy)
        check_trained_whole(config := self.policy.peft_config["default"])
        # With --expert the method is that of its folder, whatever the settings say.
        method = {"peft_type": self.method, "parametrization": getattr(config, "parametrization", "direct")}
        if self.damping is not None:
            check_natural(self.rate["model.optimizer"], None, method, False, self.objective)
        # Shared tokens need a cache, which recomputed activations do not keep. Ranks would differ in their passes, and
        # the gradients of rows, which the natural gradient needs apart, would be added up.
        alone = self.damping is None and not (self.in_lockstep or self.memory.activation_checkpointing)
        self.shares = alone and can_share(self.policy, self.policy.device)

    def _check_model(self) -> None:
        """Refuse a base that decodes or scores otherwise than it should."""
        check_halves(self.policy, self.head)
        if self.sampler is self.engine:  # else the engine is checked at its first use, if there is one
            self.engine.check(self.policy, self.policy.device)

    def facts(self) -> dict[str, Any]:
        """What was trained, and the learning curve, for report.json."""
        return {
            "objective": self.objective,
            "method": self.method,
            "trainable": sum(getattr(p, "ds_numel", p.numel()) for p in self.trained()),  # shards of ZeRO-3 included
            "steps": self.global_step,
            "seconds": round(self.curve.seconds, 2),
            "cpu_seconds": round(self.curve.cpu_seconds, 2),
            "curve": self.curve.points,
            **({"curve_before": self.curve.before} if self.curve.before else {}),
        }

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is trained, and its schedule."""
        optimizer, scheduler = self._built(self.trained())
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _built(self, parameters: list[torch.nn.Parameter]) -> tuple[Optimizer, LRScheduler]:
        return build(self.optimizer, self.lr_scheduler, parameters, self.total_steps)

    @property
    def total_steps(self) -> float:
        """Steps that the schedule is built for: of `max_steps`, or else of all epochs."""
        limit = self.trainer.max_steps
        return limit if limit > 0 else self.trainer.estimated_stepping_batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: the base and its basis are found again by name."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint.get("state_dict", {})  # DeepSpeed keeps its own
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}
        checkpoint[KEY] = identity(self)
        checkpoint[ALARMS] = asdict(self.alarms)
        checkpoint[CURVE] = asdict(self.curve)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another policy or task (module/identity.py), and one outside of a trainer."""
        if self._trainer is None:
            raise ConfigError(
                "load_from_checkpoint does not know the base and data of a checkpoint; give it to the trainer "
                "(fit, validate or test with ckpt_path=...), or use the expert folder of its run"
            )
        self.changed = check_identity(self, checkpoint)
        self.alarms = Alarms.resumed(checkpoint.get(ALARMS, {}))
        self.curve = LearningCurve(**checkpoint.get(CURVE, {}))  # older checkpoints hold none
        if words := other_validation(self, checkpoint):
            rank_zero_warn(
                f"validations so far do not compare with those from here on ({words}): the best score and its expert "
                "are forgotten, and the curve begins again"
            )
            self.curve.restart()
            callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it at run time
            for callback in callbacks:  # their states are loaded after this
                if str(getattr(callback, "monitor", "")).startswith("val/"):
                    checkpoint.get("callbacks", {}).pop(callback.state_key, None)

    def on_train_start(self) -> None:
        """A resumed run continues with its next batch, and at its own rate, not at the one in the optimizer's state."""
        super().on_train_start()
        if isinstance(loader := self.trainer.train_dataloader, PromptLoader):
            # Counting batches for max_epochs, Lightning forgets the position.
            loader.batches_seen = self.global_step
        if any(key.startswith(("model.optimizer", "model.lr_scheduler", "trainer.max_steps")) for key in self.changed):
            fresh = self._built([torch.nn.Parameter(torch.zeros(1))])
            restart(self.trainer.optimizers[0], cast(LRScheduler, self.lr_schedulers()), *fresh)
