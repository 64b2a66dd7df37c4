"""VQA accuracy: an answer is as right as the annotators who gave it are many.

    score = mean over annotators i of min(1, #{j != i : answer_j = answer} / 3)        (visualqa.org/evaluation.html)

so of ten annotators none, 1, 2, 3, 4 or more who say the same make 0, .3, .6, .9, 1. Both sides are normalised first,
as EvalAI's processor does for TextVQA (and lmms-eval for TextVQA and OK-VQA): lower case; commas and question marks
go, a possessive stands apart; punctuation but apostrophe and colon becomes a blank, or nothing where it stands beside
one; full stops that no digit follows go; none, zero to ten are digits; articles go; contractions get their
apostrophe.

Departures: a completion without letter or digit is no answer (there, it equals an annotator's "A", of which nothing is
left either); no
more than the first 32 full stops are removed there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformer2.types import Verdict

__all__ = ["normalised", "soft_score", "verify_vqa"]

ENOUGH = 3  # annotators who agree
RIGHT = 0.5  # of the soft score: two of ten annotators
WRONG_REWARD = -0.1  # PAPER: +1 / -0.1 for vision, for stability

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock 'ow's'at oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""
# A word with one of its apostrophes missing.
_WITH_APOSTROPHE = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS.split() for i, letter in enumerate(word) if letter == "'"
}


def normalised(answer: str) -> str:
    """An answer without what does not count."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    words = (_DIGITS.get(word, word) for word in _FULL_STOP.sub("", out).split())
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def soft_score(answer: str, answers: Sequence[str]) -> float:
    """VQA accuracy of an answer.

    Args:
        answer: What is judged.
        answers: What the annotators said, one each: ten in the data sets; with fewer than four nothing reaches 1.
    """
    n, said = len(answers), normalised(answer)
    if not any(c.isalnum() for c in answer):
        return 0.0
    same = sum(normalised(other) == said for other in answers)
    # Left out in turn: one of those who said the same, or one of the others.
    return (same * min(1.0, (same - 1) / ENOUGH) + (n - same) * min(1.0, same / ENOUGH)) / n


def verify_vqa(completion: str, answers: Sequence[str], soft_reward: bool = False) -> Verdict:
    """The verdict on a whole completion: right by a soft score of one half or more.

    Args:
        completion: The model's answer and nothing else.
        answers: What the annotators said.
        soft_reward: Reward the score, from -0.1 for 0 to 1 for 1, in place of +1 right, -0.1 wrong.
    """
    score = soft_score(completion, answers)
    correct = score >= RIGHT
    reward = WRONG_REWARD + (1 - WRONG_REWARD) * (score if soft_reward else correct)
    said = normalised(completion)[:200]
    reason = f"score {score:.2g}" if score else f"no annotator said {said[:40]!r}" if said else "no answer"
    return Verdict(round(reward, 6), correct, said or None, reason, score=round(score, 9))
