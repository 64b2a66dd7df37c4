"""Evaluators inside `fit`: they log, and training does not notice them."""

import lightning as L
import pytest
import torch
from fake_experts import ALL
from fakes import grouped
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from step_log import Metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from transformer2 import tiny
from transformer2.callbacks.cls_expert import ClassifierEvaluator
from transformer2.callbacks.evaluator import AdaptationEvaluator
from transformer2.callbacks.expert_checkpoint import ExpertCheckpoint
from transformer2.callbacks.few_shot import FewShotEvaluator
from transformer2.callbacks.monitoring import Monitoring
from transformer2.callbacks.progress import TrainingBar
from transformer2.callbacks.prompt import PromptEvaluator
from transformer2.callbacks.scores import ScoresEvaluator
from transformer2.cli import main
from transformer2.data import ExpertDataModule, UnseenTaskDataModule
from transformer2.errors import ConfigError, UserError
from transformer2.module import SVFReinforceModule
from transformer2.module.meter import LearningCurve

TASK = "toy_task.FirstLetter"


def fit(base, folder, callbacks, curve=None):
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=3,
        max_epochs=-1,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(folder, name="", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[Metrics(), ExpertCheckpoint(), *callbacks],
    )
    module = SVFReinforceModule(base, adapter=ALL, dtype="float32", **grouped(lr=0.05))
    module.curve = curve or module.curve
    trainer.fit(module, ExpertDataModule(TASK, base, batch_size=8, seed=0))
    steps = [{k: v for k, v in m.items() if not k.startswith("time/")} for m in trainer.callbacks[0].steps]
    return steps, [p.detach().clone() for p in module.trained()], torch.rand(3)


def test_training_is_bit_equal_with_and_without(world, tmp_path):
    base, experts = world
    options = {"experts": experts, "task": TASK, "few_shot": 2, "test_limit": 4}
    evaluators = [
        FewShotEvaluator(population=4, generations=2, every_n_epochs=2, **options),
        PromptEvaluator(**options),
        ClassifierEvaluator(classifier=experts[0], every_n_epochs=2, **options),
        AdaptationEvaluator(controls=False, **options),
        ScoresEvaluator(soft=True, classifier=experts[0], every_n_epochs=3, **options),
    ]
    with_steps, with_z, with_random = fit(base, tmp_path / "with", evaluators)
    steps, z, random = fit(base, tmp_path / "without", [])
    assert with_steps == steps and all(map(torch.equal, with_z, z)) and torch.equal(with_random, random)
    assert all(c.report.n == 4 for c in evaluators)
    baseline = evaluators[3].report
    assert baseline.result == baseline.base and baseline.paired_p == 1.0
    (file,) = (tmp_path / "with").glob("events*")
    events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
    scalars, images = events.Tags()["scalars"], events.Tags()["images"]
    for strategy in ("cem", "prompt", "cls", "base", "scores"):
        names = ("accuracy", "accuracy_se", "first_pass", "second_pass")
        assert {f"adapt/{strategy}/{name}" for name in names} <= set(scalars)
    assert [e.step for e in events.Scalars("adapt/cem/accuracy")] == [2]
    # prompt comes first and has the plain tag
    others = {f"dispatch/confusion_{name}_first_letter" for name in ("cls", "scores")}
    assert set(images) == {"cem/alpha", "dispatch/confusion", *others}
    left, right = (sorted(p.name for p in (tmp_path / w / "expert").iterdir()) for w in ("with", "without"))
    assert left == right


def test_several_tasks_in_one_fit_which_goes_on_counting_whatever_evaluates_in_it(world, tmp_path):
    """Validations are the run's: a resumed one may have other evaluators, or other settings of them."""
    base, experts = world
    options = {"experts": experts, "few_shot": 2, "test_limit": 2, "controls": False}
    points = [{"step": step, "accuracy": 0.0, "se": 0.0, "seconds": 0.0, "cpu_seconds": 0.0} for step in (0, 5, 10)]
    earlier = LearningCurve(before=points[:2], points=points[2:])
    evaluators = [AdaptationEvaluator(task=task, **options) for task in (TASK, "toy_task.Broken")]
    evaluators.append(AdaptationEvaluator(task=TASK, every_n_epochs=3, **{**options, "test_limit": 1}))
    fit(base, tmp_path, evaluators, earlier)
    (file,) = tmp_path.glob("events*")
    events = EventAccumulator(str(file)).Reload()
    due = {"base": [1, 2, 3], "base_base_first_letter": [1, 2, 3], "base_base_first_letter_2": [1]}
    assert {tag: [e.step for e in events.Scalars(f"adapt/{tag}/accuracy")] for tag in due} == due


def test_the_shipped_preset_reaches_both_halves_of_an_evaluator(capsys):
    """The arguments of the strategy and of when it is run, through the checks and through jsonargparse."""
    watched = ["--config", "conf/tiny_math.yaml", "--config", "conf/preset/watch_adaptation.yaml"]
    assert main(["fit", *watched, "--print_config"]) == 0
    assert "population: 16" in capsys.readouterr().out
    wrong = "[{class_path: transformer2.callbacks.few_shot.FewShotEvaluator, init_args: {populatoin: 3}}]"
    assert main(["fit", *watched, "--trainer.callbacks", wrong]) == 2
    assert "unknown config key trainer.callbacks.FewShotEvaluator.populatoin" in capsys.readouterr().err


def test_shots_and_scored_rows_are_disjoint():
    data = UnseenTaskDataModule("tiny_math_hard", few_shot=8, protocol="paper", test_limit=16)
    data.setup("predict")
    shots, scored = {e.id for e in data.shots().examples}, {e.id for e in data.scored()}
    assert len(shots) == 8 and len(scored) == 16 and not shots & scored and all("/test/" in i for i in shots)
    again = UnseenTaskDataModule("tiny_math_hard", few_shot=8, protocol="paper", test_limit=16)
    again.setup("predict")
    other = UnseenTaskDataModule("tiny_math_hard", few_shot=8, seed=1, test_limit=16)
    other.setup("predict")
    assert again.shots().examples == data.shots().examples
    assert all("/few_shot/" in e.id for e in other.shots().examples)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FewShotEvaluator(task="tiny_mth"), "did you mean"),
        (lambda: FewShotEvaluator(every_n_epochs=0), "an integer >= 1"),
        (lambda: FewShotEvaluator(answer="median"), "one of mean, best"),
        (lambda: FewShotEvaluator(base_member=True), "changes nothing"),
        (lambda: FewShotEvaluator(preset="paper", search="random"), "presets are"),
        (lambda: PromptEvaluator(dispatch_task="gsm8k"), "not a dispatch task"),
        (lambda: ScoresEvaluator(soft="very"), "adapt.soft must be"),
        (lambda: ScoresEvaluator(classifier="/no/expert"), "adapt.classifier '/no/expert' does not exist"),
    ],
)
def test_odd_arguments_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("adapter", "of_base", "message"),
    [
        ({"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2}, True, "mixed in SVF models only"),
        (ALL, False, "this model has no model.layers.2"),
    ],
    ids=["LoRA", "experts of another base"],
)
@pytest.mark.filterwarnings("ignore:.*another architecture")
def test_experts_that_the_policy_cannot_hold_are_refused_before_the_first_step(
    world, tmp_path, adapter, of_base, message
):
    base, experts = world
    evaluator = AdaptationEvaluator(task=TASK, experts=experts if of_base else [str(tiny.expert_path("math"))])
    steps = Metrics()
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[steps, evaluator])
    with pytest.raises(UserError, match=message):
        trainer.fit(SVFReinforceModule(base, adapter=adapter, dtype="float32"), ExpertDataModule(TASK, base))
    assert not steps.steps


@pytest.mark.parametrize(
    "callback",
    [PromptEvaluator(task=TASK), ExpertCheckpoint(), Monitoring(), TrainingBar()],
    ids=lambda c: type(c).__name__,
)
def test_a_module_without_a_policy_is_refused_before_the_first_step(callback, tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback])
    said = f"{type(callback).__name__} needs a module with a policy"
    with pytest.raises(ConfigError, match=said):
        trainer.fit(BoringModel(), BoringDataModule())
