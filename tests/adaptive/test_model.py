"""SelfAdaptive on the embedded model: choices, mixtures, company, streams, threads, errors."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import transformer2
from transformer2 import tasks, tiny
from transformer2.adaptive.chat import Chat
from transformer2.adaptive.model import SelfAdaptive
from transformer2.adaptive.request import Job, Selection
from transformer2.errors import ConfigError, ExpertError, UserError
from transformer2.experts import load_experts, mix_experts, save_expert
from transformer2.rollout.base import Sampling
from transformer2.rollout.continuous import Row
from transformer2.rollout.ending import Ending

BUDGET = {"max_new_tokens": 32}


def questions(count=4):
    return [
        e.question
        for name in ("tiny_math", "tiny_code", "tiny_reasoning")
        for e in tasks.get(name).examples("test")[:count]
    ]


@pytest.fixture(scope="module")
def model():
    return transformer2.SelfAdaptive.from_pretrained("tiny")


def test_the_classification_expert_sends_each_kind_to_its_expert(model):
    names = [answer.choice.name for answer in model.generate(questions(), **BUDGET)]
    right = [a == b for a, b in zip(names, [n for n in tiny.EXPERTS for _ in range(4)], strict=True)]
    assert sum(right) >= 11


@pytest.mark.parametrize("strategy", ["scores", "prompt", "cls"])
def test_answers_are_the_same_in_any_company(strategy):
    model = SelfAdaptive.from_pretrained("tiny", strategy=strategy)
    together = model.generate(questions(2), **BUDGET)
    alone = [model.generate(question, **BUDGET)[0] for question in questions(2)]
    assert [(a.text, a.choice.name) for a in together] == [(a.text, a.choice.name) for a in alone]
    assert all(a.prompt_tokens and a.completion_tokens and a.finish_reason == "stop" for a in together)
    if strategy == "scores":
        for a in together:
            assert set(a.choice.probabilities) == {*tiny.EXPERTS, "other"}
            assert sum(a.choice.probabilities.values()) == pytest.approx(1, abs=1e-4)
            assert a.choice.name in ("base", max(a.choice.probabilities, key=a.choice.probabilities.get))


def test_base_expert_and_mixture_are_what_they_are_called(model):
    question = questions()[0]
    options = {**BUDGET, "top_logprobs": 0}
    base, expert, zero, one, mixed = (
        model.generate(question, use=use, **options)[0]
        for use in ("base", "math", {"math": 0.0}, "mix:math=1", {"math": 0.5, "code": 0.7})
    )

    def logprobs(answer):
        return [token.logprob for token in answer.logprobs]

    assert logprobs(base) == logprobs(zero) != logprobs(expert) == logprobs(one)
    experts = load_experts([tiny.expert_path(name) for name in ("math", "code")])
    whole = mix_experts(experts, [0.5, 0.7])
    model.add_expert("both", whole)
    try:
        torch.testing.assert_close(
            logprobs(model.generate(question, use="both", **options)[0]), logprobs(mixed), rtol=0, atol=1e-5
        )
    finally:
        model.remove_expert("both")
    assert model.experts == list(tiny.EXPERTS)


def test_soft_mixes_by_the_probabilities():
    model = SelfAdaptive.from_pretrained("tiny", soft=True)
    (answer,) = model.generate(questions()[0], **BUDGET)
    weights = {name: p for name, p in answer.choice.probabilities.items() if name != "other"}
    assert answer.choice.name == "mix" and answer.choice.weights == weights
    (same,) = model.generate(questions()[0], use=weights, **BUDGET)
    assert same.text == answer.text


def test_a_stream_is_the_answer_in_pieces_and_can_be_left(model):
    (whole,) = model.generate(questions()[0], **BUDGET)
    pieces = list(model.stream(questions()[0], **BUDGET))
    assert len(pieces) > 3 and "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].answer.text == whole.text and all(piece.answer is None for piece in pieces[:-1])
    next(iter(model.stream(questions()[0], **BUDGET)))
    model.step()
    assert model.is_idle


def test_a_stream_never_shows_the_beginning_of_a_stop_string(model):
    (whole,) = model.generate(questions()[0], **BUDGET)
    stop = whole.text[6:9]
    pieces = [piece.text for piece in model.stream(questions()[0], stop=[stop], **BUDGET)]
    assert "".join(pieces) == whole.text.partition(stop)[0]


def test_the_tokens_of_log_probabilities_are_the_text(model):
    (answer,) = model.generate(questions()[0], top_logprobs=2, **BUDGET)
    assert answer.text.count(" ") > 3 and "".join(t.token for t in answer.logprobs[:-1]) == answer.text
    assert all(t.token == t.likeliest[0][0] for t in answer.logprobs)


def test_tokens_keep_the_space_that_a_tokenizer_strips_from_them_alone():
    """As Llama-2's does; the bytes of a character are tokens, and what follows them keeps its space, too."""
    words = ["</s>", "▁the", "▁cat", "s", *(f"<0x{i:02X}>" for i in range(256))]
    bare = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bare.decoder = decoders.Sequence(parts)
    ending = Ending(PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>"), [0])
    job = Job(Chat.of("?"), [1], "base", Sampling(), ending, top_logprobs=1)
    row = Row([1], {}, job.sampling, ending)
    row.tokens = [1, 2, 3, *(4 + byte for byte in "🙂".encode()), 2]
    row.logprobs, row.likeliest = [0.0] * 8, [[(i, 0.0)] for i in row.tokens]
    job.run(row, Selection("base", {}))
    tokens = [t.token for t in job.logprobs()]
    assert tokens == ["the", " cat", "s", *["\ufffd"] * 4, " cat"] and bare.decode(row.tokens) == "the cats🙂 cat"
    assert [t.token for t in job.logprobs(7)] == [" cat"] == [text for text, _ in job.logprobs(7)[0].likeliest]


def test_sampling_follows_the_seed(model):
    def draw(seed):
        return model.generate(questions()[:3], temperature=1.5, seed=seed, **BUDGET)

    first, again, other = draw(1), draw(1), draw(2)
    assert [a.text for a in first] == [a.text for a in again] != [a.text for a in other]
    many, one = questions()[:1] * 4, questions()[0]
    alike, alone = (model.generate(of, temperature=1.5, seed=1, use="base", **BUDGET) for of in (many, one))
    assert len({a.text for a in alike}) > 1 and alike[0].text == alone[0].text


def test_no_prompts_have_no_answers(model):
    assert model.generate([]) == []


def test_several_threads_share_one_batch(model):
    expected = {q: model.generate(q, **BUDGET)[0].text for q in questions(2)}
    found: dict[str, str] = {}

    def ask(question):
        found[question] = model.generate(question, **BUDGET)[0].text

    threads = [threading.Thread(target=ask, args=(q,)) for q in questions(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_an_adapted_mixture_answers_what_follows():
    model = SelfAdaptive.from_pretrained("tiny", strategy="scores")
    rows = [{"question": e.question, "answer": e.answer} for e in tasks.get("tiny_math").examples("validation")[:6]]
    alpha = model.adapt(rows, "tiny_math", generations=2, population=6, seed=1)
    (answer,) = model.generate(questions()[0], **BUDGET)
    assert answer.choice.name == "mix" and answer.choice.weights == alpha and set(alpha) == set(tiny.EXPERTS)
    (same,) = model.generate(questions()[0], use=alpha, **BUDGET)
    assert same.text == answer.text
    with pytest.raises(UserError, match="row 1"):
        model.adapt([{"question": "no answer"}], "tiny_math")


def test_a_base_without_experts_answers():
    model = SelfAdaptive.from_pretrained("tiny", experts={})
    expected = SelfAdaptive.from_pretrained("tiny", strategy="scores").generate(questions()[0], use="base", **BUDGET)
    assert model.generate(questions()[0], **BUDGET)[0].text == expected[0].text


def test_a_fixed_mixture_answers_every_prompt():
    model = SelfAdaptive.from_pretrained("tiny", strategy=None, alpha={"math": 0.5})
    assert model.generate(questions()[5], **BUDGET)[0].choice.weights == {"math": 0.5}


def test_a_chat_continues(model):
    chat = [
        {"role": "user", "content": questions()[0]},
        {"role": "assistant", "content": "14"},
        {"role": "user", "content": questions()[5]},
    ]
    one, two = model.generate([chat, chat[-1:]], **BUDGET)
    assert one.prompt_tokens > two.prompt_tokens and one.choice.name == two.choice.name


@pytest.mark.parametrize(
    ("prompt", "options", "named"),
    [
        ("", {}, "not empty"),
        ("half \ud800", {}, "UTF-8"),
        ("?", {"ids": []}, "empty prompt"),
        ([{"role": "robot", "content": "?"}], {}, "robot"),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], {}, "user message"),
        ([{"role": "user", "content": [1]}], {}, "must be text"),
        (3, {}, "a prompt is text"),
        ("?", {"use": "maths"}, "did you mean 'math'"),
        ("?", {"use": "mix:math=x"}, "no mixture"),
        ("?", {"use": {"math": float("nan")}}, "from -100 to 100"),
        ("?", {"use": "mix:math=1e30"}, "from -100 to 100"),
        ("?", {"use": {}}, "weights"),
        ("?", {"temperature": float("nan")}, "temperature"),
        ("?", {"max_new_tokens": 0}, "max_new_tokens"),
        ("?", {"max_new_tokens": 2.5}, "max_new_tokens must be"),
        ("?", {"seed": None}, "seed must be"),
        ("?", {"seed": 2**70}, "seed must be"),
        ("?", {"top_logprobs": 10**6}, "top_logprobs must be"),
        ("?", {"max_new_tokens": 10**6}, "shorten"),
        ("word " * 5000, {}, "shorten"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(model, prompt, options, named):
    with pytest.raises(UserError, match=named):
        model.start(prompt, **options)
    assert model.is_idle


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'scores'"):
        SelfAdaptive.from_pretrained("tiny", strategy="score")
    with pytest.raises(ConfigError, match="classifier"):
        SelfAdaptive.from_pretrained(str(tiny.model_path()), experts={}, strategy="cls")
    with pytest.raises(ConfigError, match="soft"):
        SelfAdaptive.from_pretrained("tiny", strategy="cls", soft=True)
    with pytest.raises(ExpertError, match="taken"):
        SelfAdaptive.from_pretrained("tiny", experts={"base": tiny.expert_path("math")})
    (expert,) = load_experts([tiny.expert_path("math")])
    copy = save_expert(expert, tmp_path / "math")
    with pytest.raises(ExpertError, match="one name"):
        SelfAdaptive.from_pretrained("tiny", experts=[copy, tiny.expert_path("math")])


def test_a_prompt_too_long_to_ask_about_is_refused_but_can_be_answered(model):
    scores, long = SelfAdaptive.from_pretrained("tiny", strategy="scores"), "jars " * 80
    scores.start("jars " * 122, max_new_tokens=1).cancel()
    with pytest.raises(UserError, match="say what answers"):  # a category and EOS must fit in, too
        scores.start("jars " * 123, max_new_tokens=1)
    scores._labelled = None  # the generated question is longer than the embedded one
    scores.set_strategy("scores")
    with pytest.raises(UserError, match="say what answers"):
        scores.start(long, max_new_tokens=8)
    assert scores.generate(long, max_new_tokens=8, use="base")


def test_an_error_in_the_first_pass_is_the_requests_own():
    model = SelfAdaptive.from_pretrained("tiny", strategy="scores")
    model.start("?")
    model._choosing().dispatcher = None  # whatever goes wrong there
    given = model.start("?", use="base", **BUDGET)
    while not model.is_idle:
        model.step()
    assert given.answer is not None
    with pytest.raises(AttributeError):
        model.generate("?", **BUDGET)


def test_an_expert_that_goes_leaves_what_is_under_way_alone():
    model = SelfAdaptive.from_pretrained("tiny")
    (expected,) = model.generate(questions()[0], use="math", **BUDGET)
    under_way = model.start(questions()[0], use="math", **BUDGET)
    for _ in range(3):
        model.step()
    late = model.start(questions()[0], use="math", **BUDGET)
    model.remove_expert("math")
    beside = model.start(questions()[5], use="code", **BUDGET)
    while not model.is_idle:
        model.step()
    assert under_way.result().text == expected.text and beside.result().text
    with pytest.raises(UserError, match="no expert 'math'"):
        late.result()


@pytest.mark.parametrize("gone", ["experts", "strategy"])
def test_what_goes_while_a_first_pass_writes_stops_nobody(gone):
    model = SelfAdaptive.from_pretrained("tiny")
    beside, asking = model.start(questions()[0], use="base", **BUDGET), model.start(questions()[0], **BUDGET)
    model.step()
    assert asking.row is not None and asking.choice is None
    if gone == "strategy":
        model.set_strategy(None)
    for name in model.experts if gone == "experts" else []:
        model.remove_expert(name)
    while not model.is_idle:
        model.step()
    assert asking.result().choice.name == "base" and asking.result().text == beside.result().text


def test_prompts_beside_one_that_is_refused_do_not_run_on(model):
    with pytest.raises(UserError, match="not empty"):
        model.generate([questions()[0], ""], use="base")
    model.step()
    assert model.is_idle and model.generate([]) == []


def test_a_tiny_temperature_is_greedy(model):
    greedy, tiny_one = (model.generate(questions()[0], temperature=t, **BUDGET)[0].text for t in (0.0, 1e-40))
    assert greedy == tiny_one


def test_an_expert_needs_a_name_that_can_be_asked_for(model):
    (expert,) = load_experts([tiny.expert_path("math")])
    with pytest.raises(ExpertError, match="rename it"):
        model.add_expert("a=1,b", expert)


@pytest.mark.parametrize("strategy", ["cls", "scores", "prompt"])
def test_an_expert_without_a_category_of_its_own_is_chosen_by_name_alone(model, strategy):
    few, added = {"max_new_tokens": 4}, {"mine": None, "sums": "tiny_math", "Math": None, "other": None}
    model.set_strategy(strategy)
    before = model.generate(questions(1), **few)
    try:
        for name, task in added.items():
            with pytest.warns(UserWarning, match=f"no strategy chooses expert '{name}' .*; ask for it by name"):
                model.add_expert(name, replace(model.expert("math"), task=task))
        assert model.choosable == list(tiny.EXPERTS) and model.experts == [*tiny.EXPERTS, *added]
        after = model.generate(questions(1), **few)
        assert [(a.text, a.choice) for a in after] == [(b.text, b.choice) for b in before]
        assert len({model.generate(questions()[0], use=use, **few)[0].text for use in ("math", *added)}) == 1
    finally:
        for name in [name for name in added if name in model.experts]:
            model.remove_expert(name)
        model.set_strategy("auto")


def test_an_expert_takes_the_category_that_another_one_leaves():
    model = SelfAdaptive.from_pretrained("tiny")
    with pytest.warns(UserWarning, match="no strategy chooses expert 'sums'"):
        model.add_expert("sums", tiny.expert_path("math"))
    model.remove_expert("math")
    assert model.choosable == ["code", "reasoning", "sums"]
    assert model.generate(questions()[0], **BUDGET)[0].choice.name == "sums"
    mine = replace(model.expert("sums"), task=None)
    for name in model.experts:
        model.remove_expert(name)
    with pytest.warns(UserWarning, match="fits none of the labels"):
        model.add_expert("mine", mine)
    assert model.generate(questions()[0], **BUDGET)[0].choice.name == "base"


def test_without_labels_an_experts_category_is_the_name_it_is_loaded_under():
    model = SelfAdaptive.from_pretrained("tiny", experts=[tiny.expert_path("math")])
    model.add_expert("sums", model.expert("math"))
    with pytest.warns(UserWarning, match="'Sums'"):
        model.add_expert("Sums", model.expert("math"))
    assert model.choosable == ["math", "sums"] and model.expert("Sums").name == "Sums"
    probabilities = model.generate(questions()[0], **BUDGET)[0].choice.probabilities
    assert set(probabilities) == {"math", "sums", "other"}


def test_what_answers_every_prompt_does_so_until_it_is_told_otherwise(recwarn):
    alpha, rows = {"math": 0.6, "code": 0.9}, tasks.get("tiny_math").examples("validation")[:2]
    model = SelfAdaptive.from_pretrained("tiny", alpha=alpha, strategy=None)

    def answering():
        choice = model.generate(questions()[5], **BUDGET)[0].choice
        return choice.weights if choice.name == "mix" else choice.name

    assert answering() == alpha
    model.add_expert("more", tiny.expert_path("reasoning"))
    assert answering() == alpha
    model.remove_expert("more")
    model.remove_expert("reasoning")
    assert answering() == alpha
    with pytest.raises(UserError, match=r"alpha.*'math'; set_strategy first"):
        model.remove_expert("math")
    assert answering() == alpha and not [w for w in recwarn.list if "adapt" in str(w.message)]
    model.set_strategy("cls")
    assert answering() == "code"
    found = model.adapt(rows, "tiny_math", generations=1, population=2)
    assert answering() == found
    model.set_strategy("scores")
    assert answering() == "code"
    model.adapt(rows, "tiny_math", generations=1, population=2)
    with pytest.warns(UserWarning, match="what adapt found is forgotten"):
        model.remove_expert("math")
    assert answering() == "code"


SEARCHES = [
    {"preset": "paper"},
    {"mix": "raw", "base_member": True},
    {"mix": "normalised"},
    {"mix": "normalised", "base_member": True},
    {"granularity": "kind"},
    {"granularity": "matrix", "mix": "raw"},
    {},
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_weights_of_a_search_are_what_answers_or_say_that_they_are_means(model, search):
    rows, one = tasks.get("tiny_math").examples("validation")[:1], {"max_new_tokens": 8, "top_logprobs": 0}
    alpha = model.adapt(rows, "tiny_math", **{"generations": 1, "population": 2, "seed": 3, **search})
    try:
        (adapted,) = model.generate(questions()[0], **one)
        (same,) = model.generate(questions()[0], use=alpha, **one)
    finally:
        model.set_strategy("auto")
    assert adapted.choice.weights == same.choice.weights == alpha
    likely = [sum(token.logprob for token in answer.logprobs) for answer in (adapted, same)]
    is_alike = likely[0] == pytest.approx(likely[1], abs=1e-4)
    assert is_alike == ("granularity" not in search) == (not adapted.choice.averaged) and not same.choice.averaged
    assert ("base" in alpha) == (search.get("mix") == "raw" or "preset" in search)


def test_weights_may_name_the_base(model):
    base, *others = (
        model.generate(questions()[0], use=use, top_logprobs=0, max_new_tokens=4)[0]
        for use in (
            "base",
            "mix:base=1",
            {"base": 1.0},
            {"math": 0.6},
            {"math": 0.6, "base": 0.4},
            {"math": 0, "base": 2},
        )
    )
    assert [answer.choice.name for answer in others] == ["base", "base", "mix", "mix", "mix"]
    assert base.logprobs == others[0].logprobs == others[1].logprobs
    assert others[2].choice == others[3].choice and others[2].logprobs == others[3].logprobs
    assert others[4].choice.weights == {"math": 0, "base": 2} and others[4].logprobs != base.logprobs
