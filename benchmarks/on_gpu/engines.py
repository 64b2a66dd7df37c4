"""Tokens per second of drawing completions: our engine on merged weights, `generate`, and continuous batching.

All draw at temperature 1 from one model whose z is merged into the weights (`merged_for_rollout`), every completion to
the budget's end. Our engine in the delta form is shown alongside them: what `merge_rollouts: false` costs. Continuous
batching is transformers' own (`generate_batch`, where the installed version has it), with flash attention only where
the package flash_attn is installed: its other source is a download.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import transformers
from _common import Row, interleave
from _llama8b import NEVER, model, num_layers, svf_policy
from _models import SilentTokenizer, prompts
from torch import Tensor
from transformers import GenerationConfig

from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.svf.modes import merged_for_rollout
from transformer2.types import PromptBatch

UNIT = "tokens/s"


def planned(toy: bool) -> dict[str, Row]:
    return {
        "ours": Row("rollouts: HFEngine, merged", None, UNIT),
        "generate": Row("rollouts: model.generate, merged", None, UNIT),
        "delta": Row("rollouts: HFEngine, delta form", None, UNIT),
        "continuous": Row("rollouts: generate_batch, merged", None, UNIT),
    }


def measure(toy: bool) -> Iterator[tuple[str, float | None, str]]:
    layers = num_layers(toy)
    rows, prompt, tokens = (4, 8, 6) if toy else (128, 128, 128)
    policy = svf_policy(model(layers, toy))
    batch = prompts(rows, prompt, policy.config.vocab_size)
    note = f"{layers} layers, {rows} prompts of {prompt} tokens, {tokens} new ones each"

    def speed(draw: Callable[[int], int], rounds: int) -> float:
        draw(2)
        counted: list[int] = []
        times = interleave({"draw": lambda: counted.append(draw(tokens))}, rounds=1 if toy else rounds, warmup=0)
        if set(counted) != {rows * tokens}:
            raise RuntimeError(f"drew {counted} tokens instead of {rows * tokens} each time")
        return rows * tokens / times.median("draw")

    with merged_for_rollout(policy) as merged:
        assert merged
        yield "ours", speed(lambda budget: _ours(policy, batch, budget), 2), note
        yield "generate", speed(lambda budget: _generate(policy, batch, budget), 2), note
    yield "delta", speed(lambda budget: _ours(policy, batch, budget), 1), note
    if not hasattr(policy.get_base_model(), "generate_batch"):
        yield "continuous", None, f"not measured: transformers {transformers.__version__} has no generate_batch"
        return
    with merged_for_rollout(policy):
        yield "continuous", speed(lambda budget: _continuous(policy, batch, budget, toy), 1), f"{note}; {_attention()}"


def _ours(policy: Any, batch: PromptBatch, budget: int) -> int:
    engine = HFEngine(SilentTokenizer(), eos_ids=[NEVER])  # type: ignore[arg-type]  # all it uses
    drawn = engine.generate(policy, batch, Sampling(max_new_tokens=budget), seed=0)
    return int(drawn.completion_mask_BC.sum())


def _generate(policy: Any, batch: PromptBatch, budget: int) -> int:
    ids_BT: Tensor = policy.get_base_model().generate(
        input_ids=batch.input_ids_BP, attention_mask=batch.attention_mask_BP, generation_config=_config(budget)
    )
    return ids_BT[:, batch.input_ids_BP.shape[1] :].numel()


def _continuous(policy: Any, batch: PromptBatch, budget: int, toy: bool) -> int:
    options = {}
    if (settings := getattr(transformers, "ContinuousBatchingConfig", None)) is not None:
        wanted: dict[str, Any] = {"auto_switch_to_flash": _flash()}
        if toy:  # else it takes most of the machine's memory
            wanted |= {"num_blocks": 16, "max_batch_tokens": 64}
        known = {field.name for field in dataclasses.fields(settings)}
        options["continuous_batching_config"] = settings(**{k: v for k, v in wanted.items() if k in known})
    drawn = policy.get_base_model().generate_batch(
        batch.input_ids_BP.tolist(), generation_config=_config(budget), progress_bar=False, **options
    )
    return sum(len(request.generated_tokens) for request in drawn.values())


def _config(budget: int) -> GenerationConfig:
    """Sampling from the whole distribution, with no end of text."""
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=budget, pad_token_id=0, eos_token_id=None
    )


def _flash() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _attention() -> str:
    return f"its set-up included, {'flash attention' if _flash() else 'sdpa, flash_attn is not installed'}"
