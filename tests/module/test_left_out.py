"""What a training step leaves out (abstentions, failures, cut-off answers) and what a run without signal says."""

import math
import warnings

import pytest
import torch
from toy_task import Undecided

from transformer2.callbacks.expert_checkpoint import ExpertCheckpoint
from transformer2.errors import UserError
from transformer2.rl.advantages import equal_groups
from transformer2.rl.logprobs import score_tokens
from transformer2.types import Verdict
from transformer2.verifiers import stop_if_unverified
from transformer2.verifiers.base import checked

LONG = {"max_new_tokens": 40, "kl_coef": 0.1, "kl": "full"}
ABSTAINED, FAILED, RIGHT = Verdict.abstain("no key"), Verdict(None, False, None, "hung"), Verdict.of(True, "a", "")


def fitted(make, *args, **options):
    trainer, module, data = make(*args, **options)
    trainer.fit(module, data)
    return trainer.callbacks[0].steps, [p.detach().clone() for p in module.trained()]


# ---------------------------------------------------------------------- abstentions


@pytest.mark.parametrize(
    ("verdicts", "stops"),
    [
        ([ABSTAINED] * 100, False),
        ([ABSTAINED] * 60 + [RIGHT] * 40, False),
        ([ABSTAINED] * 90 + [FAILED] + [RIGHT] * 9, False),
        ([ABSTAINED] * 90 + [FAILED] * 6 + [RIGHT] * 4, True),
        ([FAILED] * 5 + [RIGHT] * 95, False),
        ([FAILED] * 6 + [RIGHT] * 94, True),
        ([], False),
    ],
)
def test_only_failures_stop_a_run(verdicts, stops):
    if stops:
        with pytest.raises(UserError, match=r"could not be verified .*hung"):
            stop_if_unverified(verdicts)
    else:
        stop_if_unverified(verdicts)


def test_an_abstention_with_a_reward_is_a_failure():
    odd = checked(Verdict(1.0, True, "a", "", abstained=True))
    assert odd.reward is None and not odd.abstained and odd.reason.startswith("verifier returned")
    assert checked(ABSTAINED) is ABSTAINED and ABSTAINED.extracted is None
    assert Verdict.abstain("two golds", "7").extracted == "7"


def test_abstentions_are_counted_apart_from_failures(make, monkeypatch):
    monkeypatch.setattr(Undecided, "share", 0.5)
    monkeypatch.setattr(Undecided, "failing", 1)
    steps, _ = fitted(make, "toy_task.Undecided", max_steps=2)  # one epoch
    assert sum(s["reward/abstained"] for s in steps) == 32 and sum(s["reward/infra_errors"] for s in steps) == 1
    assert all(-1 <= s["train/reward"] <= 1 for s in steps)
    for step in steps:  # over what has a verdict
        assert step["train/accuracy"] == pytest.approx((1 + step["train/reward"]) / 2)


@pytest.mark.parametrize("options", [{}, {"kl_coef": 0.2}, {"baseline": "rloo", "num_completions": 2}], ids=str)
def test_a_batch_of_abstentions_changes_nothing(make, options, monkeypatch):
    monkeypatch.setattr(Undecided, "share", 1.0)
    keeper = ExpertCheckpoint()
    options |= {"callbacks": [keeper], "val_check_interval": 1}
    with pytest.warns(UserWarning, match="no completion got a reward. Verdicts: 'no gold answer'"):
        steps, z = fitted(make, "toy_task.Undecided", max_steps=3, **options)
    assert all(p.eq(0).all() for p in z) and all(s["train/grad_norm"] == 0 for s in steps)
    assert all(math.isnan(s["train/reward"]) and s["reward/zero_std"] == 1 for s in steps)
    assert keeper.best_score is None and keeper.best_step == 3, "a score of nothing is not a best score"


def test_rows_without_a_verdict_add_no_kl_either(make, monkeypatch):
    """They have no tokens in the loss, so that the KL of what they said is not in it either."""
    monkeypatch.setattr(Undecided, "share", 0.5)
    trainer, module, data = make("toy_task.Undecided", max_steps=1, **LONG)
    with torch.no_grad():
        module.configure_model()
        for p in module.trained():
            p.add_(0.05)  # away from the base, where the KL has a gradient
    seen = {}
    original = module.part_of_step

    def part_of_step(rollouts, advantages_B, rows):
        seen[len(seen)] = [(i, int(rollouts.completion_mask_BC[i].sum()), float(advantages_B[i])) for i in rows]
        return original(rollouts, advantages_B, rows)

    module.part_of_step = part_of_step
    trainer.fit(module, data)
    rows = [row for part in seen.values() for row in part]
    silent = [row for row in rows if row[1] == 0]
    assert len(silent) == trainer.callbacks[0].steps[0]["reward/abstained"] > 0
    assert all(advantage == 0 for _, _, advantage in silent) and any(tokens for _, tokens, _ in rows)


# ---------------------------------------------------------------------- cut-off answers


def test_masked_completions_weigh_nothing_and_the_others_as_before(make):
    """Without a baseline, masking the cut-off rows equals having no verdict on them."""
    results = {}
    for masked in (True, False):
        trainer, module, data = make(max_steps=2, baseline="none", mask_truncated=masked, **LONG)
        if not masked:
            verdicts = module.verdicts
            module.verdicts = lambda r, verdicts=verdicts: [
                v if finished else ABSTAINED for v, finished in zip(verdicts(r), r.finished_B, strict=True)
            ]
        trainer.fit(module, data)
        results[masked] = trainer.callbacks[0].steps, [p.detach().clone() for p in module.trained()]
    (steps, z), (_, expected) = results[True], results[False]
    assert 0 < steps[0]["train/finished"] < 1 and steps[0]["reward/truncated"] == 32 * (1 - steps[0]["train/finished"])
    assert all(map(torch.equal, z, expected)) and any(p.ne(0).any() for p in z)
    unmasked, other = fitted(make, max_steps=2, baseline="none", **LONG)
    assert unmasked[0]["train/completion_length"] == steps[0]["train/completion_length"]
    assert unmasked[0]["train/reward"] == steps[0]["train/reward"]
    assert not all(map(torch.equal, other, z))


def test_a_batch_that_is_cut_off_whole_changes_nothing_when_masked(make):
    with pytest.warns(
        UserWarning, match=r"100% of the completions were cut off; raise model\.sampling\.max_new_tokens"
    ):
        steps, z = fitted(make, max_steps=1, mask_truncated=True, kl_coef=0.1, max_new_tokens=1)
    assert steps[0]["train/finished"] == 0 and all(p.eq(0).all() for p in z)


def test_no_tokens_still_have_a_gradient():
    """Ranks in lockstep all run backward, also one whose rows are all left out."""
    hidden_ND = torch.zeros(0, 4, requires_grad=True)
    scores = score_tokens(hidden_ND, torch.zeros(0, dtype=torch.long), torch.nn.Linear(4, 5), chunk=8)
    scores.logprobs_N.sum().backward()
    assert hidden_ND.grad is not None and all(len(column) == 0 for column in scores)


# ---------------------------------------------------------------------- runs without signal


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("Never", {}, ["every reward was -1", "'' 32", "found in 0 of 32", "too hard", "cut off", "temperature"]),
        ("Always", {}, ["every reward was +1", "'fine' 32", "found in 32 of 32", "too easy", "samples in TensorBoard"]),
        (
            "FirstLetter",
            {"baseline": "rloo", "num_completions": 4, "temperature": 1e-4},
            ["all completions of a prompt got the same reward", "temperature too low"],
        ),
    ],
)
def test_three_steps_without_signal_are_warned_of_once(make, task, options, words):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps, _ = fitted(make, f"toy_task.{task}", max_steps=6, **options)
    said = [str(w.message) for w in caught if "nothing to learn from" in str(w.message)]
    assert len(said) == 1 and said[0].startswith("step 3:") and all(word in said[0] for word in words), said
    assert sum("cut off; raise" in str(w.message) for w in caught) == 1
    if options:
        assert [s["reward/equal_groups"] for s in steps] == [1.0] * 6 and steps[0]["reward/zero_std"] == 0
    else:
        assert [s["reward/zero_std"] for s in steps] == [1.0] * 6 and "reward/equal_groups" not in steps[0]


def test_a_run_with_signal_is_not_warned_of(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, module, data = make(max_steps=5)
        trainer.fit(module, data)
    assert not [w for w in caught if "nothing to learn" in str(w.message)]
    assert module.alarms.notes() == [] and module.alarms.flat_steps == 0


NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "group", "share"),
    [
        ([1, 1, -1, 1], 2, 0.5),
        ([1, 1, -1, -1], 2, 1.0),
        ([1, 1, -1, -1], 4, 0.0),
        ([1, NAN, -1, 1], 2, 0.5),
        ([NAN, NAN, -1, 1], 2, 0.5),
        ([NAN, 1, 1, NAN], 4, 1.0),
        ([1, -1], 1, 1.0),
    ],
)
def test_equal_groups(rewards, group, share):
    assert equal_groups(torch.tensor(rewards, dtype=torch.float), group) == share


# ---------------------------------------------------------------------- the sampler's own log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_the_default_engine_says_the_policys_logprobs(make, temperature):
    trainer, module, data = make(max_steps=2, temperature=temperature, importance_cap=2.0)
    trainer.fit(module, data)
    for step in trainer.callbacks[0].steps:
        assert 0 < step["rollout/mismatch"] < 1e-4 and step["rollout/capped"] == 0


def test_merged_weights_in_bf16_are_another_policy_and_are_corrected_for(make):
    """Three steps away from z = 1, rounding of W' shows; weights change the step, and no cap leaves it as it was."""
    runs = {cap: fitted(make, max_steps=3, dtype="bfloat16", importance_cap=cap) for cap in (None, 2.0)}
    (plain, z), (weighted, other) = runs[None], runs[2.0]
    assert plain[-1]["rollout/mismatch"] > 1e-3
    assert plain[0]["train/reward"] == weighted[0]["train/reward"]
    assert not all(map(torch.equal, z, other))
    assert all(s["rollout/capped"] == 0 for s in plain)
