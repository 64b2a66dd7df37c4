"""Steps to the same accuracy, by hand."""

from transformer2.study.builders import build
from transformer2.study.results import Run, Study


def fit(seed, curve, accuracy=0.8):
    points = [{"step": s, "accuracy": a, "se": 0.01, "seconds": s, "cpu_seconds": s / 2} for s, a in curve]
    training = {
        "curve": points,
        "steps": points[-1]["step"],
        "trainable": 2688,
        "method": "SVF",
        "best_validation": 0.8,
    }
    result = {"accuracy": accuracy, "se": 0.02, "n": 512}
    labels = {"skill": "math", "target": "75"}
    return Run(
        "svf-math-75", seed, labels, f"../runs/{seed}", "done", {"result": result, "details": {"training": training}}
    )


def table(*runs):
    return build(Study("steps", "", "", "", "steps", (0, 1), runs))[0]


def test_the_first_validation_at_the_target_counts():
    fast = fit(0, [(0, 0.3), (2, 0.5), (4, 0.75), (6, 0.7), (8, 0.8)])
    slow = fit(1, [(0, 0.3), (2, 0.5), (4, 0.6), (6, 0.74), (8, 0.9)], accuracy=0.9)
    (row,) = table(fast, slow).rows
    assert row[:5] == ["math, 75 %", "SVF", "4, 8", "6.0", "3.0"]
    assert row[5] == "85.0 ± 5.0" and row[6:8] == ["8", "2,688"]


def test_a_seed_that_never_gets_there_is_not_its_last_step():
    never = fit(1, [(0, 0.3), (8, 0.7499)])
    (row,) = table(fit(0, [(0, 0.3), (8, 0.76)]), never).rows
    assert row[2:5] == ["8, –", "8.0 (1 of 2)", "4.0 (1 of 2)"]
    (row,) = table(never).rows
    assert row[2:5] == ["–", "–", "–"]


def test_what_was_not_run_is_named():
    missing = Run("svf-math-75", 0, {"skill": "math", "target": "75"}, "", "failed")
    (row,) = table(missing).rows
    assert row[2] == "failed" and row[5] == "–"


def test_a_seed_that_was_not_run_is_marked_beside_those_that_were():
    labels = {"skill": "math", "target": "75"}
    gone = (Run("svf-math-75", 0, labels, "", "failed"), Run("svf-math-75", 2, labels, "", "missing"))
    runs = (gone[0], fit(1, [(0, 0.3), (8, 0.76)]), gone[1])
    (row,) = table(*runs).rows
    assert row[2:5] == ["failed, 8, not run", "8.0 (1 of 3)", "4.0 (1 of 3)"]
    lora = Run("lora-math-75", 0, labels, "", "missing")
    (curves,) = build(Study("figure4", "", "", "", "figure4", (0, 1, 2), (*runs, lora)))
    runs[1].report["details"]["training"] |= {"best_validation": None, "best_step": 8}  # none was due before its end
    assert curves.png()
    assert curves.notes[-1] == "not drawn: svf-math-75 (0 failed, 2 not run); lora-math-75 (0 not run)"
