"""What a step logs of answers: the share of rewarded ones, or, where they have scores in between, the mean of these."""

import math

import pytest
import torch

from transformer2.module.meter import step_metrics, verdict_sums
from transformer2.rl.step import Step
from transformer2.types import Verdict


def logged(verdicts):
    abstained, credit = verdict_sums(verdicts)
    nothing = dict.fromkeys(("loss", "finished", "tokens", "entropy", "kl", "mismatch", "capped"), 0.0)
    step = Step(len(verdicts), torch.zeros(1), **nothing, abstained=abstained, credit=credit)
    rewards_B = torch.tensor([math.nan if v.reward is None else v.reward for v in verdicts])
    return step_metrics(step, rewards_B, 1)


def soft(score):
    return Verdict(1.0 if score >= 0.5 else -0.1, score >= 0.5, "a", "score", score=score)


def test_the_accuracy_of_soft_scores_is_their_mean_over_the_rows_with_a_reward():
    verdicts = [soft(0.3), soft(0.9), Verdict.failed("hangs"), soft(0.0), Verdict.abstain("no gold")]
    found = logged(verdicts)
    assert found["train/accuracy"] == pytest.approx(0.4) and found["train/reward"] == pytest.approx(0.8 / 3)
    assert found["reward/infra_errors"] == found["reward/abstained"] == 1


def test_the_accuracy_of_right_and_wrong_is_the_share_of_positive_rewards():
    assert logged([Verdict.of(i < 2, "a", "") for i in range(8)])["train/accuracy"] == 0.25
    assert math.isnan(logged([Verdict.failed("hangs")])["train/accuracy"])
