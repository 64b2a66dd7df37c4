"""Requests that belong to no expert, made up: everyday errands in words, drawn from patterns.

The patterns of HELD_OUT stand in test splits only, so that a classification expert is also scored on kinds of "other"
that it was not trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["HELD_OUT", "KINDS", "requests"]

KINDS = (
    "Write a short poem about {thing} for my {person}.",
    "Translate into French: 'My {person} has forgotten the {thing} in {place}.'",
    "Write a polite e-mail to my {person} to say that I will be late because of {event}.",
    "Suggest three presents for a {person} who loves {topic}.",
    "Recommend a film about {topic} that I can watch with my {person}.",
    "What should I pack for a weekend of {topic} in {place}?",
    "Summarise in two sentences why people in {place} are fond of {topic}.",
    "Write a birthday card for a {person} who has just come back from {place}.",
    "Give me a recipe for a dinner that reminds my {person} of {place}.",
    "Think of a funny name for a {person}'s {thing}.",
    "Tell me a bedtime story about a {person}, a {thing} and {event}.",
    "Write a slogan for a shop in {place} that sells every kind of {thing}.",
    "How do I start a conversation about {topic} with my {person}?",
    "Rewrite this more formally: 'Hey, the {thing} broke during {event}.'",
    "Write a review of a museum of {topic} in {place}.",
    "What are good manners for a guest at {event} in {place}?",
    "Describe a painting that shows a {thing} on a table in {place}.",
    "Help me to apologise to my {person}: I lost the {thing}.",
    "Plan a day of {topic} in {place} for two friends.",
    "Write the first lines of a novel that begins with {event} in {place}.",
    "Make up a riddle whose solution is a {thing}.",
    "Draft an invitation to {event} for my {person} and friends.",
    "Is it rude to bring a {thing} to {event}?",
    "Which songs would you play at {event} for a {person} who likes {topic}?",
)
HELD_OUT = (
    "Write a dialogue between a {person} and a {thing}.",
    "Correct the spelling: 'I woud like to by a {thing} for my {person}.'",
    "What do people in {place} say when {event} begins?",
    "Compose a haiku about {topic} in {place}.",
    "Give me arguments for and against {topic} as a hobby for a {person}.",
    "Turn this into a newspaper headline: a {person} found a {thing} during {event}.",
)
_WORDS = {
    "person": (
        *("sister", "neighbour", "teacher", "colleague", "grandfather", "boss", "cousin", "dentist", "flatmate"),
        *("aunt", "landlord", "coach"),
    ),
    "thing": (
        *("umbrella", "teapot", "bicycle", "lantern", "violin", "suitcase", "jumper", "candle", "notebook", "kite"),
        *("cake", "carpet"),
    ),
    "place": ("Lisbon", "Kyoto", "Nairobi", "Bergen", "Montreal", "Naples", "Cusco", "Hobart", "Galway", "Tallinn"),
    "topic": (
        *("gardening", "jazz", "hiking", "pottery", "sailing", "cheese", "folk dance", "theatre", "knitting", "tea"),
        *("poetry", "street art"),
    ),
    "event": (
        *("a wedding", "a thunderstorm", "a picnic", "the school play", "a strike", "the village fair", "a concert"),
        *("a farewell party", "the first snow", "a power cut"),
    ),
}


def requests(kinds: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` different requests of these kinds.

    Args:
        kinds: Patterns, used about equally often.
        count: How many; a pattern makes over a hundred different ones.
        rng: Source of chance.
    """
    found: dict[str, None] = {}
    while len(found) < count:
        words = {name: rng.choice(choices) for name, choices in _WORDS.items()}
        found[rng.choice(kinds).format(**words)] = None
    return list(found)
