"""`quantization_config` without the packages that it needs, and an expert scored under further configs."""

import json
import shutil
import sys
from importlib.util import find_spec

import pytest
from transformers import BitsAndBytesConfig

from transformer2.cli import main
from transformer2.cli.compose import compose
from transformer2.errors import ConfigError
from transformer2.policy import load_base
from transformer2.quantisation import KINDS, Quantisation, quantisation_of
from transformer2.tiny import model_path

INT4_CLASS, FLOAT8 = "Int8DynamicActivationInt4WeightConfig", "Float8WeightOnlyConfig"
INT4 = {"default": {"_type": INT4_CLASS, "_data": {}, "_version": 1}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_config_is_the_kind_that_it_is_called(kind):
    path = f"conf/quantisation/{kind}.yaml"
    model = {} if kind == "none" else compose([path], [], ["model"])["model"]["model_kwargs"]
    assert quantisation_of(model.get("quantization_config")) == KINDS[kind]


@pytest.mark.parametrize(
    ("config", "expected", "name"),
    [
        ({}, None, None),
        ({"load_in_8bit": False, "load_in_4bit": True}, ("bitsandbytes", 4, "fp4", False), "fp4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, ("bitsandbytes", 4, "nf4", False), "nf4"),
        (BitsAndBytesConfig(load_in_4bit=True), ("bitsandbytes", 4, "fp4", False), "fp4"),
        ({"quant_method": "torchao", "quant_type": INT4}, ("torchao", 4, INT4_CLASS), f"torchao {INT4_CLASS}"),
        (
            {"quant_method": "torchao", "quant_type": "int4_weight_only"},
            ("torchao", 4, "int4_weight_only"),
            "torchao int4_weight_only",
        ),
        ({"quant_method": "torchao", "quant_type": FLOAT8}, ("torchao", None, FLOAT8), f"torchao {FLOAT8}"),
        ({"quant_method": "gptq", "bits": 4, "desc": "load_in_8bit=True"}, ("gptq", 4), "gptq"),
        ({"quant_method": "fp8"}, ("fp8", None), "fp8"),
        (BitsAndBytesConfig(load_in_8bit=True), ("bitsandbytes", 8), "int8"),
    ],
)
def test_a_config_says_how_weights_are_stored(config, expected, name):
    given = quantisation_of(config)
    assert given == (Quantisation(*expected) if expected else None)
    assert given is None or given.name == name


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ("bitsandbytes", {"load_in_8bit": True}),
        ("torchao", {"quant_method": "torchao", "quant_type": "Int8WeightOnlyConfig"}),
    ],
)
def test_a_missing_package_is_named_with_the_command(package, options, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # what is there when it is not installed
    with pytest.raises(ConfigError, match=rf"needs {package}: pip install -c constraints.txt -e '.\[quantised\]'"):
        load_base("tiny", quantization_config=options)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_quantised_checkpoint_names_the_package_too(llama_folder, tmp_path):
    packed = tmp_path / "packed"
    shutil.copytree(llama_folder, packed)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"needs a package that is not here: .*bitsandbytes") as e:
        load_base(str(packed))
    assert "\n" not in str(e.value)


def test_an_expert_s_own_facts_hold_below_the_configs(capsys):
    """`test --expert E --config conf/quantisation/nf4.yaml` still knows the expert's task and matrices."""
    expert = model_path().parent / "experts" / "code"
    words = ["test", "--expert", str(expert), "--config", "conf/quantisation/nf4.yaml", "--print_config"]
    assert main([*words, "--data.test_limit", "8"]) == 0
    printed = capsys.readouterr().out
    assert "task: tiny_code" in printed and "model.layers.2.mlp.up_proj" in printed and "load_in_4bit: true" in printed
