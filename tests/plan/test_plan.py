"""`transformer2 plan`: published sizes, open arithmetic, the first change that fits, and fit's own check."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import grouped, make_llama
from safetensors.torch import load_file, save_file

from transformer2.cli import main
from transformer2.cli.compose import compose
from transformer2.cli.plan import available_bytes, complete
from transformer2.data import ExpertDataModule
from transformer2.errors import ConfigError, UserError
from transformer2.module import SVFReinforceModule
from transformer2.plan.advice import advise, changes
from transformer2.plan.job import TRAINER_STRATEGIES, Job, Strategy, job_of, strategy_of
from transformer2.plan.memory import memory
from transformer2.plan.seconds import DEVICES, decomposition, step_seconds, wire
from transformer2.plan.shape import KNOWN, ModelShape, model_shape
from transformer2.plan.terms import Term, total
from transformer2.policy import base_dtype
from transformer2.quantisation import KINDS

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
LLAMA70 = "meta-llama/Meta-Llama-3-70B-Instruct"
MLP = {"peft_type": "SVF", "target_modules": "mlp"}
ATTENTION = MLP | {"target_modules": "attention"}


def job(base: str = LLAMA, **model: Any) -> Job:
    given = {"base": base, "dtype": "bfloat16", "adapter": MLP, **grouped(**model)}
    sections = complete(SVFReinforceModule, given), complete(ExpertDataModule, {"task": "gsm8k", "batch_size": 256})
    return job_of(*sections)


@pytest.mark.parametrize(
    ("base", "billions"),
    [
        (LLAMA, 8.030),
        (LLAMA70, 70.554),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7.248),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.494),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.544),
        ("Qwen/Qwen2.5-3B-Instruct", 3.086),
        ("Qwen/Qwen2.5-7B-Instruct", 7.616),
    ],
)
def test_shipped_shapes_have_the_published_number_of_parameters(base: str, billions: float) -> None:
    assert base in KNOWN
    assert model_shape(base, MLP).params / 1e9 == pytest.approx(billions, abs=1e-3)


def test_weights_and_basis_are_the_known_arithmetic() -> None:
    """PERFORMANCE: MLP set, bf16: 8B 19.3 GB, on a 4-bit base 9.0; 70B 173 GB, 21.7 per GPU on 8."""

    def held(job: Job) -> float:
        return sum(t.value for t in memory(job).resident if t.part in ("weights", "basis")) / 1e9

    assert held(job()) == pytest.approx(19.3, abs=0.05)
    assert held(job().with_(quantisation=KINDS["nf4"])) == pytest.approx(9.0, abs=0.1)
    whole = job(LLAMA70)
    assert held(whole) == pytest.approx(173, abs=0.5)
    sharded = memory(whole.with_(strategy="zero3", gpus=8)).resident
    shards = [t for t in sharded if "/ ranks" in t.explain() and t.part != "optimizer"]
    assert total(shards) / 1e9 == pytest.approx(21.7, abs=0.1)


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "zero3_offload", "gpus": 8},
        {"strategy": "ddp", "gpus": 8, "form": "factored", "checkpointing": True},
        {"form": "merged", "elsewhere": True},
        {"svf": False, "rank": 16, "checkpointing": True},
        {"quantisation": KINDS["int8"]},
    ],
)
def test_the_arithmetic_is_open(change: dict[str, Any]) -> None:
    """The printed numbers, put together again, give the printed value."""
    planned, device = job().with_(**change), DEVICES["h100"]
    needed = memory(planned)
    terms = [*needed.resident, *needed.host, *(t for terms in needed.phases.values() for t in terms), wire(planned)]
    for term in [*terms, *step_seconds(planned, device), *decomposition(planned, device)]:
        _, formula, filled, value = re.split(r": | = ", term.explain("", 1).split("   (")[0])
        assert eval(filled, {"min": min, "max": max}) == pytest.approx(float(value), rel=0.01)
        assert not re.search(r"[a-z]{2}", re.sub("min|max", "", filled)) and "." not in formula.replace("1.25", "")


def test_the_first_change_that_fits_comes_in_order() -> None:
    def first(limit: float, **model: Any) -> list[str]:
        asked = job(**model)
        advised = advise(asked, limit * 1e9)
        assert advised is not None and memory(advised).peak <= limit * 1e9
        words = changes(asked, advised)
        return [word if "--config" in word else word.split()[0].removeprefix("--model.memory.") for word in words]

    def staged(limit: float) -> list[str]:
        asked = job(LLAMA70, micro_batch_tokens=768, max_rollout_rows=4).with_(strategy="ddp", gpus=8)
        advised = advise(asked, limit * 1e9)
        return [] if advised is None else changes(asked, advised)

    assert first(80, max_rollout_rows=64) == []
    assert first(40, max_rollout_rows=32) == ["micro_batch_tokens"]
    assert first(35, max_rollout_rows=4) == ["micro_batch_tokens"]
    assert first(24, max_rollout_rows=16, micro_batch_tokens=768) == ["activation_checkpointing", "merge_rollouts"]
    assert "--config conf/quantisation/nf4.yaml" in first(12, max_rollout_rows=16)
    assert (
        first(80, base=LLAMA70, micro_batch_tokens=768, max_rollout_rows=4)[-1] == "--config conf/quantisation/nf4.yaml"
    )
    assert staged(35)[-1] == "--config conf/strategy/zero3.yaml"
    assert staged(8)[-1] == "--config conf/strategy/zero3_offload.yaml"
    assert advise(job(), 4e9) is None


def test_advice_is_none_that_the_optimizer_refuses() -> None:
    """NaturalGradient takes the rows' own gradients, which recomputed activations do not give."""
    natural = {"class_path": "transformer2.module.natural.NaturalGradient"}
    asked = job(max_rollout_rows=16, micro_batch_tokens=768, optimizer=natural)
    assert asked.row_gradients and not job().row_gradients
    for name, row_gradients in {"DampedNatural": True, "NaturalGradient": False, "NotNaturalGradient": False}.items():
        assert job(optimizer={"class_path": f"own_classes.{name}"}).row_gradients is row_gradients
    advised = advise(asked, 24e9)
    assert advised is not None and not advised.checkpointing and memory(advised).peak <= 24e9


def test_lora_has_no_basis_and_never_merges() -> None:
    planned = memory(job(adapter={"peft_type": "LORA", "r": 16}))  # PEFT's own targets: q_proj, v_proj
    assert planned.part("basis") == 0 and planned.part("composed weights") == 0
    trained = 32 * 16 * (2 * 4096 + 4096 + 1024)
    assert planned.part("gradient") == 4 * trained


def test_rollouts_of_a_server_are_not_counted() -> None:
    here, there = job(), job(rollout="vllm")
    assert set(memory(there).phases) == {"update"} and memory(there).part("composed weights") == 0
    assert memory(there).peak_of("update") == memory(here).peak_of("update")
    seconds = step_seconds(there, DEVICES["h100"])
    assert seconds and not any(term.part == "rollout" for term in seconds)
    sharded = there.with_(strategy="zero3", gpus=8)
    assert wire(sharded).value < wire(here.with_(strategy="zero3", gpus=8)).value / 10  # no gathers for each token


def test_wires_and_ranks() -> None:
    whole = job().with_(gpus=8)
    assert wire(whole).value == 0
    assert wire(whole.with_(strategy="ddp")).value == pytest.approx(2 * 7 / 8 * 4 * 393216)
    assert wire(whole.with_(strategy="zero3")).value > 1e12
    offloaded = memory(whole.with_(strategy="zero3_offload"))
    assert total(offloaded.host) == pytest.approx(19.3e9, rel=0.01) and offloaded.part("basis") == 0
    assert total(step_seconds(whole.with_(strategy="ddp"), DEVICES["h100"])) < total(
        step_seconds(whole, DEVICES["h100"])
    )


@pytest.mark.parametrize(
    ("trainer", "strategy"),
    [
        ({}, None),
        ({"strategy": "ddp"}, "ddp"),
        ({"strategy": "deepspeed_stage_2"}, "zero2"),
        ({"strategy": "deepspeed_stage_3_offload"}, "zero3_offload"),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy", "init_args": {"stage": 3}}},
         "zero3"),
        ({"strategy": "ddp_find_unused_parameters_true"}, "ddp"),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"}}, "ddp"),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.SingleDeviceStrategy"}}, None),
    ],
)  # fmt: skip
def test_the_config_s_strategy_is_recognised(trainer: dict[str, Any], strategy: str | None) -> None:
    assert strategy_of(trainer) == strategy


@pytest.mark.parametrize("strategy", TRAINER_STRATEGIES[1:])
def test_every_shipped_strategy_is_planned_as_what_it_is(strategy: Strategy) -> None:
    assert strategy_of(compose([f"conf/strategy/{strategy}.yaml"], [], ["trainer"])["trainer"]) == strategy


HOURS = "hours, all 200 steps"


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "--config", "conf/llama8b_gsm8k.yaml", "--gpus", "8", "--gpu_memory", "80", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "ddp*" in out and "weights: params * b / ranks = 8.0303e9 * 2 / 1 = 16.1 GB" in out
    row = {line[:30].strip(): line[30:].split() for line in out.splitlines()}
    step, once, hours = (float(row[name][0]) for name in ("seconds a step", "decomposition, seconds once", HOURS))
    assert hours == pytest.approx((once + 200 * step) / 3600, rel=0.01)
    assert main(["plan", "--config", "conf/tiny_math.yaml", "--trainer.max_steps=-1", "--trainer.max_epochs=1"]) == 0
    assert "hours: not known, since epochs or time end the run" in capsys.readouterr().out
    own = ["--data.task", "toy_task.Wanting", "--data.task_options.letters", "abc"]  # which it cannot be made without
    assert main(["plan", "--config", "conf/tiny.yaml", *own]) == 0 and " + 4 tokens over" in capsys.readouterr().out
    folder = make_llama(tmp_path / "only_config")
    (folder / "model.safetensors").unlink()
    assert main(["plan", "--config", "conf/llama8b_gsm8k.yaml", "--model.base", str(folder)]) == 0  # no weights needed
    for bad in (
        ["--gpus", "0"],
        ["--device", "h1000"],
        ["--config", "conf/quantisation/int3.yaml"],
        ["--model.bsae", "x"],
        ["--mean_completion", "513"],
        ["--config", "conf/adapt_llama8b_math.yaml"],
    ):
        assert main(["plan", "--config", "conf/llama8b_gsm8k.yaml", *bad]) == 2
    assert main(["plan", "--config", "conf/llama8b_gsm8k.yaml", "--model.base", "meta-llama/Llama-9"]) == 2
    assert all(len(line.splitlines()) == 1 for line in capsys.readouterr().err.strip().splitlines())


def test_fit_refuses_what_cannot_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["fit", "--config", "conf/tiny_math.yaml", "--quiet", "--trainer.max_steps", "1", "--data.batch_size", "16"]
    run += ["--data.validation_limit", "8", "--data.test_limit", "8", "--run_dir"]
    monkeypatch.setattr("transformer2.cli.plan.available_bytes", lambda device: 30e6)
    monkeypatch.setattr("transformer2.cli.experiment.Experiment.fit", lambda self, *_: 0)  # what is not refused
    assert main([*run, str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "--model.memory.micro_batch_tokens" in error and "--no_preflight" in error and error.count("\n") == 1
    flags = re.findall(r"(--model\.[\w.]+) (\S+)", error)
    assert main([*run, str(tmp_path / "b"), *(word for flag in flags for word in flag)]) == 0  # the advice is right
    assert main([*run, str(tmp_path / "c"), "--no_preflight"]) == 0


def test_memory_of_this_machine() -> None:
    import torch

    available = available_bytes(torch.device("cpu"))
    assert available is not None and available > 1e8


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(ConfigError, match="SVF and LORA"):
        job(adapter={"peft_type": "IA3"})
    with pytest.raises(UserError, match=r"config\.json"):
        job("nobody/no-model")


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 96}
TINY = SMALL | {"num_attention_heads": 4}


@pytest.fixture
def shape_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelShape]:
    """The shape of a model with this config.json."""

    def shape(**source: Any) -> ModelShape:
        monkeypatch.setitem(KNOWN, "some/model", source)
        return model_shape("some/model", ATTENTION)

    return shape


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba"])
def test_a_family_without_what_is_counted_is_refused_in_one_line(
    family: str, shape_of: Callable[..., ModelShape]
) -> None:
    heads = {"num_heads": 4, "head_dim": 32} if family == "mamba2" else {}
    with pytest.raises(ConfigError, match="does not say what is needed to plan"):
        shape_of(model_type=family, **SMALL, **heads)


@pytest.mark.parametrize(
    ("family", "of_it", "kept"),
    [
        ("falcon", {"multi_query": True, "new_decoder_architecture": False}, 2 * 16),
        ("gpt_bigcode", {"n_inner": 64, "multi_query": True}, 2 * 16),
        ("gpt2", {}, 2 * 64),
        ("deepseek_v3", {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
                         "q_lora_rank": None, "first_k_dense_replace": 2, "intermediate_size": 64}, 24 + 8),
    ],
)  # fmt: skip
def test_the_cache_is_counted_as_the_model_keeps_it(
    family: str, of_it: dict[str, Any], kept: int, shape_of: Callable[..., ModelShape]
) -> None:
    shape = shape_of(model_type=family, **TINY, **of_it)
    assert (2 * shape.K, shape.notes) == (kept, ())


def test_a_cache_that_cannot_be_found_out_is_said_to_be_estimated(
    monkeypatch: pytest.MonkeyPatch, shape_of: Callable[..., ModelShape]
) -> None:
    monkeypatch.setattr("transformers.GPT2LMHeadModel.forward", lambda self, **_: 1 / 0)
    shape = shape_of(model_type="gpt2", **TINY)
    assert 2 * shape.K == 2 * 64 and "gpt2: the KV cache is estimated" in shape.notes[0]


def test_a_token_multiplies_its_experts_and_a_batch_reads_all(shape_of: Callable[..., ModelShape]) -> None:
    experts = {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2}
    shape = shape_of(model_type="mixtral", **TINY, **experts)
    assert shape.experts == 2 * 4 * 3 * 64 * 96 and shape.multiplied == shape.linear + shape.experts / 2
    dense = job()
    moe = dense.with_(shape=replace(dense.shape, experts=10**10, multiplied=2 * dense.shape.linear))
    for few, many in zip(*(step_seconds(j, DEVICES["rtx3060"]) for j in (dense, moe)), strict=True):
        assert many.value > few.value or "W'" in few.note


def test_weights_are_counted_in_the_dtype_that_they_are_stored_in(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "base")  # fp32
    config = json.loads((folder / "config.json").read_text())
    assert model_shape(str(folder), MLP).dtype_bytes == 4

    def said(**dtype: str) -> ModelShape:
        kept = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
        (folder / "config.json").write_text(json.dumps(kept | dtype))
        return model_shape(str(folder), MLP)

    assert said(dtype="bfloat16").dtype_bytes == 2
    assert said().dtype_bytes == 4 and not said().notes  # read from the files
    with pytest.raises(UserError, match="cannot be built from its config"):
        said(dtype="float8_e4m3fn")
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors")
    assert said().dtype_bytes == 2 == base_dtype(str(folder)).itemsize
    (folder / "model.safetensors").unlink()
    assert said().dtype_bytes == 4 and "float32 is assumed" in said().notes[0]


def test_a_term_reads_its_formula_and_its_numbers_off_its_function() -> None:
    a, shape = 4.0, model_shape(LLAMA, MLP)
    term = Term("x", lambda: min(a, shape.heads) / 2, "a note")
    assert term.value == 2
    assert term.explain("s", 1) == "x: min(a, heads) / 2 = min(4, 32) / 2 = 2 s   (a note)"


@pytest.mark.parametrize(
    ("config", "cards", "memory", "strategy"),
    [
        ("llama8b_gsm8k", 1, 80, "single"),
        ("llama70b_gsm8k", 8, 80, "zero3"),
        ("mistral7b_gsm8k", 1, 80, "single"),
        ("llava8b_textvqa", 1, 80, "single"),
        ("llava8b_textvqa_nf4", 1, 24, "single"),
    ],
)
def test_shipped_configs_fit_the_cards_they_are_written_for(config, cards, memory, strategy, capsys):
    assert main(["plan", "--config", f"conf/{config}.yaml", "--gpus", str(cards), "--gpu_memory", str(memory)]) == 0
    out = capsys.readouterr().out
    assert f"{strategy}: fits" in out
    assert ("pictures a step: 2928 tokens each" in out) == ("llava" in config)
