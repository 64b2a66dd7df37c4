"""Pages from synthetic studies; and that the committed pages are what the committed reports say."""

import json
import re
import shutil
from pathlib import Path

import pytest
from studies import adapted, fitted, make_study, report

from transformer2.errors import DataError
from transformer2.study.archive import copy_results, read_studies
from transformer2.study.builders import build
from transformer2.study.claims import CLAIMS, verdict
from transformer2.study.output import Table
from transformer2.study.page import pages, write_pages
from transformer2.study.results import Study, Tuning, read_study

DOCS = Path(__file__).parents[2] / "docs"
SKILLS = ("math", "code")


def table1(root: Path, gains=(0.2, 0.22, 0.24, 0.26, 0.28), lora=-0.01, **more):
    """SVF above its base by these gains, LoRA apart from SVF by `lora`."""
    runs = {f"svf-{s}": [fitted(0.4 + g, trainable=672) for g in gains] for s in SKILLS}
    runs |= {
        f"lora-{s}": [fitted(0.4 + g + lora + 0.001 * i, trainable=6144) for i, g in enumerate(gains)] for s in SKILLS
    }
    return make_study(root, "table1", runs, {name: {"skill": name.partition("-")[2]} for name in runs}, **more)


def effects(number: int, **studies):
    return CLAIMS[number - 1].effects(studies)


def test_svf_beats_its_base_or_does_not_or_nobody_knows(tmp_path) -> None:
    assert verdict(effects(1, table1=table1(tmp_path / "a"))) == "holds"
    whole = effects(1, table1=table1(tmp_path / "b"))
    assert str(whole[0].found) == "+24.0 [+20.1, +27.9]" and [e.counts for e in whole] == [True, False, False]
    worse = table1(tmp_path / "c", gains=(-0.2, -0.22, -0.24, -0.26, -0.28))
    assert verdict(effects(1, table1=worse)) == "does not hold"
    assert (
        verdict(effects(1, table1=table1(tmp_path / "d", gains=(-0.1, 0.1, -0.1, 0.1, 0.05))))
        == "not decided (5 seeds)"
    )
    assert verdict(effects(1, table1=table1(tmp_path / "e", gains=(0.2, 0.3, 0.25)))) == "not decided (3 seeds)"
    assert verdict(effects(1)) == "not decided (0 seeds)"


def test_a_skill_without_its_seeds_leaves_the_claim_open(tmp_path) -> None:
    runs = {"svf-math": [fitted(0.6 + 0.01 * i) for i in range(5)], "svf-code": ["failed"] * 5}
    study = make_study(tmp_path, "table1", runs, {n: {"skill": n.partition("-")[2]} for n in runs})
    assert verdict(effects(1, table1=study)) == "not decided (0 seeds)"


def test_the_page_says_what_holm_leaves_and_whose_study_it_is(tmp_path) -> None:
    table1(tmp_path / "results", lora=0.05)
    own = make_study(tmp_path / "results", "table4", {"x": [fitted(0.6)] * 5}, {}, name="mine")
    text = (tmp_path / "results" / "mine" / "study.json").read_text()
    (tmp_path / "results" / "mine" / "study.json").write_text(text.replace('"paper": "Table"', '"paper": ""'))
    page = pages(tmp_path)["claims.md"]
    assert own.build == "table4" and "**Tested on table4 (not run)**" in page  # it says of no place in the paper
    assert "Holm's procedure at 5 % over those of a base would leave decided 1, 2 on the embedded model." in page


def test_no_worse_than_lora_has_a_margin_and_counts_numbers(tmp_path) -> None:
    close = effects(2, table1=table1(tmp_path / "a", lora=0.01))  # LoRA better by 1 to 1.4 points
    assert verdict(close) == "holds" and close[-1].fact == "672 / 6,144 = 0.11, to be at most 0.2"
    assert verdict(effects(2, table1=table1(tmp_path / "b", lora=0.05))) == "does not hold"
    many = make_study(
        tmp_path / "c",
        "table1",
        {f"{m}-math": [fitted(0.6 + 0.01 * i, trainable=5000) for i in range(5)] for m in ("svf", "lora")},
        {f"{m}-math": {"skill": "math"} for m in ("svf", "lora")},
    )
    assert verdict(effects(2, table1=many)) == "does not hold"  # as many numbers


def table4(root: Path, results, last=None):
    """`results`: (stem, modules) -> accuracy; `last`: stem -> validation accuracy at the end."""
    runs, labels = {}, {}
    for (name, where), accuracy in results.items():
        ends = (last or {}).get(name)
        runs[f"{name}-math-{where}"] = [
            fitted(accuracy + 0.01 * i, last=None if ends is None else ends * (1 - 0.05 * i)) for i in range(5)
        ]
        labels[f"{name}-math-{where}"] = {"skill": "math", "modules": where}
    return make_study(root, "table4", runs, labels)


def test_claims_on_objective_modules_and_stability(tmp_path) -> None:
    places = ("mlp", "attention", "both")
    jitter = {"mlp": 0.7, "attention": 0.6, "both": 0.7}
    study = table4(
        tmp_path,
        {
            **{("svf", w): jitter[w] for w in places},
            **{("lora", w): 0.6 for w in places},
            ("svf_next_token", "mlp"): 0.5,
        },
        {"lora": 0.3, "svf": 0.6},
    )
    order = effects(3, table4=study)
    assert [e.verdict for e in order] == ["not decided", "not decided"]  # every seed differs by the same: no interval
    assert round(order[1].found.mean) == 10
    (goal,) = effects(4, table4=study)  # two modules have one objective alone
    assert verdict([goal]) == "not decided (5 seeds)" and round(goal.found.mean) == 20
    runs = {"lora-0.1": [fitted(0.7, base=0.4, last=0.1 + 0.01 * i) for i in range(5)]}
    swept = make_study(tmp_path, "figure9", runs, {"lora-0.1": {"lr": "0.1"}})
    found = effects(5, table4=study, figure9=swept)
    assert verdict(found) == "holds"
    assert found[-1].what == "LoRA at rate 0.1, validation: start - end" and round(found[-1].found.mean) == 28
    assert not found[-1].counts


def test_claims_on_strategies(tmp_path) -> None:
    def seed(i: int):
        results = {"prompt": 0.5 + 0.01 * i, "cls": 0.6, "scores": 0.5, "cem": 0.7 - 0.01 * i}
        return adapted("tiny_math_hard", results, expert_math=0.45, expert_code=0.6, constant_z=0.9)

    study = make_study(
        tmp_path, "table2", {"adapt-math": [seed(i) for i in range(5)]}, {"adapt-math": {"task": "math"}}
    )
    assert verdict(effects(6, table2=study)) == "holds"
    (single,) = effects(7, table2=study)
    assert single.found.mean == pytest.approx(8) and single.verdict == "holds"  # 60 is the best single one, not z's 90


def test_more_shots_and_budgets_compare_the_ends(tmp_path) -> None:
    def cem(accuracy, shots, evaluations=128):
        return [
            report(accuracy + 0.01 * i % 0.03, evaluations=evaluations, details={"few_shot": ["x"] * shots})
            for i in range(5)
        ]

    shots = {f"cem-reasoning-{k}": cem(0.5 + 0.01 * k, k) for k in (10, 3)}
    labels = {name: {"task": "reasoning", "shots": name.rpartition("-")[2]} for name in shots}
    table8 = make_study(tmp_path, "table8", shots, labels)
    budgets = {
        "cem-code-light": cem(0.5, 3, 16),
        "cem-code-10_shots": cem(0.4, 10),
        "cem-code-3_shots": ["missing"] * 5,
    }
    labels = {name: {"task": "code", "budget": name.rpartition("-")[2]} for name in budgets}
    table10 = make_study(tmp_path, "table10", budgets, labels)
    shot, budget = effects(9, table8=table8, table10=table10)
    assert shot.found.mean == pytest.approx(7) and budget.found is None  # the missing budget may be the largest
    assert verdict([shot, budget]) == "not decided (0 seeds)"


def spectrum(root: Path, shares) -> Study:
    matrices = [{"rank": 96, "sum_of_squares": {"16": share, "96": 1.0}} for share in shares]
    return make_study(root, "figure10", {"spectrum": [{"spectrum": matrices}]}, {})


def test_the_spectrum_has_matrices_for_seeds(tmp_path) -> None:
    (missed,) = effects(10, figure10=spectrum(tmp_path / "a", [0.5, 0.52, 0.54, 0.56, 0.58]))
    assert missed.verdict == "holds" and missed.fact.startswith("46.0 % [42.1, 49.9] over 5 matrices")
    assert verdict(effects(10, figure10=spectrum(tmp_path / "b", [0.95, 0.96, 0.97, 0.96, 0.95]))) == "does not hold"
    assert verdict(effects(10)) == "not decided (0 seeds)" and len(CLAIMS) == 10


def test_pages_are_whole_and_made_again_to_the_byte(tmp_path) -> None:
    values = [{"set": {"model.optimizer.lr": 1}, "validation": 0.5, "folder": "../runs/svf-math-s0-abc"}]
    root = tmp_path / "studies"
    table1(root / "runs", tuning=[Tuning("svf-math", 9, values, 0)])
    shutil.move(root / "runs" / "table1", root / "table1")
    text = (
        (root / "table1/study.json").read_text().replace('"../svf', '"../runs/svf').replace('"../lora', '"../runs/lora')
    )
    (root / "table1/study.json").write_text(text)
    docs = tmp_path / "docs"
    docs.mkdir()
    paper, claims = write_pages(root, docs)
    kept = sorted(str(p.relative_to(docs)) for p in docs.rglob("*") if p.is_file())
    assert "results/runs/svf-math-s0-abc/report.json" in kept and not any("records" in name for name in kept)
    assert {name for name in kept if name.startswith("results/table1")} == {
        f"results/table1/{name}"
        for name in ("study.json", "table1.md", "table1.csv", "table1_tuning.md", "table1_tuning.csv")
    }
    for page in (paper, claims):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert target in ("studies.md", "claims.md", "paper.md") or (docs / target).exists(), target
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.M):
            assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    assert "`transformer2 study conf/paper/table1.yaml`" in paper.read_text()
    assert "| SVF > base | holds |" in claims.read_text()
    before = [page.read_bytes() for page in (paper, claims)]
    write_pages(docs / "results", docs)  # from what was kept
    assert [page.read_bytes() for page in (paper, claims)] == before


def test_a_failed_run_is_shown_without_a_link_that_leads_nowhere(tmp_path) -> None:
    runs = {"svf-math": [fitted(0.6), "failed", "missing"]}
    make_study(tmp_path / "studies", "table1", runs, {"svf-math": {"skill": "math"}})
    (tmp_path / "docs").mkdir()
    text = write_pages(tmp_path / "studies", tmp_path / "docs")[0].read_text()
    assert "[0](results/runs/svf-math-s0-abc), 1 failed, 2 not run" in text and "1 done, 1 failed, 1 not run" in text


def test_without_studies_pages_say_so_and_decide_nothing(tmp_path) -> None:
    paper, claims = write_pages(tmp_path / "results", tmp_path)
    assert "No study is kept here yet" in paper.read_text()
    assert claims.read_text().count("| not decided (0 seeds) |\n| [") == len(CLAIMS) - 1
    with pytest.raises(DataError, match="holds no study"):
        write_pages(tmp_path / "elsewhere", tmp_path)


def test_two_bases_with_one_name_are_two(tmp_path) -> None:
    (tmp_path / "root").mkdir()
    for folder, gain in (("a", 0.2), ("b", -0.2)):
        table1(tmp_path / "of" / folder, gains=[gain + 0.01 * i for i in range(5)], base=f"/models/{folder}/llama")
        for made in (tmp_path / "of" / folder).iterdir():
            name = f"table1-llama-{folder}" if made.name == "table1" else f"{made.name}{folder}"
            shutil.move(made, tmp_path / "root" / name)
        study = tmp_path / "root" / f"table1-llama-{folder}" / "study.json"
        study.write_text(study.read_text().replace('-abc"', f'-abc{folder}"'))
    _, claims = write_pages(tmp_path / "root", tmp_path / "docs")
    assert "| the embedded model | llama-a | llama-b |" in claims.read_text()
    assert "(0 seeds) | holds | does not hold |" in claims.read_text()


def test_nothing_of_the_machine_is_copied(tmp_path) -> None:
    root = tmp_path / "studies"
    noted = fitted(0.6)
    noted["base_model"] = "/models/of/mine/llama"
    make_study(root, "table1", {"svf-math": [noted]}, {}, base="/models/of/mine/llama")
    copy_results(root, tmp_path / "results")
    assert read_study(tmp_path / "results/table1").groups["svf-math"].reports[0]["base_model"] == "llama"
    assert read_study(tmp_path / "results/table1").base == "llama"
    found = fitted(0.6)
    found["details"]["notes"] = ["1/2 of a/b, https://host/a/b, read from /home/me/rows.json"]
    make_study(root, "table7", {"ia3-math": [found]}, {})
    with pytest.raises(DataError, match=r"names a path of this machine \(/home/me/rows.json\)"):
        copy_results(root, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("damage", [b"{", b"\xff"])
def test_a_damaged_report_of_a_tuning_run_is_named(tmp_path, damage) -> None:
    tried = tmp_path / "studies" / "runs" / "tried"
    tried.mkdir(parents=True)
    (tried / "report.json").write_bytes(damage)
    values = [{"set": {"lr": 1}, "validation": 0.5, "folder": "../runs/tried"}]
    table1(tmp_path / "studies", tuning=[Tuning("svf-math", 9, values, 0)])
    with pytest.raises(DataError, match=r"tried/report\.json cannot be read"):
        copy_results(tmp_path / "studies", tmp_path / "results")


def test_a_run_outside_is_refused_and_an_old_report_goes(tmp_path) -> None:
    root, results = tmp_path / "studies", tmp_path / "results"
    study = make_study(root, "table1", {"svf-math": [fitted(0.6)]}, {})
    copy_results(root, results)
    (results / "runs/old").mkdir()
    (results / "runs/old/report.json").write_text("{}")
    copy_results(root, results)
    assert [p.name for p in (results / "runs").iterdir()] == ["svf-math-s0-abc"]
    text = json.loads((root / "table1/study.json").read_text())
    text["runs"][0]["folder"] = "../../elsewhere"
    shutil.copytree(root / "svf-math-s0-abc", tmp_path / "elsewhere")
    (root / "table1/study.json").write_text(json.dumps(text))
    with pytest.raises(DataError, match="a run outside of"):
        copy_results(root, results)
    assert study.name == "table1"


def test_the_committed_pages_are_what_the_committed_reports_say() -> None:
    for name, text in pages(DOCS).items():
        assert text == (DOCS / name).read_text(), f"docs/{name} is not what `transformer2 study --docs docs` writes"
    for folder, study in read_studies(DOCS / "results").items():
        for table in (output for output in build(study) if isinstance(output, Table)):
            for ending, text in (("csv", table.csv()), ("md", table.markdown())):
                assert text == (DOCS / "results" / folder / f"{table.name}.{ending}").read_text()
