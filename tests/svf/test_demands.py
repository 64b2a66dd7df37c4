"""What PEFT and TRL demand of a tuner that lives outside PEFT: one test each, in the order of the list.

1 names, 2 low_cpu_mem_usage, 3 dtypes, 4 merge, 5 frozen parameters, 6 z - 1, 7 target_modules, 8 lm_head, 9 the enum.
(7, 8 and most of 4 are in test_config.py and test_peft.py; TRL itself runs in `nox -s integrations`.)
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType
from svf_families import build, prompt, randomize

from transformer2 import SVFConfig
from transformer2.svf.layer import svf_layers
from transformer2.svf.model import SVFModel
from transformer2.svf.modes import merged_for_rollout
from transformer2.svf.register import extend_peft_types


def test_1_the_adapter_name_is_in_the_middle_of_parameter_names():
    model = get_peft_model(build("llama"), SVFConfig())
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable[0] == "base_model.model.model.layers.0.mlp.gate_proj.svf_z.default.delta"
    assert all(".default." in name for name in trainable)
    # How TRL makes its reference copy: by replacing the name inside parameter names.
    randomize(model)
    model.add_adapter("ref", copy.deepcopy(model.peft_config["default"]))
    parameters = dict(model.named_parameters())
    copied = 0
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".default." in name:
                parameters[name.replace(".default.", ".ref.")].copy_(parameter)
                copied += 1
    assert copied == len(svf_layers(model))
    trained = model(prompt()).logits
    model.set_adapter("ref")
    assert torch.equal(model(prompt()).logits, trained)


def test_2_nothing_stays_on_the_meta_device(tmp_path):
    model = get_peft_model(build("llama").bfloat16(), SVFConfig(target_modules="all-linear"))
    randomize(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("llama").bfloat16(), tmp_path, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in loaded.parameters())
    assert torch.equal(loaded(prompt()).logits, model(prompt()).logits)
    # PEFT casts what it moves to the base layer's dtype on this path; fp32 must survive to the last bit.
    for (_, a), (_, b) in zip(svf_layers(loaded), svf_layers(model), strict=True):
        assert a.svf_z["default"].delta.dtype == torch.float32
        assert torch.equal(a.svf_z["default"].delta, b.svf_z["default"].delta)


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_3_z_is_fp32_on_a_bf16_base_and_computes_in_bf16(autocast_adapter_dtype):
    model = get_peft_model(build("llama").bfloat16(), SVFConfig(), autocast_adapter_dtype=autocast_adapter_dtype)
    loss = model(prompt(), labels=prompt()).loss
    loss.backward()
    for _, layer in svf_layers(model):
        assert layer.svf_z["default"].delta.dtype == torch.float32
        assert layer.svf_z["default"].delta.grad.dtype == torch.float32
        assert layer.svf_basis.dtype == torch.bfloat16
        x = torch.randn(2, 3, layer.in_features, dtype=torch.bfloat16)
        assert layer(x).dtype == torch.bfloat16


def test_4_merge_for_a_rollout_engine_and_back():
    model = get_peft_model(build("llama"), SVFConfig())
    randomize(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    trained = model(prompt()).logits
    model.merge_adapter()
    exported = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if ".svf_" not in n}
    engine = build("llama")
    engine.load_state_dict({n.removeprefix("base_model.model."): p for n, p in exported.items()})
    torch.testing.assert_close(engine(prompt()).logits, trained, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert torch.equal(model(prompt()).logits, trained)


@pytest.mark.parametrize("parametrization", ["direct", "sigmoid_renorm"])
def test_5_every_parameter_of_ours_has_the_prefix_and_none_is_a_buffer(parametrization):
    base = build("llama")
    own = {name for name, _ in base.named_parameters()}
    buffers = len(list(base.buffers()))
    model = get_peft_model(base, SVFConfig(form="factored", parametrization=parametrization))
    extra = [n for n, _ in model.get_base_model().named_parameters() if n.replace(".base_layer", "") not in own]
    assert extra
    assert all(name.split(".")[-1].startswith("svf_") or ".svf_z." in name for name in extra)
    assert all(".base_layer." not in name for name in extra)
    assert len(list(model.buffers())) == buffers
    # What DeepSpeed broadcasts must be contiguous.
    assert all(p.is_contiguous() for p in model.parameters())


def test_6_z_minus_one_survives_a_cast_to_bf16():
    model = get_peft_model(build("llama"), SVFConfig())
    with torch.no_grad():
        for _, layer in svf_layers(model):
            layer.svf_z["default"].delta.fill_(1e-3)
    model.bfloat16()
    with model.disable_adapter():
        base = model(prompt()).logits
    for _, layer in svf_layers(model):
        torch.testing.assert_close(layer.delta(["default"]).float(), torch.full((32,), 1e-3), rtol=4e-3, atol=0)
    assert model(prompt()).logits.dtype == base.dtype


def test_9_pefts_enum_and_registry_know_svf():
    """Fails loudly when PEFT changes how methods are registered."""
    assert PeftType.SVF == PeftType("SVF") == PeftType["SVF"] == "SVF"
    assert PeftType.SVF.value == PeftType.SVF.name == "SVF"
    assert PeftType.SVF in list(PeftType)
    assert "SVF" in PeftType.__members__
    assert copy.deepcopy(PeftType.SVF) is PeftType.SVF
    assert PeftType.LORA is PeftType("LORA")
    count = len(PeftType)
    extend_peft_types()
    assert len(PeftType) == count
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SVF] is PEFT_TYPE_TO_CONFIG_MAPPING["SVF"] is SVFConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["SVF"] is SVFModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING["SVF"] == SVFModel.prefix == "svf_"
    # The hooks that are overridden must still be PEFT's; a rename would make ours dead code.
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    for hook in (
        "inject_adapter", "_prepare_model", "_check_target_module_exists", "_create_and_replace", "_replace_module",
        "_get_adapter_state_dict", "_remap_adapter_state_dict_for_load", "merge_adapter",
        "_unload_and_optionally_merge",
    ):  # fmt: skip
        assert hasattr(BaseTuner, hook), hook
    for hook in ("enable_adapters", "_move_adapter_to_device_of_base_layer", "merge", "unmerge", "delete_adapter"):
        assert hasattr(BaseTunerLayer, hook), hook


def test_9_importing_transformer2_is_cheap():
    code = "import sys, transformer2; assert not {'torch', 'peft', 'transformers', 'lightning'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, because importing torch again for each order takes long")
@pytest.mark.parametrize(
    "first",
    [
        "import transformer2; import peft",
        "import peft; import transformer2",
        "from transformer2.svf.config import SVFConfig; SVFConfig()",
        "import transformer2.svf.layer; import transformer2; transformer2.SVFConfig()",
        "import transformer2.svf.bases; import transformer2; transformer2.SVFConfig()",
        "import transformer2.svf.targets; import transformer2; transformer2.SVFConfig()",
    ],
)
def test_9_any_import_order_registers(first):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for name in [n for n in sys.modules if n.split(".")[0] in ("peft", "transformer2")]:
                del sys.modules[name]
            exec(first)
            from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs
            from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as tuners

            code = 0 if "SVF" in tuners and "SVF" in configs else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_generating_under_merged_weights_calls_the_base_layers_directly():
    model = get_peft_model(build("llama"), SVFConfig())
    randomize(model)
    with merged_for_rollout(model):
        assert all(layer.forward == layer.base_layer.forward for _, layer in svf_layers(model))
        inside = model.generate(input_ids=prompt(), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(input_ids=prompt(), max_new_tokens=8, do_sample=False, pad_token_id=0), inside)
