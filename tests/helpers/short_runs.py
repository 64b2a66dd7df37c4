"""A run of six steps of the embedded model, and what makes two of them the same."""

import json

import torch
from safetensors.torch import load_file

SMALL = [
    *("--data.batch_size", "8", "--data.validation_limit", "4", "--data.test_limit", "4", "--quiet"),
    *("--trainer.val_check_interval", "2", "--trainer.max_steps", "6"),
]
FIT = ["fit", "--config", "conf/tiny.yaml", "--data.task", "tiny_math", *SMALL]


def curve(run):
    from transformer2.report.curve import read_scalars

    return read_scalars(run, ("train/reward", "val/accuracy"))


def same(run, other):
    """Same expert, same report, and no point of the curve that is another one."""
    ours, theirs = (load_file(r / "expert" / "adapter_model.safetensors") for r in (run, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    ours, theirs = (json.loads((r / "report.json").read_text()) for r in (run, other))
    assert [ours[k] for k in ("n", "base", "result")] == [theirs[k] for k in ("n", "base", "result")]
    for tag, points in curve(run).items():
        assert dict(points).items() <= dict(curve(other)[tag]).items(), tag
