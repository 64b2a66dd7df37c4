"""Two processes train what one does: plain data parallelism."""

import json

import pytest
import torch
from safetensors.torch import load_file
from two_processes import DDP, TORCHRUN

from transformer2.report.curve import read_scalars

pytestmark = pytest.mark.distributed

SUMMED = ("reward", "accuracy", "kl", "entropy", "completion_length", "finished", "loss", "grad_norm")


@pytest.mark.parametrize("launch", [("-m", "transformer2"), TORCHRUN], ids=["own launcher", "torchrun"])
def test_ddp_trains_what_one_process_does(runs, one, launch):
    name = f"ddp{len(launch)}"
    runs.run(name, *DDP, launch=launch)
    runs.same(one, name)
    assert runs.report(one) == runs.report(name)
    assert runs.records(one) == runs.records(name)
    for tag in [f"train/{tag}" for tag in SUMMED] + ["reward/infra_errors", "val/accuracy"]:
        here, there = (read_scalars(runs.folder / run, (tag,))[tag] for run in (one, name))
        assert [step for step, _ in here] == [step for step, _ in there]
        assert [v for _, v in here] == pytest.approx([v for _, v in there], rel=1e-4, abs=1e-6), tag


def test_ddp_learns_the_next_token_as_one_process_does(runs):
    """Ranks have other numbers of solutions' tokens: a mean of their means would be another loss."""
    tokens = ("--model.objective", "next_token")
    runs.run("tokens", *tokens)
    runs.run("tokens2", *tokens, *DDP)
    runs.same("tokens", "tokens2")
    for tag in ("train/loss", "train/grad_norm", "train/completion_length", "train/kl"):
        here, there = (read_scalars(runs.folder / run, (tag,))[tag] for run in ("tokens", "tokens2"))
        assert [v for _, v in here] == pytest.approx([v for _, v in there], rel=1e-4, abs=1e-6), tag


def test_the_rows_of_all_ranks_make_one_natural_gradient(runs, natural):
    one, flags = natural
    runs.run("natural2", *flags, *DDP)
    runs.same(one, "natural2")


def test_ddp_adapts_as_one_process_does(runs):
    """Nine rows, five members and nine dispatch questions for two processes: none of them is dealt out evenly."""
    reports = {}
    for name, flags in (("adapt", ()), ("adapt2", DDP)):
        runs.run(name, *flags, verb="adapt")
        strategies = json.loads((runs.folder / name / "report.json").read_text())["strategies"]
        reports[name] = {s: {k: v for k, v in r.items() if k != "seconds"} for s, r in strategies.items()}
    assert reports["adapt"] == reports["adapt2"] and list(reports["adapt"]) == ["cem", "prompt", "cls", "scores"]
    mine, theirs = ([json.loads(line) for line in runs.records(name).splitlines()] for name in reports)
    for here, there in zip(mine, theirs, strict=True):
        # Batches of other rows are rounded otherwise in the last of six digits.
        assert here.pop("probabilities", {}) == pytest.approx(there.pop("probabilities", {}), abs=2e-6)
        assert here == there
    experts = [load_file(runs.folder / name / "cem" / "expert" / "adapter_model.safetensors") for name in reports]
    assert all(torch.equal(experts[0][key], experts[1][key]) for key in experts[0])
