"""Scores count what they say, and two processes count what one does."""

import json
import random
import subprocess
import sys
from itertools import combinations

import pytest
import torch

from transformer2.metrics import UNPARSED, Accuracy, Confusion, mean_pass_at_k, pass_at_k
from transformer2.types import Score

LABELS = ("math", "code", "other")
WORDS = (*LABELS, None, "cooking")


def rows(seed=0, count=101):
    """Drawn verdicts, problems of ten samples, and dispatch pairs."""
    rng = random.Random(seed)
    verdicts = [rng.random() < 0.3 for _ in range(count)]
    samples, right = [10] * count, [rng.randint(0, 10) for _ in range(count)]
    pairs = [(rng.choice(LABELS), rng.choice(WORDS)) for _ in range(count)]
    return verdicts, samples, right, pairs


def counted(rank=0, world_size=1):
    """What the metrics say of this rank's share of the rows, as plain data. Shares are uneven: 101 rows."""
    verdicts, _, _, pairs = (column[rank::world_size] for column in rows())
    accuracy, confusion = Accuracy(), Confusion(LABELS)
    for start in range(0, len(verdicts), 20):
        part = slice(start, start + 20)
        accuracy.update(verdicts[part])
        confusion.update(pairs[part])
    return {"numbers": {k: round(float(v), 5) for k, v in accuracy.compute().items()}, "confusion": confusion.table()}


def test_accuracy_is_the_score_of_the_verdicts():
    verdicts, *_ = rows()
    metric = Accuracy()
    metric.update(verdicts[:40])
    metric.update(verdicts[40:])
    expected, found = Score.of(verdicts), metric.compute()
    assert float(found["accuracy"]) == pytest.approx(expected.accuracy) and int(found["n"]) == 101
    assert float(found["accuracy_se"]) == pytest.approx(expected.se)
    metric.reset()
    assert int(metric.n) == 0


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 1), (5, 2, 1), (5, 2, 3), (5, 4, 2), (6, 3, 4), (5, 5, 5)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n, c, k):
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_needs_k_samples_and_one_of_one_is_accuracy():
    with pytest.raises(ValueError, match="pass@3 needs at least 3"):
        pass_at_k(2, 1, 3)
    verdicts, *_ = rows()
    accuracy = Accuracy()
    accuracy.update(verdicts)
    found = mean_pass_at_k([(right, 1) for right in verdicts], 1)
    assert list(found.values()) == pytest.approx([float(v) for v in accuracy.compute().values()])


def test_the_standard_error_of_pass_at_k_is_over_problems():
    _, samples, right, _ = rows()
    found = mean_pass_at_k(list(zip(right, samples, strict=True)), 5)
    values = torch.tensor([pass_at_k(n, c, 5) for n, c in zip(samples, right, strict=True)])
    assert found["pass"] == pytest.approx(float(values.mean()), abs=1e-5)
    assert found["pass_se"] == pytest.approx(float(values.std(correction=0)) / 101**0.5, abs=1e-5)


def test_confusion_counts_with_and_without_other():
    metric = Confusion(LABELS)
    metric.update([("math", "math"), ("math", "other"), ("code", "code"), ("other", "math"), ("code", None)])
    table = {"math": {"math": 1, "other": 1}, "code": {"code": 1, UNPARSED: 1}, "other": {"math": 1}}
    assert metric.table() == table and metric.compute().shape == (3, 4)
    scores = metric.scores()
    assert {name: (s["accuracy"], s["n"]) for name, s in scores.items()} == {
        "with other": (0.4, 5),
        "without other": (0.5, 4),
        "math": (0.5, 2),
        "code": (0.5, 2),
        "other": (0.0, 1),
    }
    assert scores["without other"]["se"] == pytest.approx(0.25)
    none = Confusion(LABELS)
    none.update([("other", "other")])
    assert set(none.scores()) == {"with other", "other"}


@pytest.mark.slow
def test_two_processes_count_what_one_does(tmp_path):
    store = f"file://{tmp_path}/store"
    command = [sys.executable, __file__, store]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)})
        for rank in (0, 1)
    ]
    try:
        found = [json.loads(process.communicate(timeout=120)[0]) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert found[0] == found[1] == counted()


if __name__ == "__main__":  # one of the two processes
    rank = int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=2)
    print(json.dumps(counted(rank, 2)))
    torch.distributed.destroy_process_group()


def test_accuracy_of_soft_scores_is_their_mean():
    credits = [0.3, 1.0, 0.0, 0.6, 0.9, 0.3, 0.6]
    metric = Accuracy()
    metric.update(credits[:3])
    metric.update(credits[3:])
    expected, found = Score.of(credits), metric.compute()
    assert float(found["accuracy"]) == pytest.approx(expected.accuracy) == pytest.approx(sum(credits) / 7)
    assert float(found["accuracy_se"]) == pytest.approx(expected.se)
