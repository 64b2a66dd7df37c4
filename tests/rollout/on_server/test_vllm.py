"""Rollouts by a real vLLM server (CPU build), against the trainer's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import transformer2
from transformer2 import tasks, tiny
from transformer2.data.prompts import collate, render
from transformer2.errors import ConfigError, UserError
from transformer2.policy import build_policy, hidden_states, lm_head, load_base, load_tokenizer, reference
from transformer2.rl.logprobs import score_tokens
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.server import Client, Server, VLLMOptions
from transformer2.rollout.vllm import VLLMEngine
from transformer2.svf.layer import svf_layers
from transformer2.types import PromptBatch

pytestmark = pytest.mark.vllm
GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
TARGETS = {"all": "all-linear", "part of what vLLM fuses": ["q_proj", "v_proj", "up_proj"]}


@pytest.fixture(scope="module")
def prompts() -> PromptBatch:
    tokenizer = load_tokenizer("tiny")
    examples = tasks.get("tiny_math").examples("validation")[:24] + tasks.get("tiny_code").examples("validation")[:24]
    return collate(examples, [render(tokenizer, e) for e in examples], 0)


def policy_with(targets, seed: int, std: float = 0.2) -> PeftModel:
    policy = build_policy(load_base("tiny", "float32"), {"target_modules": targets, "basis_cache": "off"})
    move(policy, seed, std)
    return policy


def move(policy: PeftModel, seed: int, std: float = 0.2) -> None:
    torch.manual_seed(seed)
    for _, layer in svf_layers(policy):
        layer.parameters_of("default")[0].data.normal_(0, std)


def engines(policy: PeftModel, server: Server, **options) -> tuple[HFEngine, VLLMEngine]:
    tokenizer = load_tokenizer("tiny")
    there = VLLMEngine(tokenizer, [3], "tiny", policy, VLLMOptions(url=server.url, **options))
    return HFEngine(tokenizer, [3], merge=True), there


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("sync", ["z", "merged"])
@pytest.mark.parametrize("by_file", [True, False], ids=["files", "http"])
def test_greedy_tokens_are_the_trainers_after_either_sync(server, prompts, tmp_path, sync, targets, by_file) -> None:
    policy = policy_with(targets, seed=0)
    options = {"shared_folder": str(tmp_path)} if by_file else {}
    here, there = engines(policy, server, sync=sync, bucket_mib=1, **options)
    drawn = []
    for step in range(3):  # each step another z, and the base in between
        move(policy, seed=step)
        expected = here.generate(policy, prompts, GREEDY, 0)
        assert there.generate(policy, prompts, GREEDY, 0).completions == expected.completions
        drawn.append(expected.completions)
    with reference(policy):
        base = here.generate(policy, prompts, GREEDY, 0)
        rollouts = there.generate(policy, prompts, GREEDY, 0)
    assert rollouts.completions == base.completions
    assert torch.equal(rollouts.completion_ids_BC, base.completion_ids_BC), "EOS included"
    assert torch.equal(rollouts.finished_B, base.finished_B) and base.finished_B.any()
    assert len({*drawn, base.completions}) == 4, "every z has completions of its own, or nothing was tested"
    assert not list(tmp_path.iterdir())


def test_samplers_logprobs_are_the_policys(server, prompts) -> None:
    policy = policy_with("all-linear", seed=1)
    _, there = engines(policy, server)
    for temperature in (1.0, 0.7):
        rollouts = there.generate(policy, prompts, Sampling(temperature, max_new_tokens=16), seed=5)
        mask_BC = rollouts.completion_mask_BC.bool()
        hidden_BTD = hidden_states(
            policy,
            torch.cat([rollouts.prompt_ids_BP, rollouts.completion_ids_BC], 1),
            torch.cat([rollouts.prompt_mask_BP, rollouts.completion_mask_BC], 1),
        )
        hidden_ND = hidden_BTD[:, rollouts.prompt_ids_BP.shape[1] - 1 : -1][mask_BC]
        ids_N = rollouts.completion_ids_BC[mask_BC]
        ours = score_tokens(hidden_ND, ids_N, lm_head(policy), temperature=temperature, chunk=64).logprobs_N
        assert torch.allclose(rollouts.logprobs_BC[mask_BC], ours, atol=1e-4)


def test_rows_draw_for_themselves_and_again_alike(server, prompts) -> None:
    policy = policy_with("all-linear", seed=1, std=0.01)
    _, there = engines(policy, server)
    twice = PromptBatch(prompts.examples[:8], prompts.input_ids_BP[:8], prompts.attention_mask_BP[:8], tuple(range(8)))
    twice = twice.repeat(4)
    sampling = Sampling(1.0, max_new_tokens=16)
    first = there.generate(policy, twice, sampling, seed=7).completions
    assert there.generate(policy, twice, sampling, seed=7).completions == first
    assert there.generate(policy, twice, sampling, seed=8).completions != first
    assert sum(len(set(first[i : i + 4])) for i in range(0, 32, 4)) > 16, "copies of a prompt are different samples"


@pytest.mark.parametrize("stop", [["####"], ["= 1", " - "], ["return"], ["<|answer|>", 15], ["no such text"]], ids=str)
def test_stop_strings_and_ids_end_what_they_end_here(server, prompts, stop) -> None:
    policy, tokenizer = policy_with("all-linear", seed=1, std=0.01), load_tokenizer("tiny")
    there = VLLMEngine(tokenizer, [3], "tiny", policy, VLLMOptions(url=server.url), stop=stop)
    expected = HFEngine(tokenizer, [3], merge=True, stop=stop).generate(policy, prompts, GREEDY, 0)
    drawn = there.generate(policy, prompts, GREEDY, 0)
    assert drawn.completions == expected.completions
    assert torch.equal(drawn.completion_ids_BC, expected.completion_ids_BC)
    assert torch.equal(drawn.completion_mask_BC, expected.completion_mask_BC)
    assert torch.equal(drawn.finished_B, expected.finished_B)


@pytest.mark.parametrize("sync", ["z", "merged"])
def test_a_run_does_not_see_the_one_before_it(server, prompts, sync) -> None:
    """Narrow targets after wide ones: what the first run tuned and the second does not is the base again."""
    wide = policy_with("all-linear", seed=0)
    engines(wide, server)[1].generate(wide, prompts, GREEDY, 0)
    narrow = policy_with(["q_proj"], seed=1)
    here, there = engines(narrow, server, sync=sync)
    expected = here.generate(narrow, prompts, GREEDY, 0)
    assert there.generate(narrow, prompts, GREEDY, 0).completions == expected.completions


def test_z_alone_is_sent_and_only_what_changed(server, prompts) -> None:
    policy = policy_with("all-linear", seed=2)
    _, there = engines(policy, server)
    there.sync(policy)
    sizes: list[tuple[str, int]] = []
    post = there._call
    there._call = lambda method, *args: (sizes.append((method, len(args[0]))), post(method, *args))[1]
    there.sync(policy)
    assert sizes == [], "nothing changed"
    _, layer = svf_layers(policy)[0]
    layer.parameters_of("default")[0].data.add_(0.1)
    there.sync(policy)
    ((method, size),) = sizes
    r = min(layer.in_features, layer.out_features)
    assert method == "svf_set" and 4 * r < size * 3 / 4 < 4 * r + 200, "one vector in base64, and a header"


def test_rows_of_different_z_are_refused(server, prompts) -> None:
    policy = policy_with("all-linear", seed=2)
    _, there = engines(policy, server)
    rows = transformer2.z_rows(policy, [[1.0]] * len(prompts), ["default"])
    with rows, pytest.raises(UserError, match="rollout: hf"):
        there.generate(policy, prompts, GREEDY, 0)


def test_what_cannot_serve_is_refused_in_one_line(server, tmp_path) -> None:
    with pytest.raises(UserError, match=r"does not answer .*is model\.vllm\.url right"):
        Client("http://127.0.0.1:9", 1).request("/health")
    with pytest.raises(ConfigError, match="has no vLLM; install it"):
        Server(VLLMOptions(python=sys.executable), "x", "float32", on_gpu=False)
    with pytest.raises(ConfigError, match=r"the vLLM server ended: .*its log is"):
        Server(VLLMOptions(args=["--max-model-len", "none"]), str(tiny.model_path()), "float32", on_gpu=False)
    lora = build_policy(load_base("tiny"), {"peft_type": "LORA", "target_modules": ["q_proj"]})
    with pytest.raises(ConfigError, match="need an SVF adapter"):
        VLLMEngine(load_tokenizer("tiny"), [3], "tiny", lora, VLLMOptions(url=server.url))


def test_a_server_that_dies_is_said_and_its_log_is_kept(prompts) -> None:
    policy = policy_with("all-linear", seed=2)
    there = VLLMEngine(load_tokenizer("tiny"), [3], str(tiny.model_path()), policy, VLLMOptions())
    os.kill(there.server.process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"vLLM failed: .*its log is ") as failure:
        there.generate(policy, prompts, GREEDY, 0)
    log = Path(str(failure.value).rpartition("its log is ")[2])
    there.server.stop()
    assert log.exists()
    shutil.rmtree(log.parent)


def fit(tmp_path: Path, *flags: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "transformer2",
        "fit",
        "--config",
        "conf/tiny_math.yaml",
        "--run_dir",
        str(tmp_path),
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / "report.json").read_text())


def test_fit_improves_as_with_the_default_engine(tmp_path) -> None:
    """The README's run, 40 steps of it, with rollouts by a server that `fit` itself starts and ends."""
    steps = ("--trainer.max_steps", "40", "--trainer.val_check_interval", "10")
    report = fit(tmp_path / "vllm", "--config", "conf/rollout/vllm.yaml", *steps)
    default = fit(tmp_path / "hf", *steps)
    gain = report["result"]["accuracy"] - report["base"]["accuracy"]
    expected = default["result"]["accuracy"] - default["base"]["accuracy"]
    print(f"gain by vLLM rollouts {100 * gain:.1f}, by the default engine {100 * expected:.1f} points")
    assert report["base"] == default["base"], "greedy answers of the base are the same"
    assert expected > 0.1 and abs(gain - expected) < 0.08
    assert logged(tmp_path / "vllm", "rollout/mismatch")[-1] < 1e-3
    assert max(logged(tmp_path / "vllm", "time/weight_sync")) > 0


STRATEGIES = {
    "ddp": ("--config", "conf/strategy/ddp.yaml"),
    "zero3": ("--config", "conf/strategy/zero3.yaml", "--trainer.strategy.init_args.whole_below", "0"),
}


@pytest.mark.parametrize("flags", STRATEGIES.values(), ids=STRATEGIES)
def test_two_processes_share_one_server(server, tmp_path, flags) -> None:
    """Rank 0 sends the weights, shards included; the rewards are those of one process."""
    if "zero3" in flags[1]:
        pytest.importorskip("deepspeed")
    short = ("--trainer.max_steps", "3", "--data.validation_limit", "16", "--data.test_limit", "32")
    short += ("--config", "conf/rollout/vllm.yaml", "--model.vllm.url", server.url)
    one = fit(tmp_path / "one", *short)
    two = fit(tmp_path / "two", *short, *flags, "--trainer.devices", "2")
    assert two["base"] == one["base"] and two["result"] == one["result"]
    rewards = [logged(tmp_path / name, "train/reward") for name in ("one", "two")]
    assert rewards[0] == pytest.approx(rewards[1], abs=2 / 64), "but for a token at a tie"


def logged(folder: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_a_killed_trainer_takes_its_server_along(tmp_path) -> None:
    code = (
        "import sys, time; from transformer2.rollout.server import Server, VLLMOptions; from transformer2 import tiny\n"
        "s = Server(VLLMOptions(), str(tiny.model_path()), 'float32', on_gpu=False)\n"
        "print(s.url, s.process.pid, flush=True); time.sleep(600)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    url, pid = trainer.stdout.readline().split()
    assert urllib.request.urlopen(f"{url}/health").status == 200
    trainer.kill()
    trainer.wait()
    for _ in range(60):
        if not any(group_of(p) == int(pid) for p in Path("/proc").iterdir() if p.name.isdigit()):
            return
        time.sleep(0.5)
    pytest.fail("the server outlived its trainer by 30 s")


def group_of(process: Path) -> int:
    try:
        stat = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return int(stat[2]) if stat[0] != "Z" else -1
