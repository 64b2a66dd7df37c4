"""Configs that no run can follow: a wrong type, range or structure at every key, as a file or as a flag."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from transformer2.cli.check import RUNS
from transformer2.cli.keys import ELSEWHERE, sections

# By type: what is wrong whatever the range.
WRONG = {
    int: ["fast", "[1]", "{a: 1}", "true", ".nan", ".inf", "-.inf", "1.5", "1e99", "-7", '""', "2024-01-01"],
    float: ["fast", "[1]", "{a: 1}", "true", ".nan", ".inf", "-.inf", "1e400", '""', "nan", "inf"],
    bool: ["maybe", "3", "[true]", "{a: 1}", '""', "0.5"],
    str: ["[1]", "{a: 1}", "3", "true", '""', '" "', ".nan"],
    dict: ["[1]", "5", "text", "true", '""'],
    list: ["5", "text", "{a: 1}", "[1]", "[null]", "true", '[""]', "[[a]]"],
    tuple: ["5", "[1]", "[0.9, 0.99, 0.1]", "[.nan, 0.9]", "[0.9, 1.0]", "[-1, 0.9]", "[a, b]", "{a: 1}"],
    Literal: ["nonsense", "[1]", "3", '""', "{a: 1}", "true"],
}
# By key: of the right type, and nonsense.
RANGE = {
    "model.base": ["/no/such/folder", "./no", "~/no-such", '"x\\0y"', "'{}'".format("x" * 5000)],
    "model.adapter": ["{peft_type: LORRA}", "{target_module: mlp}", "{target_modules: []}", "{score: .nan}"],
    "model.dtype": ["int8", "fp7", "fp16"],
    "model.optimizer.lr": ["-1", "0", "1e9"],
    "model.lr_scheduler.warmup_steps": ["-1"],
    "model.optimizer.eps": ["-1", "0", "1e9"],
    "model.optimizer.weight_decay": ["-0.1", "1e12"],
    "model.max_grad_norm": ["-1", "0"],
    "model.sampling.num_completions": ["0", "-1"],
    "model.loss.kl_coef": ["-1", "1e12"],
    "model.sampling.temperature": ["-1", "1e12"],
    "model.sampling.max_new_tokens": ["0", "-1", "100000000"],
    "model.memory.micro_batch_tokens": ["0", "-1"],
    "model.memory.max_rollout_rows": ["0", "-1"],
    "model.loss.importance_cap": ["0", "-1"],
    "model.test.samples": ["-1"],
    "model.test.temperature": ["-1"],
    "model.vllm": ["{sink: z}", "{bucket_mib: 0}", "{concurrency: -1}", "{start_minutes: .nan}", "{url: nowhere}"],
    "data.task": ["../..", "gsm9k", "a.b.c", "/etc/passwd", "no.such.Task", "os.path", "transformer2.tasks.Task"],
    "data.data_dir": ["/no/such/folder"],
    "data.task_options": ["{nothing: 1}"],
    "data.batch_size": ["0", "-1", "100000000"],
    "data.eval_batch_size": ["0", "-1"],
    "data.validation_limit": ["0", "-1"],
    "data.test_limit": ["0", "-1"],
    "data.few_shot": ["0", "-1", "100000000"],
    "adapt.experts": ["[/no/such/expert]"],
    "adapt.max_rows": ["0", "-1"],
    "adapt.seed": ["-1", "1099511627776"],
    "adapt.population": ["0", "-1"],
    "adapt.elite_ratio": ["0", "-1", "2"],
    "adapt.low": ["2", "-1e9"],
    "adapt.high": ["-2", "1e9"],
    "adapt.std": ["0", "-1", "1e9"],
    "adapt.generations": ["0", "-1", "null"],
    "adapt.max_evaluations": ["0", "-1"],
    "adapt.max_minutes": ["0", "-1"],
    "adapt.base_member": ["true"],  # of mix delta
    "adapt.classifier": ["/no/such/expert"],
    "adapt.dispatch_task": ["gsm8k", "../.."],
    "adapt.dispatch_limit": ["0", "-1"],
    "trainer.accelerator": ["tpu", "hpu", "cuda", "gpux", "3", "[cpu]"],
    "trainer.strategy": ["foo", "ddp_spawn", "fsdp", "3", "[ddp]", "{class_path: no.Such}", "{a: 1}"],
    "trainer.devices": ["0", "'-2'", "-2", '""', "[]", "1.5", "many", "true", "100000000", "{a: 1}", "[0, 0]"],
    "trainer.num_nodes": ["0", "-1"],
    "trainer.precision": ["16-mixed", "bf16-true", "16", "64", "fast", "[32]"],
    "trainer.logger": ["5", "nothing", "{class_path: no.Such}", "{a: 1}"],
    "trainer.callbacks": ["5", "[5]", "[{class_path: no.Such}]", "[{a: 1}]", "[no.Such]", "text"],
    "trainer.fast_dev_run": ["-1", "maybe", "1.5"],
    "trainer.max_epochs": ["0", "-2", "1.5"],
    "trainer.min_epochs": ["0", "-1"],
    "trainer.max_steps": ["0", "-2", "-1", "1.5", "many"],
    "trainer.min_steps": ["-1"],
    "trainer.max_time": ["tomorrow", "5", "{weeks: many}", "'00:00'"],
    "trainer.limit_train_batches": ["-1", "1.5", "many", "0"],
    "trainer.limit_val_batches": ["-1", "1.5", "many"],
    "trainer.limit_test_batches": ["-1", "1.5", "many", "0"],
    "trainer.overfit_batches": ["-1", "1.5", "many"],
    "trainer.val_check_interval": ["0", "-1", "1.5", ".nan", "often", "[1]"],
    "trainer.check_val_every_n_epoch": ["0", "-1", "1.5"],
    "trainer.num_sanity_val_steps": ["-2", "1.5"],
    "trainer.log_every_n_steps": ["-1", "1.5"],
    "trainer.gradient_clip_val": ["1", "0.5", "fast"],
    "trainer.gradient_clip_algorithm": ["norm", "value"],
    "trainer.accumulate_grad_batches": ["4", "0", "-1", "{0: 4}"],
    "trainer.profiler": ["3", "fastest"],
    "trainer.deterministic": ["3", "maybe"],
    "trainer.plugins": ["nothing", "3", "[3]"],
    "trainer.reload_dataloaders_every_n_epochs": ["-1", "1.5"],
}
FREE = {"default_root_dir", "model_registry", "enable_autolog_hparams"}  # Lightning takes any text, or no notice
# What a plan, which opens no rows and builds no trainer, cannot know to be wrong.
NOT_PLANNED = {
    "data.data_dir",
    "data.batch_size",
    *(f"trainer.{k}" for k in ("accelerator", "callbacks", "devices", "logger", "max_time", "strategy")),
    "trainer.val_check_interval",
}
STRUCTURE = {  # whole files
    "tabs": "model:\n\tlr: 1\n",
    "unclosed": "model: {lr: 1",
    "a list": "- 1\n- 2\n",
    "a word": "hello\n",
    "a number": "5\n",
    "empty": "",
    "key twice": "model: {lr: 0.1, lr: 0.2}\n",
    "section twice": "model: {lr: 0.1}\ndata: {batch_size: 2}\nmodel: {lr: 0.2}\n",
    "two documents": "model: {lr: 0.1}\n---\nmodel: {lr: 0.2}\n",
    "latin-1": "model: {base: caf\xe9}\n".encode("latin-1"),
    "utf-16": "model: {lr: 0.1}\n".encode("utf-16"),
    "binary": bytes(range(256)),
    "nul": "model: {base: 'a\0b'}\n",
    "bomb": "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(24)),
    "recursive": "model: &m {adapter: *m}\n",
    "python tag": "model: !!python/object/apply:os.system ['true']\n",
    "deep": "[" * 5000,
    "deep keys": "model: " + "{a: " * 900 + "1" + "}" * 900,
    "dangling": "model: {lr: '${nowhere}'}\n",
    "circular": "model: {loss: {kl: '${model.loss.baseline}', baseline: '${model.loss.kl}'}}\n",
    "broken ${": "model: {base: '${'}\n",
    "missing ???": "model: {lr: ???}\n",
    "merge of a word": "model: {<<: word}\n",
    "_base_ number": "_base_: 5\n",
    "_base_ of numbers": "_base_: [1]\n",
    "_base_ mapping": "_base_: {a: b}\n",
    "_base_ missing": "_base_: nowhere.yaml\n",
    "_base_ itself": "_base_: bad.yaml\n",
    "_base_ folder": "_base_: .\n",
    "section list": "trainer: [1]\n",
    "section number": "model: 5\n",
    "section text": "data: text\n",
    "section true": "model: true\n",
    "list over a dict": "_base_: conf/tiny_math.yaml\nmodel: [1]\n",
    "dict over a list": "_base_: conf/preset/watch_adaptation.yaml\ntrainer: {callbacks: {a: {b: c}}}\n",
    "section unknown": "modell: {lr: 1}\n",
    "number as key": "1: 2\n",
    "null as key": "null: 2\n",
    "number as inner key": "model: {1: 2}\n",
    "list as key": "? [1]\n: 2\n",
    "too large": "# " + "x" * 1_100_000 + "\n",
    "seed -1": "seed_everything: -1\n",
    "seed 2**40": "seed_everything: 1099511627776\n",
    "seed list": "seed_everything: [0, 1]\n",
    "seed true": "seed_everything: true\n",
    "seed word": "seed_everything: lucky\n",
    "seed null": "seed_everything: null\n",
    "seed 1.5": "seed_everything: 1.5\n",
    "name up": "name: ../../x\n",
    "name absolute": "name: /tmp/x\n",
    "name dot": "name: .\n",
    "name dots": "name: ..\n",
    "name blank": "name: ' '\n",
    "name home": "name: ~x\n",
    "name control": 'name: "a\\x1b[31mb"\n',
    "name newline": 'name: "a\\nb"\n',
    "name long": f"name: {'x' * 300}\n",
    "name list": "name: [a]\n",
    "name true": "name: true\n",
    "name backslash": "name: 'a\\b'\n",
}
FLAGS = {  # words that follow the command
    "no value": ["--model.optimizer.lr"],
    "empty value": ["--data.data_dir", ""],
    "empty option": ["--run_dir", ""],
    "a word": ["oops"],
    "unknown": ["--zzz", "1"],
    "misspelt section": ["--modle.lr", "1"],
    "through a number": ["--model.optimizer.lr.x", "1"],
    "empty part": ["--model..lr", "1"],
    "trailing dot": ["--model.", "1"],
    "list index": ["--trainer.callbacks[0]", "1"],
    "broken YAML": ["--model.adapter", "{a: [1}"],
    "key twice": ["--model.adapter", "{r: 1, r: 2}"],
    "name up": ["--name", "../../x"],
    "name absolute": ["--name", "/tmp/x"],
    "config missing": ["--config", "nowhere.yaml"],
    "config a folder": ["--config", "."],
    "config a device": ["--config", "/dev/zero"],
    "config too long": ["--config", "x" * 5000],
    "run_dir a file": ["--run_dir", "small.yaml"],
    "run_dir below a file": ["--run_dir", "small.yaml/run"],
    "run_dir read-only": ["--run_dir", "/proc/run"],
    "run_dir too long": ["--run_dir", "x" * 5000],
    "switch with a value": ["--quiet=1"],
    "option twice": ["--run_dir", "a", "--run_dir", "b"],
}
FIT_FLAGS = {
    "ckpt_path missing": ["--ckpt_path", "nowhere.ckpt"],
    "ckpt_path a folder": ["--ckpt_path", "."],
    "ckpt_path a config": ["--ckpt_path", "small.yaml"],
    "ckpt_path too long": ["--ckpt_path", "x" * 5000],
    "expert missing": ["--expert", "nowhere"],
    "expert a file": ["--expert", "small.yaml"],
    "rollout unknown": ["--config", "conf/rollout/magic.yaml"],
}


def _wrong(hint: Any) -> set[str]:
    """Texts that no value of a type has; a union's are those that are wrong for each part."""
    if isinstance(hint, dict):  # a dataclass: anything that is not a mapping
        return {*WRONG[dict], "null"}
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _wrong(args[0])
    if origin in (Union, UnionType):
        return set.intersection(*(_wrong(a) for a in args if a is not NoneType)) - {"null"}
    kind = origin or hint
    if kind is list and int in get_args(args[0]):
        return {*WRONG[list]} - {"[1]"}
    return {*WRONG.get(kind, []), *(["null"] if kind in WRONG else [])}


def at_keys(command: str) -> Iterator[tuple[str, str]]:
    """(key, text) for every key of a command and everything that is wrong there."""
    unused = {
        (f"trainer.limit_{split}_batches", "0") for split in ("train", "test") if split not in RUNS.get(command, ())
    }
    if command != "fit":
        unused.add(("data.batch_size", "100000000"))  # of training alone
    for section, keys in sections(command == "adapt").items():
        for key, argument in keys.items():
            full = f"{section}.{key}"
            if key in FREE or (full in ELSEWHERE and full not in RANGE) or (command == "plan" and full in NOT_PLANNED):
                continue
            own = [text for text in RANGE.get(full, []) if (full, text) not in unused]
            generic = [] if section == "trainer" and full in RANGE else sorted(_wrong(argument.hint))
            negative_is_fine = full in ("adapt.low", "adapt.high")
            for text in dict.fromkeys([*generic, *own]):
                if not (negative_is_fine and text == "-7"):
                    yield full, text


def cases(command: str, seed: int, count: int | None = None) -> list[tuple[str, list[str], str | bytes | None]]:
    """(name, words, content of bad.yaml) for a command; a sample of `count`, spread over keys, or all."""
    draw = random.Random(seed)
    found: list[tuple[str, list[str], str | bytes | None]] = []
    for key, text in at_keys(command):
        section, _, name = key.partition(".")
        strategy = ["--strategy", "scores"] if name in ("dispatch_task", "classifier", "soft") else []
        if draw.random() < 0.5:
            found.append((f"{key}={text[:40]}", [f"--{key}={text}", *strategy], None))
        else:
            words = ["--config", "bad.yaml", *strategy]
            found.append((f"{key}: {text[:40]}", words, f"{section}: {{{name}: {text}}}\n"))
    found += [(name, ["--config", "bad.yaml"], content) for name, content in STRUCTURE.items()]
    flags = {**FLAGS, **(FIT_FLAGS if command in ("fit", "validate", "test") else {})}
    if command == "plan":
        flags = {name: words for name, words in flags.items() if "run_dir" not in name and "switch" not in name}
    found += [(name, words, None) for name, words in flags.items()]
    return found if count is None else draw.sample(found, count)


def write(folder: Path, content: str | bytes | None) -> None:
    """bad.yaml in a folder."""
    if content is not None:
        (folder / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
