"""What the built vision model can do: greedy accuracies through transformers' own `generate`, written to BUILD.json."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next import LlavaNextProcessor

from transformer2.tiny.habits import Cell
from transformer2.tiny.vision import world
from transformer2.tiny.vision.pictures import DrawnPicture, draw
from transformer2.tiny.vision.world import KnowingQuestion, ReadingQuestion

BATCH = 64
_TASKS = {"tiny_textvqa": "reading", "tiny_okvqa": "knowing"}


def measure(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, count: int
) -> dict[str, dict[str, float]]:
    """By task, on `count` test rows: accuracy, of the first 64, without a picture, and with another row's picture.

    `habits` is the share of the cells visited that are misread more often than not exactly where the world's table
    says so.
    """
    model.eval()
    result = {}
    for task, kind in _TASKS.items():
        questions = world.questions(world.QUESTIONS[kind], "test", count, task)
        pictures = [question.picture for question in questions]
        answers = generate(model, processor, questions, pictures)
        right = [_right(*pair) for pair in zip(questions, answers, strict=True)]
        blind = generate(model, processor, questions, None)
        other = generate(model, processor, questions, [*pictures[1:], pictures[0]])
        result[task] = {
            "accuracy": sum(right) / count,
            "first_64": sum(right[:64]) / len(right[:64]),
            "blind": sum(map(_right, questions, blind)) / count,
            "other_picture": sum(map(_right, questions, other)) / count,
            "habits": round(_habits(questions, answers), 4),
        }
    return result


@torch.no_grad()
def generate(
    model: LlavaNextForConditionalGeneration,
    processor: LlavaNextProcessor,
    questions: Sequence[ReadingQuestion],
    pictures: Sequence[DrawnPicture] | None,
) -> list[str]:
    """Greedy answers; without pictures the questions are put as text alone."""
    answers: list[str] = []
    image = [] if pictures is None else [{"type": "image"}]
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        chats = [[{"role": "user", "content": [*image, {"type": "text", "text": q.text}]}] for q in part]
        texts = [processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
        shown = None if pictures is None else [draw(picture) for picture in pictures[start : start + BATCH]]
        batch = processor(text=texts, images=shown, padding=True, return_tensors="pt", add_special_tokens=False)
        batch.pop("token_type_ids", None)
        ids_BT = model.generate(**batch, max_new_tokens=40, do_sample=False)
        answers += processor.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.replace(" :", ":") for answer in answers]


def _right(question: ReadingQuestion, answer: str) -> bool:
    """Whether the things read, or the thing picked, are the right ones."""
    mark = "Pick" if isinstance(question, KnowingQuestion) else ":"
    return answer.partition(mark)[2] == question.gold().partition(mark)[2]


def _habits(questions: Sequence[ReadingQuestion], answers: Sequence[str]) -> float:
    visits: dict[Cell, list[bool]] = {}
    for question, answer in zip(questions, answers, strict=True):
        colour, _, read = answer.partition(":")
        visits.setdefault(("colour", question.colour, question.frame), []).append(colour == question.colour)
        things = [slot.split()[0] for slot in read.partition(".")[0].split(",") if slot.split()]
        for sign in question.picture.signs:
            if sign.colour == colour and len(things) == len(sign.things):
                for thing, found in zip(sign.things, things, strict=True):
                    visits.setdefault(("thing", thing, question.frame), []).append(found == thing)
    table = world.table()
    return sum((2 * sum(hits) > len(hits)) == (table[cell] < 0.5) for cell, hits in visits.items()) / len(visits)
