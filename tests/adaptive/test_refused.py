"""What a user may hand to SelfAdaptive by mistake: one line that names it, and no answer that looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes import longrope, make_llama

from transformer2 import tasks, tiny
from transformer2.adaptive.few_shot import _example, check_answers
from transformer2.adaptive.model import SelfAdaptive
from transformer2.errors import LengthError, UserError
from transformer2.types import Example, Verdict

QUESTION = "Skokap carries 24 pens, eats 2, finds 7, sells 6. How many?"
SMALL = {"population": 2, "generations": 1}
NUMBERS = {**SMALL, "seed": 1, "max_rows": 3, "max_evaluations": 2}


@pytest.fixture(scope="module")
def model() -> SelfAdaptive:
    return SelfAdaptive.from_pretrained("tiny")


def refused(what: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as e:
        found = what(*args, **kwargs)
        [*found] if hasattr(found, "__next__") else None
    assert "\n" not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------------- rows

BAD_ROWS = {
    "answer None": {"answer": None},
    "answer true": {"answer": True},
    "answer empty": {"answer": " "},
    "answer list": {"answer": ["23"]},
    "answer no number": {"answer": "abc"},
    "answer two numbers": {"answer": "23 or 24"},
    "question number": {"question": 3},
    "question None": {"question": None},
    "question empty": {"question": " "},
    "question parts": {"question": [{"type": "text"}]},
    "question long": {"question": "pens " * 512},
    "picture": {"image": "sign.png"},
    "column that nobody reads": {"images_of": "sign.png"},
    "column of another name": {"systm": "Be brief."},
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_used_is_named(model, row) -> None:
    rows = [{"question": QUESTION, "answer": "23"}, {"question": QUESTION, "answer": "23"} | row]
    assert "row 2" in refused(model.adapt, rows, "tiny_math", **SMALL)


@pytest.mark.parametrize("rows", [None, 3, "abc", {"question": QUESTION, "answer": "23"}, [], [3]], ids=str)
def test_what_are_no_rows_is_refused(model, rows) -> None:
    refused(model.adapt, rows, "tiny_math", **SMALL)


@pytest.mark.parametrize("task", [None, 3, Verdict, "tiny_meth"], ids=str)
def test_what_is_no_task_is_refused(model, task) -> None:
    refused(model.adapt, [{"question": QUESTION, "answer": "23"}], task, **SMALL)


@pytest.mark.parametrize("task", ["humaneval", "mbpp", "arc_easy", "tiny_code"])
def test_a_task_that_needs_more_of_a_row_is_named(model, task) -> None:
    room = tasks.get(task)
    room.max_new_tokens = 20
    said = refused(model.adapt, [{"question": QUESTION, "answer": "A"}], room, **SMALL)
    assert "row 1" in said and task in said


def test_an_example_of_a_task_that_lacks_its_fields_is_named(model) -> None:
    bare = Example("mine", ({"role": "user", "content": QUESTION},), "return 3")
    assert "mine" in refused(model.adapt, [bare], "tiny_code", **SMALL)


def test_a_row_that_leaves_no_room_for_its_answer_is_too_long(model) -> None:
    row = {"question": QUESTION, "answer": "23"}
    with pytest.raises(LengthError, match=r"an answer of task gsm8k may have 512 tokens, and this model reads 128"):
        model.adapt([row], "gsm8k", **SMALL)
    task = tasks.get("gsm8k")
    task.max_new_tokens = 120
    with pytest.raises(LengthError, match=r"row 1 has \d+ tokens and its answer may have 120"):
        model.adapt([row], task, **SMALL)


def test_a_request_stays_within_the_frequencies_that_longrope_begins_with(tmp_path) -> None:
    """Beyond them the answers of all that are under way change."""
    base = make_llama(tmp_path, layers=1, context=4096, rope=longrope(128))
    model = SelfAdaptive.from_pretrained(str(base), experts=[], strategy=None)
    assert model.start("x", ids=[5] * 100, max_new_tokens=28).sampling.max_new_tokens == 28
    with pytest.raises(LengthError, match="more than the 128 of this model"):
        model.start("x", ids=[5] * 100, max_new_tokens=29)


@pytest.mark.parametrize("answer", [23, 23.0, "23", np.int64(23), np.int8(23), np.float32(23)], ids=repr)
def test_a_number_is_taken_as_its_text(answer) -> None:
    check_answers(tasks.get("gsm8k"), [_example({"question": QUESTION, "answer": answer}, 0)], [False])


def test_a_budget_of_ones_own_makes_room_for_a_row(model, tmp_path) -> None:
    task = tasks.get("jsonl", path=str(tmp_path / "mine.jsonl"), verifier="numeric")
    rows = [{"question": QUESTION, "answer": 23}]
    said = refused(model.adapt, rows, task, **SMALL)
    assert "512 tokens" in said and "max_new_tokens" in said
    alpha = model.adapt(rows, task, max_new_tokens=np.int64(32), **{name: np.int64(n) for name, n in NUMBERS.items()})
    assert alpha == model.adapt(rows, task, max_new_tokens=32, **NUMBERS) and set(alpha) == set(tiny.EXPERTS)
    for budget in (0, -1, 2.5, "x", True):
        assert "max_new_tokens" in refused(model.adapt, rows, task, max_new_tokens=budget, **SMALL)


IGNORED = {"experts": ["math"], "controls": True, "generation": 3, "few_shot": 4, "options": {}}


@pytest.mark.parametrize("name", IGNORED)
def test_an_argument_that_a_search_would_ignore_is_named(model, name) -> None:
    said = refused(model.adapt, [{"question": QUESTION, "answer": "23"}], "tiny_math", **{name: IGNORED[name]}, **SMALL)
    assert repr(name) in said and "generations" in said


def test_a_search_takes_what_is_said_of_it(model) -> None:
    rows = [{"question": QUESTION, "answer": "23"}]
    found = [model.adapt(rows, "tiny_math", seed=1, max_rows=rows_at_once, **SMALL) for rows_at_once in (None, 1)]
    assert found[0] == pytest.approx(found[1])
    assert "max_rows" in refused(model.adapt, rows, "tiny_math", max_rows=0, **SMALL)


@pytest.mark.parametrize("name", ["images", "image_url", "picture", "pictures", "image_path", "imageFile", "img_b64"])
def test_pictures_under_a_name_that_is_not_read_are_refused(model, name) -> None:
    row = {"question": QUESTION, "answer": "23", name: ["a.png"]}
    assert f"row 1 to adapt with: {name!r} is not read; name it 'image'" in refused(model.adapt, [row], "gsm8k")


def test_a_row_may_have_a_system_message() -> None:
    row = {"question": QUESTION, "answer": "23"}
    asked = {"role": "user", "content": QUESTION}
    assert _example({**row, "system": None}, 0).messages == (asked,)
    assert _example({**row, "system": "Be brief."}, 0).messages == ({"role": "system", "content": "Be brief."}, asked)
    assert "row 1" in refused(_example, {**row, "system": 5}, 0)


def test_a_search_that_no_row_told_anything_says_so(model) -> None:
    with pytest.warns(UserWarning, match="no mixture answered a row right"):
        model.adapt([{"question": QUESTION, "answer": "24000"}], "tiny_math", **SMALL)


def test_rows_may_come_from_an_iterator(model, recwarn) -> None:
    alpha = model.adapt(iter([{"question": QUESTION, "answer": 23}]), "tiny_math", population=4, generations=1)
    assert set(alpha) == set(tiny.EXPERTS)


OWN = ("gsm8k", "math", "arc_easy", "arc_challenge", *(n for n in tasks.names() if n.startswith("tiny_")))
ALONE = ("gsm8k", "math", "tiny_math", "tiny_math_hard", "tiny_reasoning", "tiny_reasoning_hard", "tiny_dispatch")


@pytest.mark.parametrize("name", OWN)
def test_no_row_of_a_shipped_task_is_refused(name, request) -> None:
    task = tasks.get(name)
    folder = None if name.startswith("tiny_") else str(request.getfixturevalue("real_data"))
    examples = task.examples("test", folder)[:500]
    check_answers(task, examples, [True] * len(examples))
    if name in (*ALONE, "tiny_textvqa", "tiny_okvqa"):
        rows = [_example({"question": e.question, "answer": e.answer}, i) for i, e in enumerate(examples)]
        check_answers(task, rows, [False] * len(rows))


def test_a_row_of_ones_own_is_judged_by_its_answer_where_annotators_are_lacking() -> None:
    task, row = tasks.get("textvqa"), _example({"question": "What does the sign say?", "answer": "stop"}, 0)
    check_answers(task, [row], [False])
    assert task.verify(row, "Stop.").credit == 1 and task.verify(row, "go").credit == 0


# ---------------------------------------------------------------------- prompts and options

BAD_PROMPTS = [
    None,
    3,
    {"a": 1},
    {"role": "user", "content": QUESTION},
    b"ab",
    [None],
    [3],
    [[]],
    [{"role": "user"}],
    [{"role": "user", "content": QUESTION, "image": "sign.png"}],
    [{"role": "user", "content": QUESTION, "tool_calls": []}],
    "",
]


@pytest.mark.parametrize("prompt", BAD_PROMPTS, ids=str)
def test_what_is_no_prompt_is_refused(model, prompt) -> None:
    for ask in (model.generate, model.stream, model.start):
        refused(ask, prompt, max_new_tokens=2)
    assert model.is_idle


def test_ids_are_of_one_prompt(model) -> None:
    assert "ids are of one prompt" in refused(model.generate, [QUESTION, QUESTION], ids=[1, 2], max_new_tokens=2)
    assert model.is_idle


def test_prompts_may_come_from_an_iterator(model) -> None:
    two = [QUESTION, [{"role": "user", "content": QUESTION}]]
    several = [model.generate(kind, max_new_tokens=4) for kind in (two, tuple(two), iter(two))]
    assert len({answer.text for answers in several for answer in answers}) == 1
    assert len(model.generate(iter(two[1]), max_new_tokens=4)) == 1 and model.generate([]) == []


BAD_OPTIONS: list[dict[str, Any]] = [
    *({"temperature": v} for v in ("x", None, True, float("nan"), float("inf"), -1)),
    *({"top_p": v} for v in ("x", None, 0, 2)),
    *({"stop": v} for v in (5, [None], [""], {"a": 1}, [[]], "</s>b", [10**6])),
    *({"ids": v} for v in (3, "abc", ["a"], [10**9], [-1], [True], [[1]], {1: 2}, [])),
    *({"use": v} for v in (3, ["math"], {"math": "x"}, {"math": None}, {3: 1}, {}, "mth", b"math")),
    *({"max_new_tokens": v} for v in ("x", 0, -1, 2.5)),
    *({"seed": v} for v in ("x", -1, None)),
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_an_option_that_cannot_be_used_is_refused(model, options) -> None:
    (name,) = options
    for ask in (model.generate, model.stream, model.start):
        said = refused(ask, QUESTION, **{"max_new_tokens": 2, **options})
        assert (name in said or name in ("use", "ids")) and "model." not in said
    assert model.is_idle


def test_numbers_may_be_numpys(model) -> None:
    plain = {"max_new_tokens": 3, "seed": 2**40, "top_logprobs": 1, "temperature": 0.5, "top_p": 0.5, "stop": [5]}
    kinds = {"temperature": np.float32, "top_p": np.float64, "stop": lambda ids: [np.int64(i) for i in ids]}
    same = {name: kinds.get(name, np.int64)(value) for name, value in plain.items()}
    one, two = (
        model.generate(QUESTION, use={"math": kind(1)}, **of)[0] for kind, of in ((int, plain), (np.int32, same))
    )
    assert one.text == two.text and one.logprobs == two.logprobs and type(two.completion_tokens) is int
    for name in ("max_new_tokens", "seed", "top_logprobs"):
        assert name in refused(model.start, QUESTION, **{name: np.float32(3)})
        assert name in refused(model.start, QUESTION, **{name: np.bool_(True)})


def test_a_string_to_stop_at_is_one_and_ids_may_be_a_tensor(model) -> None:
    (whole,) = model.generate(QUESTION)
    (one,), (listed,) = (model.generate(QUESTION, stop=stop) for stop in ("####", ["####"]))
    assert one.text == listed.text == whole.text.partition("####")[0] and one.text
    ids = model.tokenizer(QUESTION)["input_ids"]
    texts = {model.generate(QUESTION, ids=of, max_new_tokens=4)[0].text for of in (ids, tuple(ids), torch.tensor(ids))}
    assert len(texts) == 1


# ---------------------------------------------------------------------- experts and loading

BAD_LOADING: list[dict[str, Any]] = [
    *({"experts": v} for v in ("bak", 3, [3], {"a": 3}, {"a": None}, [None])),
    *({"alpha": v} for v in (3, "math", ["math"], {"math": "x"}, {"mth": 1}, {})),
    *({"strategy": v} for v in ("x", 3, ["cls"])),
    *({"max_rows": v} for v in (0, -1, 2.5, "x", None, True)),
    *({"max_tokens": v} for v in (0, "x", None)),
    *({"soft": v} for v in ("x", 1)),
    *({"device": v} for v in ("x", ["cpu"])),
    *({"dtype": v} for v in ("x", 3)),
    *({"base": v} for v in (None, 3, "")),
    *({"classifier": v} for v in (3, "nowhere")),
    {"model_kwargs": 3},
    {"experts": {}},
    {"experts": {}, "soft": True, "strategy": "auto"},
    {"alpha": {"math": 1}},
    *({"device": v} for v in ("mps", "cuda:99", torch.device("meta"))),
    *({"model_kwargs": {k: v}} for k, v in (("dtype", "float32"), ("load_in_4bit", True), ("base", "tiny_b"))),
]


@pytest.mark.parametrize("given", BAD_LOADING, ids=str)
def test_what_cannot_be_loaded_is_refused(given) -> None:
    said = refused(SelfAdaptive.from_pretrained, **{"base": "tiny", "strategy": "scores", **given})
    assert "folder 'b'" not in said and ("4bit" not in str(given) or "{quantization_config: " in said)


def test_one_path_is_one_expert() -> None:
    path = tiny.expert_path("math")
    assert [SelfAdaptive.from_pretrained("tiny", p).experts for p in (path, str(path), iter([path]))] == [["math"]] * 3


@pytest.mark.parametrize("name", [3, None, ["math"], "mth"], ids=str)
def test_a_name_that_is_none_is_refused(model, name) -> None:
    for what in (model.expert, model.z, model.remove_expert):
        refused(what, name)
    refused(model.add_expert, name, tiny.expert_path("math") if name != "mth" else 3)
    assert model.experts == [*tiny.EXPERTS]
