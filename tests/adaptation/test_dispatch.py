"""Categories: the prompt is made of the experts, the answer is parsed strictly, "other" is the base exactly."""

import pytest
import torch
from fake_experts import ALL, make_experts
from fakes import make_llama

from transformer2.adaptation.dispatch import Dispatcher, first_pass
from transformer2.adaptation.members import members
from transformer2.adaptation.mixture import base_row
from transformer2.adaptation.scoring import Scorer
from transformer2.data import collate, render
from transformer2.errors import ConfigError
from transformer2.experts import load_experts
from transformer2.module import SVFReinforceModule
from transformer2.policy import reference
from transformer2.rollout.base import Sampling
from transformer2.svf.rows import z_rows
from transformer2.types import Example

THREE = Dispatcher(("math", "code", "cooking"), ("counting things", "short programs", "recipes"))
EXAMPLE = Example("t/0", ({"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}), "4")


def test_the_prompt_is_made_of_names_and_descriptions():
    (message,) = THREE.question(EXAMPLE).messages
    for part in (
        "- math: counting things",
        "- cooking: recipes",
        "- other: ",
        "2 + 2?",
        "math, code, cooking or other",
    ):
        assert part in message["content"]
    assert "be brief" not in message["content"]
    one = Dispatcher(("math",), ("counting",), prompt=lambda request: f"Classify: {request}")
    assert one.question(EXAMPLE).messages[0]["content"] == "Classify: 2 + 2?"


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("math", 0),
        (" Code.\n", 1),
        ("other", 3),
        ("", None),
        ("math code", None),
        ("mathematics", None),
        ("It is math", 0),
        ("**Cooking**", 2),
        ("not math", None),
        ("others", None),
    ],
)
def test_an_answer_names_exactly_one_category(text, index):
    assert THREE.parse(text) == index


def test_other_and_no_category_are_the_base():
    weights_BK = THREE.weights([1, 3, None])
    assert weights_BK.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_names_must_differ():
    for names in (("math", "Math"), ("math", "other")):
        with pytest.raises(ConfigError, match="must differ"):
            Dispatcher(names, ("a", "b"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base = str(make_llama(tmp_path_factory.mktemp("base"), init=0.25))
    module = SVFReinforceModule(base, adapter=ALL, dtype="float32")
    module.configure_model()
    return module, load_experts(make_experts(tmp_path_factory.mktemp("experts"), base, ("math", "code", "cooking")))


def test_the_constrained_pass_takes_the_likeliest_category(world):
    module, experts = world
    questions = [THREE.question(EXAMPLE)] * 2
    prompts = collate(questions, [render(module.engine.tokenizer, q) for q in questions], 0)
    with torch.no_grad(), members(module.policy, experts) as names:
        scorer = Scorer(module.policy, names, module.engine, module.head)
        choices, texts = first_pass(THREE, scorer, prompts, base_row(3), constrained=True)
        logs = [float(scorer.log_likelihood(prompts, [c] * 2, base_row(3))[0][0]) for c in THREE.categories]
        written, said = first_pass(THREE, scorer, prompts, base_row(3))
    assert choices == [max(range(4), key=logs.__getitem__)] * 2 and texts == [THREE.categories[choices[0]]] * 2
    assert written == [None, None] and len(said) == 2  # random weights write no category


def test_the_generated_prompt_reaches_a_model_and_its_written_answer_is_followed(world, monkeypatch):
    """From the experts' names to the model's tokens to a z: random weights never write a category, so one is forced."""
    module, _ = world
    asked = []

    def answer(self, prompts, weights_LBK, max_new_tokens):
        asked.extend(self.tokenizer.batch_decode(prompts.input_ids_BP))
        return RowsSaid(("code.", "cooking", "no idea"))

    questions = [THREE.question(EXAMPLE)] * 3
    prompts = collate(questions, [render(module.engine.tokenizer, q) for q in questions], 0)
    monkeypatch.setattr(Scorer, "rows", answer)
    choices, texts = first_pass(THREE, Scorer(module.policy, [], module.engine, module.head), prompts, base_row(3))
    assert choices == [1, 2, None] and texts == ["code.", "cooking", "no idea"]
    for part in ("- cooking: recipes", "2 + 2?", "<|start_header_id|>assistant"):
        assert part in asked[0]
    assert THREE.weights(choices).argmax(-1).tolist() == [1, 2, 3]


class RowsSaid:
    """Rollouts, as far as a first pass reads them."""

    def __init__(self, completions):
        self.completions = completions


def test_a_row_sent_to_the_base_has_the_base_s_logits_bit_for_bit(world):
    """What is reported never runs factored, and whatever other rows are in the batch, "other" is the base exactly."""
    module, experts = world
    prompts = collate([EXAMPLE] * 3, [render(module.engine.tokenizer, EXAMPLE)] * 3, 0)
    with torch.no_grad(), members(module.policy, experts) as names:
        with z_rows(module.policy, THREE.weights([0, 3, None]), names, mix="raw"):
            mixed = module.policy(prompts.input_ids_BP, attention_mask=prompts.attention_mask_BP).logits
        with reference(module.policy):
            base = module.policy(prompts.input_ids_BP, attention_mask=prompts.attention_mask_BP).logits
    assert torch.equal(mixed[1:], base[1:]) and not torch.allclose(mixed[0], base[0], atol=1e-2)


def test_the_number_of_forward_passes_does_not_depend_on_what_is_chosen(world):
    module, experts = world
    prompts = collate([EXAMPLE] * 4, [render(module.engine.tokenizer, EXAMPLE)] * 4, 0)
    counts = []
    hook = module.policy.register_forward_hook(lambda *args: counts.__setitem__(-1, counts[-1] + 1))
    with torch.no_grad(), members(module.policy, experts) as names:
        scorer = Scorer(module.policy, names, module.engine, module.head)
        scorer.engine.eos_ids = [len(module.engine.tokenizer)]  # no completion ends early
        for choices in ([3] * 4, [0] * 4, [0, 1, 2, None]):
            counts.append(0)
            scorer.rows(prompts, THREE.weights(choices), 6)
    hook.remove()
    assert counts == [6, 6, 6]


def test_rows_sent_to_the_base_are_the_base(world):
    module, experts = world
    prompts = collate([EXAMPLE] * 3, [render(module.engine.tokenizer, EXAMPLE)] * 3, 0)
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    with torch.no_grad(), members(module.policy, experts) as names:
        scorer = Scorer(module.policy, names, module.engine, module.head)
        mixed = scorer.rows(prompts, THREE.weights([0, 3, None]), 8).completions
        with reference(module.policy):
            base = module.engine.generate(module.policy, prompts, sampling, 0).completions
    assert mixed[1:] == base[1:] and mixed[0] != base[0]
