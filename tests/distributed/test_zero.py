"""DeepSpeed on two CPU processes trains what one process does."""

import pytest
import torch
from safetensors.torch import load_file
from two_processes import SHARDED

from transformer2.policy import build_policy, load_base, load_expert
from transformer2.report.curve import read_scalars

pytestmark = pytest.mark.distributed

pytest.importorskip("deepspeed", reason="DeepSpeed is installed on Linux alone")

FLAGS = {"zero2": (), "zero3": SHARDED, "zero3_offload": SHARDED}


@pytest.fixture(scope="module", params=FLAGS)
def trained(request, runs, one):
    name = request.param
    runs.run(name, "--config", f"conf/strategy/{name}.yaml", "--trainer.devices", "2", *FLAGS[name])
    return name


def test_zero_trains_what_one_process_does(runs, one, trained):
    runs.same(one, trained)
    assert runs.report(one) == runs.report(trained)
    assert runs.records(one) == runs.records(trained)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_the_natural_gradient_is_that_of_one_process(runs, natural, name):
    one, flags = natural
    run = f"natural-{name}"
    runs.run(run, "--config", f"conf/strategy/{name}.yaml", "--trainer.devices", "2", *FLAGS[name], *flags)
    runs.same(one, run)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_an_expert_is_scored_under_it(runs, one, name):
    flags = ("--config", f"conf/strategy/{name}.yaml", "--trainer.devices", "2", *FLAGS[name][:2])
    runs.run(f"{name}-scored", *flags, "--expert", str(runs.folder / one / "expert"), verb="test")
    assert runs.report(f"{name}-scored") == runs.report(one)


def test_the_expert_loads_on_one_device(runs, llama, trained):
    folder = runs.folder / trained / "expert"
    policy = build_policy(load_base(str(llama), "float32"), {"target_modules": "all-linear"})
    load_expert(policy, folder)
    loaded = {name: p for name, p in policy.named_parameters() if name.endswith("svf_z.default.delta")}
    saved = load_file(folder / "adapter_model.safetensors")
    assert len(loaded) == len(saved)
    for name, delta in loaded.items():
        assert torch.equal(delta, saved[name.replace(".default", "")])


def test_a_loss_that_is_nan_on_one_process_skips_the_step_on_all(runs):
    poison = ("--trainer.devices", "2", "--trainer.callbacks", "[shards.Poison]")
    for name, flags in {"ddp": (), "zero2": (), "zero3": SHARDED[:2]}.items():
        runs.run(f"{name}-nan", "--config", f"conf/strategy/{name}.yaml", *flags, *poison)
        skipped = read_scalars(runs.folder / f"{name}-nan", ("train/skipped",))["train/skipped"]
        assert [value for _, value in skipped] == [0, 1, 0, 0, 0]
    runs.same("ddp-nan", "zero2-nan")
    runs.same("ddp-nan", "zero3-nan")
