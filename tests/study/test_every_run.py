"""Every builder over a study of every kind of run: it builds and links them all, or is refused before the first run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from studies import adapted, fitted, make_study, report
from studies import score as study_score

from transformer2.cli.compose import merge
from transformer2.errors import ConfigError
from transformer2.experts.spectrum import matrix_facts
from transformer2.study.builders import BUILDERS, build
from transformer2.study.claims import CLAIMS
from transformer2.study.grid import cells
from transformer2.study.output import Table, write_outputs

LABELS = {"skill": "math", "task": "math", "shots": "3", "budget": "light", "lr": "0.1", "target": "75"}
WORLD = Path(__file__).parents[2] / "conf" / "paper"


def reports() -> dict[str, dict[str, object]]:
    search = {"evaluations": 8, "seconds": {"first_pass": 1.0, "second_pass": 2.0}, "alpha": {"svf": 0.5}}
    confusion = {"math": {"math": 3, "other": 1}, "other": {"other": 2}}
    whole = adapted("tiny_math_hard", {"prompt": 0.4, "cls": 0.5, "cem": 0.6}, uniform_mixture=0.5)
    whole["strategies"]["cls"]["details"]["confusion"] = confusion
    spectrum = {"base_model": "tiny", "fingerprint": "f", "seconds": 1.0, "versions": {}}
    spectrum["spectrum"] = [
        matrix_facts(f"model.layers.{i}.mlp.{kind}_proj", torch.arange(32.0, 0, -1).double())
        for i in range(2)
        for kind in ("up", "down")
    ]
    tenths = {key: [0.1] * 10 for key in ("mean_abs", "change", "weight")}
    return {
        "fit": fitted(0.7),
        "test": report(0.6),
        "adapt": report(0.6, **search, details={"strategy": "cem", "few_shot": ["a"]}),
        "all": whole,
        "spectrum": spectrum,
        "drift": {**spectrum, "drift": {"expert": "svf", "kinds": {"all": tenths}}},
    }


def a_study(tmp_path, build_name, labels, states=()):
    found = {name: [content, *states] for name, content in reports().items()}
    return make_study(tmp_path, build_name, found, dict.fromkeys(found, labels))


@pytest.mark.parametrize("labels", [LABELS, {"skill": "math", "target": "75"}, {"task": "math"}, {}], ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder_takes_every_kind_of_run(tmp_path, name, labels) -> None:
    for states in ((), ("failed", "missing")):
        study = a_study(tmp_path / str(len(states)), name, labels, states)
        outputs = build(study)
        if states and labels in (LABELS, {}):  # pictures take most of the time
            write_outputs(outputs, tmp_path / "out")
        if name in ("figure4", "figure6", "figure11") and not isinstance(outputs[0], Table):
            continue  # pictures, which link no run
        linked = "".join(output.markdown() for output in outputs)
        assert [run.folder for run in study.runs if run.state != "missing" and f"({run.folder})" not in linked] == []


def a_run(kind: str, score: float) -> dict[str, object]:
    """A report whose numbers all say which run it is of."""
    if kind == "spectrum":
        one = reports()["drift"]
        tenths = {key: [score] * 10 for key in ("mean_abs", "change", "weight")}
        matrices = [matrix for matrix in one["spectrum"] if score > 0.5 or "up" in matrix["module"]]
        return {**one, "spectrum": matrices, "drift": {"expert": "svf", "kinds": {"all": tenths}}}
    if kind == "fit":
        return fitted(score, base=score / 2)
    counts = {"math": {"math": round(100 * score), "other": 1}}
    more = {
        "details": {"confusion": counts},
        "alpha": {"svf": score},
        "controls": {"uniform mixture": study_score(score)},
    }
    seconds = {"first_pass": 100 * score, "second_pass": 1.0}
    whole = adapted("tiny_math_hard", dict.fromkeys(("prompt", "cls", "scores", "cem"), score), base=score / 2)
    for strategy, found in whole["strategies"].items():
        found |= {**more, "seconds": seconds, "details": {**more["details"], "strategy": strategy}}
    return whole if kind == "all" else {**whole["strategies"]["cem"], "details": {**more["details"], "strategy": kind}}


@pytest.mark.parametrize("extra", ["labels", "names"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"table{n}", "fit") for n in (1, 4, 5, 7, 8, 9, 10)),
        *((f"table{n}", kind) for n in (2, 3) for kind in ("cem", "all")),
        *((name, "fit") for name in ("figure4", "figure9", "steps")),
        *(
            (name, kind)
            for name, kind in (("figure6", "cls"), ("figure6", "all"), ("figure7", "cem"), ("figure7", "all"))
        ),
        *((name, "spectrum") for name in ("drift", "figure10", "figure11")),
    ],
)
def test_runs_that_the_builder_has_one_name_for_are_told_apart(tmp_path, name, kind, extra) -> None:
    """By a label that it has no row or column for, or by a run's name that it does not show."""
    scores = {"cem": 0.25, "cem_again": 0.75} if extra == "names" else {"cem-x": 0.25, "cem-y": 0.75}
    labels = {run: {**LABELS, **({"kind": run[-1]} if extra == "labels" else {})} for run in scores}
    values = "-".join(LABELS.values())
    named = {run: f"{run.partition('-')[0]}-{values}{run[3:] if extra == 'labels' else ''}" for run in scores}
    runs = {named[run]: [a_run(kind, score)] * 2 for run, score in scores.items()}
    outputs = build(make_study(tmp_path, name, runs, {named[run]: labels[run] for run in scores}))
    tables = [output for output in outputs if isinstance(output, Table)]
    for table in tables:
        keys = [row[: 2 if name.startswith("table") else 1] for row in table.rows]
        if name in ("figure6", "figure10", "table4"):
            keys = [row[:4] for row in table.rows]
        if name in ("table8", "table10", "steps"):
            keys = [row[:3] for row in table.rows]
        assert len({*map(tuple, keys)}) == len(keys), keys
        for row in table.rows:
            seeds = [cell for cell in row if "](" in cell]
            assert all(len(re.findall(r"\]\(", cell)) <= 2 for cell in seeds), "two seeds of one run"
        linked = table.markdown().partition("also run")[0]
        assert all(f"../{run}-s{seed}-abc" in linked for run in runs for seed in (0, 1)) or name == "figure6"
    for output in outputs:
        if not isinstance(output, Table) and len(outputs) - len(tables) == 1:
            drawn = output.draw()
            words = " ".join(text.get_text() for text in drawn.findobj(lambda a: hasattr(a, "get_text")))
            told = ("kind x", "kind y") if extra == "labels" else ("cem", "cem_again")
            assert all(re.search(rf"\b{word}\b", words) for word in told), words


@pytest.mark.parametrize("name", ["table1", "table4", "table5", "table7"])
def test_what_has_no_result_of_its_own_has_no_row(tmp_path, name) -> None:
    (table,) = build(a_study(tmp_path, name, {"skill": "math", "task": "math"}))
    assert isinstance(table, Table)
    assert len([row for row in table.rows if row[0].startswith("math")]) == 4  # the base, fit, test, adapt
    (also,) = (note for note in table.notes if note.startswith("also run"))
    assert re.findall(r"(\w+) \(", also) == ["all", "spectrum", "drift"]


def test_a_run_that_is_done_is_not_called_not_run(tmp_path) -> None:
    (table,) = build(make_study(tmp_path, "figure4", {"svf": [report(0.6)], "lora": ["missing"]}, {}))
    assert isinstance(table, Table) and [row[1] for row in table.rows] == ["nothing to draw", "not run"]


def grid(build_name, **runs):
    return OmegaConf.create({"build": build_name, "runs": runs})


def run(command, expert=None, strategy=None, **matrix):
    given = {} if expert is None else {"expert": expert}
    flags = {} if strategy is None else {"strategy": strategy}
    return {"command": command, "matrix": {key: [value] for key, value in matrix.items()}, "set": flags, **given}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_study_without_a_row_is_refused_before_its_runs(name) -> None:
    only = run("fit") if name in ("figure6", "figure7", "figure10", "figure11") else run("spectrum", **LABELS)
    with pytest.raises(ConfigError, match=f"^build: {name} has no row for any run of the study; ") as refused:
        cells(grid(name, one=only))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "label", "command"),
    [
        *((table, "task", "test") for table in ("table2", "table3", "table5", "table9")),
        ("table8", "shots", "fit"),
        ("table10", "budget", "adapt"),
        ("figure9", "lr", "fit"),
        ("steps", "skill and target", "fit"),
    ],
)
def test_labels_that_a_builder_needs_are_refused_before_the_runs(name, label, command) -> None:
    with pytest.raises(ConfigError, match=f"with the label.* {label}"):
        cells(grid(name, svf=run(command, base="x")))
    with_labels = {key: LABELS[key] for key in label.split(" and ")}
    assert len(cells(grid(name, svf=run(command, **with_labels), helper=run("fit")))) == 2


@pytest.mark.parametrize("target", ["abc", "nan", "inf", "0", "101", "", True])
def test_a_label_that_is_no_number_is_refused_before_the_runs(target) -> None:
    with pytest.raises(ConfigError, match=r"runs\.svf.*target"):
        cells(grid("steps", svf=run("fit", skill="math", target=target)))
    if target not in ("101", "0"):
        with pytest.raises(ConfigError, match=r"runs\.svf.*lr"):
            cells(grid("figure9", svf=run("fit", lr=target)))


@pytest.mark.parametrize(
    ("name", "refused", "taken"),
    [
        ("table1", run("adapt", strategy="all"), run("adapt")),
        ("figure6", run("adapt"), run("adapt", strategy="cls")),
        ("figure7", run("adapt", strategy="cls"), run("adapt", strategy="all")),
        ("drift", run("spectrum"), run("spectrum", expert="runs/x/expert")),
    ],
)
def test_what_a_run_is_given_decides_whether_it_has_a_row(name, refused, taken) -> None:
    with pytest.raises(ConfigError, match="has no row"):
        cells(grid(name, one=refused))
    assert cells(grid(name, one=taken))


@pytest.mark.parametrize("file", sorted(WORLD.glob("*.yaml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("world", ["tiny", "real"])
def test_the_papers_studies_have_rows(file, world) -> None:
    whole = merge([str(WORLD / "world" / f"{world}.yaml"), str(file)])
    whole["base"], whole["other_base"] = "tiny", "tiny_b"
    assert cells(whole)


@pytest.mark.parametrize("kind", reports())
def test_claims_are_judged_over_every_kind_of_run(tmp_path, kind) -> None:
    names = ("svf", "lora", "svf_next_token", "cem", "adapt", "ordered", "shuffled")
    study = make_study(tmp_path, "table1", {name: [reports()[kind]] for name in names}, dict.fromkeys(names, LABELS))
    for claim in CLAIMS:
        assert all(effect.verdict == "not decided" for effect in claim.effects(dict.fromkeys(BUILDERS, study))[:1])
