"""docs/paper.md and docs/claims.md, from study.json and the report.json of each run: nothing is written by hand.

docs/results/<study>/study.json, and the tables and figures built from it
docs/results/runs/<run>/report.json
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformer2.files import write_text
from transformer2.study.archive import copy_results, read_studies
from transformer2.study.builders import build
from transformer2.study.claims import CLAIMS, Claim, Effect, Studies, p_value, verdict
from transformer2.study.output import Table, with_links, write_outputs
from transformer2.study.results import State, Study
from transformer2.study.statistics import CONFIDENCE, ENOUGH, MARGIN, holm

RESULTS = "results"
WORLDS = {"tiny": "the embedded model", "smollm2": "SmolLM2"}
MADE = "Made by `transformer2 study --docs docs` from the `report.json` of each run; not to be edited."


def write_pages(results: Path, docs: Path) -> list[Path]:
    """Write `paper.md` and `claims.md`, and the tables and figures that they show.

    Args:
        results: Folder of studies: `docs`/results, or any other, whose studies and reports are copied there first.
        docs: Folder of the pages.

    Returns:
        The two pages.

    Raises:
        DataError: A study or report cannot be read, or holds a path of this machine.
    """
    kept = docs / RESULTS
    if results.resolve() != kept.resolve():
        copy_results(results, kept)
    for folder, study in read_studies(kept).items():
        write_outputs(build(study), kept / folder)
    written = []
    for name, text in pages(docs).items():
        written.append(docs / name)
        write_text(written[-1], text)
    return written


def pages(docs: Path) -> dict[str, str]:
    """File name -> text of both pages, from the studies in `docs`/results; nothing is written.

    Raises:
        DataError: A study or report cannot be read.
    """
    studies = read_studies(docs / RESULTS)
    return {"paper.md": _paper(studies, docs), "claims.md": _claims(studies)}


# ---------------------------------------------------------------------- paper.md


def _paper(studies: Mapping[str, Study], docs: Path) -> str:
    """The page of all studies, and the figures that are there."""
    parts = [
        f"# The paper's tables and figures\n\n{MADE} How: [studies.md](studies.md); verdicts: [claims.md](claims.md)."
    ]
    listed = [f"- [{_heading(study)}](#{_anchor(_heading(study))})" for study in studies.values()]
    parts.append("\n".join(listed) or "No study is kept here yet.")
    for folder, study in studies.items():
        outputs = build(study)
        facts = [f"{study.paper} of the paper" if study.paper else "", f"base {_world(study.base)}", _runs(study)]
        parts.append(f"## {_heading(study)}\n\n{'; '.join(filter(None, facts))}.\n\n`{study.command}`")
        for output in outputs:
            text = _rebased(output.markdown(), f"{RESULTS}/{folder}", docs)
            csv = f"{RESULTS}/{folder}/{output.name}.csv"
            parts.append(text + (f"\n[{output.name}.csv]({csv})" if isinstance(output, Table) else ""))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _heading(study: Study) -> str:
    where = study.paper or "Beyond the paper"
    return f"{where}: {study.title}" + ("" if study.base == "tiny" else f", {_world(study.base)}")


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _runs(study: Study) -> str:
    count = Counter(run.state for run in study.runs)
    words: Mapping[State, str] = {"done": "done", "failed": "failed", "missing": "not run"}
    return "runs: " + ", ".join(f"{count[state]} {word}" for state, word in words.items() if count[state])


def _rebased(text: str, folder: str, docs: Path) -> str:
    """Markdown of a study's folder for a page in `docs`; what was not kept, such as a failed run, is no link."""

    def target(link: str) -> str | None:
        moved = posixpath.normpath(posixpath.join(folder, link))
        return moved if (docs / moved).exists() else None

    return with_links(text, target)


# ---------------------------------------------------------------------- claims.md


def _claims(studies: Mapping[str, Study]) -> str:
    """The page of verdicts, one column a base; the embedded model has one even where nothing was run."""
    worlds: dict[str, dict[str, Study]] = {"tiny": {}}
    for study in sorted(studies.values(), key=lambda study: study.name != study.build):  # first that of the paper
        if study.paper:  # one's own study of the same builder is no test of the paper's claim
            worlds.setdefault(study.base, {}).setdefault(study.build, study)
    found = [{base: claim.effects(of) for base, of in worlds.items()} for claim in CLAIMS]
    titles = [f"{i}. {claim.title}" for i, claim in enumerate(CLAIMS, 1)]
    columns = ["", "claim", *map(_world, worlds)]
    rows = [
        [f"[{i}](#{_anchor(titles[i - 1])})", claim.title, *map(verdict, found[i - 1].values())]
        for i, claim in enumerate(CLAIMS, 1)
    ]
    kept = [f"{_after_holm([of[base] for of in found])} on {_world(base)}" for base in worlds]
    how = (
        f"Every verdict is computed. A > B holds if the {100 * CONFIDENCE:.0f} % t interval of the difference, "
        f"paired by seed, lies above 0; A >= B if it lies above -{MARGIN:g} points. Neither holds if it lies below "
        f"that bound. With fewer than {ENOUGH} seeds, runs missing, all seeds equal to the last digit, or an interval "
        "across the bound, it is not decided. Intervals are over seeds: all seeds answer the same test questions. "
        f"Nothing is corrected for testing {len(CLAIMS)} claims at once: Holm's procedure at "
        f"{100 - 100 * CONFIDENCE:.0f} % over those of a base would leave decided {'; '.join(kept)}."
    )
    parts = [f"# Ten claims of the paper, tested\n\n{MADE} Tables: [paper.md](paper.md).\n\n{how}"]
    noted = dict.fromkeys((base, study.note) for base, of in worlds.items() for study in of.values() if study.note)
    parts += [f"On {_world(base)}: {note}." for base, note in noted]
    parts.append(Table("claims", "Verdicts", columns, rows).markdown())
    parts += [_section(*of, worlds) for of in zip(titles, CLAIMS, found, strict=True)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _after_holm(found: Sequence[Sequence[Effect]]) -> str:
    """Numbers of the claims whose verdict stands when those on one base are corrected for."""
    kept = [f"{i}" for i, passes in enumerate(holm([*map(p_value, found)]), 1) if passes]
    return ", ".join(kept) or "none"


def _section(title: str, claim: Claim, effects: Mapping[str, list[Effect]], worlds: Mapping[str, Studies]) -> str:
    rows = []
    for base, found in effects.items():
        for effect in found:
            interval = "–" if effect.found is None else f"{effect.found.beside(effect.bound)} points"
            seeds = "–" if effect.fact else str(effect.found.seeds) if effect.found else "0"
            said = effect.verdict if effect.counts else f"({effect.verdict})"
            rows.append([_world(base), effect.what, effect.fact or interval, seeds, said])
    used = [of[name] for of in worlds.values() for name in claim.studies if name in of]
    places = {s.paper + (f" (study {s.name})" if s.name != s.build else "") for s in used}
    lacking = [name for name in claim.studies if not any(name in of for of in worlds.values())]
    where = [*sorted(places), *(f"{name} (not run)" for name in lacking)]
    beside = any(not effect.counts for found in effects.values() for effect in found)
    notes = ["in brackets: shown beside, not part of the verdict"] if beside else []
    table = Table("", f"Tested on {', '.join(where)}", _COLUMNS, rows, notes)
    return f"## {title}\n\nHypothesis: {claim.hypothesis}.\n\n{table.markdown()}"


_COLUMNS = ("base", "compared", f"effect [{100 * CONFIDENCE:.0f} %]", "seeds", "verdict")


def _world(base: str) -> str:
    return WORLDS.get(base, base)
