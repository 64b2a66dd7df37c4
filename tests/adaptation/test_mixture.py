"""Flat vectors become weights; every mix is one weighted sum of the experts and the base."""

import pytest
import torch

from transformer2.adaptation.few_shot import FewShotSearch
from transformer2.adaptation.mixture import Mixture, base_row, constant_rows, expert_rows
from transformer2.errors import ConfigError
from transformer2.experts import Expert, mix_experts

MATRICES = [f"model.layers.{i}.{kind}" for i in range(2) for kind in ("self_attn.q_proj", "mlp.up_proj")]


def expert(name, seed):
    generator = torch.Generator().manual_seed(seed)
    deltas = {m: 0.1 * torch.randn(4, generator=generator) for m in MATRICES}
    return Expert(name, None, None, None, None, "tiny", "a:b", deltas)


EXPERTS = [expert("math", 0), expert("code", 1)]


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [("expert", 1), ("kind", 2), ("layer", 2), ("matrix", 4)],
)
def test_granularity(granularity, groups):
    mixture = Mixture(MATRICES, ["math", "code"], granularity)
    assert mixture.dim == 2 * groups and len(mixture.groups) == groups
    weights_LMK = mixture.weights(torch.arange(3.0 * mixture.dim).view(3, mixture.dim))
    assert weights_LMK.shape == (4, 3, 3)
    assert torch.equal(weights_LMK.sum(-1), torch.ones(4, 3))  # in delta form the base takes the rest
    distinct = {tuple(weights_LMK[i, 0].tolist()) for i in range(4)}
    assert len(distinct) == groups
    if granularity == "kind":
        assert mixture.groups == ["self_attn.q_proj", "mlp.up_proj"]
    if granularity == "layer":
        assert torch.equal(weights_LMK[0], weights_LMK[1]) and mixture.groups == ["layer 0", "layer 1"]


@pytest.mark.parametrize("mix", ["delta", "normalised", "raw"])
def test_the_adapted_expert_is_the_mixture(mix):
    mixture = Mixture(MATRICES, ["math", "code"], mix=mix)
    adapted = mixture.expert(torch.tensor([0.4, 0.9]), EXPERTS, "both", task="t")
    expected = mix_experts(EXPERTS, [0.4, 0.9], mix=mix)
    for matrix in MATRICES:
        torch.testing.assert_close(adapted.deltas[matrix], expected.deltas[matrix], rtol=0, atol=1e-6)
    assert (adapted.task, adapted.base, adapted.base_fingerprint) == ("t", "tiny", "a:b")


def test_the_base_as_a_member():
    raw = Mixture(MATRICES, ["math", "code"], mix="raw", base_member=True)
    assert raw.members == ["math", "code", "base"]
    assert raw.weights(torch.tensor([[0.1, 0.2, 0.6]]))[0, 0].tolist() == pytest.approx([0.1, 0.2, 0.6])
    normalised = Mixture(MATRICES, ["math", "code"], mix="normalised", base_member=True)
    assert normalised.weights(torch.tensor([[1.0, 1.0, 2.0]]))[0, 0].tolist() == pytest.approx([0.25, 0.25, 0.5])
    with pytest.raises(ConfigError, match="changes nothing"):
        Mixture(MATRICES, ["math"], mix="delta", base_member=True)


def test_a_sum_of_zero_is_not_finite_and_no_number_is_made_up():
    weights_LMK = Mixture(MATRICES, ["math", "code"], mix="normalised").weights(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert not torch.isfinite(weights_LMK[:, 0]).any() and torch.isfinite(weights_LMK[:, 1]).all()


def test_rows_of_the_controls():
    assert base_row(2).tolist() == [[0, 0, 1]]
    assert expert_rows(2).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert constant_rows(2, [0.8]).tolist() == [[0, 0, pytest.approx(0.8)]]


@pytest.mark.parametrize("options", [{"granularity": "head"}, {"mix": "sum"}])
def test_unknown_words_are_refused(options):
    with pytest.raises(ConfigError, match=r"adapt\.(granularity|mix) must be one of"):
        FewShotSearch(**options)
    with pytest.raises(ConfigError, match="unknown granularity or mix"):
        Mixture(MATRICES, ["math"], **options)
