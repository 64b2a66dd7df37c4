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
from transformer2.study.cells import FIT_COLUMNS, NOTES, apart, base_rows, display, fit_cells, on_runs
from transformer2.study.output import Figure, Table
from transformer2.study.results import Group, Study

GSM8K = f"paper: {published.MODEL}, GSM8K"
OTHER_MODELS = "the paper's figures are of its own models and tasks (in brackets): directions compare, levels do not"


def table1(study: Study) -> list[Table | Figure]:
    """Base, LoRA and SVF on the skills that they were trained for."""

    def paper(task: str, method: str) -> list[float | None]:
        return [model.get(method, {}).get(task) for model in published.TABLE1.values()]

    heads = [f"paper: {model}" for model in published.TABLE1]
    return [_fits(study, "Base, LoRA and SVF", {"method": lambda group: group.stem}, heads, paper)]


def table4(study: Study) -> list[Table | Figure]:
    """Objective, modules and method."""

    def paper(task: str, *key: str) -> list[float | None]:
        return [published.TABLE4.get(key) if task == "GSM8K" else None]

    leads = {"method": method, "objective": objective, "modules": modules}
    return [_fits(study, "Objective, modules and method", leads, [GSM8K], paper)]


def table7(study: Study) -> list[Table | Figure]:
    """Other methods of PEFT beside SVF and LoRA."""

    def paper(task: str, method: str) -> list[float | None]:
        return [published.TABLE7.get(method) if task == "GSM8K" else None]

    return [_fits(study, "Methods of PEFT", {"method": lambda group: group.stem}, [GSM8K], paper)]


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
    leads: Mapping[str, Callable[[Group], str]],
    heads: Sequence[str],
    paper: Callable[..., list[float | None]],
) -> Table:
    """A row for each run, below the base of its skill; runs that the leads do not tell apart say what else does.

    Args:
        study: Its runs.
        title: Of the table.
        leads: Columns that name a run, the first of them its method.
        heads: Columns of the paper's figures.
        paper: Takes the paper's task and what the leads say (of the base: `base`, and nothing) to those figures.
    """
    # What has no skill beside runs that have one is a helper, such as a classification expert.
    shown = [group for group in study.scored if "skill" in group.labels] or study.scored
    rows = []
    more = apart(shown, lambda group: (skill_of(group), *[lead(group) for lead in leads.values()]))

    def add(skill: str, lead: list[str], name: str, cells: list[str]) -> None:
        task = published.SKILLS.get(skill, "")
        theirs = map(published.shown, paper(task, *lead))
        rows.append([published.named(skill, task), name, *map(display, lead[1:]), *cells, *theirs])

    for skill in dict.fromkeys(map(skill_of, shown)):
        groups = [group for group in shown if skill_of(group) == skill]
        for name, cells in base_rows(groups):
            add(skill, ["base", *[""] * (len(leads) - 1)], name, [*cells, "0", "–"])
        for group in groups:
            said = [lead(group) for lead in leads.values()]
            add(skill, said, display(said[0]) + more[group.name], fit_cells(group))
    return Table(
        study.name, title, ["skill", *leads, *FIT_COLUMNS, *heads], rows, [*NOTES, OTHER_MODELS, *on_runs(study, shown)]
    )
