"""Ask/tell on functions whose optimum is known."""

import json
import math
import sys

import pytest
import torch

from transformer2.adaptation.search import CEM, PRESETS, RandomSearch, SepCMA, make_search
from transformer2.errors import ConfigError, UserError

TARGET = torch.tensor([0.7, 0.2, 1.1])
KINDS = ("cem", "random", "sep_cma")


def score(members_ND):
    return -((members_ND - TARGET) ** 2).sum(-1)


def run(search, generations):
    for _ in range(generations):
        search.tell(score(search.ask()))
    return search


@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_optimum(kind):
    search = run(make_search(kind, 3, seed=1), 30)
    tolerance = 0.25 if kind == "random" else 0.05
    assert float((search.mean - TARGET).abs().max()) < tolerance
    assert float((search.best - TARGET).abs().max()) < tolerance
    assert search.generation == 30 and search.evaluations == 30 * 32 and search.rejected == 0


@pytest.mark.parametrize("kind", KINDS)
def test_members_stay_in_bounds_and_asking_twice_is_asking_once(kind):
    search = make_search(kind, 3, low=0.0, high=0.5, std=2.0)
    members_ND = search.ask()
    assert members_ND.shape == (32, 3) and members_ND.dtype == torch.float32
    assert float(members_ND.min()) >= 0 and float(members_ND.max()) <= 0.5
    assert torch.equal(members_ND, search.ask())
    search.tell(score(members_ND))
    assert not torch.equal(members_ND, search.ask())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_search_is_the_uncut_one(kind):
    uncut = run(make_search(kind, 3, seed=4), 6)
    state = json.loads(json.dumps(run(make_search(kind, 3, seed=4), 2).state_dict()))
    resumed = make_search(kind, 3, seed=4)
    resumed.load_state_dict(state)
    run(resumed, 4)
    assert resumed.state_dict() == uncut.state_dict()
    assert torch.equal(resumed.ask(), uncut.ask())


@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_not_finite_are_rejected_and_counted(kind):
    search = make_search(kind, 3, population=8)
    for _ in range(3):
        scores = score(search.ask())
        scores[0], scores[5] = math.nan, math.inf
        search.tell(scores)
    assert search.rejected == 6 and torch.isfinite(search.mean).all()
    mean = search.mean.clone()
    search.tell([math.nan] * 8)
    assert torch.equal(search.mean, mean) and search.rejected == 14


def test_equal_scores_are_ordered_by_the_tie_break():
    search = CEM(1, population=4, elite_ratio=0.25, min_std=1e-9)
    members_ND = search.ask()
    search.tell([1.0, 1.0, 0.0, 1.0], [-2.0, -1.0, 5.0, math.nan])
    assert torch.equal(search.mean, members_ND[1]) and torch.equal(search.best, members_ND[1])


@pytest.mark.parametrize(("share", "count"), [(0.29, 29), (0.57, 57), (0.2, 20), (0.999, 99), (0.001, 1)])
def test_the_elites_are_the_share_of_the_population_that_was_asked_for(share, count):
    assert CEM(2, population=100, elite_ratio=share).num_elites == count


def test_keep_best_holds_slot_zero():
    search = CEM(3, **PRESETS["reference"])
    run(search, 2)
    assert torch.equal(search.ask()[0], search.best)
    assert float(CEM(4, **PRESETS["paper"]).mean[0]) == 0.25


def test_best_is_the_best_ever_and_mean_starts_where_it_is_told():
    search = CEM(2, mean=[0.1, 0.9], population=4)
    assert search.mean.tolist() == pytest.approx([0.1, 0.9])
    first = search.ask()
    search.tell([9, 0, 0, 0])
    search.tell([1, 2, 3, 4])
    assert torch.equal(search.best, first[0]) and search.best_score == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_search("cmm", 2), "did you mean 'cem'"),
        (lambda: CEM(0), "dim must be an integer >= 1"),
        (lambda: CEM(2, low=1, high=0), "low must be below"),
        (lambda: CEM(2, std=float("nan")), "std must be a number > 0"),
        (lambda: CEM(2, population=True), "population must be an integer"),
        (lambda: CEM(2, mean=[1.0, 2.0, 3.0]), "one finite number or 2"),
        (lambda: CEM(2).tell([1.0]), "population of 32"),
        (lambda: SepCMA(1), "dim >= 2"),
        (lambda: CEM(2).load_state_dict(CEM(3).state_dict()), "start it again"),
    ],
)
def test_user_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(UserError, match=r"transformer2\[search\]"):
        SepCMA(3)
    assert isinstance(RandomSearch(3), RandomSearch) and issubclass(ConfigError, UserError)
