"""TRL's GRPOTrainer trains SVF through `peft_config`: it learns, its reference is right, its files are experts.

The demands are those that PEFT and TRL make of a tuner that lives outside PEFT (numbers as in
tests/svf/test_demands.py).
"""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import transformer2
from transformer2.errors import UserError
from transformer2.svf.layer import svf_layers
from transformer2.tiny import model_path

pytestmark = pytest.mark.integration

ALL = {"target_modules": "all-linear"}


def early_letter(completions, **_):
    """1 when the completion begins with a character of the first half of the alphabet of bytes."""
    return [float("" < c[0]["content"][:1] < "h") for c in completions]


@pytest.fixture(scope="module", autouse=True)
def trl():
    """Imported late: collecting the fast suite does not wait for it."""
    return pytest.importorskip("trl")


def base(llama, **kwargs):
    return AutoModelForCausalLM.from_pretrained(llama, **kwargs)


def grpo(model, tokenizer_folder, out, peft_config=None, reward=early_letter, prompts=None, **options):
    """A GRPOTrainer on the CPU, in fp32 unless asked otherwise."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    args = {
        "per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 4, "max_steps": 3,
        "learning_rate": 0.05, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "bf16": False, "activation_checkpointing": False, "use_cpu": True, "report_to": [], "disable_tqdm": True,
        **options,
    }  # fmt: skip
    return GRPOTrainer(
        model,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(out), **args),
        train_dataset=datasets.Dataset.from_dict(
            {"prompt": prompts or [[{"role": "user", "content": f"say {i}"}] for i in range(64)]}
        ),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def ids():
    return torch.arange(5, 17).view(2, 6)


def randomize(model, scale=0.3, adapter="default"):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, layer in svf_layers(model):
            delta_R = layer.svf_z[adapter].delta
            delta_R.copy_(torch.randn(delta_R.shape, generator=generator) * scale)


@pytest.fixture(scope="module")
def trained(llama, tmp_path_factory):
    """A run of 30 steps, saved by the trainer."""
    out = tmp_path_factory.mktemp("grpo")
    config = transformer2.SVFConfig(**ALL)
    trainer = grpo(base(llama), llama, out, config, max_steps=30, save_strategy="steps", save_steps=15)
    trainer.train()
    trainer.save_model(str(out / "expert"))
    return trainer, out


# ---------------------------------------------------------------- it learns, and what it saves is an expert


def test_grpo_improves_the_reward_and_changes_z_alone(trained, llama):
    trainer, _ = trained
    rewards = logged(trainer, "reward")
    # Seeds 0-5 went from 0.41-0.55 to at least 0.92.
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25
    before = dict(base(llama).named_parameters())
    for name, parameter in trainer.model.get_base_model().named_parameters():
        if ".svf_" in name:
            assert parameter.requires_grad == (".delta" in name)
        else:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_2_what_the_trainer_saves_loads_with_peft(trained, llama, low_cpu_mem_usage):
    trainer, out = trained
    expected = trainer.model(ids()).logits
    loaded = PeftModel.from_pretrained(base(llama), out / "expert", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(ids()).logits, expected)
    assert not torch.allclose(base(llama)(ids()).logits, expected, atol=0.1)
    assert torch.equal(AutoPeftModelForCausalLM.from_pretrained(out / "expert")(ids()).logits, expected)


def test_5_the_expert_folder_holds_z_alone_and_is_read_as_an_expert(trained):
    trainer, out = trained
    layers = svf_layers(trainer.model)
    for saved in (out / "expert", out / "checkpoint-15", out / "checkpoint-30"):
        weights = load_file(saved / "adapter_model.safetensors")
        assert weights.keys() == {f"{name}.svf_z.delta" for name, _ in layers}
        assert all(w.dtype == torch.float32 for w in weights.values())
        config = json.loads((saved / "adapter_config.json").read_text())
        assert config["peft_type"] == "SVF" and config["sha256"] and config["base_fingerprint"]
        assert config["target_modules"] == "all-linear"
        # The expert reader checks the sha256, names and shapes.
        (expert,) = transformer2.load_experts([saved])
        assert len(expert.deltas) == len(layers)
        assert "SVF" in (saved / "README.md").read_text()


def test_a_run_resumes_from_the_trainers_checkpoint(trained, llama, tmp_path):
    _, out = trained
    again = grpo(base(llama), llama, tmp_path, transformer2.SVFConfig(**ALL), max_steps=16)
    seen = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            seen.update({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})

    again.add_callback(Look())
    again.train(resume_from_checkpoint=str(out / "checkpoint-15"))
    saved = load_file(out / "checkpoint-15" / "adapter_model.safetensors")
    assert again.state.global_step == 16 and len(seen) == len(saved)
    assert all(torch.equal(p, saved[name.replace(".default", "")]) for name, p in seen.items())


def test_grpo_runs_on_the_embedded_model(tmp_path):
    """Short prompts: its context is small."""
    trainer = grpo(
        base(model_path(), dtype=torch.float32), model_path(), tmp_path, transformer2.SVFConfig(),
        reward=lambda completions, **_: [len(c) / 10 for c in completions], prompts=["How many ?"] * 64,
    )  # fmt: skip
    trainer.train()
    assert len(logged(trainer, "reward")) == 3 and logged(trainer, "grad_norm")[0] > 0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


# ---------------------------------------------------------------- 1: the reference


def test_1_the_kl_of_a_fresh_adapter_starts_at_zero(llama, tmp_path):
    trainer = grpo(base(llama), llama, tmp_path, transformer2.SVFConfig(**ALL), beta=0.1)
    trainer.train()
    kl = logged(trainer, "kl")
    assert kl[0] == 0.0 and kl[-1] > 1e-4


def test_1_the_reference_of_a_trained_adapter_is_its_copy(llama, tmp_path, trl):
    """TRL copies by parameter name; a name it does not find silently leaves the copy at z = 1."""
    policy = get_peft_model(base(llama), transformer2.SVFConfig(**ALL))
    randomize(policy)
    at_start = policy(ids()).logits.detach()
    trainer = grpo(policy, llama, tmp_path, beta=0.1)
    trainer.train()
    kl = logged(trainer, "kl")
    assert kl[0] == 0.0 and kl[-1] > 1e-4
    assert not torch.allclose(policy(ids()).logits, at_start, atol=1e-3)
    with trl.trainer.grpo_trainer.use_adapter(policy, "ref"):
        assert torch.equal(policy(ids()).logits, at_start)
    with trl.trainer.grpo_trainer.use_adapter(policy, None):
        assert torch.equal(policy(ids()).logits, base(llama)(ids()).logits)
    # The copy neither trains nor stays active, and the adapter saved at the top is the trained one.
    assert {n.split(".")[-2] for n, p in policy.named_parameters() if p.requires_grad} == {"default"}
    trainer.save_model(str(tmp_path / "expert"))
    loaded = PeftModel.from_pretrained(base(llama), tmp_path / "expert")
    assert torch.equal(loaded(ids()).logits, policy(ids()).logits)


# ---------------------------------------------------------------- 3, 6: dtypes


def test_3_a_bf16_base_under_trls_own_settings(llama, tmp_path):
    """bf16 and gradient checkpointing are what TRL runs with when nobody says otherwise."""
    trainer = grpo(
        base(llama, dtype=torch.bfloat16), llama, tmp_path, transformer2.SVFConfig(**ALL), beta=0.1,
        bf16=True, activation_checkpointing=True,
    )  # fmt: skip
    trainer.train()
    z = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() and p.abs().max() > 0 for p in z)
    assert logged(trainer, "kl")[0] == 0.0


def test_6_trainables_cast_to_bf16_as_on_a_quantised_base(llama, tmp_path):
    model = base(llama)
    model.is_loaded_in_8bit = True  # what TRL asks before it casts
    trainer = grpo(model, llama, tmp_path, transformer2.SVFConfig(**ALL), learning_rate=1e-3)
    model.is_loaded_in_8bit = False
    z = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.bfloat16 for p in z)
    trainer.train()
    # AdamW moves a coordinate by about lr a step; as z itself, 1 + 1e-3 would round back to 1.
    assert all(0 < p.detach().abs().max() < 0.01 for p in z)
    trainer.save_model(str(tmp_path / "expert"))
    saved = load_file(tmp_path / "expert" / "adapter_model.safetensors")
    assert all(w.dtype == torch.float32 and w.abs().max() > 0 for w in saved.values())


# ---------------------------------------------------------------- 4, 5: the way to vLLM


def test_4_and_5_weights_streamed_to_vllm_are_the_merged_model(llama, tmp_path):
    """TRL's own walk over the parameters, into a fresh model in place of vLLM."""
    generation = pytest.importorskip("trl.generation.vllm_generation")
    policy = get_peft_model(base(llama), transformer2.SVFConfig(form="factored", **ALL))
    randomize(policy)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    expected = policy(ids()).logits
    sender = SimpleNamespace(
        model=policy, _dist=SimpleNamespace(gather_params=lambda params: nullcontext(), is_fsdp=False)
    )
    sender._fix_param_name_to_vllm = generation.VLLMGeneration._fix_param_name_to_vllm.__get__(sender)
    for _ in range(2):  # TRL walks once for the metadata and once for the weights
        streamed = {n: p.clone() for n, p in generation.VLLMGeneration._iter_named_params(sender)}
    engine = base(llama)
    assert streamed.keys() == dict(engine.named_parameters()).keys()
    engine.load_state_dict(streamed, strict=False)
    torch.testing.assert_close(engine(ids()).logits, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters())


# ---------------------------------------------------------------- 7, 8, 10: configs


@pytest.mark.parametrize(
    "targets", ["mlp", ["attention"], {"up_proj", "down_proj"}, r".*layers\.1\.self_attn\.q_proj"], ids=str
)
def test_7_every_way_to_name_modules_trains(llama, tmp_path, targets):
    trainer = grpo(base(llama), llama, tmp_path, transformer2.SVFConfig(target_modules=targets), max_steps=1)
    trainer.train()
    z = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert z and all(p.abs().max() > 0 for p in z.values())
    trainer.save_model(str(tmp_path / "expert"))
    loaded = PeftModel.from_pretrained(base(llama), tmp_path / "expert")
    assert torch.equal(loaded(ids()).logits, trainer.model(ids()).logits)


def test_8_lm_head_is_refused_before_training(llama, tmp_path):
    with pytest.raises(UserError, match="lm_head"):
        grpo(base(llama), llama, tmp_path, transformer2.SVFConfig(target_modules=["lm_head"]))


def test_10_trls_command_line_knows_lora_only(trl):
    """Why the docs say: use the Python API. When this fails, TRL has learnt more and the docs can say so."""
    assert type(trl.get_peft_config(trl.ModelConfig(use_peft=True))) is LoraConfig
