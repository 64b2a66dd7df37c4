"""Every shipped config is composed and instantiated: a key that no constructor takes fails here."""

from pathlib import Path

import pytest

from transformer2.cli.check import check
from transformer2.cli.compose import PACKAGED, compose
from transformer2.cli.experiment import Experiment
from transformer2.cli.keys import ADAPT_KEYS, KEYS
from transformer2.data import ExpertDataModule, UnseenTaskDataModule
from transformer2.policy import adapter_config

NEEDED = {  # what only the user knows, or the config that names a part as its base
    "jsonl.yaml": [("data.task_options.path", "my.jsonl")],
    "adapt_llama8b.yaml": [("data.task", "math")],
}
STUDIES = PACKAGED / "conf" / "paper"  # study files, and what their names stand for: tests/study
FILES = sorted((PACKAGED / "conf").rglob("*.yaml"))
CONFIGS = [path for path in FILES if STUDIES not in path.parents or path.name == "dispatch.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(PACKAGED)))
def test_config(path: Path, tmp_path: Path) -> None:
    adapt = path.name.startswith("adapt_")
    overrides = [("trainer.accelerator", "cpu"), *NEEDED.get(path.name, [])]
    config = compose([str(path)], overrides, ADAPT_KEYS if adapt else KEYS)
    if "ZeRO" in str(config.get("trainer")):
        pytest.importorskip("deepspeed", reason="DeepSpeed is installed on Linux alone")
    if path.parent.name == "conf":  # not a part of a config
        check(config, "adapt" if adapt else "fit", folders=False)
    data_class = UnseenTaskDataModule if adapt else ExpertDataModule
    own = {key: value for key, value in config.items() if key not in ("adapt", "strategy")}
    experiment = Experiment(own, tmp_path, quiet=True, data_class=data_class)
    expected = config.get("model", {}).get("optimizer", {}).get("init_args", {}).get("lr", 1e-2)
    assert experiment.module.rate["model.optimizer.lr"] == expected
    if adapter := config.get("model", {}).get("adapter"):
        adapter_config(adapter)
    assert "model:" in experiment.yaml()


def test_the_issue_s_configs_are_there() -> None:
    names = {p.name for p in CONFIGS}
    assert names >= {
        "tiny_math.yaml",
        "tiny_code.yaml",
        "tiny_reasoning.yaml",
        "llama8b_gsm8k.yaml",
        "llama8b_mbpp_pro.yaml",
        "llama8b_arc_easy.yaml",
        "llama70b_gsm8k.yaml",
        "mistral7b_gsm8k.yaml",
        "adapt_llama8b_math.yaml",
        "adapt_llama8b_humaneval.yaml",
        "adapt_llama8b_arc_challenge.yaml",
        "mistral7b_mbpp_pro.yaml",
        "mistral7b_arc_easy.yaml",
        "qwen05b_gsm8k.yaml",
        "qwen15b_gsm8k.yaml",
        "qwen3b_gsm8k.yaml",
        "qwen7b_gsm8k.yaml",
    }


@pytest.mark.parametrize(
    ("own", "taken"),
    [
        ("own_classes.ModelCheckpoint", None),
        ("own_classes.Monitoring", None),
        ("own_classes.BestExpert", "ExpertCheckpoint"),
        ("TQDMProgressBar", "TrainingBar"),
    ],
)
def test_ours_make_room_for_a_class_not_for_a_name(own: str, taken: str | None, tmp_path: Path) -> None:
    config = compose(["conf/tiny_math.yaml"], [("trainer.callbacks", f"[{{class_path: {own}}}]")], KEYS)
    check(config, "fit")
    mine, *ours = Experiment(config, tmp_path).trainer.callbacks  # type: ignore[attr-defined]
    assert type(mine).__name__ == own.rpartition(".")[2]
    names = {"ExpertCheckpoint", "Monitoring", "PeerWatchdog", "LastCheckpoint", "TrainingBar"}
    assert {type(c).__name__ for c in ours} == names - {taken}
