"""Tables of trained methods: 1 (base, LoRA, SVF by skill), 4 (objective, modules, method), 7 (IA3, DoRA, TinyLoRA).

Runs are `<method>-<skill>`: the label `skill` says what was trained, the name before it how. Table 4 reads the method
from the label `method` or the first word of the name (svf_next_token: svf), the objective from the label `objective` or
a name that holds `next_token` (else policy gradient), the modules from the label `modules` or a word of the name: mlp,
attention, both or all (without one: all linear layers for SVF, and q_proj and v_proj for LoRA, as the paper has it).
A study without the label `skill` has one row a method, of the task its reports name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformer2.study import published
from transformer2.study.cells import (
    NOTES,
    SCORE_COLUMNS,
    base_cells,
    base_of,
    display,
    on_runs,
    report_test,
    runs_of,
    score_cells,
    scored,
    stem,
    training,
)
from transformer2.study.output import Figure, Table
from transformer2.study.results import Study

Lead = Callable[[Study, str], str]
OTHER_MODELS = "the paper's figures are of its own models and tasks (in brackets): directions compare, levels do not"


def table1(study: Study) -> list[Table | Figure]:
    """Base, LoRA and SVF on the skills that they were trained for."""

    def paper(skill: str, name: str | None) -> list[str]:
        method, task = "base" if name is None else stem(study, name), published.SKILLS.get(skill, "")
        return [published.shown(model.get(method, {}).get(task)) for model in published.TABLE1.values()]

    heads = [f"paper: {model}" for model in published.TABLE1]
    return [_fits(study, "Base, LoRA and SVF", {"method": lambda s, n: display(stem(s, n))}, heads, paper)]


def table4(study: Study) -> list[Table | Figure]:
    """Objective, modules and method."""

    def paper(skill: str, name: str | None) -> list[str]:
        if published.SKILLS.get(skill) != "GSM8K":
            return ["–"]
        if name is None:
            return [published.shown(published.TABLE7["base"])]
        return [
            published.shown(published.TABLE4.get((method(study, name), objective(study, name), modules(study, name))))
        ]

    leads: dict[str, Lead] = {"method": lambda s, n: display(method(s, n)), "objective": objective, "modules": modules}
    return [_fits(study, "Objective, modules and method", leads, [f"paper: {published.MODEL}, GSM8K"], paper)]


def table7(study: Study) -> list[Table | Figure]:
    """Other methods of PEFT beside SVF and LoRA."""

    def paper(skill: str, name: str | None) -> list[str]:
        known = published.TABLE7 if published.SKILLS.get(skill) == "GSM8K" else {}
        return [published.shown(known.get("base" if name is None else stem(study, name)))]

    leads: dict[str, Lead] = {"method": lambda s, n: display(stem(s, n))}
    return [_fits(study, "Methods of PEFT", leads, [f"paper: {published.MODEL}, GSM8K"], paper)]


def skill_of(study: Study, name: str) -> str:
    """What a run was trained for: its label, or the task of its reports."""
    named = next((report.get("task", "") for report in study.reports(name).values()), "")
    return study.labels(name).get("skill", named)


def method(study: Study, name: str) -> str:
    """svf, lora, ..."""
    return study.labels(name).get("method", stem(study, name).replace("-", "_").partition("_")[0])


def objective(study: Study, name: str) -> str:
    """`policy gradient` or `next token`."""
    said = study.labels(name).get("objective", stem(study, name)).replace("-", "_")
    return "next token" if "next_token" in said else "policy gradient"


def modules(study: Study, name: str) -> str:
    """`mlp`, `attention` or `both`."""
    said = study.labels(name).get("modules", stem(study, name)).replace("-", "_").split("_")
    for word, found in (("mlp", "mlp"), ("attention", "attention"), ("all", "both"), ("both", "both")):
        if word in said:
            return found
    return "both" if method(study, name) == "svf" else "attention"


def _fits(
    study: Study,
    title: str,
    leads: Mapping[str, Lead],
    heads: Sequence[str],
    paper: Callable[[str, str | None], list[str]],
) -> Table:
    """A row for each run name, below the base of its skill.

    Args:
        study: Its runs.
        title: Of the table.
        leads: Columns that name a run.
        heads: Columns of the paper's figures.
        paper: Skill and run name (None: the base) -> the paper's figures.
    """
    # A `fit` trains; what has no skill is a helper, such as a classification expert.
    labelled = any("skill" in study.labels(name) for name in scored(study))
    shown = [name for name in scored(study) if "skill" in study.labels(name) or not labelled]
    rows = []
    for skill in dict.fromkeys(skill_of(study, name) for name in shown):
        names = [name for name in shown if skill_of(study, name) == skill]
        task = published.SKILLS.get(skill)
        what = f"{skill} ({task})" if task else skill
        none = [""] * (len(leads) - 1)
        rows.append([what, "base", *none, *base_cells(*base_of(study, names)), "0", "–", *paper(skill, None)])
        for name in names:
            reports = study.reports(name)
            scores, bases = ({seed: report[side] for seed, report in reports.items()} for side in ("result", "base"))
            tests = {seed: report_test(report) for seed, report in reports.items()}
            cells = score_cells(runs_of(study, name), scores, bases, tests)
            lead = [column(study, name) for column in leads.values()]
            rows.append([what, *lead, *cells, *training(reports.values()), *paper(skill, name)])
    columns = ["skill", *leads, *SCORE_COLUMNS, "trainable", "training, s", *heads]
    return Table(study.name, title, columns, rows, [*NOTES, OTHER_MODELS, *on_runs(study, shown)])
