"""Checkpoints: each state that is kept resumes to the uncut run, damage is found, nobody's code runs."""

import hashlib
import importlib
import math
import os
import pickle
import random
import re
import resource
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from inspect import signature
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from fakes import grouped, make_llama
from lightning.pytorch.callbacks import EarlyStopping

from transformer2.callbacks.expert_checkpoint import ExpertCheckpoint
from transformer2.callbacks.last_checkpoint import LastCheckpoint
from transformer2.checkpoints import pack, read_checkpoint, seal_folder, write_checkpoint
from transformer2.cli.train import _check_checkpoint
from transformer2.data import ExpertDataModule
from transformer2.distributed import ZeRO, check_checkpoint
from transformer2.errors import CheckpointError, ConfigError
from transformer2.module import SVFReinforceModule
from transformer2.module.identity import KEY

SVF = {"peft_type": "SVF", "target_modules": "all-linear"}
TINYLORA = {"peft_type": "TINYLORA", "target_modules": "all-linear", "r": 4, "u": 16, "weight_tying": 0.5}
CONTENT = {"state_dict": {"z": torch.arange(64.0)}, "loops": {"step": 3, "rate": 1e-3, "names": ["a", None]}}


class Every(LastCheckpoint):
    """Keeps the bytes of every state."""

    def __init__(self):
        super().__init__()
        self.states = []

    def _hold(self, data):
        super()._hold(data)
        self.states.append((self._where, data))


class Curve(L.Callback):
    """What was logged, at the step that a logger would show it at."""

    def __init__(self):
        self.points = {}

    def on_train_batch_end(self, trainer, *args):
        self._note(trainer, "train/reward", "train/lr")

    def on_validation_end(self, trainer, *args):
        self._note(trainer, "val/accuracy")

    def _note(self, trainer, *names):
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.points |= {(name, step): float(trainer.callback_metrics[name]) for name in names}


def started(
    llama,
    root,
    folder="run",
    max_steps=7,
    every=2,
    batch_size=20,
    task="toy_task.FirstLetter",
    trainer=None,
    base=None,
    **module,
):
    L.seed_everything(0, verbose=False)
    curve, keeper, last = Curve(), ExpertCheckpoint(), Every()
    limits = {"val_check_interval": every, "check_val_every_n_epoch": None, "max_epochs": -1, **(trainer or {})}
    options = {"num_sanity_val_steps": 0, "logger": False, "enable_progress_bar": False, **limits}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        enable_model_summary=False,
        default_root_dir=root / folder,
        callbacks=[curve, keeper, last],
        **options,
    )
    base = str(llama if base is None else make_llama(root / base, seed=1, init=0.25))
    data = ExpertDataModule(task, base, batch_size=batch_size, seed=0)
    module = {"adapter": SVF, "dtype": "float32", **({} if "optimizer" in module else {"lr": 0.05}), **module}
    return trainer, SVFReinforceModule(base, **grouped(**module)), data, (curve, keeper, last)


@pytest.fixture
def start(llama, tmp_path):
    return partial(started, llama, tmp_path)


@pytest.mark.parametrize(
    "run",
    [
        {"max_steps": 4},
        {"max_steps": 2, "adapter": TINYLORA},  # its vectors are shared: each layer has a name for them
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"every": 3}, marks=pytest.mark.slow),  # validation where an epoch ends
        pytest.param({"every": 1, "max_steps": 4}, marks=pytest.mark.slow),
        pytest.param({"every": 100, "max_steps": 5}, marks=pytest.mark.slow),
        {
            "every": 1.0,
            "trainer": {"check_val_every_n_epoch": 1, "max_epochs": 2, "limit_train_batches": 2},
            "max_steps": -1,
        },
    ],
    ids=str,
)
def test_every_state_resumes_to_the_uncut_run(start, tmp_path, run):
    uncut, module, data, (curve, keeper, last) = start(**run)
    uncut.fit(module, data)
    expected = [p.detach().clone() for p in module.trained()]
    wheres = [where for where, _ in last.states]
    assert wheres.count("step") == uncut.global_step - 1 and wheres[-1] in ("epoch", "end")
    for number, (where, state) in enumerate(last.states):
        path = tmp_path / f"{number}.ckpt"
        write_checkpoint(state, path)
        again, module, data, (resumed, best, _) = start(f"again{number}", **run)
        again.fit(module, data, ckpt_path=path)
        at = (where, number, torch.load(path, weights_only=True)["global_step"])
        assert resumed.points.items() <= curve.points.items(), (at, resumed.points, curve.points)
        assert all(torch.equal(a, b) for a, b in zip(expected, module.trained(), strict=True)), at
        assert (best.best_score, best.best_step) == (keeper.best_score, keeper.best_step), at
        missing = {point for point in curve.points if point[1] > at[2]} - resumed.points.keys()
        assert not missing, at
        assert (tmp_path / f"again{number}" / "expert" / "adapter_config.json").is_file(), at
        if where == "step":  # there the last epoch, ended early, is open for a longer run
            assert again.current_epoch == uncut.current_epoch, at


def test_the_last_state_resumes_in_a_longer_run(start, tmp_path):
    uncut, module, data, (curve, *_) = start(max_steps=5, lr_schedule="constant")
    uncut.fit(module, data)
    expected = [p.detach().clone() for p in module.trained()]
    for steps in (2, 3):  # within an epoch and at its end
        short, module, data, (_, _, last) = start(f"short{steps}", max_steps=steps, lr_schedule="constant")
        short.fit(module, data)
        longer, module, data, (resumed, *_) = start(f"long{steps}", max_steps=5, lr_schedule="constant")
        with pytest.warns(UserWarning, match=rf"trainer.max_steps {steps} -> 5"):
            longer.fit(module, data, ckpt_path=last.path)
        assert all(torch.equal(a, b) for a, b in zip(expected, module.trained(), strict=True)), steps
        assert resumed.points.items() <= curve.points.items(), steps


def epochs(count):
    """A run of so many epochs of three steps."""
    trainer = {"max_epochs": count, "limit_train_batches": 3, "check_val_every_n_epoch": 1}
    return {"max_steps": -1, "every": 1.0, "trainer": trainer}


def rates(curve):
    return [value for (name, _), value in sorted(curve.points.items()) if name == "train/lr"]


def test_another_rate_or_more_epochs_are_named_and_hold(start, tmp_path):
    first, module, data, (_, _, last) = start(**epochs(1))
    first.fit(module, data)
    second, module, data, (curve, *_) = start("second", max_steps=6, lr=0.01, lr_schedule="constant")
    with pytest.warns(
        UserWarning,
        match=r"model.lr_scheduler WarmupCosine -> Warmup, model.optimizer.lr 0.05 -> 0.01, trainer.max_steps 3 -> 6",
    ):
        second.fit(module, data, ckpt_path=last.path)
    assert rates(curve) == pytest.approx([0.01] * 3)
    content = read_checkpoint(last.path)
    content[KEY]["settings"]["trainer.max_steps"] = -1  # what was asked for, as earlier checkpoints have it
    write_checkpoint(pack(content), old := tmp_path / "old.ckpt")
    third, module, data, (curve, *_) = start("third", **epochs(2))
    with pytest.warns(UserWarning, match="trainer.max_steps -1 -> 6"):
        third.fit(module, data, ckpt_path=old)
    assert rates(curve) == pytest.approx([0.025 * (1 + math.cos(math.pi * step / 6)) for step in (3, 4, 5)])


def test_a_checkpoint_of_before_the_groups_is_scored_and_not_resumed(start, tmp_path):
    first, module, data, (_, _, last) = start(max_steps=2)
    first.fit(module, data)
    content = read_checkpoint(last.path)
    settings = content[KEY]["settings"]
    content[KEY]["settings"] = {"model.lr": 0.05, **{k: v for k, v in settings.items() if not k.startswith("model.")}}
    write_checkpoint(pack(content), old := tmp_path / "old.ckpt")
    second, module, data, _ = start("second", max_steps=4)
    with pytest.raises(CheckpointError, match=r"whose settings had other names and is not resumed; `test"):
        second.fit(module, data, ckpt_path=old)
    third, module, data, _ = start("third")
    third.validate(module, data, ckpt_path=old, verbose=False)


def test_the_state_of_another_optimizer_is_refused(start):
    first, module, data, (_, _, last) = start(max_steps=2)
    first.fit(module, data)
    second, module, data, _ = start("second", max_steps=4, optimizer=partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(CheckpointError, match=r"holds the state of AdamW, this run's model.optimizer is SGD"):
        second.fit(module, data, ckpt_path=last.path)


LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "down_proj"]}


@pytest.mark.parametrize("verb", ["test", *(pytest.param(v, marks=pytest.mark.slow) for v in ("fit", "validate"))])
@pytest.mark.parametrize(
    ("wrote", "reads", "message"),
    [
        ({}, {"adapter": {**SVF, "target_modules": "mlp"}}, r"adapter.target_modules"),
        ({}, {"adapter": {**SVF, "target_modules": ["down_proj"]}}, r"adapter.target_modules"),
        ({}, {"adapter": {**SVF, "layers_to_transform": [0]}}, r"adapter.layers_to_transform None, this run has \[0\]"),
        ({}, {"adapter": {**SVF, "parametrization": "sigmoid_renorm"}}, r"adapter.parametrization direct"),
        ({}, {"adapter": LORA}, r"adapter."),
        ({"adapter": LORA}, {}, r"adapter.peft_type LORA, this run has SVF; set model.adapter.peft_type "),
        ({"adapter": LORA}, {"adapter": {**LORA, "r": 8}}, r"adapter.r 4, this run has 8"),
        ({"adapter": LORA}, {"adapter": {**LORA, "lora_alpha": 64}}, r"adapter.lora_alpha 8, this run has 64"),
        ({"adapter": LORA}, {"adapter": {**LORA, "use_rslora": True}}, r"adapter.use_rslora"),
        ({}, {"task": "toy_task.Ragged"}, r"task first_letter, this is one of ragged.*--expert"),
        ({}, {"base": "other"}, r"another base"),
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_refused(start, states, verb, wrote, reads, message):
    path = states(wrote)
    trainer, module, data, _ = start("reads", **reads)
    with pytest.raises(CheckpointError, match=message) as e:
        getattr(trainer, verb)(module, data, ckpt_path=path)
    assert "\n" not in str(e.value)


OWN_TASK = """
from toy_task import FirstLetter
from transformer2.types import Verdict

class Mine(FirstLetter):
    name = "mine"

    def verify(self, example, completion):
        return Verdict.of({right}, completion, "")
"""


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    """A task of the user's, whose file says when an answer is right."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(right):
        (tmp_path / "edited_task.py").write_text(OWN_TASK.format(right=right))
        sys.modules.pop("edited_task", None)
        importlib.invalidate_caches()
        return "edited_task.Mine"

    return write


FEW = {"trainer": {"limit_val_batches": 1}, "eval_batch_size": 2}


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({}, {"task_options": {"letter": "b"}}, "rows"),  # what an answer is worth has changed
        ({"right": "True"}, {"right": "completion == '?'"}, "task_source"),
        (FEW, {}, "questions 2 -> 16"),
        ({"trainer": {"limit_val_batches": 0.5}, "eval_batch_size": 4}, {"stop": ["a"]}, "stop"),
    ],
    ids=str,
)
def test_a_score_that_does_not_compare_is_forgotten_with_its_expert(start, own_task, then, now, words):
    def run(folder, max_steps, *, trainer=None, right="True", **given):
        data_options = {key: given.pop(key) for key in ("task_options", "eval_batch_size") if key in given}
        task = own_task(right) if "right" in {**then, **now} else "toy_task.FirstLetter"
        made = start(folder, max_steps=max_steps, every=1, task=task, trainer=trainer, **given)
        for key, value in data_options.items():
            setattr(made[2], key, value)
        return made

    first, module, data, (_, keeper, last) = run("run", 1, **then)
    stopping = EarlyStopping("val/accuracy", mode="max", patience=9)
    first.callbacks.append(stopping)
    first.fit(module, data)
    assert keeper.best_score is not None and len(module.curve.points) == 2
    state = read_checkpoint(last.path)
    state["callbacks"][keeper.state_key]["best_score"] = 1.0  # of luck, never to be beaten
    write_checkpoint(pack(state), last.path)
    again, module, data, (_, best, _) = run("again", 2, **now)
    watch = EarlyStopping("val/accuracy", mode="max", patience=9)
    again.callbacks.append(watch)
    with pytest.warns(UserWarning) as warned:
        again.fit(module, data, ckpt_path=last.path)
    (said,) = [str(w.message) for w in warned if "do not compare" in str(w.message)]
    assert words in said and "\n" not in said
    assert best.best_step == 2 and watch.best_score == best.best_score
    assert [point["step"] for point in module.facts()["curve"]] == [2]
    assert [point["step"] for point in module.facts()["curve_before"]] == [0, 1]


def test_a_score_that_compares_is_kept(start, own_task):
    """Another batch size asks the same questions; a checkpoint of an older version does not say what was asked."""
    first, module, data, (_, keeper, last) = start(max_steps=1, every=1, task=own_task("len(completion) > 1"))
    first.fit(module, data)
    state = read_checkpoint(last.path)
    named = {key.split(".")[1] for key in state[KEY]["settings"] if key.startswith("model.")}
    arguments = signature(SVFReinforceModule.__init__).parameters.keys() - {"self"}
    assert named == arguments - {"base", "adapter", "vllm"}, "another one would change on resume without a word"
    state["callbacks"][keeper.state_key]["best_score"] = 1.0
    del state[KEY]["validation"], state[KEY]["settings"]["data.task_source"]
    write_checkpoint(pack(state), last.path.with_name("old.ckpt"))
    for path in last.path, last.path.with_name("old.ckpt"):
        again, module, data, (_, best, _) = start("again", max_steps=2, every=1, task=own_task("len(completion) > 1"))
        data.eval_batch_size = 3
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            again.fit(module, data, ckpt_path=path)
        assert not [w for w in warned if "compare" in str(w.message) or "task_source" in str(w.message)]
        assert best.best_score == (1.0 if path.name == "old.ckpt" else keeper.best_score) and best.best_step == 1
        assert [point["step"] for point in module.facts()["curve"]] == [0, 1, 2]


def test_an_expert_and_a_checkpoint_do_not_contradict_each_other(start, tmp_path):
    trainer, module, data, _ = start(max_steps=2)
    trainer.fit(module, data)
    expert = tmp_path / "run" / "expert"
    begun, module, data, (_, _, last) = start("begun", max_steps=2)
    module.expert = expert
    begun.fit(module, data)
    resumed, module, data, _ = start("resumed", max_steps=3)
    module.expert = expert
    resumed.fit(module, data, ckpt_path=last.path)  # the command that was cut, with its checkpoint
    for verb, told in (("fit", "did not begin with --expert"), ("test", "take the place of --expert")):
        reader, module, data, _ = start(verb, max_steps=3)
        module.expert = tmp_path / "begun" / "expert"
        with pytest.raises(CheckpointError, match=told):
            getattr(reader, verb)(module, data, ckpt_path=last.path)


@pytest.fixture(scope="module")
def states(llama, tmp_path_factory):
    """A checkpoint after one step, by what was trained."""
    made, root = {}, tmp_path_factory.mktemp("states")

    def of(wrote):
        if str(wrote) not in made:
            trainer, module, data, (_, _, last) = started(llama, root, f"wrote{len(made)}", max_steps=1, **wrote)
            trainer.fit(module, data)
            made[str(wrote)] = last.path
        return made[str(wrote)]

    return of


def test_speed_and_form_may_differ(start, states):
    trainer, module, data, _ = start("reads", adapter={**SVF, "form": "factored"}, micro_batch_tokens=512)
    trainer.validate(module, data, ckpt_path=states({}), verbose=False)


def test_lightning_s_own_way_to_load_one_says_what_to_do_instead(states):
    with pytest.raises(ConfigError, match="give it to the trainer"):
        SVFReinforceModule.load_from_checkpoint(states({}))


# ---------------------------------------------------------------------- files


def test_five_hundred_damaged_files_and_none_is_accepted(tmp_path):
    path, rng = tmp_path / "last.ckpt", random.Random(0)
    write_checkpoint(pack(CONTENT), path)
    whole = path.read_bytes()
    assert torch.equal(read_checkpoint(path)["state_dict"]["z"], CONTENT["state_dict"]["z"])
    assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["z"], CONTENT["state_dict"]["z"])
    for number in range(500):
        data, at = bytearray(whole), rng.randrange(len(whole))
        if number % 5 == 0:
            data = data[:at]
        elif number % 5 == 1:
            data[at:] = bytes(len(data) - at)
        elif number % 5 == 2:
            data[at:at] = b"\0"
        else:
            data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        if bytes(data) != whole:
            with pytest.raises(CheckpointError, match=r"last.ckpt is damaged"):
                read_checkpoint(path)


@pytest.mark.parametrize(
    ("wrote", "ranks", "fits", "words"),
    [
        (None, 2, True, "one process, or conf/strategy/ddp.yaml"),
        ((3, 2), 2, False, "--config conf/strategy/zero3.yaml"),
        ((2, 4), 2, True, "written by 4 processes"),
        ((2, 4), 2, False, None),  # to score it, each reads z
        ((2, 2), 2, True, None),
    ],
)
def test_what_another_strategy_or_number_of_processes_wrote_is_refused(wrote, ranks, fits, words):
    pytest.importorskip("deepspeed", reason="DeepSpeed is installed on Linux alone")
    content = {"global_step": 3}
    if wrote:
        content |= {"ds_config": {"zero_optimization": {"stage": wrote[0]}}, "dp_world_size": wrote[1]}
    trainer = SimpleNamespace(strategy=ZeRO(stage=2), num_devices=ranks, num_nodes=1, max_steps=6)
    alone = SimpleNamespace(strategy=L.pytorch.strategies.DDPStrategy(), num_devices=2, num_nodes=1, max_steps=6)
    with nullcontext() if words is None else pytest.raises(CheckpointError, match=re.escape(words)):
        check_checkpoint(trainer, content, fits)
    with pytest.raises(CheckpointError, match="zero") if wrote else nullcontext():
        check_checkpoint(alone, content, fits)


def test_a_folder_whose_replacement_was_cut_off_is_found_by_the_command(tmp_path):
    old = tmp_path / ".last.ckpt.replaced"
    old.mkdir()
    with pytest.raises(ConfigError, match="does not exist"):
        _check_checkpoint(str(tmp_path / "last.ckpt"))
    (old / "manifest.sha256").touch()
    _check_checkpoint(str(tmp_path / "last.ckpt"))


def test_a_damaged_one_names_the_good_one_beside_it(tmp_path):
    write_checkpoint(pack(CONTENT), tmp_path / "previous.ckpt")
    for name in ("last.ckpt", "older.ckpt"):
        (tmp_path / name).write_bytes(pack(CONTENT)[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"resume from .*previous.ckpt, which is whole"):
        read_checkpoint(tmp_path / "last.ckpt")


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_strangers_file_runs_nothing(tmp_path):
    for name, data in {
        "pickle.ckpt": pickle.dumps(Runs(str(tmp_path / "ran"))),
        "sealed.ckpt": pack({"state_dict": {}, "callbacks": Runs(str(tmp_path / "ran"))}),
        "list.ckpt": pack([1, 2]),
        "empty.ckpt": b"",
        "text.ckpt": b"# README",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError) as e:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(e.value) and name in str(e.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match=r"more than tensors.*mkdir"):
        read_checkpoint(tmp_path / "sealed.ckpt")
    body = b"x" * 1000  # no code, whole by its seal
    (tmp_path / "noise.ckpt").write_bytes(body + b"transformer2 sha256 " + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(CheckpointError, match=r"noise.ckpt is damaged: torch cannot read it"):
        read_checkpoint(tmp_path / "noise.ckpt")


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(pack(CONTENT), path)
    with pytest.raises(CheckpointError, match=r"more than tensors"):
        write_checkpoint(pack({**CONTENT, "callbacks": {"mine": random.Random(0)}}), path)
    assert read_checkpoint(path)["loops"] == CONTENT["loops"] and os.listdir(tmp_path) == ["last.ckpt"]


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "fifo": "is not a file",
        "zero": "is not a file",
        "folder": "folder",
        "none": "not exist",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


def test_a_full_disk_leaves_the_old_one(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(pack(CONTENT), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written .*the one before it is intact"):
            write_checkpoint(pack(CONTENT), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_checkpoint(path)["loops"] == CONTENT["loops"] and os.listdir(tmp_path) == ["last.ckpt"]
    with pytest.raises(CheckpointError, match=r"cannot be written"):
        write_checkpoint(pack(CONTENT), path / "below" / "a" / "file")


def test_every_flipped_byte_of_a_folder_is_found(tmp_path):
    folder = tmp_path / "last.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    (folder / "checkpoint" / "part.bin").write_bytes(bytes(range(40)))
    seal_folder(folder)
    assert read_checkpoint(folder) == {}
    for file in (p for p in folder.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for i in range(len(whole)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 32]) + whole[i + 1 :])
            with pytest.raises(CheckpointError, match="damaged"):
                read_checkpoint(folder)
        file.write_bytes(whole)
    (folder / "checkpoint" / "more.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(folder)


class ByName:
    """Pickled as Python 3.11.0 to 3.11.3 pickle the member of an enum: by `getattr` of its class."""

    def __init__(self, kind, name):
        self.args = kind, name

    def __reduce__(self):
        return getattr, self.args


def test_a_folder_of_any_python_311_is_read(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    def read(stage):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}.ckpt"
        folder.mkdir()
        torch.save({"loops": {}, "zero_stage": stage}, folder / "states.pt")
        seal_folder(folder)
        return read_checkpoint(folder)["zero_stage"]

    for stage in (ZeroStageEnum.gradients, ByName(ZeroStageEnum, "gradients")):
        assert read(stage) is ZeroStageEnum.gradients
    for hostile in (
        (ZeroStageEnum, "__class__"),
        (ZeroStageEnum, "from_bytes"),
        (LossScaler, "__init__"),
        (ZeroStageEnum.gradients, "to_bytes"),
        ({"gradients": 2}, "gradients"),
    ):
        with pytest.raises(CheckpointError, match="more than tensors and plain values"):
            read(ByName(*hostile))


def test_a_run_without_validation_says_so(start):
    trainer, module, data, _ = start(max_steps=1, every=100)
    with pytest.warns(UserWarning, match="no validation in this run of 1 steps"):
        trainer.fit(module, data)
