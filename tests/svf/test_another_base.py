"""z of one model on another: matched by path and rank, said in a warning; what does not match is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from transformer2 import tiny
from transformer2.adaptation.members import members
from transformer2.adapters import expert_adapter, load_expert
from transformer2.errors import UserError
from transformer2.experts import read_expert
from transformer2.policy import build_policy, load_base
from transformer2.svf.layer import svf_layers

EXPERT = tiny.expert_path("math")


def like_tiny(**changes: Any) -> PreTrainedModel:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**shape, "vocab_size": 64, **changes}))


def by_test(base: PreTrainedModel) -> Any:
    """As `test --expert` does."""
    policy = build_policy(base, expert_adapter(EXPERT, {}, base))
    load_expert(policy, EXPERT)
    return policy


def by_adapt(base: PreTrainedModel) -> Any:
    """As `adapt` does."""
    policy = build_policy(base, {"target_modules": "all-linear"})
    with members(policy, [read_expert(EXPERT)]):
        return policy


@pytest.mark.parametrize("use", [by_test, by_adapt])
def test_on_the_second_embedded_model_it_runs_with_a_warning(use: Callable[[PreTrainedModel], Any]) -> None:
    with pytest.warns(UserWarning, match=r"trained on other weights .*entry i of z now scales the i-th largest"):
        policy = use(load_base("tiny_b"))
    if use is by_test:
        own = read_expert(EXPERT).deltas
        for name, layer in svf_layers(policy):
            assert torch.equal(layer.detached_delta(["default"]), own[name.removeprefix("base_model.model.")])


@pytest.mark.filterwarnings("ignore:.*trained on a base model of another architecture")
@pytest.mark.parametrize("use", [by_test, by_adapt])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 2}, r"(k|v)_proj.*128.*needs fp32 \(64,\).*between equal ranks only"),
        ({"num_hidden_layers": 2}, r"has no model.layers.2.mlp.down_proj and 6 more.*docs/svf.md"),
    ],
    ids=["another rank", "no such module"],
)
def test_unequal_ranks_and_absent_modules_are_refused(
    use: Callable[[PreTrainedModel], Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        use(like_tiny(**changes))
