"""Many families through the whole of the step's model side: drawn as transformers draws, scored as a whole pass scores,
merged and unmerged without a trace; or refused by name."""

import shutil

import pytest
import torch
from causal_families import ACCEPTED, REFUSED, VOCAB, build, targets
from fakes import byte_tokenizer
from safetensors.torch import load_file, save_file
from svf_families import randomize

from transformer2 import z_rows
from transformer2.data import collate
from transformer2.errors import ConfigError, DataError, UserError
from transformer2.module import predicting_states
from transformer2.policy import build_policy, check_halves, lm_head, load_base, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.layer import dense_weight, svf_layers
from transformer2.types import Example

EOS = list(range(2, 8))  # so many that rows end at different times
GREEDY = dict(max_new_tokens=9, do_sample=False, eos_token_id=EOS, pad_token_id=0)
LENGTHS = (3, 7, 5, 7)
FAST = ("llama", "gpt2", "mamba", "jamba", "zamba2", "qwen3_5_text", "falcon_h1", "mixtral")
every = [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in ACCEPTED]


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(12, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]
    return collate([Example(f"t/{i}", (), "") for i in range(len(rows))], rows, 0)


def policy_of(family, dtype=torch.float32):
    model = build(family, dtype).requires_grad_(False)  # as in a policy: torch multiplies W otherwise that trains
    with torch.no_grad():
        before = model(torch.arange(12, 20)[None], use_cache=False).logits
    policy = build_policy(model, {"target_modules": targets(model)})
    randomize(policy, std=0.2)
    return policy, before


@torch.no_grad()
@pytest.mark.parametrize("family", every)
def test_accepted_families_draw_and_score_as_the_model_does(family, prompts):
    policy, before = policy_of(family)
    base = policy.get_base_model()
    weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    head = lm_head(policy)
    check_halves(policy, head)

    drawn = {}
    for merge in (False, True, True):
        engine = HFEngine(byte_tokenizer(), EOS, merge=merge)
        rollouts = engine.generate(policy, prompts, Sampling(0, max_new_tokens=9), seed=0)
        drawn[merge] = rows = [
            ids[:n]
            for ids, n in zip(rollouts.completion_ids_BC.tolist(), rollouts.completion_mask_BC.sum(-1), strict=True)
        ]
    assert drawn[True] == drawn[False]
    assert any(len(set(row)) > 1 for row in rows), "rows must depend on what came before for this to mean anything"
    logits_ND = head(predicting_states(policy, rollouts))
    at = 0
    for row, padded in zip(rows, prompts.input_ids_BP, strict=True):
        prompt = padded[padded != 0][None]
        theirs = policy.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **GREEDY)
        theirs = theirs[0, prompt.shape[1] :]
        assert theirs.tolist() == row
        whole = policy(input_ids=torch.cat([prompt, torch.tensor([row])], 1), use_cache=False).logits
        expected = whole[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(logits_ND[at : at + len(row)].log_softmax(-1), expected, rtol=1e-3, atol=1e-3)
        at += len(row)

    assert all(torch.equal(p, weights[name]) for name, p in base.named_parameters())
    with policy.disable_adapter():
        assert torch.equal(policy(torch.arange(12, 20)[None], use_cache=False).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("family", every)
def test_merging_does_what_the_adapter_does_and_goes_without_a_trace(family):
    policy, before = policy_of(family)
    ids = torch.arange(12, 20).repeat(3, 1)
    expected = policy(ids, use_cache=False).logits
    weights = {name: (p, p.detach().clone()) for name, p in policy.named_parameters()}
    opaque = [layer for _, layer in svf_layers(policy) if dense_weight(layer.base_layer) is None]
    if opaque:  # a linear layer of the family's own, which computes y its own way
        with pytest.raises(ConfigError, match=type(opaque[0].base_layer).__name__):
            policy.merge_adapter()
    for _ in range(0 if opaque else 2):
        policy.merge_adapter()
        torch.testing.assert_close(policy(ids, use_cache=False).logits, expected, rtol=1e-3, atol=1e-3)
        policy.unmerge_adapter()
    for name, p in policy.named_parameters():
        assert p is weights[name][0], f"{name} is another parameter: what it was tied to would be left behind"
        assert torch.equal(p, weights[name][1]), name
    with z_rows(policy, [[1.0], [0.0], [1.0]], ["default"]):
        mixed = policy(ids, use_cache=False).logits
    torch.testing.assert_close(mixed[[0, 2]], expected[[0, 2]], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mixed[1:2], before, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("family", ACCEPTED)
def test_rounding_in_bf16_is_no_reason_to_refuse(family):
    policy, _ = policy_of(family, torch.bfloat16)
    check_halves(policy, lm_head(policy))
    HFEngine(byte_tokenizer(), EOS).check(policy, policy.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", REFUSED)
def test_the_others_are_refused_by_name(family, dtype):
    model = build(family, dtype)
    policy = build_policy(model, {"target_modules": r".*\.\d+\..*"})
    assert svf_layers(policy)
    with pytest.raises(ConfigError, match=REFUSED[family][1]) as refusal:
        check_halves(policy, lm_head(policy))
        HFEngine(byte_tokenizer(), EOS).check(policy, policy.device)
    assert type(model).__name__ in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_base_that_fails_on_this_machine_is_refused_by_name(monkeypatch):
    """As a dtype or a packing that a kernel does not know."""
    policy = build_policy(build("llama"), {})

    def fails(*_, **__):
        raise RuntimeError("no kernel for Double\nat line 1")

    monkeypatch.setattr(policy.get_base_model().model.layers[1].mlp, "forward", fails)
    with pytest.raises(
        ConfigError, match=r"LlamaForCausalLM does not run .*no kernel for Double.*model\.dtype"
    ) as error:
        check_halves(policy, lm_head(policy))
    assert "\n" not in str(error.value)


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "if files are damaged"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "if files are damaged"),
        ({UP: None}, f"is not whole: {UP} is not in its files"),
        ({UP: torch.zeros(3, 48)}, "not of its config.json"),
    ],
    ids=["cut off", "a pointer to the file", "a tensor is missing", "another shape"],
)
def test_a_base_whose_weights_are_not_all_there_is_refused_in_one_line(llama, tmp_path, damage, words):
    folder = shutil.copytree(llama, tmp_path / "base")
    file = folder / "model.safetensors"
    if callable(damage):
        file.write_bytes(damage(file.read_bytes()))
    else:
        changed = {name: value for name, value in (load_file(file) | damage).items() if value is not None}
        save_file(changed, file, {"format": "pt"})
    with pytest.raises(DataError, match=words) as error:
        load_base(str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", '{"model_type": "llama", "hidden_size": 48, "num_attention_heads": 5}'])
def test_a_config_that_is_none_is_refused_in_one_line(llama, tmp_path, text):
    folder = shutil.copytree(llama, tmp_path / "base")
    (folder / "config.json").write_text(text)
    for read in (load_base, load_tokenizer, lambda base: LocalCheckpoint(base).config):
        with pytest.raises(UserError) as error:
            read(str(folder))
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
