"""What is asked of the machine: a config's rows, tokens, form, quantisation and strategy, on so many devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from transformer2 import tasks
from transformer2.arguments import is_natural
from transformer2.errors import ConfigError
from transformer2.plan.shape import ModelShape, model_shape
from transformer2.quantisation import Quantisation, quantisation_of
from transformer2.svf.format import peft_type

__all__ = ["KEYS", "TRAINER_STRATEGIES", "Job", "Strategy", "job_of", "strategy_of"]

Strategy = Literal["single", "ddp", "zero2", "zero3", "zero3_offload"]
TRAINER_STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
STAGES = {  # of DeepSpeed, where the config does not say, by the name of a strategy or of its class
    **{"ZeRO": 3, "DeepSpeedStrategy": 2, "deepspeed": 2, "deepspeed_stage_2": 2},
    **{"deepspeed_stage_3": 3, "deepspeed_stage_3_offload": 3},
}
KEYS = {  # what advice may change: an attribute of Job -> the config's key
    "micro_tokens": "model.memory.micro_batch_tokens",
    "rollout_rows": "model.memory.max_rollout_rows",
    "checkpointing": "model.memory.activation_checkpointing",
    "form": "model.adapter.form",
    "merge_rollouts": "model.memory.merge_rollouts",
}
LONG_PROMPT = 256  # tokens; the longest GSM8K question in a chat template has about 240
TAKE_PICTURES = "LLaVA, LLaVA-NeXT and Qwen2.5-VL do: --model.base llava-hf/llama3-llava-next-8b-hf"


@dataclass(frozen=True)
class Job:
    """One training run as the planner sees it. Rows and tokens are per rank."""

    shape: ModelShape
    svf: bool  # or else LoRA
    rank: int  # LoRA's r; 0 for SVF
    form: str  # `delta` or `factored`: how z enters the forward pass of training
    quantisation: Quantisation | None  # of the base's linear layers; None for a dense base
    strategy: Strategy
    gpus: int  # of a node
    nodes: int
    global_rows: int  # completions of one optimizer step, over all ranks
    eval_rows: int  # prompts per batch of validation, over all ranks
    max_rollout_rows: int | None  # generated at a time; None means all
    pictures: int  # of one optimizer step, over all ranks
    prompt_tokens: int  # of the longest prompt, those of its pictures included
    completion_tokens: int  # the budget, which memory is counted for
    mean_completion: float  # which seconds are counted for
    micro_batch_tokens: int  # padded tokens of one forward and backward pass
    full_kl: bool  # whether the KL goes over the whole vocabulary
    kl: bool  # whether every step runs the reference model
    merge_rollouts: bool  # whether rollouts run on composed weights, where they can
    elsewhere: bool  # whether a server draws the rollouts, on devices of its own
    checkpointing: bool  # whether activations are computed again in the backward pass
    sampled: bool  # whether a step draws its completions; else rollouts are those of validation
    row_gradients: bool  # whether the optimizer takes the rows' own gradients, which checkpointing would not give it

    @property
    def ranks(self) -> int:
        """Processes, one per device; `single` uses one device whatever there is."""
        return 1 if self.strategy == "single" else self.gpus * self.nodes

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def rows(self) -> int:
        """Completions that a rank draws in one step."""
        return -(-self.global_rows // self.ranks)

    @property
    def rollout_rows(self) -> int:
        """Rows of the largest batch that is generated at a time, validation included."""
        drawn = max(self.rows if self.sampled else 0, -(-self.eval_rows // self.ranks))
        return min(drawn, self.max_rollout_rows or drawn)

    @property
    def micro_rows(self) -> int:
        """Rows of the longest kind in one micro-batch; one at least (rl/packing.py)."""
        return min(self.rows, max(1, self.micro_batch_tokens // self.width))

    @property
    def micro_tokens(self) -> int:
        """Padded tokens of one micro-batch: shorter rows fill it up to the bound; one row may exceed it."""
        return min(self.rows * self.width, max(self.micro_batch_tokens, self.width))

    @property
    def num_trained(self) -> int:
        """Trainable numbers: z, or LoRA's A and B."""
        return self.shape.num_z if self.svf else sum(self.rank * (matrix.m + matrix.n) for matrix in self.shape.tuned)

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight of a linear layer."""
        packed = self.quantisation and self.quantisation.bytes_per_weight
        return packed or self.shape.dtype_bytes

    @property
    def sharded(self) -> bool:
        """Whether a rank holds a part of the weights only."""
        return self.strategy in ("zero3", "zero3_offload")

    @property
    def merged_rollouts(self) -> bool:
        """Whether rollouts really run merged: W must be whole and dense (svf.modes.merged_for_rollout)."""
        return self.svf and self.merge_rollouts and self.quantisation is None and not (self.sharded or self.elsewhere)

    def with_(self, **changes: Any) -> Job:
        """The same job with changes; a quantised base has the delta form only."""
        job = replace(self, **changes)
        return replace(job, form="delta") if job.quantisation else job


def job_of(
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    strategy: Strategy = "single",
    gpus: int = 1,
    nodes: int = 1,
    prompt_tokens: int | None = None,
    mean_completion: float | None = None,
) -> Job:
    """A job from complete `model` and `data` sections of a config.

    Args:
        model: Arguments of SVFReinforceModule, defaults included.
        data: Arguments of ExpertDataModule, defaults included.
        strategy: Name of conf/strategy/.
        gpus: Devices of a node.
        nodes: Nodes.
        prompt_tokens: Longest prompt; None assumes 256 and the largest pictures, or what the context leaves.
        mean_completion: Mean completion for the seconds; None assumes half of the budget.

    Raises:
        UserError: A base, adapter or task that cannot be planned with.
    """
    adapter = dict(model.get("adapter") or {})
    loading = model.get("model_kwargs") or {}
    shape = model_shape(model["base"], adapter, model["dtype"], model_kwargs=loading)
    svf = peft_type(adapter) == "SVF"
    optimizer = model.get("optimizer")
    task = tasks.get(data["task"], **(data.get("task_options") or {}))
    budget, shown = model["sampling"]["max_new_tokens"] or task.max_new_tokens, task.pictures
    if mean_completion and mean_completion > budget:
        raise ConfigError(f"--mean_completion {mean_completion:g} is more than the {budget} tokens of a completion")
    if shown and shape.pictures is None:
        raise ConfigError(
            f"task {data['task']!r} shows pictures, and base {model['base']!r} takes none; {TAKE_PICTURES}"
        )
    longest = LONG_PROMPT + shown * (shape.pictures.tokens if shape.pictures else 0)
    prompt = prompt_tokens or min(longest, max(1, shape.context - budget))
    if prompt + budget > shape.context:
        raise ConfigError(f"{prompt} + {budget} tokens exceed the context of {shape.context}; lower one of them")
    return Job(
        shape=shape,
        svf=svf,
        rank=0 if svf else int(adapter.get("r", 8)),
        form=adapter.get("form", "delta") if svf else "delta",
        quantisation=quantisation_of(loading.get("quantization_config", shape.packed)),
        strategy=strategy,
        gpus=gpus,
        nodes=nodes,
        global_rows=data["batch_size"] * model["sampling"]["num_completions"],
        eval_rows=data["eval_batch_size"],
        max_rollout_rows=model["memory"]["max_rollout_rows"],
        pictures=data["batch_size"] * shown,
        prompt_tokens=prompt,
        completion_tokens=budget,
        mean_completion=mean_completion or budget / 2,
        micro_batch_tokens=model["memory"]["micro_batch_tokens"],
        full_kl=model["loss"]["kl"] in ("full", "full_reverse"),
        kl=bool(model["loss"]["kl_coef"]),
        merge_rollouts=bool(model["memory"]["merge_rollouts"]),
        elsewhere=model["rollout"] == "vllm",
        checkpointing=bool(model["memory"]["activation_checkpointing"]),
        sampled=model["objective"] == "reinforce",
        row_gradients=isinstance(optimizer, Mapping) and is_natural(optimizer.get("class_path")),
    ).with_()


def strategy_of(trainer: Mapping[str, Any]) -> Strategy | None:
    """What `trainer.strategy` asks for, in the planner's words; None where it leaves the choice.

    Args:
        trainer: Arguments of the Trainer; the strategy is one of Lightning's names, or a class and its arguments.
    """
    asked = trainer.get("strategy")
    if not isinstance(asked, Mapping):
        asked = {"class_path": str(asked)}
    name, options = asked["class_path"].rpartition(".")[-1], asked.get("init_args") or {}
    if (stage := options.get("stage", STAGES.get(name))) is None:
        return "ddp" if name.lower().startswith("ddp") else None
    offload = name.endswith("_offload") or options.get("offload") or options.get("offload_parameters")
    return "zero2" if stage < 3 else "zero3_offload" if offload else "zero3"
