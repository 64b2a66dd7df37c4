"""Pages link to files that exist, and no template is left unfilled."""

import re
from pathlib import Path

import pytest
from causal_families import ACCEPTED, REFUSED

ROOT = Path(__file__).parents[1]


PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/tasks.md",
    "docs/quantised.md",
    "docs/rollouts.md",
    "docs/training.md",
    "docs/models.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "{TABLE}" not in text
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
    for target in re.findall(r"\b(?:docs|conf|tests|benchmarks)/[\w./-]+\.(?:md|yaml|py|png)\b", text):
        assert (ROOT / target).exists(), f"{page} names {target}"


def test_the_page_of_models_lists_the_families_that_are_tested() -> None:
    accepted, _, refused = (ROOT / "docs/models.md").read_text().partition("Refused, and why")
    listed = re.search(r"`model_type`\):\n\n(.*?)\n\n", accepted, re.DOTALL)
    assert listed and re.findall(r"[\w-]+", listed[1]) == sorted(ACCEPTED)
    assert sorted(re.findall(r"[\w-]+", " ".join(re.findall(r"^\| (\w.*?) \|", refused, re.MULTILINE)))) == sorted(
        REFUSED
    )
