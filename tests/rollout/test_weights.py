"""What a sampler with weights of its own is told, put together again as its worker does it."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from transformer2.policy import build_policy, reference
from transformer2.rollout.server import ON_SERVER
from transformer2.rollout.weights import active_deltas, composed, weights_and_bases
from transformer2.svf.layer import svf_layers, tuned_layers
from transformer2.svf.modes import merged_for_rollout

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, intermediate_size=48, num_key_value_heads=2)),
    "transposed weights": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    "a parent inside a parent": lambda: OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32)),
}


class Worker:
    """A vLLM worker whose model is a transformers one: loads by checkpoint name."""

    device = torch.device("cpu")

    def __init__(self, model):
        self.model = model

    def get_model(self):
        return self

    def load_weights(self, weights):
        own = dict(self.model.named_parameters())
        for name, value in weights:
            assert own[name].shape == value.shape, name
            own[name].data.copy_(value)


@pytest.fixture
def extension():
    spec = spec_from_file_location("transformer2_worker", ON_SERVER / "transformer2_worker.py")
    module = module_from_spec(spec)
    sys.modules["transformer2_worker"] = module
    yield (spec.loader.exec_module(module), module)[1]
    del sys.modules["transformer2_worker"]


def policy_of(make):
    torch.manual_seed(0)
    base = make().eval()
    policy = build_policy(base, {"target_modules": "all-linear", "basis_cache": "off"})
    for _, layer in svf_layers(policy):
        layer.parameters_of("default")[0].data.normal_(0, 0.3)
    torch.manual_seed(0)
    return policy, make().eval()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("sync", ["z", "merged"])
def test_the_worker_ends_with_the_policys_weights(make, sync, extension, tmp_path) -> None:
    from safetensors.torch import save_file

    policy, served = policy_of(make)
    worker = type("W", (extension.SVFWorker, Worker), {})(served)
    extension.find_spec = lambda name: None  # no vLLM here: its older way to load
    layers, ids = tuned_layers(policy), torch.arange(12)[None]

    def call(method, tensors):
        path = tmp_path / f"{method}.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        getattr(worker, method)(str(path), "file")

    def send():
        deltas = active_deltas(layers)
        if sync == "z":
            call("svf_set", deltas)
        else:
            for part in composed(policy, layers, deltas, deltas):
                call("svf_load", part)

    with torch.no_grad():
        base = served(ids).logits
        worker.svf_start()
        for part in weights_and_bases(policy, layers, wanted=True):
            call("svf_keep", part)
        send()
        with merged_for_rollout(policy):
            expected = policy(ids).logits
        assert torch.allclose(served(ids).logits, expected, atol=1e-5) and not torch.allclose(base, expected, atol=1e-3)
        with reference(policy):
            send()
        assert torch.equal(served(ids).logits, base), "z = 1 is the base, bit for bit"
