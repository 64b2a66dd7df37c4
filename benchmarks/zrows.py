"""One z per row of a batch: requests over many experts, and a CEM population, against weights that are swapped.

    python benchmarks/run.py zrows

1. 64 requests, 8 for each of 8 experts: one batch under `z_rows`, against eight resident models with merged weights
   that serve 8 requests each.
2. A population of 32 mixtures scored on 8 prompts each: one batch of 256 rows, in the factored form as a search runs
   it (`score_members`; changing the form is timed too) and in the delta form of mixed requests, against
   W' = U diag(sigma z) V^T composed for each member (all tuned matrices), which then answers its 8 prompts.

Both sides decode greedily through the same engine; their tokens are asserted to be the same, but for ties in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _common import DEVICE, Row, interleave
from _models import MLP, embedded_model, prompts, random_llama
from _reference import RecomposedLinear, recompose_all, recomposed
from torch import Tensor, nn
from transformers import PreTrainedModel

import transformer2
from transformer2.policy import build_policy
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.svf.config import SVFConfig
from transformer2.svf.layer import svf_layers
from transformer2.svf.modes import factored_for_choice
from transformer2.types import PromptBatch

EXPERTS = 8
SPREAD = 0.1  # standard deviation of z - 1: enough for experts to give different tokens
TIE = 1e-3  # of the standard deviation of the logits
POPULATION_GOAL = 10.0 if DEVICE.type == "cuda" else 2.5
ALL = (*MLP, "q_proj", "k_proj", "v_proj", "o_proj")


class _Silent:
    """What the engine needs of a tokenizer, without texts."""

    pad_token_id = 0

    def batch_decode(self, ids: list[list[int]], **options: bool) -> list[str]:
        return [""] * len(ids)


def measure(toy: bool = False) -> list[Row]:
    if toy:
        return _rows("random Llama", random_llama(64, 1, 256), MLP, per=1, members=3, tokens=4, rounds=1)
    rows = _rows("random Llama", random_llama(), MLP, per=8, members=32, tokens=32, rounds=2)
    if (tiny := embedded_model()) is not None:
        rows += _rows("embedded model", tiny, ALL, per=8, members=32, tokens=32, rounds=3)
    return rows


def _rows(
    name: str, base: PreTrainedModel, modules: tuple[str, ...], per: int, members: int, tokens: int, rounds: int
) -> list[Row]:
    vocab = base.config.vocab_size
    engine = HFEngine(_Silent(), eos_ids=[0])  # type: ignore[arg-type]  # all it uses
    sampling = Sampling(temperature=0.0, max_new_tokens=tokens)
    policy = _policy(base, modules)
    names = [f"expert{k}" for k in range(EXPERTS)]

    def generate(model: nn.Module, batch: PromptBatch) -> list[Tensor]:
        drawn = engine.generate(model, batch, sampling, seed=0)
        ids = zip(drawn.completion_ids_BC, drawn.completion_mask_BC.sum(-1).tolist(), strict=True)
        return [row_C[:length] for row_C, length in ids]

    def under_rows(batch: PromptBatch, weights_BK: Tensor) -> list[Tensor]:
        with transformer2.z_rows(policy, weights_BK, names):
            return generate(policy, batch)

    # 1. Requests over experts; row b belongs to expert b % EXPERTS.
    requests = prompts(EXPERTS * per, 32, vocab)
    one_hot_BK = torch.eye(EXPERTS).repeat(per, 1)
    resident = [_merged(policy, base, k) for k in names]

    def swapping() -> list[Tensor]:
        drawn: list[Any] = [None] * len(requests)
        for k, model in enumerate(resident):
            drawn[k::EXPERTS] = generate(model, _take(requests, range(k, len(requests), EXPERTS)))
        return drawn

    # 2. A population; rows m * per ... belong to member m.
    questions = prompts(per, 32, vocab)
    population = _take(questions, [i for _ in range(members) for i in range(per)])
    weights_MK = torch.rand(members, EXPERTS, generator=torch.Generator().manual_seed(3))
    weights_BK = weights_MK.repeat_interleave(per, dim=0)
    dense = copy.deepcopy(base)
    recomposed_layers = recomposed(dense, modules)
    tuned = [layer for _, layer in svf_layers(policy)]

    def member_by_member() -> list[Tensor]:
        drawn = []
        for weights_K in weights_MK:
            for ours, theirs in zip(tuned, recomposed_layers, strict=True):
                _set_z(theirs, ours, weights_K, names)
            recompose_all(recomposed_layers)
            drawn += generate(dense, questions)
        return drawn

    answers: dict[str, list[Tensor]] = {}

    def keeping(name: str, run: Callable[[], list[Tensor]]) -> Callable[[], None]:
        return lambda: answers.update({name: run()})

    def as_a_search_does() -> list[Tensor]:
        with factored_for_choice(policy):
            return under_rows(population, weights_BK)

    forms: dict[str, Callable[[], list[Tensor]]] = {
        "rows": lambda: under_rows(requests, one_hot_BK),
        "swapping": swapping,
        "population": as_a_search_does,
        "population delta": lambda: under_rows(population, weights_BK),
        "recompose": member_by_member,
    }
    times = interleave({form: keeping(form, run) for form, run in forms.items()}, rounds, warmup=0)

    def row(what: str, ours: str, theirs: str, batch: PromptBatch, weights: Tensor, goal: float | None) -> Row:
        alike = _compare(policy, batch, weights, answers[ours], answers[theirs])
        note = f"{times.median(theirs):.1f} of {times.median(ours):.1f} s; {alike}"
        return Row(f"{name}: {what}, seconds", times.ratio(theirs, ours), at_least=goal, note=note)

    served = f"{len(requests)} requests over {EXPERTS} experts"
    scored = f"population {members} x {per} prompts"
    of_population = ("recompose", population, weights_BK)
    return [
        row(f"{served}, swapping / one batch", "rows", "swapping", requests, one_hot_BK, 1.5),
        row(f"{scored}, recompose / one batch", "population", *of_population, POPULATION_GOAL),
        row(f"{scored}, recompose / one batch, delta", "population delta", *of_population, None),
    ]


def _policy(base: PreTrainedModel, modules: tuple[str, ...]) -> Any:
    """The base with `EXPERTS` random experts loaded."""
    config = SVFConfig(target_modules=list(modules), basis_cache="off")
    policy = build_policy(copy.deepcopy(base), config)
    torch.manual_seed(0)
    for k in range(EXPERTS):
        policy.add_adapter(f"expert{k}", copy.copy(config))
        for _, layer in svf_layers(policy):
            layer.parameters_of(f"expert{k}")[0].data.normal_(0.0, SPREAD)
    return policy.eval()


@torch.no_grad()
def _merged(policy: Any, base: PreTrainedModel, expert: str) -> PreTrainedModel:
    """A plain model with one expert in its weights."""
    policy.set_adapter(expert)
    model = copy.deepcopy(base)
    for name, layer in svf_layers(policy):
        layer.merge(adapter_names=[expert])
        target = model.get_submodule(name.removeprefix("base_model.model."))
        target.weight.copy_(layer.base_layer.weight)
        layer.unmerge()
    return model


@torch.no_grad()
def _set_z(theirs: RecomposedLinear, ours: Any, weights_K: Tensor, names: list[str]) -> None:
    theirs.z_R.fill_(1.0)
    for weight, name in zip(weights_K.tolist(), names, strict=True):
        theirs.z_R.add_(ours.delta([name]), alpha=weight)


def _take(batch: PromptBatch, rows: Any) -> PromptBatch:
    index = list(rows)
    examples = tuple(batch.examples[i] for i in index)
    return PromptBatch(examples, batch.input_ids_BP[index], batch.attention_mask_BP[index])


@torch.no_grad()
def _compare(policy: Any, batch: PromptBatch, weights_BK: Tensor, ours: list[Tensor], theirs: list[Tensor]) -> str:
    """Assert that both sides gave the same tokens up to ties; in words, how alike they are.

    Two fp32 routes to one W' differ in the last bits, so where the two best logits are equal up to TIE either may win;
    what follows in that row is then another text.
    """
    ties = 0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if torch.equal(a, b):
            continue
        first = int((a[: len(b)] != b[: len(a)]).nonzero()[0])
        ids_1T = torch.cat([batch.input_ids_BP[i], a[:first]])[None]
        with transformer2.z_rows(policy, weights_BK[i : i + 1], [f"expert{k}" for k in range(EXPERTS)]):
            logits_V = policy(input_ids=ids_1T, use_cache=False).logits[0, -1]
        gap = float((logits_V[a[first]] - logits_V[b[first]]).abs() / logits_V.std())
        assert gap < TIE, f"row {i} differs at token {first}, where the logits are {gap:.1e} standard deviations apart"
        ties += 1
    different = len({tuple(a.tolist()) for a in ours})
    return f"tokens identical in {len(ours) - ties} of {len(ours)} rows, {ties} part at a tie; {different} different"
