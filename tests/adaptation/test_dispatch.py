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
        ("It is math", None),
        ("others", None),
    ],
)
def test_answers_are_parsed_strictly(text, index):
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
