"""`transformer2 fit` from the command to the files, on a real small Llama and real GSM8K rows."""

import json

import pytest
import torch
from fakes import make_llama
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from transformer2.cli import main

TAGS = {
    *(f"train/{name}" for name in ("reward", "loss", "kl", "entropy", "completion_length", "grad_norm")),
    *(f"time/{name}" for name in ("rollout", "verify", "logprobs", "backward")),
    *("val/accuracy", "val/accuracy_se", "reward/zero_std"),
}
SMALL = [
    *("--data.batch_size", "6", "--data.validation_limit", "4", "--data.test_limit", "4"),
    *("--model.sampling.max_new_tokens", "12", "--model.dtype", "float32"),
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.accelerator", "cpu", "--quiet"),
]
NO_CURVE = ["--trainer.logger", "false"]


def command(folder, data, *more):
    return [
        "fit",
        "--config",
        "conf/llama8b_gsm8k.yaml",
        "--model.base",
        folder,
        "--data.data_dir",
        data,
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory, llama_folder, some_rows):
    folder = tmp_path_factory.mktemp("runs") / "gsm8k"
    assert main(command(str(llama_folder), str(some_rows), "--run_dir", str(folder))) == 0
    return folder


def test_report_and_records(run):
    report = json.loads((run / "report.json").read_text())
    assert report["task"] == "gsm8k" and report["n"] == 4 and report["seeds"] == [0] and report["protocol"] == "clean"
    assert set(report["base"]) >= {"accuracy", "se"} and set(report["result"]) >= {"accuracy", "se"}
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert len(records) == 4 and all(r["id"].startswith("gsm8k/test/") and "completion" in r for r in records)


def test_tensorboard_tags(run):
    tags, scored = set(), []
    for file in run.glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        if "val/accuracy" in events.Tags()["scalars"]:
            scored += [e.step for e in events.Scalars("val/accuracy")]
        tags |= set(events.Tags()["scalars"]) | set(events.Tags()["histograms"]) | set(events.Tags()["tensors"])
    assert tags >= TAGS and sorted(scored) == [0, 1, 2]  # steps that were done
    assert any(t.startswith("z/model.layers.0.mlp") for t in tags)
    assert any(t.startswith("samples") for t in tags)


def test_the_expert_is_z_alone_and_loads_with_peft(run, llama_folder):
    saved = load_file(run / "expert" / "adapter_model.safetensors")
    assert len(saved) == 2 * 3 and all(k.endswith("svf_z.delta") and v.dtype == torch.float32 for k, v in saved.items())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), run / "expert")
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    config = json.loads((run / "expert" / "adapter_config.json").read_text())
    assert config["task"] == "gsm8k" and config["step"] in (1, 2) and config["base_fingerprint"] and config["sha256"]


def test_the_resolved_config_runs_again(run, tmp_path, llama_folder, some_rows):
    again = tmp_path / "again"
    assert main(["fit", "--config", str(run / "config.yaml"), "--run_dir", str(again), "--quiet"]) == 0
    assert json.loads((again / "report.json").read_text())["n"] == 4


def test_checkpoints_hold_no_base_weights(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert state and all(".svf_z." in key for key in state)


def test_a_run_folder_is_never_overwritten(run, llama_folder, some_rows, capsys):
    assert main(command(str(llama_folder), str(some_rows), "--run_dir", str(run))) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.lrr", "1"], "unknown config key model.lrr; did you mean model.optimizer.lr?"),
        (["--trainer.max_step", "1"], "did you mean trainer.max_steps?"),
        (["--model.optimizer.lr", "fast"], "model.optimizer.lr"),
        (["--model.loss.kl", "k4"], "model.loss.kl"),
        (["--model.loss.baseline", "rloo"], "num_completions >= 2"),
        (["--data.task", "gsm9k"], "did you mean 'gsm8k'"),
        (["--data.data_dir", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--model.base", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--model.base", "nobody/nothing-7b"], "give a local folder"),
        (["--model.adapter.target_module", "mlp"], "did you mean 'target_modules'"),
        (["--model.adapter.target_modules", "[nothing_proj]"], "nothing_proj"),
        (["--model.adapter.peft_type", "LORRA"], "did you mean 'LORA'"),
        (["--expert", "/no/expert"], "/no/expert"),
        (["--ckpt_path", "/no/such.ckpt"], "/no/such.ckpt does not exist"),
        (["--ckpt_path", "README.md"], "README.md is damaged or no checkpoint"),
        (["--trainer.accelerator", "cuda"], "the trainer cannot be built"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval must be an integer >= 1"),
        (["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"], "add one of --config conf/strategy/{ddp,"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(llama_folder, some_rows, tmp_path, capfd, more, message):
    args = command(str(llama_folder), str(some_rows), "--run_dir", str(tmp_path / "run"), *more)
    assert main(args) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("transformer2:")]
    assert len(error) == 1 and message in error[0]


def test_lora_is_a_baseline_through_the_same_step(tmp_path, some_rows):
    base = make_llama(tmp_path / "llama")
    lora = "{peft_type: LORA, r: 4, target_modules: [q_proj, v_proj]}"
    args = command(str(base), str(some_rows), "--run_dir", str(tmp_path / "run"), "--model.adapter", lora, *NO_CURVE)
    assert main(args) == 0
    assert any("lora_A" in k for k in load_file(tmp_path / "run" / "expert" / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    "more",
    [
        ["--config", "conf/preset/paper.yaml"],
        [
            "--model.dtype",
            "bfloat16",
            "--model.loss.kl",
            "k1",
            "--model.loss.kl_coef",
            "0.1",
            "--model.loss.baseline",
            "rloo",
            "--model.sampling.num_completions",
            "2",
        ],
    ],
    ids=["paper", "bfloat16-k1-rloo"],
)
def test_variants_run_on_the_embedded_model(tmp_path, more):
    small = [
        "--data.batch_size",
        "8",
        "--data.validation_limit",
        "4",
        "--data.test_limit",
        "4",
        "--trainer.max_steps",
        "2",
    ]
    command = ["fit", "--config", "conf/tiny_math.yaml", *more, *small, "--quiet", "--run_dir", str(tmp_path / "run")]
    assert main([*command, *NO_CURVE]) == 0
    saved = load_file(tmp_path / "run" / "expert" / "adapter_model.safetensors")
    assert all(v.dtype == torch.float32 and torch.isfinite(v).all() for v in saved.values())
    config = json.loads((tmp_path / "run" / "expert" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert any(v.ne(0).any() for v in saved.values())


def test_an_expert_says_how_it_is_scored(run, some_rows, tmp_path, capsys):
    small = [
        "--data.data_dir",
        str(some_rows),
        "--data.test_limit",
        "2",
        "--model.sampling.max_new_tokens",
        "4",
        "--quiet",
    ]
    assert main(["test", "--expert", str(run / "expert"), *small, "--run_dir", str(tmp_path / "t")]) == 0
    assert json.loads((tmp_path / "t" / "report.json").read_text())["task"] == "gsm8k"
    assert main(["test", "--expert", "/no/expert"]) == 2
    assert "--expert '/no/expert' does not exist" in capsys.readouterr().err


def test_without_tensorboard_a_run_still_succeeds(llama_folder, some_rows, tmp_path):
    args = command(str(llama_folder), str(some_rows), "--run_dir", str(tmp_path / "run"), "--trainer.logger", "false")
    assert main(args) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["details"]["training"]["curve"][0]["step"] == 0 and not (tmp_path / "run" / "figures").exists()


def test_validate_test_and_print_config(run, llama_folder, some_rows, tmp_path, capsys):
    common = command(str(llama_folder), str(some_rows), "--expert", str(run / "expert"))[1:]
    assert main(["validate", *common, "--run_dir", str(tmp_path / "v")]) == 0
    assert "validation split, n = 2" in (said := capsys.readouterr().out)
    assert (tmp_path / "v" / "validation.txt").read_text() == said  # so the folder holds a run
    assert main(["test", *common, "--run_dir", str(tmp_path / "t")]) == 0
    assert json.loads((tmp_path / "t" / "report.json").read_text())["n"] == 4
    assert main(["fit", *common, "--print_config", "--run_dir", str(tmp_path / "p")]) == 0
    assert "kl_coef: 0.1" in capsys.readouterr().out
    assert not (tmp_path / "p").exists()
