"""Pages link to files that exist, and no template is left unfilled."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/tasks.md",
    "docs/quantised.md",
    "docs/rollouts.md",
    "docs/training.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "{TABLE}" not in text
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
    for target in re.findall(r"\b(?:docs|conf|tests|benchmarks)/[\w./-]+\.(?:md|yaml|py|png)\b", text):
        assert (ROOT / target).exists(), f"{page} names {target}"
