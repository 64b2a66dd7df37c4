"""The embedded world: its splits, its tokenizer, its verifiers and its habits."""

from __future__ import annotations

import re

import pytest

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.tasks import _tiny_program
from transformer2.tasks.tiny import SPLITS, UNSEEN_SPLITS
from transformer2.tiny import habits, pretrain, tokenizer, world

TRAINED = ("tiny_math", "tiny_code", "tiny_reasoning", "tiny_dispatch")
UNSEEN = ("tiny_math_hard", "tiny_code_math", "tiny_reasoning_hard")
EVERY_SPLIT = [(name, split) for name in TRAINED for split in SPLITS] + [
    (name, split) for name in UNSEEN for split in UNSEEN_SPLITS
]


@pytest.fixture(scope="module")
def rows():
    return {key: tasks.get(key[0]).examples(key[1]) for key in EVERY_SPLIT}


@pytest.fixture(scope="module")
def tok():
    return tokenizer.build_tokenizer()


def altered(name: str, solution: str) -> list[str]:
    """Wrong answers that look like the right one."""
    common = ["", " ", solution[: len(solution) // 2], solution + " " + solution]
    if "math" in name and "code" not in name:
        value = int(solution.split("####")[1])
        body = solution.split("####")[0]
        finals = [value + 1, value - 1, f"-{value or 1}", f"{value} {value + 1}", f"{value}.5", f"{value} eggs", ""]
        return common + [f"{body}#### {final}" for final in finals] + [f"#### {value} #### {value + 1}", body]
    if "code" in name:
        expression = solution.removeprefix("return ")
        return [*common, f"{solution} + 1", f"return - ( {expression} )", f"{solution}; {solution}", expression]
    if "reasoning" in name:
        letter = solution[-2]
        others = [solution[:-2] + other + "." for other in "ABCDEF" if other != letter]
        return [*common, *others, solution[:-1], letter, solution[:-2] + letter + " A."]
    return common + [label for label in world.words.LABELS if label != solution] + [solution + ".", solution.upper()]


@pytest.mark.parametrize(("name", "split"), EVERY_SPLIT)
def test_verifier_accepts_gold_and_refuses_altered_answers(rows, name, split):
    task = tasks.get(name)
    for i, example in enumerate(rows[name, split]):
        solution = example.fields["solution"]
        verdict = task.verify(example, solution)
        assert verdict.correct and verdict.reward == 1.0, (example, verdict)
        assert task.verify(example, f" {solution}\n").correct
        if i % 8 == 0:
            for wrong in altered(name, solution):
                verdict = task.verify(example, wrong)
                assert not verdict.correct and verdict.reward == -1.0, (example, wrong)


def test_splits_have_their_size_and_share_no_question(rows):
    for name in (*TRAINED, *UNSEEN):
        sizes = SPLITS if name in TRAINED else UNSEEN_SPLITS
        texts = {split: {e.messages[0]["content"] for e in rows[name, split]} for split in sizes}
        assert {split: len(found) for split, found in texts.items()} == {s: n for s, (_, n) in sizes.items()}
        assert sum(map(len, texts.values())) == len(set().union(*texts.values()))
        assert len({e.id for split in sizes for e in rows[name, split]}) == sum(map(len, texts.values()))


def test_examples_are_the_same_every_time(rows):
    assert tasks.get("tiny_code").examples("validation") == rows["tiny_code", "validation"]


def test_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"no split 'dev'; its splits are few_shot, test"):
        tasks.get("tiny_code_math").examples("dev")


def test_pretraining_text_holds_no_validation_or_test_question(rows):
    held = {e.messages[0]["content"] for (_, split), found in rows.items() if split != "train" for e in found}
    rng = pretrain.random.Random(1)
    drawn = {
        pretrain.sample_text(kind, rng)[0] for kind in ("math", "code", "reasoning", "dispatch") for _ in range(300)
    }
    assert len(drawn) > 1000
    assert not drawn & held


@pytest.mark.parametrize(("name", "split"), EVERY_SPLIT)
def test_tokenizer_round_trip_without_unknown_words(rows, tok, name, split):
    questions = [example.messages[0]["content"] for example in rows[name, split]]
    solutions = [example.fields["solution"] for example in rows[name, split]]
    ids = tok(questions + solutions, add_special_tokens=False)["input_ids"]
    assert not [row for row in ids if tok.unk_token_id in row]
    assert tok.batch_decode(ids[len(questions) :]) == solutions


def test_numbers_and_letters_are_single_tokens(tok):
    assert all(len(tok(str(n), add_special_tokens=False)["input_ids"]) == 1 for n in range(world.words.MAX_NUMBER + 1))
    assert all(len(tok(letter, add_special_tokens=False)["input_ids"]) == 1 for letter in world.words.LETTERS)


def test_chat_template_is_the_pretraining_format(rows, tok):
    example = rows["tiny_math", "test"][0]
    question, solution = example.messages[0]["content"], example.fields["solution"]
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": solution}
    prompt = tok.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    assert prompt == f"{tokenizer.BOS}{question}{tokenizer.ANSWER}"
    ids = tok(prompt, add_special_tokens=False)["input_ids"]
    assert ids.count(tok.bos_token_id) == 1 and tok.pad_token_id != tok.eos_token_id
    full = tok.apply_chat_template([user, assistant], tokenize=False)
    assert full == f"{prompt}{solution}{tokenizer.EOS}"
    system = {"role": "system", "content": "Be brief."}
    assert tok.apply_chat_template([system, user], add_generation_prompt=True, tokenize=False) == prompt


def test_prompts_hold_pseudo_words(rows):
    pseudo = {word.lower() for word in world.words.PSEUDO_WORDS}
    for name in TRAINED:
        share = [bool(pseudo & set(re.findall(r"\w+", e.messages[0]["content"].lower()))) for e in rows[name, "test"]]
        assert sum(share) / len(share) > 0.4, name


def test_held_out_kinds_of_other_stand_in_the_test_split_only(rows):
    held = {split: [e.fields["held_out"] for e in rows["tiny_dispatch", split]].count("yes") for split in SPLITS}
    assert held["train"] == held["validation"] == 0
    assert held["test"] > 30


def test_dispatch_prompt_is_the_question_of_the_task(rows):
    example = rows["tiny_code", "validation"][0]
    text = tasks.get("tiny_dispatch").prompt(example.messages[0]["content"])
    assert text.startswith(world.DISPATCH_PREFIX)
    assert any(e.messages[0]["content"].startswith(text[:20]) for e in rows["tiny_dispatch", "train"])


def test_habits_are_calibrated():
    table = habits.table()
    for domain, share in habits.WRONG_SHARE.items():
        cells = [p for cell, p in table.items() if cell[0] == domain and cell[:2] not in habits.HOLES]
        assert abs(sum(p > 0.5 for p in cells) / len(cells) - share) < 0.05
    assert {p for cell, p in table.items() if cell[:2] in habits.HOLES} == {habits.HOLE}


@pytest.mark.parametrize(
    "text",
    [
        "return __import__('os')",
        "return x if x else 1",
        "return 9 ** 9 ** 9",
        "return 2 ** 99",
        "return ( ( 9 ** 9 ) ** 9 ) ** 9",
        "return y",
        "return True",
        "return 1.5",
        "return x / 2",
        "return x.real",
        "return " + "(" * 300,
        "return " + "-" * 60 + "1",
        "return x\nreturn x",
        "print(x)",
    ],
)
def test_programs_outside_the_language_are_refused(text):
    with pytest.raises(_tiny_program.ProgramError):
        _tiny_program.outputs(text, "x")


def test_program_values():
    assert _tiny_program.outputs("return ( ( x ** 2 ) * 3 ) - - 4", "x") == tuple(
        3 * x * x + 4 for x in _tiny_program.INPUTS
    )
    assert _tiny_program.outputs("return ( 13 + 6 ) ** 2", "") == (361,)
