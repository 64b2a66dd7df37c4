"""One evaluation: what `test` scores, `evaluate` scores without a trainer; a fourth strategy is one class."""

import csv
import dataclasses
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from fake_experts import ALL
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from toy_task import Broken

from transformer2.adaptation import context as context_of
from transformer2.adaptation.evaluate import evaluate
from transformer2.adaptation.scoring import mean_credits
from transformer2.adaptation.strategy import ActiveExpert, AdaptedPolicy, Choice, Strategy
from transformer2.callbacks.evaluator import AdaptationEvaluator
from transformer2.data import ExpertDataModule, UnseenTaskDataModule
from transformer2.errors import ConfigError, UserError
from transformer2.module import SVFReinforceModule
from transformer2.types import Verdict

TASK = "toy_task.FirstLetter"


def trainer_of(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(**{"accelerator": "cpu", "devices": 1, "logger": False, **quiet, **options})


@pytest.fixture
def tested(world):
    """A module with a z of its own, after `trainer.test`, and its data."""
    base, _ = world
    module = SVFReinforceModule(base, adapter=ALL, dtype="float32", test={"samples": 2}, seed=5)
    module.configure_model()
    with torch.no_grad():
        for parameter in module.trained():
            parameter.uniform_(-0.4, 0.4, generator=torch.Generator().manual_seed(0))
    data = ExpertDataModule(TASK, base, eval_batch_size=6)
    trainer_of().test(module, data, verbose=False)
    data.setup("test")
    return module, data


def test_this_expert_scores_what_a_test_scores(tested):
    module, data = tested
    found = evaluate(module.answerer(), data, ActiveExpert(samples=2, temperature=0.8, seed=5))
    assert len(found.records) == 16 and list(found.records) == module.records
    assert found.records[0].base != found.records[0].result and found.report.details["pass_at_k"]["result"]["1"]
    assert [r.to_json()["row"] for r in found.records] == list(range(16))
    assert "strategy" not in found.records[0].to_json() and found.report.controls == {}


class HalfAndHalf(Strategy):
    """A strategy of one's own: every second row is the first expert's, the others are the base's."""

    name = "half"

    def adapt_to_task(self, context):
        return Alternating(context, self.name)


class Alternating(AdaptedPolicy):
    def adapt_to_batch(self, batch):
        choices = [row % 2 for row in batch.positions]
        return Choice(torch.eye(4)[[0 if c else 3 for c in choices]], [{"choice": c} for c in choices])

    def facts(self, records):
        """As a dispatcher that measures itself on requests of its own; the experts are still there."""
        self.context.scorer.rows(self.context.few_shot, torch.eye(4)[:1], 2)
        CLOCK[0] += 1000
        return super().facts(records)


CLOCK = [0.0]


def test_a_strategy_of_one_s_own_is_one_class(tested, world, monkeypatch):
    module, _ = tested
    monkeypatch.setattr("transformer2.adaptation.evaluate.time.perf_counter", lambda: CLOCK[0])
    data = UnseenTaskDataModule(TASK, world[0], few_shot=2, test_limit=8)
    data.setup("test")
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    cache = {}
    found = evaluate(module.answerer(data.task), data, HalfAndHalf(experts=world[1]), cache)
    assert found.report.seconds == {"first_pass": 0, "second_pass": 0, "controls": 1000}
    assert [r.choice["choice"] for r in found.records] == [r.row % 2 for r in found.records]
    assert all(r.base.completion == r.result.completion for r in found.records if not r.row % 2)
    assert any(r.base.completion != r.result.completion for r in found.records if r.row % 2)
    singles = [r.controls["expert math"] == r.result.correct for r in found.records if r.row % 2]
    assert all(singles) and found.records[0].to_json()["strategy"] == "half"
    after = dict(module.policy.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    (known,) = cache.values()
    again = evaluate(module.answerer(data.task), data, Strategy(experts=world[1]), cache)
    assert len(known.baselines) == 8 and [r.base for r in again.records] == [r.base for r in found.records]
    assert evaluate(module.answerer(data.task), data, Strategy(experts=world[1]), max_batches=0).records == []


class OwnData(L.LightningDataModule):
    """Somebody else's datamodule: a task, and loaders of prompts."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.task = inner, inner.task

    def setup(self, stage):
        self.inner.trainer = self.trainer
        self.inner.setup(stage)

    def train_dataloader(self):
        return self.inner.train_dataloader()

    def val_dataloader(self):
        return self.inner.val_dataloader()

    def test_dataloader(self):
        return self.inner.test_dataloader()


def test_a_datamodule_of_one_s_own_is_tested_and_an_evaluator_says_what_it_needs(tested, world):
    module, _ = tested
    own = OwnData(ExpertDataModule(TASK, world[0], test_limit=4))
    trainer_of().test(module, own, verbose=False)
    assert len(module.records) == 4 and module.records[0].prompt is None
    with pytest.raises(ConfigError, match="train with an ExpertDataModule"):
        trainer_of(max_steps=1, callbacks=[AdaptationEvaluator(experts=world[1], task=TASK)]).fit(module, own)


def test_an_evaluation_without_controls_leaves_the_next_one_its_own(tested, world):
    module, _ = tested
    data = UnseenTaskDataModule(TASK, world[0], few_shot=2, test_limit=2)
    data.setup("test")
    cache = {}
    bare = evaluate(module.answerer(data.task), data, Strategy(experts=world[1], controls=False), cache)
    full = evaluate(module.answerer(data.task), data, Strategy(experts=world[1]), cache)
    assert not bare.report.controls and len(full.report.controls) == 5


def test_all_processes_choose_one_constant(tested, world, monkeypatch):
    """Each scores some of the constants; who has none of the best must know it all the same."""
    module, _ = tested
    data = UnseenTaskDataModule(TASK, world[0], few_shot=2, test_limit=2)
    data.setup("test")
    yes, no, failed = Verdict.of(True, None, ""), Verdict.of(False, None, ""), Verdict.failed("1 / 0")
    half, best, broken = [[yes, no], [yes, no]], [[no, no], [yes, yes]], [[no, failed], [yes, yes]]

    def chosen(rank, *found):  # what the processes found: the first of z = 0.8 and 1.1, the second of 0.9 and 1.2
        def scored(*given):
            given[-1]([v for own in found[rank] for v in own])
            return mean_credits(found[rank]), [0.0, 0.0]

        monkeypatch.setattr(context_of, "score_members", scored)
        process = dataclasses.replace(
            module.answerer(data.task),
            rank=rank,
            world_size=2,
            gather=lambda mine: [[(c, 0.0) for c in mean_credits(of)] for of in found],
            total=lambda mine: [sum(v.is_failure for own in found for of in own for v in of), 8],
        )
        with Strategy(experts=world[1]).prepared(process, data, {}, None, None) as context:
            return list(context.known.weights)[-1]

    for rank, why in enumerate(["another process says why", "1 / 0"]):
        assert chosen(rank, half, best) == "constant z = 1.2"
        with pytest.raises(UserError, match=rf"^1 of 8 answers could not be verified \({why}\)"):
            chosen(rank, half, broken)


def test_too_many_failures_anywhere_stop_every_rank(tested, monkeypatch):
    """What ranks exchange is two counts."""
    module, data = tested
    monkeypatch.setattr(Broken, "broken", 0)
    answerer = module.answerer(Broken())
    rollouts = answerer.sample(next(iter(data.test_dataloader())))
    assert len(answerer.verify(rollouts)) == 6
    one_of_two = dataclasses.replace(answerer, total=lambda mine: [mine[0] + 9, mine[1] + 3])
    with pytest.raises(UserError, match=r"^9 of 9 answers could not be verified \(another process says why\)"):
        one_of_two.verify(rollouts)


@pytest.mark.parametrize(("limit", "asked"), [(0, 0), (1, 4), (0.5, 8), (1.0, 16)])
def test_the_first_validation_honours_its_limit_and_reaches_every_logger(world, tmp_path, limit, asked):
    base, experts = world
    loggers = [TensorBoardLogger(tmp_path, name="board", version=""), CSVLogger(tmp_path, name="csv", version="")]
    evaluator = AdaptationEvaluator(task=TASK, experts=experts, few_shot=2, test_limit=2, controls=False)
    steps = {"max_steps": 1, "val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    trainer = trainer_of(logger=loggers, limit_val_batches=limit, log_every_n_steps=1, callbacks=[evaluator], **steps)
    module = SVFReinforceModule(base, adapter=ALL, dtype="float32")
    drawn = []
    step = module.validation_step
    module.validation_step = lambda batch, batch_idx: (
        drawn.append((trainer.global_step, len(batch))),
        step(batch, batch_idx),
    )
    said = nullcontext() if limit else pytest.warns(UserWarning, match="evaluates after validations")
    with said:
        trainer.fit(module, ExpertDataModule(TASK, base, batch_size=8, eval_batch_size=4))
    assert sum(n for at, n in drawn if at == 0) == asked
    with open(tmp_path / "csv" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    scored = [(row["step"], float(row["val/n"])) for row in rows if row.get("val/n")]
    assert scored == [("0", asked), ("1", asked)] * bool(asked)  # before the first step, and after it
    assert any(row.get("adapt/base/accuracy") for row in rows) == bool(asked)
