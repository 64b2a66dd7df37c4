import pytest
from studies import adapted, fitted, make_study, report, score, table_rows

from transformer2.errors import ConfigError
from transformer2.study.builders import BUILDERS, build
from transformer2.study.output import Table, without_links
from transformer2.study.results import Tuning


def first(outputs) -> Table:
    assert isinstance(outputs[0], Table)
    return outputs[0]


SKILL = {"svf-math": {"skill": "math"}, "lora-math": {"skill": "math"}}


def test_table1_has_numbers_of_seeds_and_the_papers_beside_them(tmp_path) -> None:
    svf = [fitted(a, trainable=672) for a in (0.7, 0.8, 0.9)]
    lora = [fitted(0.6, trainable=6144), "failed", "missing"]
    table = first(build(make_study(tmp_path, "table1", {"svf-math": svf, "lora-math": lora}, SKILL)))
    base, ours, failed = table_rows(table)
    assert (
        base["seeds"] == "0, 1, 2"
        and base["skill"] == "math (GSM8K)"
        and base["accuracy, %"] == "40.0 ± 4.9 (of questions)"
    )
    assert base["paper: Llama-3-8B-Instruct"] == "75.89"
    # mean 80, s = 10, s.e. 5.77; gain 40 ± 4.303 * 5.77
    assert ours["accuracy, %"] == "80.0 ± 5.8" and ours["on base, points [95 %]"] == "+40.0 [+15.2, +64.8]"
    assert ours["p"] == "0.02" and ours["n"] == "100" and ours["seeds"] == "0, 1, 2"
    assert ours["trainable"] == "672" and ours["training, CPU-s"] == "20"
    assert ours["paper: Llama-3-8B-Instruct"] == "79.15" and ours["paper: Mistral-7B-Instruct-v0.3"] == "49.74"
    assert failed["accuracy, %"] == "60.0 ± 4.9 (of questions)" and failed["p"] == "0.01 (exact McNemar)"
    assert failed["seeds"] == "0, 1 failed, 2 not run"
    assert "[1 failed](../lora-math-s1-abc)" in table.rows[2][table.columns.index("seeds")]


@pytest.mark.parametrize(("state", "shown"), [("failed", "failed"), ("missing", "not run")])
def test_a_run_without_a_report_keeps_its_row(tmp_path, state, shown) -> None:
    table = first(build(make_study(tmp_path, "table1", {"svf-math": [state], "dispatch": [report(0.9)]}, SKILL)))
    base, ours = table_rows(table)
    assert base["accuracy, %"] == ours["accuracy, %"] == shown and ours["trainable"] == "–"
    assert any(without_links(note) == "also run: dispatch (0)" for note in table.notes)


def test_answers_that_were_cut_off_are_told_of(tmp_path) -> None:
    said = [{**fitted(0.5), "details": {**fitted(0.5)["details"], "unfinished": {"result": r}}} for r in (0.05, 0.5)]
    table = first(build(make_study(tmp_path, "table1", {"svf-math": said}, SKILL)))
    assert "answers that were cut off at the token limit: svf-math s1 50 %" in table.notes


def test_nothing_scored_is_no_zero(tmp_path) -> None:
    nothing = {"accuracy": None, "se": None, "n": 0}
    empty = {**fitted(0.5), "n": 0, "result": nothing, "base": nothing, "paired_p": None}
    _, ours = table_rows(first(build(make_study(tmp_path, "table1", {"svf-math": [empty]}, SKILL))))
    assert ours["accuracy, %"] == "not scored" and ours["n"] == "–"


def test_soft_scores_name_their_test(tmp_path) -> None:
    soft = fitted(0.55)
    soft["details"]["paired_test"] = "sign-flip permutation"
    _, ours = table_rows(first(build(make_study(tmp_path, "table1", {"svf-math": [soft]}, SKILL))))
    assert ours["p"] == "0.01 (sign-flip permutation)"


def test_table4_reads_method_objective_and_modules(tmp_path) -> None:
    names = ("svf-math", "svf_mlp-math", "svf_next_token-attention-math", "lora-math", "lora_all_next_token-math")
    labels = {name: {"skill": "math"} for name in names}
    labels[names[2]] = {"modules": "attention", "skill": "math"}
    table = first(build(make_study(tmp_path, "table4", {name: [fitted(0.6)] for name in names}, labels)))
    found = [(r["method"], r["objective"], r["modules"], table.rows[i][-1]) for i, r in enumerate(table_rows(table))]
    assert found == [
        ("base", "", "", "75.89"),
        ("SVF", "policy gradient", "both", "79.23"),
        ("SVF", "policy gradient", "mlp", "78.62"),
        ("SVF", "next token", "attention", "60.50"),
        ("LoRA", "policy gradient", "attention", "57.92"),
        ("LoRA", "next token", "both", "75.66"),
    ]


def test_table7_names_other_methods(tmp_path) -> None:
    runs = {f"{m}-code": [fitted(0.5)] for m in ("svf", "ia3", "dora", "tinylora")}
    table = first(build(make_study(tmp_path, "table7", runs, {name: {"skill": "code"} for name in runs})))
    assert [row["method"] for row in table_rows(table)] == ["base", "SVF", "IA3", "DoRA", "TinyLoRA"]
    assert {row[-1] for row in table.rows} == {"–"}  # the paper has GSM8K alone


def unseen(tmp_path, build_name, **more):
    results = {"prompt": 0.5, "cls": 0.55, "scores": 0.5, "cem": 0.6}
    controls = {"expert_math": 0.45, "uniform_mixture": 0.5, "constant_z_=_0.9": 0.3}
    runs = {
        "svf-math": [fitted(0.8), fitted(0.8)],
        "adapt-math": [adapted("tiny_math_hard", results, **controls), adapted("tiny_math_hard", results, **controls)],
        "soft-math": [report(0.52), "failed"],
        "lora_unseen-math": [report(0.3), report(0.32)],
        "adapt-code": ["missing", "missing"],
        **more,
    }
    labels = {"svf-math": {"skill": "math"}}
    labels |= {name: {"task": name.rpartition("-")[2]} for name in runs if name != "svf-math"}
    return first(build(make_study(tmp_path, build_name, runs, labels)))


def test_table2_has_strategies_controls_and_what_is_missing(tmp_path) -> None:
    table = unseen(tmp_path, "table2")
    found = table_rows(table)
    math = {r["strategy"]: r for r in found if r["task"] == "math (MATH)"}
    assert [*math] == [
        *("base", "prompt", "cls", "scores", "few-shot (cem)", "scores, soft", "LoRA"),
        *("expert math", "uniform mixture", "best constant z"),
    ]
    assert math["few-shot (cem)"]["accuracy, %"] == "60.0 ± 0.0" and math["few-shot (cem)"]["mixtures tried"] == "128"
    assert math["few-shot (cem)"]["p"] == "–"  # no spread: no test
    assert math["LoRA"]["accuracy, %"] == "31.0 ± 1.0" and table.rows[6][-1] == "24.12"
    assert math["scores, soft"]["seeds"] == "0, 1 failed" and math["best constant z"]["accuracy, %"] == "30.0 ± 0.0"
    code = [r for r in found if r["task"] == "code (HumanEval)"]
    assert {r["accuracy, %"] for r in code} == {"not run"} and len(code) == 5
    assert any(note.startswith("also run: svf-math") for note in table.notes)


def test_table3_has_both_passes_and_their_share(tmp_path) -> None:
    math = {r["strategy"]: r for r in table_rows(unseen(tmp_path, "table3")) if r["task"] == "math (MATH)"}
    assert [*math] == ["prompt", "cls", "scores", "few-shot (cem)"]  # the others have one pass
    prompt = math["prompt"]
    assert (prompt["first pass, s"], prompt["second pass, s"], prompt["first / second"]) == ("3.00", "1.00", "300 %")
    assert prompt["paper: Llama-3-8B-Instruct, first / second"] == "13 %"


def test_table8_orders_shots_and_table10_shows_evaluations(tmp_path) -> None:
    searched = report(0.6, evaluations=128, seconds={"first_pass": 30.0}, details={"few_shot": ["a", "b", "c"]})
    runs = {"cem-10": [searched], "cem-3": [searched], "ia3_100-3": [fitted(0.5)]}
    labels = {name: {"shots": name.rpartition("-")[2]} for name in runs}
    table = first(build(make_study(tmp_path / "8", "table8", runs, labels)))
    assert [(r["shots"], r["method"], table.rows[i][-1]) for i, r in enumerate(table_rows(table))] == [
        ("3", "few-shot (cem)", "82.18"), ("3", "IA3, 100 steps", "81.83"), ("10", "few-shot (cem)", "82.61")
    ]  # fmt: skip
    runs = {"cem-light": [searched], "cem-3_shots": ["failed"]}
    labels = {name: {"budget": name.partition("-")[2]} for name in runs}
    light, failed = table_rows(first(build(make_study(tmp_path / "10", "table10", runs, labels))))
    assert (light["mixtures tried"], light["shots"], light["search, s"]) == ("128", "3", "30")
    assert failed["accuracy, %"] == "failed" and failed["mixtures tried"] == "–"


def test_tuning_is_listed_and_unequal_numbers_are_said(tmp_path) -> None:
    values = [
        {"set": {"model.optimizer.lr": lr}, "validation": v, "folder": f"../t{lr}"} for lr, v in ((1, 0.5), (2, 0.7))
    ]
    tuning = [
        Tuning("svf-math", 9, values, 1),
        Tuning("lora-math", 9, [*values, {**values[0], "validation": None}], None),
    ]
    runs = {"svf-math": [fitted(0.6)], "lora-math": [fitted(0.6)]}
    table = build(make_study(tmp_path, "table1", runs, SKILL, tuning))[-1]
    assert isinstance(table, Table) and [row[-1] for row in table.rows] == ["", "chosen", "", "", ""]
    assert table.rows[1][2] == "[70.0](../t2)" and table.rows[4][2].startswith("[failed or not run]")
    assert "not the same number" in table.notes[0] and table.notes[-1].endswith("lora-math")


def test_an_unknown_builder_is_refused_with_the_nearest(tmp_path) -> None:
    study = make_study(tmp_path, "tabel1", {"svf-math": [fitted(0.5)]}, SKILL)
    with pytest.raises(ConfigError, match="did you mean 'table1'"):
        build(study)
    assert "table1" in BUILDERS and score(0.5)["n"] == 100
