"""Mixtures in one batch are mixtures one by one: answers token for token, likelihoods to rounding."""

import math
from dataclasses import replace

import pytest
import torch
from fake_experts import ALL, make_experts
from fakes import make_llama
from toy_task import FirstLetter

from transformer2 import tasks, tiny
from transformer2.adaptation import scoring
from transformer2.adaptation.few_shot import Budget, run_search
from transformer2.adaptation.members import members
from transformer2.adaptation.mixture import Mixture, base_row, constant_rows, expert_rows
from transformer2.adaptation.scoring import Scorer, mean_credits, score_members
from transformer2.adaptation.search import CEM
from transformer2.data import collate, render
from transformer2.errors import ConfigError, UserError
from transformer2.experts import load_experts, save_expert
from transformer2.export import export_merged
from transformer2.module import SVFReinforceModule
from transformer2.policy import build_policy, load_base, load_expert, reference
from transformer2.rollout.base import Sampling
from transformer2.svf.layer import svf_layers, tuned_layers
from transformer2.svf.modes import factored_for_choice
from transformer2.tiny import words
from transformer2.types import Verdict

TASK = FirstLetter()
GREEDY = Sampling(temperature=0.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    base = make_llama(tmp_path_factory.mktemp("base"), init=0.25)
    module = SVFReinforceModule(str(base), adapter=ALL, dtype="float32")
    module.configure_model()
    return module


@pytest.fixture(scope="module")
def experts(module, tmp_path_factory):
    return load_experts(make_experts(tmp_path_factory.mktemp("experts"), module.base))


@pytest.fixture
def scorer(module, experts):
    with torch.no_grad(), members(module.policy, experts) as names:
        yield Scorer(module.policy, names, module.engine, module.head)


@pytest.fixture(scope="module")
def prompts(module):
    examples = TASK.examples("test")[:5]
    return collate(examples, [render(module.engine.tokenizer, e) for e in examples], 0)


def test_a_mixed_batch_answers_as_each_row_alone(module, scorer, experts, prompts):
    weights_BK = torch.cat([expert_rows(3), base_row(3), torch.tensor([[0.4, 0.3, 0.0, 0.3]])])
    mixed = scorer.rows(prompts, weights_BK, 8).completions
    assert len(set(mixed)) > 1
    for b in range(5):
        one = collate([prompts.examples[b]], [render(module.engine.tokenizer, prompts.examples[b])], 0)
        assert scorer.rows(one, weights_BK[b : b + 1], 8).completions == (mixed[b],)
    with reference(module.policy):
        base = module.engine.generate(module.policy, prompts, GREEDY, 0)
    assert base.completions[3] == mixed[3]


def test_an_expert_s_row_is_the_expert_alone_and_merged(module, scorer, experts, prompts, tmp_path):
    rows = scorer.rows(prompts, expert_rows(3)[1:2], 8)
    alone = SVFReinforceModule(module.base, adapter=ALL, dtype="float32")
    alone.configure_model()
    load_expert(alone.policy, experts[1].path)
    assert alone.engine.generate(alone.policy, prompts, GREEDY, 0).completions == rows.completions
    merged = load_base(str(export_merged(alone.policy, module.engine.tokenizer, tmp_path / "merged")), "float32")
    assert module.engine.generate(merged, prompts, GREEDY, 0).completions == rows.completions


@pytest.mark.parametrize(
    ("granularity", "mix", "base_member", "tuned"),
    [
        ("kind", "normalised", True, ""),
        ("layer", "delta", False, ""),
        ("matrix", "raw", False, ""),
        ("matrix", "raw", True, ""),
        ("expert", "raw", False, "mlp"),
    ],
)
def test_the_adapted_expert_answers_as_the_mixture_that_was_scored(
    module, experts, prompts, tmp_path, granularity, mix, base_member, tuned
):
    """Also where the experts tune less than the policy."""
    experts = [replace(e, deltas={m: d for m, d in e.deltas.items() if tuned in m}) for e in experts]
    with torch.no_grad(), members(module.policy, experts) as names:
        scorer = Scorer(module.policy, names, module.engine, module.head)
        mixture = Mixture(
            list(tuned_layers(scorer.policy)), ["math", "code", "reasoning"], granularity, mix, base_member
        )
        alpha_D = torch.rand(mixture.dim, generator=torch.Generator().manual_seed(5))
        scored = scorer.rows(prompts, mixture.weights(alpha_D[None]), 8).completions
    folder = save_expert(mixture.expert(alpha_D, experts, "adapted"), tmp_path / "adapted")
    alone = SVFReinforceModule(module.base, adapter={**ALL, "target_modules": [*experts[0].deltas]}, dtype="float32")
    alone.configure_model()
    load_expert(alone.policy, folder)
    assert alone.engine.generate(alone.policy, prompts, GREEDY, 0).completions == scored


@pytest.mark.parametrize("max_rows", [None, 4])
def test_a_population_in_one_batch_is_member_by_member(scorer, prompts, max_rows):
    scorer.engine.max_rows = max_rows
    mixture = Mixture(list(tuned_layers(scorer.policy)), ["math", "code", "reasoning"], "matrix")
    weights_LMK = mixture.weights(CEM(mixture.dim, population=6, mean=1 / 3).ask())
    together = scorer.answers(prompts, weights_LMK, 8)
    ties_M = scorer.mean_log_likelihood(prompts, TASK, weights_LMK)
    for m in range(6):
        assert scorer.rows(prompts, weights_LMK[:, m : m + 1], 8).completions == together[m].completions
    alone_M = torch.cat([scorer.mean_log_likelihood(prompts, TASK, weights_LMK[:, m : m + 1]) for m in range(6)])
    torch.testing.assert_close(ties_M, alone_M, rtol=1e-4, atol=1e-4)


def test_a_search_scores_in_the_factored_form_what_the_delta_form_answers(scorer, prompts):
    mixture = Mixture(list(tuned_layers(scorer.policy)), ["math", "code", "reasoning"])
    weights_LMK = mixture.weights(CEM(mixture.dim, population=6, mean=1 / 3).ask())
    forms = []
    answers = [r.completions for r in scorer.answers(prompts, weights_LMK, 8)]
    ties_M = scorer.mean_log_likelihood(prompts, TASK, weights_LMK)
    with factored_for_choice(scorer.policy):
        forms += [layer.form for _, layer in svf_layers(scorer.policy)]
        assert [r.completions for r in scorer.answers(prompts, weights_LMK, 8)] == answers
        torch.testing.assert_close(scorer.mean_log_likelihood(prompts, TASK, weights_LMK), ties_M, rtol=1e-4, atol=1e-4)
    assert set(forms) == {"factored"}
    assert {layer.form for _, layer in svf_layers(scorer.policy)} == {"delta"}
    assert not [n for n, _ in scorer.policy.named_parameters() if "svf_factor" in n]


def test_half_precision_is_never_scored_factored(module):
    half = build_policy(load_base(module.base, "bfloat16"), ALL)
    with factored_for_choice(half):
        assert {layer.form for _, layer in svf_layers(half)} == {"delta"}


def test_a_mixed_batch_of_shipped_experts_answers_as_each_row_alone():
    """The embedded model, its three experts, the classification expert, the base: five rows of one batch, fp32."""
    module = SVFReinforceModule("tiny", adapter=ALL)
    module.configure_model()
    names = (*tiny.EXPERTS, tiny.CLASSIFIER)
    shipped = load_experts([tiny.expert_path(name) for name in names])
    examples = [tasks.get(f"tiny_{name}").examples("test")[i] for i in range(3) for name in (*names, "code_math")]
    ids = [render(module.engine.tokenizer, e) for e in examples]
    prompts = collate(examples, ids, module.engine.pad_id)
    weights_BK = torch.eye(5).repeat(3, 1)
    with torch.no_grad(), members(module.policy, shipped) as adapters:
        scorer = Scorer(module.policy, adapters, module.engine, module.head)
        mixed = scorer.rows(prompts, weights_BK, 24)
        for b, example in enumerate(examples):
            one = scorer.rows(collate([example], [ids[b]], module.engine.pad_id), weights_BK[b : b + 1], 24)
            length = int(one.completion_mask_BC.sum())
            assert int(mixed.completion_mask_BC[b].sum()) == length
            assert torch.equal(mixed.completion_ids_BC[b, :length], one.completion_ids_BC[0])
        with reference(module.policy):
            base = module.engine.generate(module.policy, prompts, Sampling(0.0, max_new_tokens=24), 0)
    assert base.completions[4::5] == mixed.completions[4::5] and set(mixed.completions[3::5]) <= {*words.LABELS}


@pytest.mark.parametrize("room", [2000, 3])
def test_likelihood_is_the_model_s_own(module, scorer, prompts, monkeypatch, room):
    """Of a solution that is longer than the model reads (gpt2 fails on it), that of its beginning."""
    monkeypatch.setattr(scoring, "context_of", lambda config: prompts.input_ids_BP.shape[1] + room)
    sums_B, counts_B = scorer.log_likelihood(prompts, ["early"] * 5, base_row(3))
    ids = [*module.engine.tokenizer("early", add_special_tokens=False)["input_ids"], 4][:room]
    prompt = render(module.engine.tokenizer, prompts.examples[2])
    with reference(module.policy):
        logits = module.policy(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    expected = sum(float(logits[len(prompt) - 1 + t, token]) for t, token in enumerate(ids))
    assert float(sums_B[2]) == pytest.approx(expected, rel=1e-4) and counts_B.tolist() == [len(ids)] * 5


def test_adapters_come_and_go_without_a_trace(module, experts):
    before = {n: p.clone() for n, p in module.policy.named_parameters()}
    trained = [n for n, p in module.policy.named_parameters() if p.requires_grad]
    with members(module.policy, experts) as names:
        assert len(names) == 4 and set(names) < set(module.policy.peft_config)
    assert list(module.policy.peft_config) == ["default"] and module.policy.active_adapters == ["default"]
    after = dict(module.policy.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert trained == [n for n, p in module.policy.named_parameters() if p.requires_grad]


def test_memory_that_runs_out_halves_the_micro_batch(module, scorer):
    """Passes of the model itself over more than two rows fail: sixteen are answered and scored two at a time."""
    examples = TASK.examples("test")[:16]
    prompts = collate(examples, [render(module.engine.tokenizer, e) for e in examples], 0)
    whole = scorer.rows(prompts, base_row(3), 8).completions
    likely_B, _ = scorer.log_likelihood(prompts, ["early"] * 16, base_row(3))

    def refuse(layer, args):
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = module.policy.get_base_model().model.layers[1].register_forward_pre_hook(refuse)
    try:
        of = Scorer(scorer.policy, scorer.members, module.engine, module.head)
        with pytest.warns(UserWarning, match="with 4 rows: continuing with 2 at a time; .*max_rollout_rows"):
            answers = of.rows(prompts, base_row(3), 8).completions
        assert answers == whole and of.engine.max_rows == 2
        of.engine.max_rows = None
        with pytest.warns(UserWarning, match="with 4 rows: continuing with 2 at a time; .*lower adapt.max_rows"):
            scores_B, _ = of.log_likelihood(prompts, ["early"] * 16, base_row(3))
        torch.testing.assert_close(scores_B, likely_B, rtol=1e-4, atol=1e-4)
        assert of.engine.max_rows == 2
    finally:
        hook.remove()


def test_search_rejects_members_without_finite_weights(scorer, prompts):
    mixture = Mixture(list(tuned_layers(scorer.policy)), ["math", "code", "reasoning"], mix="normalised")
    search = CEM(3, population=12, low=0.0, high=1.0, mean=0.0, std=0.5, elite_ratio=0.5)

    def scores(weights_LNK):
        assert torch.isfinite(weights_LNK).all()
        return score_members(scorer, prompts, TASK, 4, weights_LNK)

    trace = list(run_search(search, mixture, scores, Budget(generations=2)))
    assert len(trace) == 2 and search.evaluations == 24 and search.rejected >= 1
    assert torch.isfinite(search.mean).all() and 0 <= search.best_score <= 1


class Picky(FirstLetter):
    """Its verifier does as it is told with every wrong answer."""

    verify_in = "inline"

    def __init__(self, wrong):
        self.wrong = wrong

    def verify(self, example, completion):
        verdict = super().verify(example, completion)
        return verdict if verdict.correct else self.wrong()


def test_an_answer_without_a_verdict_earns_nothing_and_a_broken_verifier_stops_the_search(scorer, prompts):
    def scores(task):
        return score_members(scorer, prompts, task, 4, expert_rows(3))

    right, ties = scores(TASK)
    assert 0 < sum(right) < 3  # else it says nothing
    assert scores(Picky(lambda: Verdict.abstain("cannot tell"))) == (right, ties)
    for broken in (lambda: 1 / 0, lambda: None):
        with pytest.raises(UserError, match=r"of 15 answers could not be verified"):
            scores(Picky(broken))
    yes, no, failed = Verdict.of(True, None, ""), Verdict.of(False, None, ""), Verdict.failed("")
    assert mean_credits([[yes, *[Verdict.abstain("")] * 9], [*[yes] * 9, no], [no] * 9 + [failed]]) == [0.1, 0.9, 0]


def test_budgets():
    assert Budget(generations=6).total(16) == 6
    assert Budget(generations=None, evaluations=100).total(16) == 6
    assert Budget(generations=3, evaluations=100).total(16) == 3
    with pytest.raises(ConfigError, match="needs an end"):
        Budget(generations=None)
    search, mixture = CEM(1, population=2), Mixture(["m.0.a"], ["e"])
    late = Budget(generations=100, minutes=0.0)
    ends = list(run_search(search, mixture, lambda w: ([0.0] * 2, [math.nan] * 2), late))
    assert len(ends) == 1


def test_constant_rows_scale_every_matrix(scorer, module, prompts):
    constant = scorer.rows(prompts, constant_rows(3, [1.2]), 8).completions
    base = load_base(module.base, "float32")
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "proj" in name:
                parameter.mul_(1.2)
    assert module.engine.generate(base, prompts, GREEDY, 0).completions == constant
