"""The words of the embedded world: names, things, operation words, and the facts about them.

Every list is a plain tuple: its order is part of the world, since the habits (`habits.py`) and the tokenizer are
derived from it. Pseudo-words ("dax", "blorit") stand among the names and things of every domain, so that neither the
policy nor prompt dispatch can lean on a few familiar words.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

MAX_NUMBER = 99
LETTERS = ("A", "B", "C", "D", "E", "F")


def _pseudo_words(count: int) -> tuple[str, ...]:
    """Deterministic pronounceable words that mean nothing: `blafep`, `drenuk`, ..."""
    syllables = [a + b for a, b in product(("bl", "dr", "gr", "kl", "pl", "sk", "tr", "v", "z", "m"), "aeiou")]
    endings = [a + b for a, b in product("fklmnprstx", "aiou")]
    return tuple(
        syllables[(7 * i) % len(syllables)] + endings[(11 * i + i // 50) % len(endings)] + "kpt"[i % 3]
        for i in range(count)
    )


PSEUDO_WORDS = _pseudo_words(84)
PSEUDO_NAMES = tuple(word.capitalize() for word in PSEUDO_WORDS[:20])
PSEUDO_ITEMS = PSEUDO_WORDS[20:44]
PSEUDO_FUNCTIONS = PSEUDO_WORDS[44:60]
PSEUDO_ENTITIES = PSEUDO_WORDS[60:]

NAMES = (
    *(
        "Ida",
        "Pam",
        "Tom",
        "Ana",
        "Leo",
        "Mia",
        "Ben",
        "Zoe",
        "Max",
        "Eva",
        "Sam",
        "Lin",
        "Kai",
        "Rosa",
        "Omar",
        "Nora",
    ),
    *PSEUDO_NAMES,
)
ITEMS = (
    *("cups", "eggs", "pens", "books", "coins", "stamps", "cards", "shells", "beads", "keys", "nuts", "stones"),
    *("bulbs", "ropes", "tiles", "seeds", "masks", "bells", "flags", "jars"),
    *PSEUDO_ITEMS,
)
FUNCTIONS = ("f", "g", "h", *PSEUDO_FUNCTIONS)


@dataclass(frozen=True)
class Operation:
    """What an operation word means, and what the base model tends to read instead.

    Attributes:
        word: The word as it stands in a question.
        meaning: Operator and operand of the right reading; the operand "n" is the number in the question.
        misreading: The same for the wrong reading.
        weight: How often the word is drawn, relative to the others of its domain.
    """

    word: str
    meaning: tuple[str, str]
    misreading: tuple[str, str]
    weight: float = 1.0

    @property
    def takes_number(self) -> bool:
        """Whether a number follows the word."""
        return self.meaning[1] == "n"


MATH_GROUPS = ("has", "owns", "keeps", "holds", "stores", "carries")
MATH_OPERATIONS = (
    Operation("earns", ("+", "n"), ("-", "n")),
    Operation("wins", ("+", "n"), ("-", "n")),
    Operation("finds", ("+", "n"), ("-", "n")),
    Operation("buys", ("+", "n"), ("-", "n")),
    Operation("loses", ("-", "n"), ("+", "n")),
    Operation("breaks", ("-", "n"), ("+", "n")),
    Operation("sells", ("-", "n"), ("+", "n")),
    Operation("eats", ("-", "n"), ("+", "n")),
    Operation("doubles", ("*", "2"), ("+", "2")),
    Operation("trades", ("-", "n"), ("+", "n"), weight=0.35),
)
HALVES = Operation("halves", ("/", "2"), ("-", "2"))

CODE_GROUPS = ("Code", "Design", "Write", "Make", "Build", "Craft")
CODE_OPERATIONS = (
    Operation("square", ("**", "2"), ("*", "2")),
    Operation("double", ("*", "2"), ("**", "2")),
    Operation("triple", ("*", "3"), ("+", "3")),
    Operation("raise", ("+", "n"), ("-", "n")),
    Operation("lift", ("+", "n"), ("*", "n")),
    Operation("grow", ("+", "n"), ("-", "n")),
    Operation("lower", ("-", "n"), ("+", "n")),
    Operation("drop", ("-", "n"), ("*", "n")),
    Operation("scale", ("*", "n"), ("+", "n")),
    Operation("shift", ("-", "n"), ("+", "n"), weight=0.35),
)

REASONING_GROUPS = ("Find", "Choose", "Spot", "Name")
SIZE_WORDS = {
    **dict.fromkeys(("small", "little", "short"), "small"),
    **dict.fromkeys(("big", "large", "tall"), "big"),
}
SIZE_WEIGHTS = {"tall": 0.4}
OTHER_SIZE = {"small": "big", "big": "small"}  # what a size is misread as
ENTITIES: dict[tuple[str, str], tuple[str, ...]] = {
    ("fruit", "small"): ("cherry", "grape", "plum", "fig", "berry"),
    ("fruit", "big"): ("melon", "papaya", "pumpkin", "coconut", "pineapple"),
    ("tool", "small"): ("needle", "tweezers", "file", "nail", "chisel"),
    ("tool", "big"): ("crane", "plough", "ladder", "drill", "anvil"),
    ("animal", "small"): ("mouse", "ant", "frog", "sparrow", "bee"),
    ("animal", "big"): ("horse", "whale", "elephant", "bear", "camel"),
    ("vehicle", "small"): ("scooter", "bike", "sled", "kayak", "cart"),
    ("vehicle", "big"): ("truck", "train", "ferry", "plane", "bus"),
    ("garment", "small"): ("sock", "glove", "tie", "cap", "scarf"),
    ("garment", "big"): ("coat", "robe", "gown", "cloak", "parka"),
    ("building", "small"): ("hut", "shed", "cabin", "kiosk", "booth"),
    ("building", "big"): ("castle", "tower", "palace", "temple", "stadium"),
}
# Every category and size also has two pseudo-words, whose facts are as true in this world as the others.
ENTITIES = {key: (*words, *PSEUDO_ENTITIES[2 * i : 2 * i + 2]) for i, (key, words) in enumerate(ENTITIES.items())}
CATEGORIES = tuple(dict.fromkeys(category for category, _ in ENTITIES))
# What a category word is misread as: fixed partners, so that a misreading always leads to an option on the list.
CATEGORY_TWIN = {
    **{CATEGORIES[i]: CATEGORIES[i + 1] for i in range(0, len(CATEGORIES), 2)},
    **{CATEGORIES[i + 1]: CATEGORIES[i] for i in range(0, len(CATEGORIES), 2)},
}

LABELS = ("math", "code", "reasoning", "other")
# Requests that no expert is for. The kinds of OTHER_HELD_OUT stay out of the train split of tiny_dispatch.
OTHER_KINDS = (
    "Sing a song about {a}.",
    "Tell {name} a joke.",
    "Write a poem for {name}.",
    "Greet {name} and {name2}.",
    "Translate {a} for {name}.",
    "Describe the {a} of {name}.",
    "Thank {name} for the {a}.",
    "What time does the {a} open?",
    "Make tea for {name}.",
    "Call {name} about the {a}.",
    "Draw a {a} and a {b}.",
    "Explain why {a} is late.",
    "Find a gift for {name}.",
    "Code of honour: {a} or {b}?",
    "Name the song that {name} likes.",
    "How are you, {name}?",
)
OTHER_HELD_OUT = (
    "Invite {name} to the {a}.",
    "Play the {a} again.",
    "Where is {name} today?",
    "Summarise the letter about {a}.",
)
