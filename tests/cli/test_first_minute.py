"""The first minute: help on every key, the right word for another library's, answers at once, any path."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import grouped

from transformer2 import tiny
from transformer2.adaptation.search import CEM
from transformer2.callbacks.few_shot import FewShotEvaluator
from transformer2.cli import main
from transformer2.cli.keys import ELSEWHERE, SYNONYMS, UNREAD, sections
from transformer2.data import ExpertDataModule, UnseenTaskDataModule
from transformer2.errors import ConfigError
from transformer2.module import SVFReinforceModule
from transformer2.rollout.server import VLLMOptions

SMALL = ["--data.batch_size", "2", "--data.validation_limit", "2", "--data.test_limit", "2", "--quiet"]
SHORT = [*SMALL, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "adapt"])
def test_help_has_a_line_on_every_key(command, capsys) -> None:
    assert main([command, "-h"]) == 0
    text = capsys.readouterr().out
    for section, keys in sections(command == "adapt").items():
        block = text.split(f"\n{section}:\n")[1]
        for key, argument in keys.items():
            unread = command == "adapt" and UNREAD.fullmatch(f"{section}.{key}")
            if unread:
                assert f"\n  {key} " not in block
            elif f"{section}.{key}" not in ELSEWHERE and not isinstance(argument.hint, dict):
                assert re.search(rf"^  {key} +\S.* \[.*\]$", block, re.MULTILINE), f"{section}.{key}"
    assert ("vllm.url" in text) == (command != "adapt") and max(map(len, text.splitlines())) <= 125


def test_nothing_heavy_is_imported_for_it(tmp_path) -> None:
    commands = [
        ["fit", "--help"],
        ["adapt", "--help"],
        ["fit", "--config", "conf/tiny_math.yaml", "--model.lrr", "1"],
        ["fit", "--config", "conf/tiny_math.yaml", "--model.optimizer.lr", "fast"],
        ["adapt", "--adapt.populatoin", "3"],
        ["plan", "--config", "conf/tiny_math.yaml", "--data.tsak", "x"],
        ["test", "--expert", "/no/expert"],
        ["fit", "--config", "conf/tiny_math.yaml", "--run_dir", "/proc/x"],
        ["study", "conf/paper/table4.yaml", "--dry_run"],  # whose runs name torch.optim's classes
    ]
    code = (
        "import json, sys; from transformer2.cli import main\n"
        "main(['--help']); assert not {'yaml', 'omegaconf'} & set(sys.modules)\n"
        "heavy = {'torch', 'lightning', 'transformers', 'peft', 'datasets', 'deepspeed'}\n"
        "for words in json.load(sys.stdin): print(f'code {main(words)}:', words, sorted(heavy & set(sys.modules)))"
    )
    words = json.dumps(commands)
    done = subprocess.run([sys.executable, "-c", code], input=words, capture_output=True, text=True, cwd=tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    codes = [0, 0, *[2] * 6, 0]
    assert said == [f"code {n}: {words} []" for n, words in zip(codes, commands, strict=True)], done.stderr


@pytest.mark.parametrize("ours", sorted(SYNONYMS))
def test_other_libraries_words_find_ours(ours, capsys) -> None:
    command = "adapt" if ours.startswith("adapt.") else "fit"
    if "." in ours:
        section, key, *inner = ours.split(".")
        argument = sections(command == "adapt")[section].get(key)
        assert argument is not None, f"{ours} is not a key"
        assert not isinstance(argument.hint, dict) or inner[0] in argument.hint, f"{ours} is not a key"
    for theirs in SYNONYMS[ours]:
        for wrong in (f"--model.{theirs}", f"--{theirs}"):
            assert main([command, "--config", "conf/tiny_math.yaml", f"{wrong}=1"]) == 2
            assert re.search(rf"(did you mean|set) (--)?{ours.removeprefix('--')}\b", capsys.readouterr().err), wrong


@pytest.mark.parametrize(
    "make",
    [
        lambda: SVFReinforceModule(**grouped(lr=float("nan"))),
        lambda: SVFReinforceModule(**grouped(lr=True)),
        lambda: SVFReinforceModule(loss={"kl_coef": -1}),
        lambda: SVFReinforceModule(sampling={"temperature": float("inf")}),
        lambda: SVFReinforceModule(sampling={"max_new_tokens": 0}),
        lambda: SVFReinforceModule(loss={"kl": "k4"}),
        lambda: SVFReinforceModule(**grouped(betas=(0.9, 1.0))),
        lambda: SVFReinforceModule(base=""),
        lambda: ExpertDataModule(batch_size=0),
        lambda: ExpertDataModule(test_limit=-1),
        lambda: ExpertDataModule(chat_template="some"),
        lambda: UnseenTaskDataModule(few_shot=2.5),
        lambda: UnseenTaskDataModule(seed=-1),
        lambda: FewShotEvaluator(elite_ratio=float("nan")),
        lambda: FewShotEvaluator(max_minutes=0),
        lambda: FewShotEvaluator(every_n_epochs=0),
        lambda: CEM(2, std=float("inf")),
        lambda: VLLMOptions(concurrency=0),
    ],
)
def test_constructors_check_what_they_are_given(make) -> None:
    with pytest.raises(ConfigError, match=r"^[\w.]+ (must be .*, not |cannot be built: Invalid )"):
        make()


def test_paths_with_spaces_tildes_and_other_alphabets(tmp_path, monkeypatch, capsys) -> None:
    home = tmp_path / "höme of 学生"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.model_path(), home / "my möde l")
    shutil.copytree(tiny.expert_path("math"), home / "the exp ü" / "math")
    (home / "conf é.yaml").write_text("_base_: ~/base ж.yaml\nname: läuft gut\n", encoding="utf-8")
    (home / "base ж.yaml").write_text("_base_: conf/tiny_math.yaml\nmodel: {base: ~/my möde l}\n", encoding="utf-8")
    (home / "däta").mkdir()
    data = ["--data.data_dir=~/däta"]
    assert main(["fit", "--config=~/conf é.yaml", *SHORT, *data, "--run_dir=~/a run ñ"]) == 0
    assert {"report.json", "expert", "checkpoints"} <= {p.name for p in (home / "a run ñ").iterdir()}
    last = "~/a run ñ/checkpoints/last.ckpt"
    assert main(["validate", "--config=~/conf é.yaml", *SMALL, f"--ckpt_path={last}"]) == 0
    assert (tmp_path / "runs" / "läuft gut" / "validation.txt").is_file()
    assert main(["test", "--expert=~/a run ñ/expert", *SMALL, "--run_dir=~/tést it"]) == 0
    assert json.loads((home / "tést it" / "report.json").read_text())["n"] == 2
    few = ["--data.few_shot", "2", "--data.test_limit", "2", "--adapt.population", "2", "--adapt.generations", "1"]
    experts = "[~/the exp ü/math, ~/a run ñ/expert]"
    adapt = ["adapt", *few, "--adapt.controls", "false", "--quiet", "--adapt.experts", experts, "--run_dir=~/adäpt"]
    assert main(adapt) == 0 and (home / "adäpt" / "report.json").is_file()
    assert main(["decompose", "--model.base=~/my möde l", "--model.adapter.basis_cache=~/cäche dir", "--quiet"]) == 0
    assert any((home / "cäche dir").rglob("*"))
    assert main(["experts", "show", "~/the exp ü/math"]) == 0 and main(["report", "~/a run ñ"]) == 0
    assert not (tmp_path / "~").exists() and not Path("~").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.limit_train_batches", "0"], "limit_train_batches is 0, so fit has nothing to do"),
        (["--trainer.limit_test_batches", "0"], "limit_test_batches is 0, so fit has nothing to do"),
        (["--trainer.max_steps", "-1"], "max_steps, max_epochs and max_time set no end"),
        (["--trainer.max_steps", "0"], "trainer.max_steps must be"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs must be"),
        (["--trainer.limit_val_batches", "0.01"], "limit_val_batches"),
        (["--trainer.val_check_interval", "0.5"], "val_check_interval"),
        (["--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "100000"], "val_check_interval"),
        (["--trainer.gradient_clip_val", "1"], "set model.max_grad_norm"),
        (["--trainer.accumulate_grad_batches", "4"], "data.batch_size (prompts of a step)"),
        (["--trainer.precision", "bf16-mixed"], "set model.dtype"),
    ],
)
def test_settings_that_make_nothing_run_are_named(words, message, tmp_path, capfd) -> None:
    assert main(["fit", "--config", "conf/tiny_math.yaml", *SHORT, "--run_dir", str(tmp_path / "r"), *words]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if text.startswith("transformer2:")]
    assert message in line


def test_a_section_with_all_lines_commented_out_keeps_what_is_below(tmp_path, capsys) -> None:
    (tmp_path / "mine.yaml").write_text("_base_: conf/tiny_math.yaml\nmodel:\n  # optimizer: 1\n")
    assert main(["fit", "--config", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
    assert "lr: 1.0\n" in capsys.readouterr().out
    monkeyed = ["--model.optimizer.lr=${oc.env:LR,0.375}", "--trainer.devices=1"]
    assert main(["fit", "--config", "conf/tiny_math.yaml", *monkeyed, "--print_config"]) == 0
    assert "lr: 0.375\n" in capsys.readouterr().out


def test_other_commands_refuse_in_one_line(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    long = "x" * 5000
    for words in (
        *(["decompose", *more] for more in (
            [], ["--model.base", ""], ["--model.base", "/no"], ["--model.base", long], ["tiny"])),
        *(["decompose", "--model.base", "tiny", f"--{key}", value] for key, value in (
            ("model.dtype", "fp7"), ("model.adapter.layers_to_transform", "1,x"), ("bsae", "x"),
            *(("model.adapter.layers_to_transform", n) for n in (",", "99")), ("model.adapter.target_modules", "["),
            ("model.adapter.basis_cache", "file"), ("model.adapter.basis_cache", "/proc/x"),
        )),
        *(["report", word] for word in ("/no", "file", ".", "", long)), ["report", "--out", "x"],
        *(["experts", *more] for more in (["zzz"], ["show"], ["show", "/no"], ["show", "file"], ["show", ""],
          ["show", long], ["show", ".", "--config", "x"], ["mix"], ["mix", ".", "--weights", "x", "--out", "o"])),
        *(["sandbox", *more] for more in (["zzz"], ["check", "--zzz", "1"], ["check", "more"])),
        *(["plan", "--config", "conf/tiny_math.yaml", *more] for more in (["--gpus", "1e30"], ["--gpus", "1.5"],
          ["--gpu_memory", "nan"], ["--gpu_memory", "inf"], ["--nodes", "0"], ["--prompt_tokens", "0.5"],
          ["--device", "abacus"])),
        ["adapt", "--resume", "/no"], ["adapt", "--resume", long], ["adapt", "--strategy", "[cem]"],
        ["zzz"], ["fit"], ["test", "--ckpt_path", "/no"], ["validate", "--expert", long],
    ):  # fmt: skip
        capfd.readouterr()
        assert main(words) == 2, words
        lines = [text for text in capfd.readouterr().err.splitlines() if not text.startswith("decompose:")]
        assert len(lines) == 1 and lines[0].startswith("transformer2: ") and len(lines[0]) <= 500, (words, lines)
        assert [p.name for p in tmp_path.iterdir()] == ["file"], words
