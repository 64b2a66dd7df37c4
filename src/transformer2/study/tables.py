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
    display,
    on_runs,
    score_cells,
    training_cells,
)
from transformer2.study.output import Figure, Table
from transformer2.study.results import Group, Study

Lead = Callable[[Group], str]
OTHER_MODELS = "the paper's figures are of its own models and tasks (in brackets): directions compare, levels do not"


def table1(study: Study) -> list[Table | Figure]:
    """Base, LoRA and SVF on the skills that they were trained for."""

    def paper(skill: str, group: Group | None) -> list[str]:
        method, task = "base" if group is None else group.stem, published.SKILLS.get(skill, "")
        return [published.shown(model.get(method, {}).get(task)) for model in published.TABLE1.values()]

    heads = [f"paper: {model}" for model in published.TABLE1]
    return [_fits(study, "Base, LoRA and SVF", {"method": lambda group: display(group.stem)}, heads, paper)]


def table4(study: Study) -> list[Table | Figure]:
    """Objective, modules and method."""

    def paper(skill: str, group: Group | None) -> list[str]:
        if published.SKILLS.get(skill) != "GSM8K":
            return ["–"]
        if group is None:
            return [published.shown(published.TABLE7["base"])]
        return [published.shown(published.TABLE4.get((method(group), objective(group), modules(group))))]

    leads = {"method": lambda group: display(method(group)), "objective": objective, "modules": modules}
    return [_fits(study, "Objective, modules and method", leads, [f"paper: {published.MODEL}, GSM8K"], paper)]


def table7(study: Study) -> list[Table | Figure]:
    """Other methods of PEFT beside SVF and LoRA."""

    def paper(skill: str, group: Group | None) -> list[str]:
        known = published.TABLE7 if published.SKILLS.get(skill) == "GSM8K" else {}
        return [published.shown(known.get("base" if group is None else group.stem))]

    leads: dict[str, Lead] = {"method": lambda group: display(group.stem)}
    return [_fits(study, "Methods of PEFT", leads, [f"paper: {published.MODEL}, GSM8K"], paper)]


def skill_of(group: Group) -> str:
    """What a run was trained for: its label, or the task of its reports."""
    named = next((report.get("task", "") for report in group.reports.values()), "")
    return group.labels.get("skill", named)


def method(group: Group) -> str:
    """svf, lora, ..."""
    return group.labels.get("method", group.stem.replace("-", "_").partition("_")[0])


def objective(group: Group) -> str:
    """`policy gradient` or `next token`."""
    said = group.labels.get("objective", group.stem).replace("-", "_")
    return "next token" if "next_token" in said else "policy gradient"


def modules(group: Group) -> str:
    """`mlp`, `attention` or `both`."""
    said = group.labels.get("modules", group.stem).replace("-", "_").split("_")
    for word, found in (("mlp", "mlp"), ("attention", "attention"), ("all", "both"), ("both", "both")):
        if word in said:
            return found
    return "both" if method(group) == "svf" else "attention"


def _fits(
    study: Study,
    title: str,
    leads: Mapping[str, Lead],
    heads: Sequence[str],
    paper: Callable[[str, Group | None], list[str]],
) -> Table:
    """A row for each run, below the base of its skill.

    Args:
        study: Its runs.
        title: Of the table.
        leads: Columns that name a run.
        heads: Columns of the paper's figures.
        paper: Skill and run (None: the base) -> the paper's figures.
    """
    # What has no skill beside runs that have one is a helper, such as a classification expert.
    shown = [group for group in study.scored if "skill" in group.labels] or study.scored
    rows = []
    for skill in dict.fromkeys(map(skill_of, shown)):
        groups = [group for group in shown if skill_of(group) == skill]
        what = published.named(skill, published.SKILLS.get(skill))
        none = [""] * (len(leads) - 1)
        rows.append([what, "base", *none, *base_cells(groups), "0", "–", *paper(skill, None)])
        for group in groups:
            cells = score_cells(group.runs, group.reports) + training_cells(group)
            rows.append([what, *(lead(group) for lead in leads.values()), *cells, *paper(skill, group)])
    columns = ["skill", *leads, *SCORE_COLUMNS, "trainable", "training, s", *heads]
    return Table(study.name, title, columns, rows, [*NOTES, OTHER_MODELS, *on_runs(study, shown)])
