"""One z per row: every row must come out as if it had the batch, and the model, to itself."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from svf_families import build, prompt, randomize

from transformer2 import SVFConfig, set_form, z_rows
from transformer2.errors import UserError
from transformer2.svf.layer import svf_layers
from transformer2.svf.rows import has_rows

GENERATE = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    model = get_peft_model(build(request.param), SVFConfig(target_modules="all-linear"))
    for name, seed in (("math", 3), ("code", 4)):
        model.add_adapter(name, SVFConfig(target_modules="all-linear"))
        randomize(model, name, seed=seed)
    return model


def alone(model, weights, mix="delta"):
    """Logits under one mixture, through add_weighted_adapter."""
    model.add_weighted_adapter(["math", "code"], weights, "tmp", mix=mix)
    model.set_adapter("tmp")
    logits = model(prompt()).logits
    model.set_adapter("default")
    model.delete_adapter("tmp")
    return logits


@pytest.mark.parametrize("form", ["delta", "factored"])
@pytest.mark.parametrize("mix", ["delta", "raw"])
def test_every_row_is_its_own_mixture(model, form, mix):
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.9], [-0.5, 0.2]])
    expected = torch.stack([alone(model, row.tolist(), mix)[b] for b, row in enumerate(weights)])
    set_form(model, form)
    with z_rows(model, weights, experts=["math", "code"], mix=mix):
        torch.testing.assert_close(model(prompt()).logits, expected, rtol=2e-4, atol=2e-4)


def test_a_matrix_that_no_expert_tunes_is_the_base_s_whatever_the_weights(model):
    """Raw weights that do not sum to one scale what the experts tune, as their mixture does."""
    for name, seed in (("one", 5), ("two", 6)):
        model.add_adapter(name, SVFConfig(target_modules="mlp"))
        randomize(model, name, seed=seed)
    model.add_weighted_adapter(["one", "two"], [0.4, 0.9], "mixed", mix="raw")
    model.set_adapter("mixed")
    expected = model(prompt()).logits
    model.set_adapter("math")  # what is trained meanwhile
    with z_rows(model, [[0.4, 0.9]], experts=["one", "two"], mix="raw"):
        torch.testing.assert_close(model(prompt()).logits, expected, rtol=2e-4, atol=2e-4)


def test_zero_rows_and_disabled_adapters_are_the_base_exactly(model):
    with model.disable_adapter():
        base = model(prompt()).logits
    with z_rows(model, [[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]], experts=["math", "code"]):
        mixed = model(prompt()).logits
        assert torch.equal(mixed[1:], base[1:])
        assert not torch.allclose(mixed[0], base[0], atol=1e-3)
        with model.disable_adapter():
            assert torch.equal(model(prompt()).logits, base)


def test_generation_with_several_sequences_and_left_padding(model):
    ids = prompt(2, 8)
    ids[1, :3] = 0
    mask = (ids != 0).long()
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with z_rows(model, weights, experts=["math", "code"]):
        beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=3, num_return_sequences=3, **GENERATE)
        tokens = model.generate(input_ids=ids, attention_mask=mask, **GENERATE)
        torch.manual_seed(0)
        sampled = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=1, num_return_sequences=2,
            **{k: v for k, v in GENERATE.items() if k != "do_sample"},
        )  # fmt: skip
    for row, name in enumerate(("math", "code")):
        model.set_adapter(name)
        one, one_mask = ids[row : row + 1], mask[row : row + 1]
        assert torch.equal(model.generate(input_ids=one, attention_mask=one_mask, **GENERATE)[0], tokens[row])
        assert torch.equal(sampled[2 * row], tokens[row])
        assert torch.equal(sampled[2 * row + 1], tokens[row])
        expected = model.generate(
            input_ids=one, attention_mask=one_mask, num_beams=3, num_return_sequences=3, **GENERATE
        )
        assert torch.equal(expected, beams[3 * row : 3 * row + 3])


def test_one_set_of_weights_per_matrix(model):
    layers = len(svf_layers(model))
    weights = torch.zeros(layers, 3, 2)
    weights[-1, :, 0] = 1.0
    expected = alone(model, [1.0, 0.0])
    with model.disable_adapter():
        base = model(prompt()).logits
    with z_rows(model, weights, experts=["math", "code"]):
        last_only = model(prompt()).logits
    assert not torch.equal(last_only, base)
    with z_rows(model, torch.tensor([1.0, 0.0]).expand(layers, 3, 2), experts=["math", "code"]):
        torch.testing.assert_close(model(prompt()).logits, expected, rtol=2e-4, atol=2e-4)
    with (
        pytest.raises(UserError, match=f"5 matrices, this model has {layers}"),
        z_rows(model, torch.zeros(5, 3, 2), experts=["math", "code"]),
    ):
        pass


def test_nesting_and_exceptions_restore_what_was_there(model):
    ones, twos = [[1.0]] * 3, [[0.0]] * 3
    with z_rows(model, ones, experts=["math"]):
        outer = model(prompt()).logits
        with pytest.raises(RuntimeError, match="boom"), z_rows(model, twos, experts=["math"]):
            raise RuntimeError("boom")
        assert torch.equal(model(prompt()).logits, outer)
    assert not has_rows(model)
    assert torch.equal(model(prompt()).logits, alone(model, [0.0, 0.0]))


@pytest.mark.parametrize(
    ("weights", "experts", "mix", "message"),
    [
        ([[1.0]], ["maths"], "delta", "unknown expert 'maths'; loaded: code, default, math"),
        ([[1.0, 2.0]], ["math"], "delta", "for 1 experts"),
        ([1.0], ["math"], "delta", "for 1 experts"),
        ([[float("nan")]], ["math"], "delta", "non-finite"),
        ([[1.0]], ["math"], "mean", "mix='mean'"),
    ],
)
def test_bad_arguments(model, weights, experts, mix, message):
    with pytest.raises(UserError, match=message), z_rows(model, weights, experts=experts, mix=mix):
        pass


def test_a_batch_that_does_not_fit_and_merged_weights_are_errors(model):
    with z_rows(model, [[1.0]] * 2, experts=["math"]), pytest.raises(UserError, match="2 rows"):
        model(prompt(3))
    with z_rows(model, [[1.0]] * 2, experts=["math"]), pytest.raises(UserError, match="inside z_rows"):
        model.merge_adapter()
    model.merge_adapter()
    with pytest.raises(UserError, match="unmerge_adapter"), z_rows(model, [[1.0]], experts=["math"]):
        pass


def test_weights_can_be_learned(model):
    weights = torch.tensor([[0.5, 0.5]], requires_grad=True)
    with z_rows(model, weights, experts=["math", "code"]):
        model(prompt(), labels=prompt()).loss.backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().min()) > 0
