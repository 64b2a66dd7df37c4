"""The dispatch task on real rows: balanced, disjoint, clean unless it says otherwise; and its requests of nobody."""

import random
from collections import Counter

import pytest

from transformer2 import tasks
from transformer2.errors import ConfigError, DataError
from transformer2.tasks import _other

TWO = {"math": "gsm8k", "reasoning": "arc_easy"}
SPLITS = ("train", "validation", "test")


def requests(task, split, data):
    return {e.messages[0]["content"]: e for e in task.examples(split, str(data))}


@pytest.fixture(scope="module")
def rows(real_data):
    task = tasks.get("dispatch", experts=TWO)
    return {split: task.examples(split, str(real_data)) for split in SPLITS}


def test_splits_are_balanced_disjoint_and_clean(rows):
    task = tasks.get("dispatch", experts=TWO)
    assert task.labels == ("math", "reasoning", "other") and task.protocol == "clean"
    counts = {split: Counter(e.answer for e in examples) for split, examples in rows.items()}
    assert counts == {s: dict.fromkeys(task.labels, n) for s, n in zip(SPLITS, (160, 160, 79), strict=True)}
    prompts = [e.messages[0]["content"] for examples in rows.values() for e in examples]
    assert len(set(prompts)) == len(prompts) == 3 * 399
    sources = {e.fields["source"].rpartition("/")[0] for examples in rows.values() for e in examples}
    assert sources == {"gsm8k/train", "arc_easy/train", ""}
    for i, example in enumerate(rows["test"]):
        assert example.id == f"dispatch/test/{i}"
        assert [task.verify(example, t).correct for t in (example.answer, "none", "math reasoning")] == [
            True,
            False,
            False,
        ]


def test_a_request_about_a_picture_shows_it():
    """What the first pass sees of a request, the classification expert is trained on."""
    task = tasks.get("dispatch", experts={"signs": "tiny_textvqa", "facts": "tiny_reasoning"})
    shown = {e.id: e.images for e in tasks.get("tiny_textvqa").examples("train")}
    for split, n in zip(SPLITS, (160, 160, 79), strict=True):
        examples = task.examples(split)
        assert Counter(e.answer for e in examples) == dict.fromkeys(task.labels, n)
        assert all(e.images == shown.get(e.fields["source"], ()) for e in examples)
        assert all(bool(e.images) == (e.answer == "signs") for e in examples)


def test_half_of_the_requests_of_nobody_in_test_are_of_new_kinds(rows):
    for split, share in (("train", 0), ("validation", 0), ("test", 39)):
        held_out = [e for e in rows[split] if e.fields["held_out"] == "yes"]
        assert len(held_out) == share and all(e.answer == "other" for e in held_out)


def test_made_up_requests_differ_and_cover_their_kinds():
    drawn = _other.requests(_other.KINDS, 2000, random.Random(0))
    assert len(set(drawn)) == 2000 and not any("{" in text for text in drawn)
    starts = Counter(text[:8] for text in drawn)
    assert len(starts) >= 20
    assert len(_other.requests(_other.HELD_OUT[:1], 100, random.Random(0))) == 100
    assert not set(_other.KINDS) & set(_other.HELD_OUT)


def test_the_prompt_names_the_categories_and_the_request(rows):
    task = tasks.get("dispatch", experts=TWO)
    prompt = task.prompt("2 + 2?")
    for part in (
        "- math: grade-school",
        "- reasoning: ",
        "- other: anything else",
        "2 + 2?",
        "math, reasoning or other.",
    ):
        assert part in prompt
    example = next(e for e in rows["train"] if e.answer == "reasoning")
    assert "\n(A) " in example.messages[0]["content"] and "multiple-choice" not in example.messages[0]["content"]


def test_rows_and_order_follow_from_the_seed(some_rows):
    a, b, other = (tasks.get("dispatch", experts=TWO, seed=seed, prompts_per_category=20) for seed in (0, 0, 1))
    assert a.examples("train", str(some_rows)) == b.examples("train", str(some_rows))
    assert requests(a, "train", some_rows).keys() != requests(other, "train", some_rows).keys()


def test_the_paper_s_protocol_takes_test_rows_and_says_so(some_rows):
    task = tasks.get("dispatch", experts=["gsm8k", "arc_challenge"], protocol="paper", prompts_per_category=50)
    assert task.protocol == "paper" and task.labels == ("gsm8k", "arc_challenge", "other")
    sources = {e.fields["source"].rpartition("/")[0] for s in SPLITS for e in task.examples(s, str(some_rows))}
    assert sources == {"gsm8k/test", "arc_challenge/test", ""}


def test_rows_of_named_tasks_count_as_other(some_rows):
    others = ["arc_easy", "tiny_math"]
    task = tasks.get("dispatch", experts={"math": "gsm8k"}, other=others, prompts_per_category=25)
    rows = [e for s in SPLITS for e in task.examples(s, str(some_rows)) if e.answer == "other"]
    names = Counter(e.fields["source"].partition("/")[0] for e in rows)
    assert len(rows) == 25 and set(names) == set(others) and min(names.values()) >= 12


def test_a_task_knows_its_category():
    assert [tasks.get("dispatch", experts=TWO).label_of(t) for t in ("gsm8k", "arc_easy", "math", None)] == [
        "math",
        "reasoning",
        None,
        None,
    ]
    assert [tasks.get("tiny_dispatch").label_of(t) for t in ("tiny_math", "tiny_code_math", None)] == [
        "math",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": {"math": "gsm9k"}}, "did you mean 'gsm8k'"),
        ({"experts": {"other": "gsm8k"}}, "must differ"),
        ({"experts": {"a": "gsm8k", "A": "arc_easy"}}, "must differ"),
        ({"experts": "gsm8k"}, "lists of task names"),
        ({"experts": []}, "at least one"),
        ({"experts": ["gsm8k"], "other": ["arc_esy"]}, "did you mean 'arc_easy'"),
        ({"protocol": "dirty"}, "use clean or paper"),
        ({"prompts_per_category": 3}, "at least 5"),
        ({"expert": ["gsm8k"]}, "has no option 'expert'; did you mean 'experts'?"),
    ],
)
def test_odd_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as e:
        tasks.get("dispatch", **options)
    assert "\n" not in str(e.value)


def test_tasks_without_the_split_are_refused(real_data):
    with pytest.raises(ConfigError, match=r"task tiny_math_hard has no train split for dispatch's clean protocol"):
        tasks.get("dispatch", experts=["tiny_math_hard"]).examples("train", str(real_data))
    with pytest.raises(DataError, match="dispatch has no split 'dev'"):
        tasks.get("dispatch", experts=TWO).examples("dev", str(real_data))
