"""Figures of a study: every one is drawn from reports alone, says what is missing, and its numbers stand beside it."""

from __future__ import annotations

from typing import Any

import pytest
from studies import adapted, fitted, make_study, report, table_rows

from transformer2.study.builders import build
from transformer2.study.output import Figure, Table


def texts(drawn: Any) -> str:
    """Everything written in a figure."""
    return " ".join(t.get_text() for t in drawn.findobj(lambda a: hasattr(a, "get_text")))


SKILLED = {f"{m}-{s}": {"skill": s} for m in ("svf", "lora") for s in ("math", "code")}


def test_figure4_has_a_panel_a_skill_a_line_a_method_and_each_seeds_checkpoint(tmp_path) -> None:
    runs = {name: [fitted(0.7), fitted(0.9), "failed"] for name in SKILLED}
    (figure,) = build(make_study(tmp_path, "figure4", runs, SKILLED))
    assert isinstance(figure, Figure)
    drawn = figure.draw()
    panels = drawn.axes
    assert [axes.get_title() for axes in panels] == ["math", "code"]
    assert panels[0].get_ylabel() == "validation accuracy, %" and panels[0].get_xlabel() == "optimizer steps"
    mean, chosen = panels[0].lines[:2]
    assert mean.get_ydata().tolist() == [40.0, 80.0, 80.0] and mean.get_label() == "SVF"
    assert sorted(chosen.get_ydata()) == [70.0, 90.0] and set(chosen.get_xdata()) == {10}
    assert figure.png().startswith(b"\x89PNG") and figure.png() == figure.png()


def test_figure9_says_which_rates_collapse(tmp_path) -> None:
    labels = {f"lora-{lr}": {"lr": lr} for lr in ("0.03", "0.001")}
    runs = {"lora-0.03": [fitted(0.8, last=0.1), fitted(0.8, last=0.79)], "lora-0.001": [fitted(0.6), "missing"]}
    figure, table = build(make_study(tmp_path, "figure9", runs, labels))
    assert [axes.get_title() for axes in figure.draw().axes] == ["learning rate 0.001", "learning rate 0.03"]
    low, high = table_rows(table)
    assert low["learning rate"] == "0.001" and low["collapsed"] == "0 of 1" and low["seeds"] == "0, 1 not run"
    assert high["fall, points"] == "35.5" and high["collapsed"] == "1 of 2" and high["last validation, %"] == "44.5"


def test_figure6_counts_what_is_no_expert_as_others(tmp_path) -> None:
    counts = {"math": {"math": 8, "code": 2}, "code": {"code": 5, "other": 3, "no category": 2}, "other": {"other": 4}}
    whole = adapted("tiny_math_hard", {"prompt": 0.4, "cls": 0.5, "cem": 0.5})
    whole["strategies"]["prompt"]["details"]["confusion"] = counts
    whole["strategies"]["cls"]["details"]["confusion"] = {
        "math": {"math": 10},
        "code": {"code": 10},
        "other": {"other": 4},
    }
    labels = {"adapt-math": {"task": "math"}, "adapt-code": {"task": "code"}}
    study = make_study(tmp_path, "figure6", {"adapt-math": [whole, whole], "adapt-code": [whole]}, labels)
    figure, table = build(study)
    prompt, cls = figure.draw().axes
    assert (prompt.get_title(), cls.get_title()) == ("prompt", "cls")
    assert [t.get_text() for t in prompt.get_xticklabels()] == ["math", "code", "others"]
    first = [row for row in table_rows(table) if row["strategy"] == "prompt"]
    # two seeds, and of each the requests once, whatever the number of tasks
    assert [[row[c] for c in ("math", "code", "others")] for row in first] == [
        ["16", "4", "0"],
        ["0", "10", "10"],
        ["0", "0", "8"],
    ]


def test_figure7_calls_experts_by_their_skill_and_shows_every_seed(tmp_path) -> None:
    def cem(seed: int, weights: Any) -> dict[str, Any]:
        whole = adapted("tiny_math_hard", {"cem": 0.5})
        whole["strategies"]["cem"]["alpha"] = weights
        return whole

    alphas = [{f"svf-{s}-s{seed}-abc": a for s, a in (("math", 0.8 + seed / 10), ("code", 0.1))} for seed in (0, 1)]
    grouped = {"layer 0": {"svf-math-s0-abc": 1.0}, "layer 1": {"svf-math-s0-abc": 0.5}}
    labels = {**SKILLED, "adapt-math": {"task": "math"}, "adapt-code": {"task": "code"}}
    runs = {"svf-math": [fitted(0.7)] * 2, "svf-code": [fitted(0.7)] * 2}
    adapts = {"adapt-math": [cem(s, a) for s, a in enumerate(alphas)], "adapt-code": [cem(0, grouped)]}
    figure, table = build(make_study(tmp_path, "figure7", {**runs, **adapts}, labels))
    axes = figure.draw().axes[0]
    assert [t.get_text() for t in axes.figure.legends[0].get_texts()] == ["math", "code"]
    assert sorted(p.get_height() for p in axes.patches) == pytest.approx([0.1, 0.75, 0.85])
    first, second = table_rows(table)
    assert (first["math"], first["code"]) == ("0.85", "0.10") and (second["math"], second["code"]) == ("0.75", "–")


def spectrum_report(base: str, share: float, expert: bool = False) -> dict[str, Any]:
    """A `spectrum` run's, of two layers."""
    tops = {"1": 0.05, "16": share, "128": 1.0}
    ranks = {"50": 30, "90": 80, "99": 120}
    matrices = [
        {"module": f"model.layers.{i}.mlp.{p}", "layer": i, "kind": f"mlp.{p}", "rank": 128, "largest": 2.0}
        | {"sum": tops, "rank_of_sum": ranks, "sum_of_squares": tops, "rank_of_sum_of_squares": ranks}
        for i in range(2)
        for p in ("up_proj", "down_proj")
    ]
    found = {"base_model": base, "fingerprint": f"{base}:{share}", "spectrum": matrices, "seconds": {}, "versions": {}}
    tenths = {"mean_abs": [0.1] * 10, "change": [0.3, *[0.7 / 9] * 9], "weight": [0.4, *[0.6 / 9] * 9]}
    return {**found, **({"drift": {"expert": "x", "kinds": {"all": tenths}}} if expert else {})}


def test_figures_10_and_11_show_each_base_once(tmp_path) -> None:
    runs = {"spectrum": [spectrum_report("tiny", 0.3)] * 2, "other": [spectrum_report("tiny_b", 0.4)]}
    first, second, table = build(make_study(tmp_path, "figure10", runs, {}))
    assert (first.name, second.name) == ("figure10_spectrum", "figure10_other")
    assert "share of the spectrum in the top r, %" in texts(first.draw()) and "tiny_b" in texts(second.draw())
    assert [row["sum, top 16, %"] for row in table_rows(table)] == ["30.0", "30.0", "40.0", "40.0"]
    one, _ = build(make_study(tmp_path / "layers", "figure11", runs, {}))
    assert "decoder layer" in texts(one.draw()) and one.png()


def test_drift_has_a_line_an_expert_and_the_weights_beside_the_change(tmp_path) -> None:
    runs = {f"drift-{s}": [spectrum_report("tiny", 0.3, expert=True)] * 2 for s in ("math", "code")}
    figure, table = build(make_study(tmp_path, "drift", runs, {f"drift-{s}": {"skill": s} for s in ("math", "code")}))
    words = texts(figure.draw())
    assert "mean |z − 1|" in words and "change, math" in words and "the weights themselves" in words
    assert table_rows(table)[0]["change, %, 1st tenth"] == "30.0" and table_rows(table)[0]["seeds"] == "0, 1"


def test_table5_has_the_other_models_score_and_the_papers(tmp_path) -> None:
    kinds = {
        "ordered": [report(0.45), report(0.5)],
        "shuffled": [report(0.3), report(0.31)],
        "cross_model": ["failed", "missing"],
    }
    runs = {f"{how}-reasoning": of for how, of in kinds.items()}
    table = build(make_study(tmp_path, "table5", runs, {name: {"task": "reasoning"} for name in runs}))[0]
    base, ordered, shuffled, cross = table_rows(table)
    assert base["accuracy, %"].startswith("40.0") and base["paper: Llama's z on Mistral"] == "71.76"
    assert ordered["accuracy, %"] == "47.5 ± 2.5" and ordered["paper: Llama's z on Mistral"] == "72.01"
    assert "shuffled" in shuffled["z"] and shuffled["on base, points [95 %]"].startswith("-9.5")
    assert cross["accuracy, %"] == "failed" and cross["seeds"] == "0 failed, 1 not run"
    other = build(make_study(tmp_path / "nine", "table9", runs, {name: {"task": "reasoning"} for name in runs}))[0]
    assert table_rows(other)[1]["paper: Llama's z on Mistral"] == "–"


@pytest.mark.parametrize("name", ["figure4", "figure6", "figure7", "figure9", "figure10", "figure11", "drift"])
def test_a_study_without_a_run_has_a_table_of_what_is_missing(tmp_path, name) -> None:
    (table,) = build(make_study(tmp_path, name, {"svf-math": ["failed"], "adapt-math": ["missing"]}, {}))
    assert isinstance(table, Table) and [row[1] for row in table.rows] == ["failed", "not run"]
