"""Micro-batches bounded by tokens rather than rows: memory follows tokens."""

from __future__ import annotations

from collections.abc import Sequence


def pack_rows(
    prompt_tokens: Sequence[int], completion_tokens: Sequence[int], max_tokens: int, completions: int = 1
) -> list[list[int]]:
    """Group rows of similar length so that no padded group exceeds `max_tokens`.

    Args:
        prompt_tokens: Real prompt tokens of each row.
        completion_tokens: Real completion tokens of each row.
        max_tokens: Bound on prompts x longest prompt + rows x longest completion of a group. A single row longer than
            the bound gets a group of its own.
        completions: Neighbouring rows that share a prompt, whose tokens count once; they stay neighbours.

    Returns:
        Row indices by group; every row is in exactly one.
    """
    total = [p + c for p, c in zip(prompt_tokens, completion_tokens, strict=True)]
    longest = [max(total[i : i + completions]) for i in range(0, len(total), completions)]

    def longest_first(row: int) -> tuple[int, int, int]:
        prompt = row // completions
        return -longest[prompt], prompt, -total[row]

    def padded(rows: Sequence[int]) -> int:
        prompts = len({row // completions for row in rows})
        return prompts * max(prompt_tokens[i] for i in rows) + len(rows) * max(completion_tokens[i] for i in rows)

    groups: list[list[int]] = []
    for row in sorted(range(len(total)), key=longest_first):
        if groups and padded([*groups[-1], row]) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def split_rows(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """The same rows in `count` groups or more: the largest are halved until there are so many."""
    groups = [list(group) for group in groups]
    while len(groups) < count:
        groups.sort(key=len)
        largest = groups.pop()
        assert len(largest) > 1, "there are at least as many rows as groups"
        groups += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return groups
