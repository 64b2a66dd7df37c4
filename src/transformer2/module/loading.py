"""What a module's settings stand for: the policy, and the engines that draw from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftConfig, PeftModel
from transformers import PreTrainedTokenizerBase

from transformer2.data.prompts import open_turn_end
from transformer2.distributed import gather_objects
from transformer2.errors import ConfigError
from transformer2.policy import (
    adapter_config,
    build_policy,
    eos_token_ids,
    expert_adapter,
    load_base,
    load_expert,
    load_tokenizer,
)
from transformer2.rollout.base import RolloutEngine
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.paged import PagedEngine
from transformer2.rollout.vllm import VLLMEngine
from transformer2.svf.base_folder import base_folder, check_keys, instead
from transformer2.svf.config import SVFConfig
from transformer2.vision import pictures_of

if TYPE_CHECKING:
    from transformer2.module.training import SVFReinforceModule


def load_policy(module: SVFReinforceModule) -> tuple[PreTrainedTokenizerBase, PeftModel]:
    """The tokenizer, and the base with a fresh adapter: the one the settings ask for, or the one of `module.expert`."""
    check_keys(module.model_kwargs, "model_kwargs ", instead())
    base = load_base(module.base, module.base_dtype, **module.model_kwargs)
    given, expert = module.adapter, module.expert
    config = adapter_config(given) if expert is None else expert_adapter(expert, given, base)
    policy = build_policy(base, config)
    # Experts name their base as the user did: `tiny` is the same model on every machine, its folder is not.
    policy.peft_config["default"].base_model_name_or_path = module.base
    policy.peft_config["default"].revision = module.model_kwargs.get("revision")
    return load_tokenizer(module.base, module.model_kwargs), policy


def begin_with(policy: PeftModel, expert: Path) -> str:
    """Load an expert's weights; their SHA-256."""
    load_expert(policy, expert)
    weights = (p.detach().float().cpu().numpy().tobytes() for p in policy.parameters() if p.requires_grad)
    return hashlib.sha256(b"".join(weights)).hexdigest()


def make_engines(
    module: SVFReinforceModule, tokenizer: PreTrainedTokenizerBase, lockstep: Callable[[bool], bool] | None
) -> tuple[HFEngine, RolloutEngine]:
    """The engine that draws rows of different z, and the one that draws under one z: often the same.

    Raises:
        ConfigError: `model.rollout: paged` with weights in shards.
    """
    engine = HFEngine(
        tokenizer,
        eos_token_ids(module.policy, tokenizer),
        module.memory.max_rollout_rows,
        lockstep,
        module.memory.merge_rollouts,
        module.sampling.stop or (),
    )
    if lockstep is not None and (inputs := pictures_of(module.policy)) is not None:
        inputs.on_any_rank = lockstep
    if not has_no_template(module) and (end := open_turn_end(tokenizer, engine.eos_ids, engine.stop)) is not None:
        rank_zero_warn(
            f"the chat template of {module.base!r} ends an answer with {end!r}, which is not an EOS of the model: "
            f'answers run on to max_new_tokens; set --model.sampling.stop "[{end!r}]"'
        )
    if module.engine_name == "paged":
        if engine.in_lockstep:
            raise ConfigError("model.rollout: paged runs on whole weights; under ZeRO-3 use hf or vllm")
        return engine, PagedEngine(tokenizer, engine.eos_ids, engine.max_rows, engine.merge, engine.stop)
    if module.engine_name == "vllm":
        trusted = bool(module.model_kwargs.get("trust_remote_code"))
        return engine, VLLMEngine(
            tokenizer,
            engine.eos_ids,
            str(base_folder(module.base, module.model_kwargs)),
            module.policy,
            replace(module.vllm, args=[*module.vllm.args, "--trust-remote-code"]) if trusted else module.vllm,
            share=gather_objects,
            rank=module.global_rank,
            stop=engine.stop,
        )
    return engine, engine


def has_no_template(module: SVFReinforceModule) -> bool:
    """Whether the prompts of this run are built without the chat template."""
    return getattr(getattr(module._trainer, "datamodule", None), "template", True) is None


def check_trained_whole(config: PeftConfig) -> None:
    """Refuse modules trained alongside z: an SVF expert is z and nothing else, so that experts can be mixed.

    Raises:
        ConfigError: `modules_to_save` with SVF.
    """
    if isinstance(config, SVFConfig) and config.modules_to_save:
        raise ConfigError(
            f"model.adapter.modules_to_save {config.modules_to_save} would be trained whole, and an SVF expert keeps z "
            "alone; leave it out, or use peft_type LORA"
        )
