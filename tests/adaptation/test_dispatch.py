"""Categories: the prompt is made of the experts, the answer is parsed strictly, "other" is the base exactly."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_experts import ALL, make_experts
from fakes import make_llama

from transformer2 import tasks, tiny
from transformer2.adaptation.dispatch import PromptDispatch
from transformer2.adaptation.dispatcher import Dispatcher
from transformer2.adaptation.members import members
from transformer2.adaptation.mixture import base_row, expert_rows
from transformer2.adaptation.scoring import Scorer
from transformer2.data import collate, render
from transformer2.data.prompts import ChatTemplate
from transformer2.errors import ConfigError
from transformer2.experts import Expert, load_experts, mix_experts, save_expert
from transformer2.metrics import UNPARSED
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


def test_a_task_that_an_expert_names_imports_no_module(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    experts = [Expert("a", task="this.Task"), Expert("b", task="jsonl"), Expert("c", task="gsm8k")]
    assert Dispatcher.of(experts).descriptions == ("a", "b", tasks.get("gsm8k").description)
    assert "this" not in sys.modules


def test_an_expert_without_a_category_of_its_own_is_refused_with_the_folders(tmp_path):
    """Before a model is loaded, as whatever `load` finds."""
    folders = [str(tiny.expert_path(name)) for name in tiny.EXPERTS]
    renamed = str(shutil.copytree(folders[0], tmp_path / "sums"))  # of tiny_math all the same
    assert len(PromptDispatch(experts=[renamed, folders[1]]).load("tiny")) == 2
    mixed = save_expert(mix_experts(load_experts(folders), [1, 1, 1]), tmp_path / "mixed")
    for more, said in (([*folders, str(mixed)], "'mixed' fits none of the labels"), ([*folders, renamed], "differ")):
        with pytest.raises(ConfigError, match=said):
            PromptDispatch(experts=more).load("tiny")
        assert len(PromptDispatch(experts=more).load("tiny_b")) == 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base = str(make_llama(tmp_path_factory.mktemp("base"), init=0.25))
    module = SVFReinforceModule(base, adapter=ALL, dtype="float32")
    module.configure_model()
    return module, load_experts(make_experts(tmp_path_factory.mktemp("experts"), base, ("math", "code", "cooking")))


def questions_of(module, dispatcher, requests):
    examples = [dispatcher.question(Example(f"t/{i}", ({"role": "user", "content": r},), "")) for i, r in requests]
    return collate(examples, [render(module.engine.tokenizer, e) for e in examples], 0)


REQUESTS = list(enumerate(("2 + 2?", "a stew for four, with beans and without an oven", "sort a list", "?")))


@pytest.mark.parametrize("names", [("math", "code", "cooking"), ("math", "mathematics"), ("math",)])
def test_categories_are_as_likely_as_the_whole_pass_says(world, names):
    """Three categories, a name that is the beginning of another, one expert alone; under the base and an expert."""
    module, experts = world
    dispatcher = Dispatcher(names, ("a", "b", "c")[: len(names)])
    prompts = questions_of(module, dispatcher, REQUESTS)
    with torch.no_grad(), members(module.policy, experts) as adapters:
        scorer = Scorer(module.policy, adapters, module.engine, module.head)
        by_z = []
        for weights_1K in (base_row(3), expert_rows(3)[1:2]):
            found = scorer.log_likelihoods(prompts, dispatcher.categories, weights_1K)
            for k, category in enumerate(dispatcher.categories):
                whole, _ = scorer.log_likelihood(prompts, [category] * 4, weights_1K)
                torch.testing.assert_close(found[:, k], whole, rtol=1e-5, atol=1e-4)
            alone = [
                scorer.log_likelihoods(questions_of(module, dispatcher, [r]), dispatcher.categories, weights_1K)
                for r in REQUESTS
            ]
            torch.testing.assert_close(torch.cat(alone), found, rtol=1e-5, atol=1e-4)
            by_z.append(found)
        if len(names) == 3:
            said = scorer.rows(prompts, base_row(3), 8).completions
            # Random weights write no category, and yet have a likeliest.
            assert [dispatcher.parse(text) for text in said] == [None] * 4
    assert found.shape == (4, len(names) + 1) and not torch.allclose(*by_z, atol=0.1)


def test_a_category_is_as_likely_as_it_is_drawn(world):
    """Sums with EOS are probabilities of whole answers: those of all texts of at most two bytes stay below 1."""
    module, experts = world
    dispatcher = Dispatcher(("a", "ab", "abc"), ("", "", ""))
    prompts = questions_of(module, dispatcher, REQUESTS[:1])
    texts = [chr(i) for i in range(32, 127)] + [f"a{chr(i)}" for i in range(32, 127)]
    with torch.no_grad(), members(module.policy, experts) as adapters:
        scorer = Scorer(module.policy, adapters, module.engine, module.head)
        assert 0 < float(scorer.log_likelihoods(prompts, texts, base_row(3)).exp().sum()) < 1


def test_soft_weights_that_are_certain_are_the_hard_choice(world):
    module, experts = world
    prompts = collate([EXAMPLE] * 4, [render(module.engine.tokenizer, EXAMPLE)] * 4, 0)
    logprobs_BK = torch.full((4, 4), -torch.inf).fill_diagonal_(-3.0)
    soft_BK, hard_BK = logprobs_BK.softmax(-1), THREE.weights(logprobs_BK.argmax(-1).tolist())
    assert torch.equal(soft_BK, hard_BK)
    with torch.no_grad(), members(module.policy, experts) as names:
        scorer = Scorer(module.policy, names, module.engine, module.head)
        hard = scorer.rows(prompts, hard_BK, 8).completions
        half = scorer.rows(prompts, torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 4), 8).completions
        near = scorer.rows(prompts, torch.full((4, 4), 1e-7) + (1 - 4e-7) * hard_BK, 8).completions
    assert near == hard and half[0] not in hard[:2]


def test_the_generated_prompt_reaches_a_model_and_its_written_answer_is_followed(world, monkeypatch):
    """From the experts' names to the model's tokens to a z: random weights never write a category, so one is forced."""
    module, _ = world
    asked, budgets = [], []

    def answer(self, prompts, weights_LBK, max_new_tokens):
        asked.extend(self.engine.tokenizer.batch_decode(prompts.input_ids_BP))
        budgets.append(max_new_tokens)
        return RowsSaid(("code.", "cooking", "no idea"))

    def choose(*names):
        helpers = Scorer(module.policy, ["base"], module.engine, module.head)
        data = SimpleNamespace(base="a folder", template=ChatTemplate())
        answerer = SimpleNamespace(policy=module.policy, device=module.policy.device)
        context = SimpleNamespace(helpers=helpers, experts=list(map(Expert, names)), data=data, answerer=answerer)
        return PromptDispatch().adapt_to_task(context).adapt_to_batch(collate([EXAMPLE] * 3, [[0]] * 3, 0))

    monkeypatch.setattr(Scorer, "rows", answer)
    found = choose("math", "code", "cooking")
    choose("math", "a-name-of-twenty-two-x")  # a token a byte, and EOS
    assert budgets == [8, 23]
    assert [(c["choice"], c["first_pass"]) for c in found.columns] == [
        ("code", "code."), ("cooking", "cooking"), (UNPARSED, "no idea"),
    ]  # fmt: skip
    for part in ("- cooking: cooking", "2 + 2?", "<|start_header_id|>assistant"):
        assert part in asked[0]
    assert found.weights.argmax(-1).tolist() == [1, 2, 3]


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
