r"""Choices: is the one option that a completion ends on the gold one?

Where the final answer stands, `final` says; this module reads an option there. It is named by its letter ("B", "(b)",
"B. plant cells", "(B), which has no wall") or by its whole text ("plant cells"); where the data set numbers its
options, the number names it too.

An option in the reasoning never counts. Several options, a letter with the text of another option, a letter that is not
among the options, "B or C", "maybe B", an unfinished "(B" and an unfinished text are refused, whichever is right: no
verdict is a guess. "a" is an article, and so is "A" before a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from transformer2.types import Verdict
from transformer2.verifiers.final import Final, Reader, final_answer, readable
from transformer2.verifiers.phrases import BECAUSE

__all__ = ["final_choice", "verify_choice"]

_FILLER = re.compile(
    r"(?:(?:so|therefore|thus|hence|clearly|definitely|indeed|most likely|likely|probably|simply|the|it is|it's"
    r"|it must be|option|choice|(?:my )?final answer|answer|letter|number)\b[\s:,]*)+",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\A(?:an?|the)\s+", re.IGNORECASE)
_LABEL = re.compile(
    r"[(\[]\s*(?P<inner>[A-Za-z0-9])\s*[)\]]|(?P<bare>[A-Z0-9])(?!'?\w|-\w|[.,]\d)|(?P<small>[a-z])(?=\s*[.)\]:]?\s*\Z|[):]|,?\s+(?:because|since)\b)"
)
_SEPARATOR = re.compile(r"\s*[.:,;)\u2014\u2015=-]+\s*|\s+")
_NEXT_SENTENCE = re.compile(r"[.!]\)?\s+(?=[A-Z(])")
_GOES_ON = re.compile(
    r"[\s,]*(?:(?:as\s+well\s+as|or|and|not|nor|but|maybe|perhaps|possibly|no|wait|also|through|to|is|are|was|isn't|has|can|could|might|may|would"
    r"|cannot|can't|vs)\b|[/&?+])",
    re.IGNORECASE,
)
_STARTS_OVER = re.compile(r"(?:or|and|not|nor|but|maybe|perhaps|no(?! other)|wait|also)\b", re.IGNORECASE)
_DECORATION = re.compile(r"\*+|__|[`$\"{}]|\\[()\[\],;! ]|\\(?:text|mathrm|mathbf|textbf|mathit)\b")
_SENTENCE = re.compile(r".*?[.!?;](?=\s)", re.DOTALL)
_APPOSED = re.compile(r"\s*(?:,\s+(?=(?:an?|the)\s)|[:\u2014]\s*|\s-\s)")
_THAT_IS = re.compile(r"\A[\s,;(]*(?:i\.e\.?|namely|that is)[\s,:]*(?:an?\s|the\s)?", re.IGNORECASE)
_CONCLUDES = re.compile(
    r".*(?:\b(?:is|are|was|were|be)|:)\s+(?:(?:an?|the)\s)?(.*?)[(\[]([A-Za-z0-9])[)\]](?![\w-])(.*)"
)
_SUPPOSES = re.compile(
    r"\b(?:if|whether|might|may|could|maybe|perhaps|possibly|or|and|least|first|say|think|answer|option|choice)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|wrong|incorrect|false|only|unlike|rather|than|rules?|eliminat\w+|exclud\w+)\b|n't\b",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")
_BULLET = re.compile(r"\A\s*(?:[-*•>]\s+|#+\s+)")


def verify_choice(
    gold: str, options: Mapping[str, str], completion: str, keys: Mapping[str, str] | None = None
) -> Verdict:
    """Whether the final answer of a completion is the gold option.

    Args:
        gold: Letter of the right option.
        options: Letter -> text of every option.
        completion: The model's text.
        keys: Other names of options: number -> letter.

    Raises:
        ValueError: `gold` is not an option: the data set is broken, not the completion.
    """
    if gold not in options:
        raise ValueError(f"gold answer {gold!r} is not among the options {', '.join(options)}")
    return final_choice(options, completion, keys).verdict(gold)


def final_choice(options: Mapping[str, str], text: str, keys: Mapping[str, str] | None = None) -> Final[str]:
    """The letter of the option that a completion gives as its final answer; arguments as in `verify_choice`."""
    return final_answer(text, _Options(options, keys or {}))


class _Options(Reader[str]):
    """Reads one option in one place: its label, its text, or both.

    Args:
        options: Letter -> text.
        keys: Number -> letter.
    """

    strict = True
    unusable = unclosed = listed = "not a usable choice"

    def __init__(self, options: Mapping[str, str], keys: Mapping[str, str]) -> None:
        self.letters = {**{letter: letter for letter in options}, **keys}
        texts = {letter: plain for letter, text in options.items() if (plain := _plain(readable(text)).rstrip(".! "))}
        # Case matters only where it tells two options apart: "Rr" and "rr".
        self.fold = len({text.lower() for text in texts.values()}) == len(texts)
        self.texts = {letter: self._case(text) for letter, text in texts.items()}
        told = Counter(self.texts.values())
        self.alike = {letter for letter, text in self.texts.items() if told[text] > 1}  # "n" and "n!": neither is named
        names = "|".join(map(re.escape, self.letters))
        # Another label within an explanation: "(B)", "B) ", "or B"
        self.label = re.compile(
            rf"[(\[]\s*(?:{names})\s*[)\]]|(?<!\w)(?:{names})\s?[).:]|(?:\b(?:or|and)\b|[,/&])\s*(?:{names})(?!\w)"
        )
        words = "|".join(map(re.escape, [*self.letters, *self.texts.values()]))
        self.named = re.compile(rf"[(\[]\s*(?:{names})\s*[)\]]|(?<![\w'])(?!A\s+[a-z]|I\s)(?:{names})(?![\w'])")
        self.speaks = re.compile(rf"\b[A-HJ-Z]\b|[(\[][a-z][)\]]|(?<!\w)(?:{words})(?!\w)")

    def read(self, place: str, kind: str) -> Final[str]:
        """The one option that a place names; with anything else about options, no answer, and nothing said without."""
        if kind in ("line", "first"):
            place = _BULLET.sub("", place, count=1)
        plain = _plain(place)
        if kind == "concludes":  # "The texture is (D) soft."
            told = _CONCLUDES.match(plain)
            letter = self.letters.get(told[2].upper()) if told else None
            if told is None or letter is None or _DENIES.search(plain) or _SUPPOSES.search(plain):
                return Final(None)
            text = self._case(told[1] + told[3]).strip(" .!):,-")
            alone = text in ("", self.texts.get(letter)) and len([*self.named.finditer(plain)]) == 1
            return Final(letter if alone else None)
        if kind in ("turned", "closes"):
            marks = [] if _DENIES.search(plain) else [*self.named.finditer(plain)]
            named = {self.letters.get(m.group().strip("()[] ").upper()) for m in marks}
            closing = self._case(plain).strip(" .!)]")
            restated = any(closing.endswith(text.strip(" .!)]")) for text in self.texts.values())  # "it melts at 0°C"
            ends = kind == "turned" or (marks and not restated and not plain[marks[-1].end() :].strip(" .!)"))
            return Final(named.pop() if len(named) == 1 and ends else None)
        filler = _FILLER.match(plain)
        starts = {plain, plain[filler.end() :] if filler else plain}
        found = {self._by_label(start, kind) for start in starts}
        if kind != "judged":
            texts = starts if kind == "line" else starts | {_ARTICLE.sub("", start, count=1) for start in starts}
            found |= {self._by_text(start, kind) for start in texts}
        found.discard(None)
        if len(found) == 1:
            return Final(found.pop())
        asked = kind in ("hash", "boxed", "said", "heading", "final", "back", "listed", "chosen")
        about = found or (asked and (self.speaks.search(plain) or self.speaks.search(self._case(plain))))
        return Final(None, self.unusable if about else "")

    def begins(self, place: str) -> bool:
        """Whether a place begins with an option's text, such as "No, because it is cold"."""
        return self._begins_with_a_text(_plain(place))

    def _by_label(self, plain: str, kind: str) -> str | None:
        match = _LABEL.match(plain)
        letter = self.letters.get((match["inner"] or match["bare"] or match["small"]).upper()) if match else None
        if match is None or letter is None:
            return None
        rest = plain[match.end() :]
        if plain == "a" and kind in ("said", "back"):
            return None  # an article that was cut off before its noun
        if self._is_over(rest, kind, letter):
            return letter
        separator = _SEPARATOR.match(rest)
        if separator is None:
            return None
        after = rest[separator.end() :].removeprefix("(")
        text = self.texts.get(letter, "\n")  # a place has no line break
        for start in (after, _ARTICLE.sub("", after, count=1)):
            if self._case(start).startswith(text):
                beyond = start[len(text) :]
                told = _APPOSED.match(beyond) if kind != "line" else None
                explained = told is not None and self._explains(beyond[told.end() :], "", letter)
                if explained or self._is_over(beyond, kind, letter):
                    return letter
        unmarked = separator.group().isspace() and not match["inner"]  # "A plant": an article
        return letter if kind != "line" and not unmarked and self._explains(after, rest, letter) else None

    def _by_text(self, plain: str, kind: str) -> str | None:
        fits = [letter for letter, text in self.texts.items() if self._case(plain).startswith(text)]
        for letter in sorted(fits, key=lambda letter: -len(self.texts[letter])):
            rest = plain[len(self.texts[letter]) :]
            label = _LABEL.match(rest.lstrip())
            if label and label["inner"] and self.letters.get(label["inner"].upper()) == letter:
                rest = rest.lstrip()[label.end() :]
            elif letter in self.alike:
                continue
            if self._is_over(rest, kind, letter):
                return letter
        return None

    def _is_over(self, rest: str, kind: str, letter: str) -> bool:
        """Whether nothing follows an option that could change it."""
        if not rest.strip(" .,:;!)]'"):
            return True
        if kind == "chosen" and re.match(r"\s+over\s", rest):
            return True
        if BECAUSE.match(rest):  # "(B) because ..." and "(B), i.e. ..." may continue with the text of another
            told = _THAT_IS.sub("", rest)
            own = told != rest and self._case(told).startswith(self.texts.get(letter, "\n"))
            return own or not self._begins_with_a_text(told.lstrip(" ,;("))
        sentence = None if kind == "line" else _NEXT_SENTENCE.match(rest)
        if sentence is None:
            return False
        following = rest[sentence.end() :]
        label = _LABEL.match(following)
        told = following[label.end() :].lstrip() if label else following
        other = self.letters.get((label["inner"] or label["bare"] or label["small"]).upper()) if label else None
        if other and self._case(told).startswith(text := self.texts.get(other, "\n")):
            told = told[len(text) :].lstrip()  # "(A) Mars is too cold" is about A
        named = label is not None and not told[:1].islower()
        return not (named or self._begins_with_a_text(following) or _STARTS_OVER.match(following))

    def _explains(self, after: str, rest: str, letter: str) -> bool:
        """Whether words after a label are about that option: its text told otherwise, or more about it."""
        after = _THAT_IS.sub("", after)
        sentence = _SENTENCE.match(after)
        words = sentence.group() if sentence else after
        reason = BECAUSE.search(words)
        if _GOES_ON.match(words) or "?" in words or self.label.search(words[: reason.start()] if reason else words):
            return False
        label = _LABEL.match(after)
        if label and not after[label.end() :].lstrip()[:1].isalpha():
            return False  # "B, C"
        own, said = self.texts.get(letter, ""), self._case(after)
        if own.startswith(said) and own[len(said) : len(said) + 1].isalnum():
            return False  # cut off within a word
        if any(self._begins_with_a_text(start) for start in (after, rest.lstrip(), _ARTICLE.sub("", after, count=1))):
            return False
        return len(words) == len(after) or self._is_over(". " + after[len(words) :].lstrip(), "said", letter)

    def _begins_with_a_text(self, place: str) -> bool:
        """Whether a place begins with an option's text, not with a longer phrase ("plant cells have walls")."""
        place = self._case(place)
        rests = [place[len(text) :] for text in self.texts.values() if place.startswith(text)]
        return any(not rest[:1].isalnum() and not re.match(r"\s+[a-z]", rest) for rest in rests)

    def _case(self, text: str) -> str:
        return text.lower() if self.fold else text


def _plain(text: str) -> str:
    """A place without Markdown, LaTeX and quotation marks, with single spaces."""
    return _SPACE.sub(" ", _DECORATION.sub(" ", text)).strip(" '")
