"""Quantised bases with the real bitsandbytes and torchao, on the CPU."""

import json
import logging
import warnings

import pytest
import torch
from fakes import grouped, make_llama
from measured import inner_tensors, measured_and_planned, small_model
from peft import PeftModel, get_peft_model

import transformer2
from transformer2 import SVFConfig
from transformer2.cli import main
from transformer2.cli.compose import compose
from transformer2.cli.keys import KEYS
from transformer2.cli.plan import complete
from transformer2.errors import ConfigError, UserError
from transformer2.module import SVFReinforceModule
from transformer2.plan.job import job_of
from transformer2.plan.memory import memory
from transformer2.plan.shape import model_shape
from transformer2.policy import build_policy, load_base, load_tokenizer
from transformer2.quantisation import KINDS as STORED
from transformer2.quantisation import quantisation_of
from transformer2.svf.decompose import decompose
from transformer2.svf.fingerprint import fingerprint
from transformer2.svf.layer import probe_weight, svf_layers
from transformer2.svf.modes import merged_for_rollout
from transformer2.svf.quantised import check_gradient, quantisation_name

pytestmark = pytest.mark.integration
pytest.importorskip("bitsandbytes", reason="needs the extra: pip install -e '.[quantised]'")
pytest.importorskip("torchao", reason="needs the extra: pip install -e '.[quantised]'")

KINDS = {"nf4": "nf4", "int8": "int8", "torchao_int8": "torchao Int8WeightOnlyConfig"}
ALL = {"peft_type": "SVF", "target_modules": "all-linear"}
MLP = {"peft_type": "SVF", "target_modules": "mlp"}
EXPERTS = transformer2.tiny.model_path().parent / "experts"
DYNAMIC = "{quantization_config: {quant_method: torchao, quant_type: Int8DynamicActivationInt8WeightConfig}}"
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _quiet():
    for name in ("bitsandbytes", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quantised(kind, base="tiny", dtype="auto"):
    """The base as `--config conf/quantisation/<kind>.yaml` loads it."""
    config = compose([f"conf/quantisation/{kind}.yaml"], [], KEYS)
    return load_base(str(base), dtype, **config["model"]["model_kwargs"])


def tuned(model):
    return {name.removeprefix("base_model.model."): layer for name, layer in svf_layers(model)}


def randomize(model, spread=0.1):
    torch.manual_seed(0)
    for layer in tuned(model).values():
        layer.parameters_of("default")[0].data.normal_(0.0, spread)


def ids():
    return torch.randint(4, 400, (3, 12), generator=torch.Generator().manual_seed(1))


@every_kind
def test_linear_layers_are_packed_and_the_head_stays_as_it_is(kind):
    model, dense = quantised(kind), load_base("tiny")
    assert quantisation_name(model) == KINDS[kind] and quantisation_name(dense) is None
    linear = [m for name, m in model.named_modules() if ".layers." in name and hasattr(m, "in_features")]
    assert len(linear) == 21
    for layer in linear:
        kinds = {"nf4": "Params4bit", "int8": "Int8Params", "torchao_int8": "Int8Tensor"}
        assert type(layer.weight).__name__ == kinds[kind]
        bits = {"nf4": torch.uint8, "int8": torch.int8}.get(kind)
        assert bits is None or layer.weight.dtype == bits
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    assert torch.equal(embedding, dense.get_input_embeddings().weight)


@every_kind
def test_without_a_change_of_z_it_is_the_quantised_base_bit_for_bit(kind):
    base = quantised(kind)
    with torch.no_grad():
        expected, text = base(ids()).logits, base.generate(ids(), max_new_tokens=8, do_sample=False)
    assert not torch.equal(expected, load_base("tiny")(ids()).logits)
    policy = build_policy(base, ALL)
    assert torch.equal(policy(ids()).logits, expected), "with gradients as without"
    with torch.no_grad():
        assert torch.equal(policy(ids()).logits, expected)
        assert torch.equal(policy.generate(input_ids=ids(), max_new_tokens=8, do_sample=False), text)
        randomize(policy)
        assert not torch.equal(policy(ids()).logits, expected)
        with policy.disable_adapter():
            assert torch.equal(policy(ids()).logits, expected)


@every_kind
def test_bases_and_fingerprint_are_those_of_the_unquantised_weights(kind):
    dense = load_base("tiny")
    name = fingerprint(dense)
    packed = build_policy(quantised(kind), ALL)
    assert fingerprint(packed) == name
    expected = tuned(build_policy(dense, ALL))
    for path, layer in tuned(packed).items():
        assert torch.equal(layer.svf_basis, expected[path].svf_basis)
        assert not torch.equal(probe_weight(layer.base_layer), expected[path].base_layer.weight)


def test_the_cache_of_the_unquantised_model_serves_the_quantised_one(tmp_path):
    folder, cache = make_llama(tmp_path / "llama"), tmp_path / "cache"
    assert decompose(folder, "all-linear", cache_dir=cache, progress=False)["built"] == 14
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors")}
    policy = build_policy(quantised("torchao_int8", folder), {**ALL, "basis_cache": str(cache)})
    assert policy.base_model._bases.cache.counts == {"reused": 14}
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors")} == before


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_basis_is_in_the_dtype_of_the_activations(kind, dtype):
    policy = build_policy(quantised(kind, dtype=dtype), ALL)
    assert {str(layer.svf_basis.dtype) for layer in tuned(policy).values()} == {f"torch.{dtype}"}
    assert policy(ids()).logits.dtype == getattr(torch, dtype)


@every_kind
def test_the_gradient_is_that_of_the_dense_model_with_the_rounded_weights(kind):
    """After a rollout: bitsandbytes would have repacked 4-bit layers by then, and gradients would stop at them."""
    policy = build_policy(quantised(kind), ALL)
    with torch.no_grad():
        policy.generate(input_ids=ids(), max_new_tokens=2)
    rounded = load_base("tiny")
    for path, layer in tuned(policy).items():
        rounded.get_submodule(path).weight.data = probe_weight(layer.base_layer)
    dense = build_policy(load_base("tiny"), ALL)  # for the same bases: those of W before it was rounded
    for path, layer in tuned(dense).items():
        layer.base_layer.weight.data = rounded.get_submodule(path).weight.data
    for model in (policy, dense):
        randomize(model, 0.01)
        model(ids(), labels=ids()).loss.backward()
    # bitsandbytes' int8 rounds activations too, in the forward pass.
    tolerance = 0.15 if kind == "int8" else 1e-3
    for path, layer in tuned(policy).items():
        ours, theirs = (x.parameters_of("default")[0].grad for x in (layer, tuned(dense)[path]))
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance, path


@every_kind
def test_rows_of_one_batch_have_their_own_experts(kind):
    # LLM.int8 picks the columns that stay in 16 bits by the largest entry of the batch: its rows depend on each other.
    base = load_base("tiny", quantization_config={"load_in_8bit": True, "llm_int8_threshold": 0.0})
    policy = build_policy(base if kind == "int8" else quantised(kind), ALL)
    names = ["math", "code"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            policy.load_adapter(str(EXPERTS / name), adapter_name=name)
    weights_BK = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    with torch.no_grad(), transformer2.z_rows(policy, weights_BK, names):
        mixed = policy(ids()).logits
    with torch.no_grad():
        for row, name in enumerate(names):
            policy.set_adapter(name)
            torch.testing.assert_close(mixed[row], policy(ids()).logits[row], rtol=1e-3, atol=1e-3)
        with policy.disable_adapter():
            torch.testing.assert_close(mixed[2], policy(ids()).logits[2], rtol=1e-3, atol=1e-3)


def test_a_packed_base_is_never_merged(tmp_path):
    policy = build_policy(quantised("nf4"), ALL)
    randomize(policy)
    with merged_for_rollout(policy) as merged:
        assert not merged
    with pytest.raises(UserError, match="Linear4bit is quantised"):
        policy.merge_adapter()
    with pytest.raises(ConfigError, match="use form='delta'"):
        build_policy(quantised("int8"), {**ALL, "form": "factored"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the NF4 base."""
    folder = tmp_path_factory.mktemp("runs") / "nf4"
    command = [
        *(
            "fit",
            "--config",
            "conf/tiny_math.yaml",
            "--config",
            "conf/quantisation/nf4.yaml",
            "--optimizer.lr",
            "0.5",
        ),
        *("--data.batch_size", "16", "--data.validation_limit", "16", "--data.test_limit", "8"),
        *("--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--run_dir", str(folder), "--quiet"),
    ]
    assert main(command) == 0
    return folder


def test_an_expert_of_an_nf4_base_is_one_of_the_model_it_was_made_from(run, capsys, recwarn):
    saved = json.loads((run / "expert" / "adapter_config.json").read_text())
    assert saved["base_quantisation"] == "nf4" and saved["base_fingerprint"] == fingerprint(load_base("tiny"))
    assert "| base quantised as | nf4 |" in (run / "expert" / "README.md").read_text()
    z = transformer2.load_experts([run / "expert"])[0].deltas
    assert all(float(delta_R.abs().max()) > 1e-3 for delta_R in z.values()), "every matrix was trained"
    for dtype in ("float32", "bfloat16"):
        with pytest.warns(
            UserWarning, match=r"the expert \(nf4\): trained at another precision than .*\(unquantised\)"
        ):
            dense = PeftModel.from_pretrained(load_base("tiny", dtype), run / "expert")
        assert torch.equal(
            tuned(dense)["model.layers.0.mlp.up_proj"].delta(["default"]), z["model.layers.0.mlp.up_proj"]
        )
    flags = ["--data.test_limit", "8", "--quiet", "--run_dir"]
    for name, config in {"dense": [], "nf4": ["--config", "conf/quantisation/nf4.yaml"]}.items():
        recwarn.clear()
        assert main(["test", "--expert", str(run / "expert"), *config, *flags, str(run / name)]) == 0
        assert "tiny_math   test split, n = 8" in capsys.readouterr().out
        assert any("another precision" in str(w.message) for w in recwarn) == (name == "dense")


def test_a_dense_expert_keeps_its_skill_on_every_quantised_base(tmp_path):
    for kind in KINDS:
        flags = ["--data.test_limit", "64", "--quiet", "--run_dir", str(tmp_path / kind)]
        with pytest.warns(UserWarning, match="another precision"):
            assert (
                main(["test", "--expert", str(EXPERTS / "math"), "--config", f"conf/quantisation/{kind}.yaml", *flags])
                == 0
            )
        report = json.loads((tmp_path / kind / "report.json").read_text())
        assert report["result"]["accuracy"] > report["base"]["accuracy"] + 0.2


def test_adapt_runs_on_it(tmp_path, capsys):
    command = [
        "adapt",
        "--strategy",
        "prompt",
        "--config",
        "conf/adapt_tiny.yaml",
        "--config",
        "conf/quantisation/nf4.yaml",
    ]
    with pytest.warns(UserWarning, match=r"math \(unquantised\), code \(unquantised\), reasoning \(unquantised\)"):
        assert main([*command, "--data.test_limit", "8", "--quiet", "--run_dir", str(tmp_path / "run")]) == 0
    assert "prompt" in capsys.readouterr().out


@every_kind
def test_a_checkpoint_that_exists_only_quantised_is_probed_and_says_so(kind, tmp_path):
    folder, packed = make_llama(tmp_path / "llama"), tmp_path / "packed"
    base = quantised(kind, folder)
    base.save_pretrained(packed)
    load_tokenizer(str(folder)).save_pretrained(packed)
    with pytest.raises(UserError, match="quantised checkpoint"):
        decompose(packed)
    shape = model_shape(str(packed), ALL)
    assert shape.params == model_shape(str(folder), ALL).params
    assert quantisation_of(shape.packed) == STORED[kind]
    with pytest.warns(UserWarning, match="bases are those of the quantised weights"):
        policy = build_policy(load_base(str(packed)), ALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        unpacked = build_policy(base, ALL)
    for path, layer in tuned(policy).items():
        weight_mn = probe_weight(layer.base_layer)
        assert torch.equal(weight_mn, probe_weight(tuned(unpacked)[path].base_layer)), "the same rounded weights"
        assert not torch.equal(layer.svf_basis, tuned(unpacked)[path].svf_basis), "and their own basis"
    arch, weights = fingerprint(policy).split(":")
    assert arch == fingerprint(unpacked).split(":")[0] and weights != fingerprint(unpacked).split(":")[1]


def test_a_base_that_passes_no_gradient_is_refused_for_training_and_runs(tmp_path, capsys):
    flags = ["--model.model_kwargs", DYNAMIC, "--quiet", "--run_dir"]
    assert main(["fit", "--config", "conf/tiny_math.yaml", *flags, str(tmp_path / "fit")]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "passes no gradient back through" in message and "conf/quantisation/nf4.yaml" in message
    scored = ["test", "--expert", str(EXPERTS / "math"), "--data.test_limit", "8", *flags, str(tmp_path / "test")]
    assert main(scored) == 0


def test_a_layer_that_was_repacked_before_it_was_wrapped_is_refused():
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this processor has no AVX512-BF16, so nothing is repacked")
    base = quantised("nf4")
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        base(ids())
    policy = get_peft_model(base, SVFConfig(target_modules="mlp"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match="passes no gradient"):
            check_gradient(policy)


def test_packed_weights_stay_in_their_process(tmp_path, capsys):
    command = ["fit", "--config", "conf/tiny_math.yaml", "--config", "conf/quantisation/torchao_int8.yaml", "--quiet"]
    command += ["--trainer.strategy", "ddp", "--run_dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert "torchao's packed weights cannot be sent to other processes" in capsys.readouterr().err


def test_mistakes_are_one_line():
    def refused(options):
        with pytest.raises(ConfigError) as e:
            load_base("tiny", quantization_config=options)
        return str(e.value)

    assert "did you mean 'bnb_4bit_quant_type'?" in refused({"load_in_4bit": True, "bnb_4bit_quant_typ": "nf4"})
    assert "only one can be used" in refused({"load_in_4bit": True, "load_in_8bit": True})
    assert "did you mean 'Int8WeightOnlyConfig'?" in refused(
        {"quant_method": "torchao", "quant_type": "Int8WeightOnly"}
    )
    with pytest.raises(UserError, match="no `quant_method`"):
        load_base("tiny", quantization_config={"bits": 4})


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plan_counts_a_real_step(kind, dtype, tmp_path):
    base = small_model(tmp_path / "base", dtype)
    config = compose([f"conf/quantisation/{kind}.yaml"], [], KEYS)["model"]
    model = {"base": base, "adapter": MLP, "micro_batch_tokens": 2048, "max_new_tokens": 24, "kl_coef": 0.1}
    data = {"task": "tiny_math", "base": base, "batch_size": 16, "max_new_tokens": 24}
    module, planned = measured_and_planned(tmp_path, grouped(**model) | config, data)
    assert planned.peak == pytest.approx(module.peak, rel=0.1)


@every_kind
def test_the_plan_counts_what_is_held(kind, tmp_path):
    folder = make_llama(tmp_path / "llama", hidden=256)
    model = {"base": str(folder), "adapter": ALL}
    config = compose([f"conf/quantisation/{kind}.yaml"], [], KEYS)["model"]
    model |= grouped(micro_batch_tokens=64, kl="k1", max_new_tokens=8)
    job = job_of(
        complete(SVFReinforceModule, model | config), {"task": "tiny_math", "batch_size": 4, "eval_batch_size": 4}
    )
    planned = sum(t.value for t in memory(job).resident if t.part == "weights" and t.note != "z and sigma, fp32")
    # The state dict names the scales of bitsandbytes too, which are neither parameters nor buffers.
    held = sum(
        part.nbytes for tensor in quantised(kind, folder).state_dict().values() for part in inner_tensors(tensor)
    )
    assert planned == pytest.approx(held, rel=0.03)
