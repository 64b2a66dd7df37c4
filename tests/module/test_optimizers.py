"""Optimizers and schedules: what a config and Python may give, what is refused, and what a resumed run keeps."""

from functools import partial

import pytest
import torch
from fakes import grouped

from transformer2.cli import main
from transformer2.cli.check import check
from transformer2.cli.compose import compose, parse_flags
from transformer2.cli.experiment import Experiment
from transformer2.cli.schema import arguments, classes
from transformer2.errors import ConfigError
from transformer2.module import SVFReinforceModule
from transformer2.module.optimizers import Warmup, WarmupCosine, build, restart, settings

KEYS = ("name", "seed_everything", "model", "data", "trainer")
TINY = ["--config", "conf/tiny_math.yaml"]
EARLIER = {  # keys of versions before the groups
    **{key: f"optimizer.{key}" for key in ("lr", "betas", "eps", "weight_decay", "damping")},
    "lr_schedule": "lr_scheduler",
    "warmup_steps": "lr_scheduler.warmup_steps",
    **{key: f"sampling.{key}" for key in ("temperature", "num_completions", "max_new_tokens", "stop")},
    **{key: f"loss.{key}" for key in ("baseline", "kl", "kl_coef", "mask_truncated", "importance_cap")},
    **{key: f"memory.{key}" for key in ("micro_batch_tokens", "max_rollout_rows", "merge_rollouts")},
    "activation_checkpointing": "memory.activation_checkpointing",
    "test_samples": "test.samples",
    "test_temperature": "test.temperature",
}
SGD = ["--optimizer", "torch.optim.SGD", "--optimizer.momentum", "0.9"]


def built(words, tmp_path):
    """Optimizer and schedule of a command line, over one number and ten steps."""
    flags = parse_flags([*TINY, *words], (), (), KEYS)
    config = compose(flags.configs, flags.overrides, KEYS)
    check(config, "fit")
    module = Experiment(config, tmp_path, quiet=True).module
    return build(module.optimizer, module.lr_scheduler, [torch.nn.Parameter(torch.zeros(1))], 10)


@pytest.mark.parametrize(
    ("words", "kind", "lr", "schedule"),
    [
        ([], "NaturalGradient", 1.0, "WarmupCosine"),
        (["--optimizer", "AdamW"], "AdamW", 0.01, "WarmupCosine"),  # not 1.0, which means something else there
        (["--optimizer", "AdamW", "--optimizer.lr", "2e-3"], "AdamW", 2e-3, "WarmupCosine"),
        (["--optimizer.lr", "0.5"], "NaturalGradient", 0.5, "WarmupCosine"),
        (["--model.optimizer.init_args.lr=0.5"], "NaturalGradient", 0.5, "WarmupCosine"),
        (["--config", "conf/tiny_textvqa.yaml", *SGD], "SGD", 0.015, "WarmupCosine"),
        (
            ["--config", "conf/tiny_textvqa.yaml", "--optimizer", "NaturalGradient"],
            "NaturalGradient",
            1.0,
            "WarmupCosine",
        ),
        (["--model.optimizer", "{class_path: Adam, init_args: {lr: 0.1}}"], "Adam", 0.1, "WarmupCosine"),
        (["--lr_scheduler", "Warmup", "--lr_scheduler.warmup_steps", "4"], "NaturalGradient", 0.2, "Warmup"),
        (["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "3"], "NaturalGradient", 1.0, "StepLR"),
        (["--config", "conf/preset/paper.yaml"], "AdamW", 2e-3, "WarmupCosine"),
    ],
    ids=str,
)
def test_every_spelling(words, kind, lr, schedule, tmp_path):
    optimizer, scheduler = built(words, tmp_path)
    assert (type(optimizer).__name__, type(scheduler).__name__) == (kind, schedule)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
    if "momentum" in str(words):
        assert optimizer.defaults["momentum"] == 0.9  # and the config's lr is kept, as jsonargparse does


@pytest.mark.parametrize(
    ("name", "damping"), [("NaturalGradient", None), ("NotNaturalGradient", None), ("DampedNatural", 0.5)]
)
def test_what_is_a_natural_gradient_is_a_matter_of_class_not_of_name(name, damping, tmp_path, capsys):
    words = [*TINY, "--optimizer", f"own_classes.{name}", "--optimizer.lr", "1.0"]
    flags = parse_flags(words, (), (), KEYS)
    config = compose(flags.configs, flags.overrides, KEYS)
    check(config, "fit")
    module = Experiment(config, tmp_path, quiet=True).module
    assert module.damping == damping and module.rate["model.optimizer"] == f"own_classes.{name}"
    code = main(["fit", *words, "--model.max_grad_norm", "1e-3", "--print_config"])
    refused = "of DampedNatural, which damping bounds" in capsys.readouterr().err
    assert refused is (code == 2) is (damping is not None)
    flags = parse_flags([*words, "--optimizer", "AdamW"], (), (), KEYS)
    below = compose(flags.configs, flags.overrides, KEYS)["model"]["optimizer"]["init_args"]
    assert ("lr" in below) == (damping is None)  # a share of a step is no length


def test_a_scheduler_of_the_users_own_may_have_no_warm_up(tmp_path, monkeypatch):
    (tmp_path / "no_warm_up.py").write_text(
        "import torch\n\n\nclass Flat(torch.optim.lr_scheduler.LambdaLR):\n"
        "    def __init__(self, optimizer, warmup_steps: int | None = None):\n"
        "        super().__init__(optimizer, lambda step: 1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    _, scheduler = built(["--lr_scheduler", "no_warm_up.Flat", "--lr_scheduler.warmup_steps", "null"], tmp_path)
    assert type(scheduler).__name__ == "Flat"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer", "AdamX"], "no class 'AdamX'; did you mean 'Adamax'?"),
        (["--optimizer", "torch.optim.Foo"], "no class torch.optim.Foo"),
        (["--optimizer", "my.Lion"], "model.optimizer my.Lion needs an lr"),
        (["--model.optimizer", "{class_path: my.Lion, weight_decay: 1}"], "give --optimizer.lr"),
        (["--optimizer.lr", "1", "--optimizer", "my.Lion"], "give --optimizer.lr"),  # it was another class's
        (["--optimizer.lrr", "1"], "unknown config key model.optimizer.lrr; did you mean model.optimizer.lr?"),
        (["--optimizer", "SGD", "--optimizer.momentun", "1"], "did you mean model.optimizer.momentum?"),
        (
            ["--optimizer.lr", "2e-3"],
            "NaturalGradient takes an lr of 0.05 to 10 (1 is a whole step), not 0.002; choose",
        ),
        (["--optimizer.lr", "-1"], "model.optimizer.lr must be a number > 0 and <= 10, not -1"),
        (["--optimizer.lr.x", "1"], "unknown config key model.optimizer.lr.x"),
        (["--optimizer", "3"], "model.optimizer must be a class or keys and values, not 3"),
        (["--optimizer.class_path", "{a: 1}"], "model.optimizer must name a class"),
        (["--lr_scheduler.warmup_steps", "1.5"], "model.lr_scheduler.warmup_steps must be an integer >= 0, not 1.5"),
        (["--lr_scheduler", "ReduceLROnPlateau"], "ReduceLROnPlateau waits for a metric"),
        (["--lr_scheduler", "StepLR"], "model.lr_scheduler StepLR needs step_size; give --lr_scheduler.step_size"),
        (["--optimizer", "LBFGS"], "LBFGS needs sparse gradients or a closure"),
        (["--optimizer", "SparseAdam"], "SparseAdam needs sparse gradients or a closure"),
        (["--optimizer", "SGD", "--optimizer.momentum", "-1"], "Invalid momentum value: -1"),
        (["--model.optimizer", "torch.nn.Linear"], "the trainer cannot be built"),
        *(
            ([f"--model.{old}", "1"], f"unknown config key model.{old}; did you mean model.{new}?")
            for old, new in EARLIER.items()
        ),
    ],
    ids=str,
)
def test_what_is_refused_in_one_line(words, said, capsys):
    assert main(["fit", *TINY, "--print_config", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_section_of_lightning_s_own_is_pointed_at_ours(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("optimizer: {class_path: torch.optim.AdamW}")
    assert main(["fit", "--config", str(tmp_path / "own.yaml")]) == 2
    assert "unknown config key 'optimizer'; did you mean model.optimizer?" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["torch.optim", "torch.optim.lr_scheduler", "transformer2.module.optimizers"])
def test_arguments_are_read_without_importing(module):
    assert all(arguments(f"{module}.{name}") is not None for name in classes(module))


def test_python_gives_callables_and_groups():
    module = SVFReinforceModule(
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=5),
        loss={"kl_coef": 0.3},
    )
    assert module.loss.kl_coef == module.arguments["loss"].kl_coef == 0.3
    assert {"model.optimizer.momentum": 0.9, "model.lr_scheduler.step_size": 5}.items() <= module.rate.items()
    for bad in (
        {"optimizer": lambda params: torch.optim.AdamW(params, lr=100)},
        {"loss": 3},
        {"optimizer": partial(int)},
    ):
        with pytest.raises(ConfigError):
            SVFReinforceModule(**bad)


@pytest.mark.parametrize("schedule", [WarmupCosine, Warmup, partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)])
def test_a_run_at_another_rate_continues_as_if_it_had_been_its_own(schedule):
    def after(lr, steps):
        parameter = torch.nn.Parameter(torch.ones(1))
        optimizer, scheduler = build(partial(torch.optim.AdamW, lr=lr), schedule, [parameter], 10)
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
        return optimizer, scheduler

    mine, theirs = after(0.1, 4), after(0.5, 4)
    theirs[0].load_state_dict(mine[0].state_dict())
    theirs[1].load_state_dict(mine[1].state_dict())
    restart(*theirs, *after(0.5, 0))
    expected = after(0.5, 5)
    theirs[0].step()
    theirs[1].step()
    assert theirs[0].param_groups[0]["lr"] == pytest.approx(expected[0].param_groups[0]["lr"])
    assert theirs[1].get_last_lr() == pytest.approx(expected[1].get_last_lr())


def test_settings_are_plain_and_say_what_differs():
    one, other = (settings(grouped(lr=lr)["optimizer"], WarmupCosine) for lr in (0.1, 0.2))
    assert {key for key in one if one[key] != other[key]} == {"model.optimizer.lr"}
    assert one["model.optimizer"] == "AdamW" and one["model.lr_scheduler.warmup_steps"] == 0


def test_settings_that_a_scheduler_keeps_in_the_optimizer_are_settings():
    """Else a resumed run would continue with another `max_lr` than its own, and say nothing."""
    one, other = (
        settings(torch.optim.AdamW, partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=rate, total_steps=9))
        for rate in (0.1, 0.01)
    )
    assert one["model.lr_scheduler.max_lr"] == 0.1 and other["model.lr_scheduler.max_lr"] == 0.01


def test_a_schedule_that_ends_before_the_run_is_refused_before_it():
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=2)
    with pytest.raises(ConfigError, match="total_steps 2 ends before the run, which has 4 steps"):
        build(torch.optim.AdamW, schedule, [torch.nn.Parameter(torch.zeros(1))], 4)
