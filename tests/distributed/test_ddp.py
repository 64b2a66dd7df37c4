"""Two processes train what one does."""

import pytest

from transformer2.report.curve import read_scalars

DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "transformer2")


def same(runs, one, other):
    left, right = runs.z(one), runs.z(other)
    assert left.keys() == right.keys()
    assert max(float(z.abs().max()) for z in left.values()) > 5e-3, "training must have moved z"
    assert max(float((left[key] - right[key]).abs().max()) for key in left) < 1e-6


@pytest.mark.parametrize("launch", [("-m", "transformer2"), TORCHRUN], ids=["own launcher", "torchrun"])
def test_ddp_trains_what_one_process_does(runs, one, launch):
    name = f"ddp{len(launch)}"
    runs.run(name, *DDP, launch=launch)
    same(runs, one, name)
    assert runs.report(one) == runs.report(name)
    assert runs.records(one) == runs.records(name)
    for tag in ("reward", "accuracy", "kl", "entropy", "completion_length", "finished", "loss", "grad_norm"):
        curves = [read_scalars(runs.folder / run, (f"train/{tag}",))[f"train/{tag}"] for run in (one, name)]
        assert len(curves[0]) == 5 or tag == "kl"
        for (_, a), (_, b) in zip(*curves, strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6), tag
