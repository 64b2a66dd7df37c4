"""Bases that take pictures, packed by the real bitsandbytes and torchao, on the CPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_task import Pictures, draw_pictures
from vision_bases import FAMILIES, make_vision

from transformer2.cli.compose import compose
from transformer2.cli.keys import KEYS
from transformer2.data.prompts import render
from transformer2.plan.shape import model_shape
from transformer2.policy import build_policy, hidden_states, lm_head, load_base, load_tokenizer
from transformer2.svf.decompose import decompose
from transformer2.svf.fingerprint import fingerprint
from transformer2.svf.layer import svf_layers
from transformer2.svf.quantised import check_gradient, quantisation_name
from transformer2.types import Example

pytestmark = pytest.mark.integration
pytest.importorskip("bitsandbytes", reason="needs the extra: pip install -e '.[quantised]'")
pytest.importorskip("torchao", reason="needs the extra: pip install -e '.[quantised]'")

KINDS = {"nf4": "nf4", "int8": "int8", "torchao_int8": "torchao Int8WeightOnlyConfig"}
PACKED = {"nf4": "Params4bit", "int8": "Int8Params", "torchao_int8": "Int8Tensor"}
ALL = {"peft_type": "SVF", "target_modules": "all-linear"}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _quiet():
    for name in ("bitsandbytes", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_vision(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def quantised(kind: str, folder: Path) -> Any:
    config = compose([f"conf/quantisation/{kind}.yaml"], [], KEYS)
    return load_base(str(folder), **config["model"]["model_kwargs"])


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Two, about two pictures of one size."""
    return Pictures().examples("train", draw_pictures(tmp_path_factory.mktemp("pictures"), sizes=[(64, 64)]))[:2]


def logits(policy: Any, ids_BP: torch.Tensor) -> torch.Tensor:
    return lm_head(policy)(hidden_states(policy, ids_BP, torch.ones_like(ids_BP)))


@every_family
@every_kind
def test_it_sees_and_is_the_base_that_it_was_made_from(family, kind, folders, questions, tmp_path):
    folder = folders[family]
    base, dense, tokenizer = quantised(kind, folder), load_base(str(folder)), load_tokenizer(str(folder))
    ids_BP = torch.tensor([render(tokenizer, question) for question in questions])
    assert quantisation_name(base) == KINDS[kind] and fingerprint(base) == fingerprint(dense)
    linear = [m for name, m in base.named_modules() if ".language_model.layers." in name and hasattr(m, "in_features")]
    assert len(linear) == 14 and all(type(layer.weight).__name__ == PACKED[kind] for layer in linear)
    cache = tmp_path / "cache"
    assert decompose(folder, "all-linear", cache_dir=cache, progress=False)["built"] == 14
    with torch.no_grad():
        expected = base(input_ids=ids_BP).logits
    policy = build_policy(base, {**ALL, "basis_cache": str(cache)})
    assert policy.base_model._bases.cache.counts == {"reused": 14}
    check_gradient(policy)
    assert torch.equal(policy(input_ids=ids_BP).logits, expected)
    with torch.no_grad():
        swapped = policy(input_ids=ids_BP.flip(0)).logits
    torch.testing.assert_close(swapped.flip(0), expected, rtol=1e-3, atol=0.1)
    assert not torch.allclose(swapped[:, -1], expected[:, -1], atol=0.1), "what is in a picture matters"
    logits(policy, ids_BP).float().log_softmax(-1)[..., 5].sum().backward()
    for name, layer in svf_layers(policy):
        assert float(layer.parameters_of("default")[0].grad.abs().max()) > 0, name


def test_a_tower_that_is_to_be_left_alone_stays_as_it_is(folders):
    """As conf/llava8b_textvqa_nf4.yaml says it."""
    folder = folders["llava_next"]
    options = compose(["conf/llava8b_textvqa_nf4.yaml"], [], KEYS)["model"]["model_kwargs"]
    base, dense = load_base(str(folder), **options), load_base(str(folder))
    names = {name for name, m in base.named_modules() if type(getattr(m, "weight", None)).__name__ == "Params4bit"}
    assert len(names) == 14 and all(".language_model.layers." in name for name in names)
    same = [name for name, p in base.named_parameters() if torch.equal(p, dense.get_parameter(name))]
    assert len(same) == len(list(dense.parameters())) - 14
    assert model_shape(str(folder), ALL, model_kwargs=options).packable == sum(
        dense.get_submodule(name).weight.numel() for name in names
    )
    whole = quantised("nf4", folder)
    packed = [name for name, m in whole.named_modules() if type(getattr(m, "weight", None)).__name__ == "Params4bit"]
    assert model_shape(str(folder), ALL).packable == sum(dense.get_submodule(name).weight.numel() for name in packed)
