"""Two processes train what one does on pictures, data-parallel and with the model in shards, the tower too."""

import pytest
from picture_task import draw_pictures
from two_processes import DDP, SHARDED
from vision_bases import make_vision

pytestmark = pytest.mark.distributed

ZERO3 = ("--config", "conf/strategy/zero3.yaml", "--trainer.devices", "2", *SHARDED)


@pytest.fixture(scope="module")
def seen(runs, tmp_path_factory):
    """The flags of a run on pictures, and the run of one process."""
    folder = tmp_path_factory.mktemp("pictures")
    base, data = make_vision(folder / "base", "llava_next"), draw_pictures(folder / "data")
    task = ("--data.task", "picture_task.Pictures", "--data.data_dir", str(data), "--data.batch_size", "8")
    flags = ("--model.base", str(base), *task, "--data.eval_batch_size", "3", "--model.sampling.temperature", "1")
    runs.run("pictures", *flags)
    return flags


@pytest.mark.parametrize("flags", [DDP, ZERO3], ids=["ddp", "zero3"])
def test_two_processes_train_what_one_does(runs, seen, flags, request):
    name = f"pictures-{request.node.callspec.id}"
    runs.run(name, *flags, *seen)
    runs.same("pictures", name)
    assert runs.report("pictures") == runs.report(name)
    assert runs.records("pictures") == runs.records(name)
