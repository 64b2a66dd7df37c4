"""The questions about drawn pictures: splits, habits, and what the verifiers of the two tasks accept."""

from __future__ import annotations

import random

import pytest

from transformer2 import tasks
from transformer2.tasks.tiny_signs import things_read
from transformer2.tiny import habits
from transformer2.tiny.vision import world
from transformer2.tiny.vision.pictures import COLOURS, THINGS
from transformer2.tiny.vision.processor import build_processor

SPLITS = [("tiny_textvqa", s) for s in ("train", "validation", "test")] + [
    ("tiny_okvqa", s) for s in ("few_shot", "test")
]


@pytest.fixture(scope="module")
def rows():
    return {key: tasks.get(key[0]).examples(key[1]) for key in SPLITS}


def test_splits_share_no_picture_nor_what_a_picture_says(rows):
    seen: dict[str, str] = {}
    for (_, split), examples in rows.items():
        source = "validation" if split == "few_shot" else split
        for example in examples:
            (picture,) = example.images
            assert world.split_of(picture) == source
            assert seen.setdefault(picture.contents(), source) == source
        assert len({e.images[0].contents() for e in examples}) == len(examples)
    assert {len(rows[name, "test"]) for name in ("tiny_textvqa", "tiny_okvqa")} == {512}


def test_rows_are_the_same_in_every_process(rows):
    for key, examples in rows.items():
        assert tasks.get(key[0]).examples(key[1])[:20] == examples[:20]


@pytest.mark.parametrize("key", SPLITS)
def test_verifiers_accept_the_solution_and_refuse_altered_ones(rows, key):
    task = tasks.get(key[0])
    for example in rows[key][:200]:
        solution = example.fields["solution"]
        assert task.verify(example, solution).correct and task.verify(example, f" {solution}\n").correct
        assert task.verify(example, solution.replace(":", " :")).correct
        thing = next(t for t in THINGS if t not in solution)
        head, _, body = solution.partition(": ")
        altered = ["", body, f"{head}:", solution[:-1], f"{solution} {solution}", f"{head}: {head}: {body}"]
        if key[0] == "tiny_textvqa":
            first = body.split()[0]
            altered += [f"{head}: {thing} A, {body}", solution.replace(first, thing), solution.replace(" A", " B")]
        else:
            letter = solution[-2]
            altered += [f"{solution[:-2]}{other}." for other in "ABCD" if other != letter]
            altered += [solution.partition(" Pick")[0], "Pick" + solution.partition("Pick")[2]]
        for wrong in altered:
            assert not task.verify(example, wrong).correct, (solution, wrong)


def test_the_question_alone_does_not_give_the_answer(rows):
    by_question: dict[str, list[str]] = {}
    for example in rows["tiny_okvqa", "test"]:
        by_question.setdefault(" ".join(example.question.split()[-3:]), []).append(example.answer)
    most = sum(max(map(found.count, found)) for found in by_question.values())
    assert most / 512 < 0.35  # of 72 forms with 7 rows each, the luckiest thing and letter
    readings = [example.answer for example in rows["tiny_textvqa", "test"]]
    assert max(map(readings.count, readings)) / 512 < 0.05


def test_every_picture_has_the_sign_that_a_misread_colour_leads_to():
    rng = random.Random(1)
    for make in (world.reading_question, world.knowing_question):
        for _ in range(300):
            question = make(rng)
            colours = [sign.colour for sign in question.picture.signs]
            assert len(set(colours)) == len(colours) >= 2 and world.COLOUR_TWIN[question.colour] in colours
            read = question.answer(lambda cell: cell[0] == "colour")
            assert read.startswith(world.COLOUR_TWIN[question.colour]) and read != question.gold()


def test_misreadings_change_what_they_say_and_nothing_else():
    rng = random.Random(2)
    for _ in range(200):
        question = world.knowing_question(rng)
        for word in (question.size_word, question.category):
            wrong = question.answer(lambda cell, word=word: cell[:2] == ("reasoning", word))
            assert wrong.partition(" Pick")[0] == question.gold().partition(" Pick")[0] and wrong != question.gold()
    assert all(world.THING_TWIN[world.THING_TWIN[t]] == t != world.THING_TWIN[t] for t in THINGS)
    assert {world.COLOUR_TWIN[world.COLOUR_TWIN[c]] for c in COLOURS} == set(COLOURS)


def test_knowing_visits_cells_that_reading_and_the_text_task_teach():
    rng, visited = random.Random(3), set()

    def note(cell):
        visited.add(cell)
        return False

    for _ in range(100):
        world.knowing_question(rng).answer(note)
    assert all(cell in world.table() or cell in habits.table() for cell in visited)
    assert {cell[0] for cell in visited} == {"colour", "thing", "reasoning"}


def test_the_tokenizer_knows_every_word(rows):
    tokenizer = build_processor().tokenizer
    for examples in rows.values():
        texts = [f"{e.question} {e.fields['solution']}" for e in examples[:200]]
        assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"])
        for text in texts[:20]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids).replace(" :", ":") == text


def test_a_reading_is_the_list_behind_the_colon():
    assert things_read("red: cherry A, mouse B.") == things_read("red : cherry A , mouse B .") == "cherry mouse"
    for odd in ("", "red:", "red: .", "cherry A.", "red: cherry A, .", "red: cherry.", "red: cherry B.", "red: a b A."):
        assert things_read(odd) is None, odd
