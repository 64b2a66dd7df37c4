"""One z per row of a batch on the device: a CEM population, and requests over eight experts.

1. A population of 32 mixtures of 8 experts on 8 prompts each: one batch of 256 rows, against W' = U diag(sigma z) V^T
   composed for each member (all tuned matrices), which then answers its 8 prompts.
2. 64 requests over 8 experts: one batch, against eight resident models that answer 8 requests each.

Sizes are those of zrows.py. Eight models of 32 layers would need 128 GB, and U, V and W' of 32 layers 26 GB more than
their model: both comparisons run on fewer layers on both sides. The other sides' weights are random, so tokens are not
compared here: correctness.py compares the forms, zrows.py the tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _common import DEVICE, Row, free_memory, interleave
from _llama8b import NEVER, model, num_layers, random_factors, svf_policy
from _models import MLP, SilentTokenizer, prompts
from _reference import recompose_all, recomposed
from torch import Tensor, nn

import transformer2
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.svf.config import SVFConfig
from transformer2.svf.layer import svf_layers
from transformer2.types import PromptBatch

NAMES = [f"expert{k}" for k in range(8)]
PER = 8  # prompts of a member, requests of an expert
SPREAD = 0.1


def planned(toy: bool) -> dict[str, Row]:
    return {
        "population": Row("population 32 x 8 prompts: recompose / one batch, seconds", None, at_least=10.0),
        "requests": Row("64 requests, 8 experts: eight resident models / one batch, seconds", None, at_least=1.5),
    }


def measure(toy: bool) -> Iterator[tuple[str, float, str]]:
    yield "population", *_population(num_layers(toy, of=16), toy)
    free_memory()
    yield "requests", *_requests(num_layers(toy, of=8), toy)


def _population(layers: int, toy: bool) -> tuple[float, str]:
    members, tokens = (3, 4) if toy else (32, 32)
    policy, generate = _policy(layers, toy), _generator(tokens)
    dense = model(layers, toy)
    recomposed_layers = recomposed(dense, MLP, random_factors())
    free_memory()
    questions = prompts(PER, 32, policy.config.vocab_size)
    batch = questions.repeat(members)  # row i * members + m: question i, member m
    weights_MK = torch.rand(members, len(NAMES), generator=torch.Generator().manual_seed(3))
    deltas = [torch.stack([layer.delta([name]) for name in NAMES]).detach() for _, layer in svf_layers(policy)]

    def one_batch() -> None:
        with transformer2.z_rows(policy, weights_MK.repeat(PER, 1), NAMES):
            generate(policy, batch)

    def member_by_member() -> None:
        for weights_K in weights_MK.to(DEVICE):
            with torch.no_grad():
                for layer, delta_KR in zip(recomposed_layers, deltas, strict=True):
                    layer.z_R.copy_(1 + weights_K @ delta_KR)
            recompose_all(recomposed_layers)
            generate(dense, questions)

    warm_up = _generator(2)
    warm_up(policy, batch)
    warm_up(dense, questions)
    times = interleave({"rows": one_batch, "recompose": member_by_member}, rounds=1 if toy else 2, warmup=0)
    note = f"{times.median('recompose'):.1f} of {times.median('rows'):.2f} s; {layers} layers, delta form, "
    return times.ratio("recompose", "rows"), note + f"32 + {tokens} tokens a row"


def _requests(layers: int, toy: bool) -> tuple[float, str]:
    tokens = 4 if toy else 32
    base = model(layers, toy)
    resident = [copy.deepcopy(base) for _ in NAMES]
    policy, generate = _experts(svf_policy(base)), _generator(tokens)
    questions = prompts(PER, 32, policy.config.vocab_size)
    batch = questions.repeat(len(NAMES))  # row i * 8 + k: question i for expert k
    one_hot_BK = torch.eye(len(NAMES)).repeat(PER, 1)

    def one_batch() -> None:
        with transformer2.z_rows(policy, one_hot_BK, NAMES):
            generate(policy, batch)

    def swapping() -> None:
        for merged in resident:
            generate(merged, questions)

    times = interleave({"rows": one_batch, "swapping": swapping}, rounds=1 if toy else 3)
    note = f"{times.median('swapping'):.2f} of {times.median('rows'):.2f} s; {layers} layers, delta form, "
    return times.ratio("swapping", "rows"), note + f"32 + {tokens} tokens a row"


def _policy(layers: int, toy: bool) -> Any:
    return _experts(svf_policy(model(layers, toy)))


@torch.no_grad()
def _experts(policy: Any) -> Any:
    """The policy with eight random experts in addition to its own adapter."""
    for name in NAMES:
        policy.add_adapter(name, SVFConfig(target_modules=list(MLP), basis_cache="off"))
        for _, layer in svf_layers(policy):
            layer.parameters_of(name)[0].normal_(0.0, SPREAD)
    return policy.eval()


def _generator(tokens: int) -> Callable[[nn.Module, PromptBatch], Tensor]:
    """Greedy completions of exactly so many tokens."""
    engine = HFEngine(SilentTokenizer(), eos_ids=[NEVER])  # type: ignore[arg-type]  # all it uses
    sampling = Sampling(temperature=0.0, max_new_tokens=tokens)
    return lambda policy, batch: engine.generate(policy, batch, sampling, seed=0).completion_ids_BC
