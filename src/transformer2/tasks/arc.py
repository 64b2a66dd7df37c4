"""The two ARC sets: grade-school science questions with lettered options (allenai/ai2_arc).

A row of the Hub: `id`, `question`, `choices: {text: [...], label: [...]}`, `answerKey`. Three to five options; labels
are letters, or numbers in some rows. The model sees letters, in the order of the row, as (A) to (D), and is asked to
end on "The answer is (X)"; right means that its last final answer is the gold option. `fields["keys"]` holds the
numbers of a numbered row (number -> letter), which the verifier accepts too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from transformer2.errors import DataError
from transformer2.tasks._rows import Row, examples_of, field_of, load_rows
from transformer2.tasks._wording import Wording
from transformer2.tasks.base import Task
from transformer2.types import Example, Verdict
from transformer2.verifiers.choice import verify_choice

HUB_ID = "allenai/ai2_arc"
REVISION = "210d026faf9955653af8916fad021475a3f00453"
SYSTEM = (
    "Answer the multiple-choice question. Think it through briefly, then finish with a last line of its own, in the "
    "form\nThe answer is (X)\nwhere X is the letter of one option."
)
PROMPT = "{question}\n\n{options}"
LETTERS = "ABCDEFGH"


class ARC(Task):
    """One of the two ARC sets.

    Args:
        revision: Commit of the Hub data set; None takes the newest.
        system: System message; None sends none.
        prompt: Template of the user message, with `{question}` and `{options}`, one lettered option a line.
    """

    config: ClassVar[str]
    max_new_tokens: ClassVar[int] = 512

    def __init__(self, revision: str | None = REVISION, system: str | None = SYSTEM, prompt: str = PROMPT) -> None:
        self.revision = revision
        self.wording = Wording(self.name, system, prompt, ("question", "options"))

    def examples(self, split: str, data_dir: str | None = None) -> list[Example]:
        """All questions of a split, in the order of the source."""
        self.check_split(split)
        rows = load_rows(self.name, split, data_dir, HUB_ID, config=self.config, revision=self.revision)
        return examples_of(rows, lambda i, row: self._example(row, f"{self.name}/{split}/{i}"))

    def verify(self, example: Example, completion: str) -> Verdict:
        """+1 when the last final answer of the completion is the gold option."""
        return verify_choice(example.answer, example.fields["options"], completion, example.fields["keys"])

    def solution(self, example: Example) -> str:
        """The line that the prompt asks for; the rows hold no reasoning."""
        return final_line(example.answer)

    def _example(self, row: Row, where: str) -> Example:
        question = field_of(row, "question", where).strip()
        labels, texts = labels_and_texts(field_of(row, "choices", where, Mapping), where)
        letters = LETTERS[: len(labels)]
        gold = field_of(row, "answerKey", where).strip()
        if gold not in labels:
            known = ", ".join(labels)
            raise DataError(f"{where}: field 'answerKey' is {gold!r:.60}, none of {known:.60}; correct or drop the row")
        options = dict(zip(letters, texts, strict=True))
        keys = {label: letter for label, letter in zip(labels, letters, strict=True) if label.isdigit()}
        messages = self.wording.messages(question=question, options=lettered(options))
        fields = {"options": MappingProxyType(options), "keys": MappingProxyType(keys)}
        return Example(where, messages, letters[labels.index(gold)], MappingProxyType(fields))


class ARCEasy(ARC):
    """ARC-Easy. Splits of the Hub: train 2251, validation 570, test 2376.

    The paper trains its reasoning expert here; so do we, and both protocols are the same: train, choose on validation,
    score test once. One row:

        question:  Which piece of safety equipment is used to keep mold spores from entering the respiratory system?
        choices:   text: safety goggles, breathing mask, rubber gloves, lead apron; label: A, B, C, D
        answerKey: B
    """

    name: ClassVar[str] = "arc_easy"
    description: ClassVar[str] = "reasoning about science: a choice among lettered options"
    config: ClassVar[str] = "ARC-Easy"


class ARCChallenge(ARC):
    """ARC-Challenge: those that retrieval and word counts get wrong. Train 1119, validation 299, test 1172.

    An unseen task of the paper: nothing is trained here. Protocol `clean` takes the few shots from train; `paper` takes
    them from the test split, as the reference code does (`UnseenTaskDataModule`). One row:

        question: George wants to warm his hands quickly by rubbing them. Which skin surface will produce the most heat?
        choices:  text: dry palms, wet palms, palms covered with oil, palms covered with lotion; label: A, B, C, D
        answerKey: A
    """

    name: ClassVar[str] = "arc_challenge"
    description: ClassVar[str] = "harder reasoning about science: a choice among lettered options"
    config: ClassVar[str] = "ARC-Challenge"


def final_line(letter: str) -> str:
    """An answer in the form that `SYSTEM` asks for."""
    return f"The answer is ({letter})"


def lettered(options: Mapping[str, str]) -> str:
    """The options as the model sees them, one a line."""
    return "\n".join(f"({letter}) {text}" for letter, text in options.items())


def labels_and_texts(choices: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
    """Labels and texts of a row's options."""
    labels, texts = (field_of(choices, key, f"{where}, choices", (list, tuple)) for key in ("label", "text"))
    if any(not isinstance(value, str) or not value.strip() for value in (*labels, *texts)):
        raise DataError(f"{where}: field 'choices' holds an option that is blank or not text; correct or drop the row")
    labels, texts = ([value.strip() for value in values] for values in (labels, texts))
    if len(labels) != len(texts) or not 2 <= len(labels) <= len(LETTERS) or len(set(labels)) < len(labels):
        raise DataError(
            f"{where}: field 'choices' has labels {', '.join(labels):.60} for {len(texts)} texts; "
            f"2 to {len(LETTERS)} options with a label each are expected"
        )
    return labels, texts
