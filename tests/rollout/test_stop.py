"""Stop strings and extra EOS ids: a completion ends with the token that completes one, its text before it."""

import random
from functools import partial

import pytest
import torch
from fakes import byte_tokenizer, completion_ids

from transformer2 import tasks
from transformer2.data.prompts import collate, open_turn_end, render
from transformer2.errors import ConfigError
from transformer2.policy import load_base, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.paged import PagedEngine
from transformer2.types import Example

EOS = 3
TINY = load_tokenizer("tiny")
SAMPLING = Sampling(1.0, max_new_tokens=24)


@pytest.fixture(scope="module")
def prompts():
    examples = [e for name in ("tiny_math", "tiny_code") for e in tasks.get(name).examples("validation")[:6]]
    return collate(examples, [render(TINY, e) for e in examples], 0)


def cut(ids, stop):
    """What `stop` leaves of a completion: its ids and its text, token by token."""
    for n in range(1, len(ids) + 1):
        text = TINY.decode(ids[:n], skip_special_tokens=True)
        if found := [text.find(s) for s in stop if s in text]:
            return ids[:n], text[: min(found)]
    return ids, TINY.decode(ids, skip_special_tokens=True)


STOPS = [["####"], [" - "], ["= 1"], [", -", "####"], ["return"], ["x ** 2", "####"], ["7"], ["no such text"]]
IN_FIVES = partial(HFEngine, max_rows=5)


@pytest.mark.parametrize(
    ("engine", "stop"),
    [*((engine, stop) for engine in (HFEngine, IN_FIVES) for stop in STOPS), (PagedEngine, ["= 1", "x ** 2"])],
    ids=str,
)
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(prompts, engine, stop):
    model = load_base("tiny")
    whole = engine(TINY, [EOS]).generate(model, prompts, SAMPLING, seed=1)
    stopped = engine(TINY, [EOS], stop=stop).generate(model, prompts, SAMPLING, seed=1)
    expected = [cut(ids, stop) for ids in completion_ids(whole)]
    assert completion_ids(stopped) == [ids for ids, _ in expected]
    assert list(stopped.completions) == [text for _, text in expected]
    ended = [
        ids != before or done
        for (ids, _), before, done in zip(expected, completion_ids(whole), whole.finished_B, strict=True)
    ]
    assert stopped.finished_B.tolist() == [bool(e) for e in ended]
    gone_BC = stopped.completion_mask_BC == 0
    assert stopped.completion_ids_BC[gone_BC].eq(TINY.pad_token_id).all() and stopped.logprobs_BC[gone_BC].eq(0).all()
    if stop != ["no such text"]:
        assert completion_ids(stopped) != completion_ids(whole) or stop == ["7"]


@pytest.mark.parametrize(("stop", "token"), [([15], 15), (["<|answer|>"], 4), (["<unk>", 20], 20)], ids=str)
def test_ids_and_names_of_special_tokens_are_further_eos(prompts, stop, token):
    engine = HFEngine(TINY, [EOS], stop=stop)
    assert engine.stop == [] and {EOS, token} <= set(engine.eos_ids)
    whole = completion_ids(HFEngine(TINY, [EOS]).generate(load_base("tiny"), prompts, SAMPLING, seed=1))
    stopped = engine.generate(load_base("tiny"), prompts, SAMPLING, seed=1)
    assert completion_ids(stopped) == [ids[: ids.index(token) + 1] if token in ids else ids for ids in whole]


def test_the_default_engine_stops_drawing_at_a_stop_string(prompts):
    passes = []
    model = load_base("tiny")
    HFEngine(TINY, [EOS]).check(model, torch.device("cpu"))
    model.register_forward_pre_hook(lambda *args: passes.append(1))
    for stop in ([], ["return", "="]):
        passes.clear()
        rollouts = HFEngine(TINY, [EOS], stop=stop).generate(model, prompts, SAMPLING, seed=1)
        longest = rollouts.completion_ids_BC.shape[1]
        assert len(passes) == longest
    assert longest < 8


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("naïve café end", "é"),
        ("ok 🙂 done", "🙂 d"),
        ("a\n\nUser: b", "\n\nUser:"),
        ("x  y", "  "),
        ("end of it", "end"),
        ("ok \ufffd done", "\ufffd"),
    ],
)
def test_halves_of_characters_and_spaces_complete_a_stop_string_where_the_text_does(text, stop):
    tokenizer = byte_tokenizer()
    engine = HFEngine(tokenizer, [1, 4], stop=[stop])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    final = (tokenizer.decode(ids[:n]).rstrip("\ufffd") for n in range(1, len(ids) + 1))
    first = next(n for n, text_so_far in enumerate(final, 1) if stop in text_so_far)
    seen = [bool(engine.stopped(torch.tensor([ids[:n]]))) for n in range(1, first + 1)]
    assert seen == [False] * (first - 1) + [True]
    assert engine.up_to_stop(ids) == (first, text[: text.index(stop)])


def test_half_a_character_is_no_stop_string_that_ends_with_what_it_is_shown_as():
    tokenizer = byte_tokenizer()
    engine = HFEngine(tokenizer, [1, 4], stop=["\ufffd"])
    ids = tokenizer("ok 🙂 é", add_special_tokens=False)["input_ids"]
    assert not any(bool(engine.stopped(torch.tensor([ids[:n]]))) for n in range(1, len(ids) + 1))


def test_what_a_text_has_begun_of_stop_strings_does_not_depend_on_its_pieces():
    draws, engine = random.Random(0), HFEngine(TINY, [EOS], stop=["a", "aab", "abaabab", "aaaa"])
    for _ in range(300):
        pieces = ["".join(draws.choices("ab", k=draws.randrange(4))) for _ in range(6)]
        begun = [0, 0, 0, 0]
        for piece in pieces:
            begun = engine.begun(piece, begun)
        text = "".join(pieces)
        assert begun == [max(n for n in range(len(s) + 1) if text.endswith(s[:n])) for s in engine.stop]


@pytest.mark.parametrize(
    ("stop", "message"),
    [([10**6], "no token 1000000"), ([-1], "no token -1"), (["</s>\n"], "name the token alone")],
)
def test_what_can_end_nothing_is_refused(stop, message):
    with pytest.raises(ConfigError, match=message):
        HFEngine(TINY, [EOS], stop=stop)


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
GEMMA = "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
BARE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
STRICT = "{{ raise_exception('a system message comes first') }}"


@pytest.mark.parametrize(
    ("template", "added", "eos", "stop", "end"),
    [
        (None, [], [1, 4], [], None),  # Llama-3's own, with both of its EOS ids
        (None, [], [1], [], "<|eot_id|>"),  # and with one: the base model's generation config
        (CHATML, ["<|im_start|>", "<|im_end|>"], [1, 4], [], "<|im_end|>"),
        (CHATML, ["<|im_start|>", "<|im_end|>"], [1, 4], ["<|im_end|>"], None),
        (CHATML, [], [1, 4], [], "<|im_end|>"),  # a template put on a tokenizer without its tokens
        (CHATML, [], [1, 4], ["<|im_end|>"], None),
        (GEMMA, ["<start_of_turn>", "<end_of_turn>"], [1, 4], [], "<end_of_turn>"),
        (BARE, [], [1, 4], [], None),
        (STRICT, [], [1, 4], [], None),
        ("", [], [1, 4], [], None),
    ],
)
def test_a_turn_end_that_is_no_eos_is_found(template, added, eos, stop, end):
    tokenizer = byte_tokenizer()
    if template is not None:
        tokenizer.chat_template = template or None
    tokenizer.add_tokens(added, special_tokens=True)
    engine = HFEngine(tokenizer, eos, stop=stop)
    assert open_turn_end(tokenizer, engine.eos_ids, engine.stop) == end


@pytest.mark.parametrize(
    ("end", "opening"), [("<think>\n", "<think>"), ("<think>\n\n</think>\n\n", ""), ("think>", "")]
)
def test_a_thought_that_the_prompt_opens_is_part_of_the_text(end, opening):
    tokenizer = byte_tokenizer()
    ids = [tokenizer("Hi " + end, add_special_tokens=False)["input_ids"], tokenizer("Hi")["input_ids"]]
    examples = [Example("t/0", ({"role": "user", "content": "?"},), "18")] * 2
    sampled = [tokenizer(text)["input_ids"] for text in ("The answer is 18. But", "The answer is 18.")]
    rollouts = HFEngine(tokenizer, [EOS]).packed(collate(examples, ids, 0), sampled)
    assert rollouts.completions == (opening + "The answer is 18. But", "The answer is 18.")
    assert rollouts.completion_mask_BC.sum(-1).tolist() == [len(ids) for ids in sampled]
