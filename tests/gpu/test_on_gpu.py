"""What a CPU cannot show: the same code on a CUDA device gives what it gives here. `nox -s gpu` runs this.

Speed and memory are benchmarks/gpu_check.py's.
"""

import json

import pytest
import torch
from fakes import byte_tokenizer, make_llama
from peft import PeftModel, get_peft_model
from svf_families import build, oracle, prompt, randomize
from torch import nn

from transformer2 import SVFConfig, z_rows
from transformer2.cli import main
from transformer2.data import collate, render
from transformer2.policy import load_base, load_tokenizer, reference
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.svf.basis import basis_error, compute_basis
from transformer2.svf.decompose import decompose
from transformer2.svf.forms import compose_weight
from transformer2.svf.layer import SVFLayer, svf_layers
from transformer2.svf.modes import merged_for_rollout
from transformer2.types import Example

DEVICE = "cuda"
FORMS = ("delta", "factored")
SHAPES = ((896, 256), (256, 896), (256, 256), (64, 256))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def base():
    return build("llama").to(DEVICE)


@pytest.fixture
def policy(base):
    return get_peft_model(base, SVFConfig(target_modules="all-linear"))


def relative(value, exact):
    return float((value.detach().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_decomposition(shape):
    weight_mn = torch.randn(shape, device=DEVICE) * torch.logspace(0, -3, shape[1], device=DEVICE)
    basis, here = compute_basis(weight_mn), compute_basis(weight_mn.cpu())
    assert basis.vectors_RR.device.type == DEVICE and basis.side == here.side
    torch.testing.assert_close(basis.sigma_R.cpu(), here.sigma_R, rtol=1e-5, atol=1e-7)
    assert max(basis_error(basis, weight_mn)) < 1e-5


def test_decompose_fills_the_cache_that_a_policy_reads(tmp_path):
    folder = make_llama(tmp_path / "base")
    done = decompose(folder, "mlp", cache_dir=tmp_path / "cache", dtype="bfloat16", device=DEVICE, progress=False)
    assert done["built"] == done["matrices"] > 0
    model = load_base(str(folder), "bfloat16").to(DEVICE)
    policy = get_peft_model(model, SVFConfig(target_modules="mlp", basis_cache=str(tmp_path / "cache")))
    assert policy.base_model._bases.cache.counts["reused"] == done["matrices"]
    assert {layer.svf_basis.device.type for _, layer in svf_layers(policy)} == {DEVICE}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forms(form, shape, dtype):
    m, n = shape
    linear = nn.Linear(n, m, bias=False, device=DEVICE, dtype=dtype).requires_grad_(False)
    basis = compute_basis(linear.weight)
    layer = SVFLayer(linear, "default", SVFConfig(form=form), basis)
    (trained,) = layer.parameters_of("default")
    with torch.no_grad():
        trained.normal_(0.0, 0.1)
    x_Tn, grad_Tm = torch.randn(64, n, device=DEVICE, dtype=dtype), torch.randn(64, m, device=DEVICE, dtype=dtype)
    delta_R = trained.detach().double().requires_grad_()
    exact_mn = compose_weight(linear.weight.double(), basis.vectors_RR, delta_R, basis.side)
    exact_Tm = x_Tn.double() @ exact_mn.T
    y_Tm = layer(x_Tn)
    (dz_R,) = torch.autograd.grad(y_Tm, trained, grad_Tm)
    (exact_dz_R,) = torch.autograd.grad(exact_Tm, delta_R, grad_Tm.double())
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert relative(y_Tm, exact_Tm.detach()) < limit and relative(dz_R, exact_dz_R) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_the_base_is_exact_at_z_1(base, dtype):
    policy = get_peft_model(base.to(dtype), SVFConfig(target_modules="all-linear"))
    ids_BT = prompt().to(DEVICE)
    with reference(policy):
        logits_BTV = policy(input_ids=ids_BT).logits
    assert torch.equal(policy(input_ids=ids_BT).logits, logits_BTV)
    with z_rows(policy, torch.zeros(len(ids_BT), 1), ["default"]):
        assert torch.equal(policy(input_ids=ids_BT).logits, logits_BTV)


@torch.no_grad()
def test_z_rows(policy):
    """Each row of a mixed batch is the model whose weights are composed for it."""
    randomize(policy)
    ids_BT = prompt(2).to(DEVICE)
    with z_rows(policy, [[1.0], [0.0]], ["default"]):
        mixed_BTV = policy(input_ids=ids_BT).logits
    for row, model in enumerate((oracle("llama", policy.cpu()), build("llama"))):
        expected_BTV = model.to(DEVICE)(input_ids=ids_BT).logits
        torch.testing.assert_close(mixed_BTV[row], expected_BTV[row], rtol=1e-3, atol=1e-3)


def test_save_and_load(policy, tmp_path):
    """An expert trained on the device loads on the CPU and the other way round."""
    randomize(policy)
    policy.save_pretrained(tmp_path)
    here = PeftModel.from_pretrained(build("llama"), tmp_path)
    there = PeftModel.from_pretrained(build("llama").to(DEVICE), tmp_path)
    for (_, a), (_, b), (_, c) in zip(svf_layers(policy), svf_layers(here), svf_layers(there), strict=True):
        deltas = [layer.delta(["default"]) for layer in (a, b, c)]
        assert deltas[2].device.type == DEVICE and torch.equal(deltas[0].cpu(), deltas[1])
        assert torch.equal(deltas[0], deltas[2])


@pytest.fixture
def prompts(llama_folder):
    tokenizer = load_tokenizer(str(llama_folder))
    examples = [Example(f"t/{i}", ({"role": "user", "content": t},), "") for i, t in enumerate(["a", "bcd", "efghij"])]
    return collate(examples, [render(tokenizer, e) for e in examples], tokenizer.pad_token_id).to(DEVICE)


def test_rollouts(llama_folder, prompts):
    model = load_base(str(llama_folder), "float32").to(DEVICE)
    policy = get_peft_model(model, SVFConfig(target_modules="mlp"))
    randomize(policy, std=0.1)
    engine = HFEngine(byte_tokenizer(), eos_ids=[4])
    layers = [layer for _, layer in svf_layers(policy)]
    weights = [layer.base_layer.weight.clone() for layer in layers]
    with merged_for_rollout(policy) as merged:
        assert merged
        greedy = engine.generate(policy, prompts, Sampling(temperature=0.0, max_new_tokens=12), seed=0)
        ids_BT = policy.get_base_model().generate(
            input_ids=prompts.input_ids_BP, attention_mask=prompts.attention_mask_BP, do_sample=False,
            max_new_tokens=12, eos_token_id=4, pad_token_id=engine.pad_id,
        )  # fmt: skip
    expected_BC = ids_BT[:, prompts.input_ids_BP.shape[1] :]
    assert torch.equal(greedy.completion_ids_BC * greedy.completion_mask_BC, expected_BC * greedy.completion_mask_BC)
    assert all(torch.equal(w, layer.base_layer.weight) for w, layer in zip(weights, layers, strict=True))
    drawn = [engine.generate(policy, prompts, Sampling(max_new_tokens=12), seed=s).completion_ids_BC for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_fit(tmp_path):
    """The demo's configuration for three steps, from the command to the expert."""
    run = tmp_path / "run"
    small = ("--trainer.max_steps", "3", "--data.test_limit", "16", "--data.validation_limit", "16")
    accelerator = ("--trainer.accelerator", DEVICE, "--trainer.devices", "1")
    assert main(["fit", "--config", "conf/tiny_math.yaml", "--run_dir", str(run), "--quiet", *accelerator, *small]) == 0
    assert json.loads((run / "report.json").read_text())["n"] == 16
    assert (run / "expert" / "adapter_model.safetensors").is_file()
