"""`transformer2 adapt` from the command to the files, on a real small Llama and on the embedded model."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from transformer2 import tiny
from transformer2.adaptation import dispatch, few_shot
from transformer2.cli import main
from transformer2.experts import read_expert, save_expert
from transformer2.rollout.hf import HFEngine

SEARCH = ["--adapt.population", "6", "--adapt.generations", "3"]
SMALL = [*SEARCH, "--data.few_shot", "4", "--quiet"]
# Where no search is looked at.
BRIEF = ["--adapt.population", "2", "--adapt.generations", "1", "--adapt.controls", "false"]


@pytest.fixture
def adapt(world):
    base, experts = world

    def adapt(run, *more):
        flags = ["--model.base", base, "--model.dtype", "float32", "--data.task", "toy_task.FirstLetter"]
        small = SMALL if "--strategy" not in more else SMALL[len(SEARCH) :]
        return main(["adapt", *flags, "--adapt.experts", json.dumps(experts), *small, "--run_dir", str(run), *more])

    return adapt


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    base, experts = world
    folder = tmp_path_factory.mktemp("runs") / "cem"
    flags = ["--model.base", base, "--model.dtype", "float32", "--data.task", "toy_task.FirstLetter"]
    more = ["--adapt.experts", json.dumps(experts), *SMALL, "--run_dir", str(folder)]
    assert main(["adapt", "--strategy", "cem", *flags, *more]) == 0
    return folder


def report_of(run):
    return json.loads((run / "report.json").read_text())


def weights_of(folder):
    return hashlib.sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_report(run, world):
    report = report_of(run)
    assert report["task"] == "first_letter" and report["n"] == 16 and report["protocol"] == "clean"
    assert set(report["alpha"]) == {"math", "code", "reasoning"} and report["evaluations"] == 18
    names = set(report["controls"])
    assert {"expert math", "expert code", "expert reasoning", "uniform mixture"} < names
    assert [n for n in names if n.startswith("constant z = ")] and 0 <= report["paired_p"] <= 1
    assert set(report["seconds"]) == {"first_pass", "second_pass", "controls"} and report["seeds"] == [0]
    assert len(report["details"]["few_shot"]) == 4 and report["details"]["strategy"] == "cem"
    assert report["details"]["made_from"] == {Path(f).name: weights_of(f) for f in world[1]}


def test_records_and_rows_that_are_scored(run):
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    scored = [r["id"] for r in records]
    assert scored == [f"first_letter/test/{i}" for i in range(80, 96)]
    assert not set(scored) & set(report_of(run)["details"]["few_shot"])
    assert all(r["alpha"] == report_of(run)["alpha"] and "base_completion" in r for r in records)


def test_the_adapted_expert_is_an_expert(run, world, tmp_path, capsys):
    expert = read_expert(run / "expert")
    assert expert.task == "first_letter" and len(expert.deltas) == 2 * 7
    flags = ["--model.base", world[0], "--model.dtype", "float32", "--data.task", "toy_task.FirstLetter", "--quiet"]
    adapter = ["--model.adapter", "{target_modules: all-linear}", "--trainer.accelerator", "cpu"]
    assert main(["test", *flags, *adapter, "--expert", str(run / "expert"), "--run_dir", str(tmp_path / "t")]) == 0
    assert report_of(tmp_path / "t")["result"] == report_of(run)["result"]
    assert report_of(tmp_path / "t")["base"] == report_of(run)["base"]


def test_figures_and_tensorboard(run):
    assert (run / "figures" / "alpha.png").stat().st_size > 1000
    (file,) = run.glob("events*")
    tags = EventAccumulator(str(file)).Reload().Tags()
    assert {"adapt/cem/accuracy", "adapt/cem/accuracy_se", "adapt/cem/first_pass"} <= set(tags["scalars"])
    assert "cem/alpha" in tags["images"]


def test_an_interrupted_search_resumes_to_the_same_result(run, adapt, tmp_path, monkeypatch, capsys):
    save, folder = few_shot._save, tmp_path / "cut"

    def save_and_signal(file, search, *rest):
        save(file, search, *rest)
        if search.generation == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(few_shot, "_save", save_and_signal)
    assert adapt(folder) == 143
    assert f"--resume {folder}" in capsys.readouterr().err and not (folder / "report.json").exists()
    monkeypatch.setattr(few_shot, "_save", save)
    assert main(["adapt", "--resume", str(folder), "--quiet"]) == 0
    (folder / "records.jsonl").unlink()  # what is lost is made again
    assert main(["adapt", "--resume", str(folder), "--quiet"]) == 0 and (folder / "records.jsonl").exists()
    cut, uncut = report_of(folder), report_of(run)
    for report in (cut, uncut):
        del report["seconds"]
    assert cut == uncut
    assert read_expert(folder / "expert").sha256 == read_expert(run / "expert").sha256


def test_a_search_does_not_resume_with_experts_that_were_retrained(world, adapt, tmp_path, monkeypatch):
    experts = [str(shutil.copytree(folder, tmp_path / Path(folder).name)) for folder in world[1]]
    given = ["--adapt.experts", json.dumps(experts), "--adapt.controls", "false"]

    def save_and_stop(file, *rest):
        save(file, *rest)
        os.kill(os.getpid(), signal.SIGTERM)

    save = few_shot._save
    monkeypatch.setattr(few_shot, "_save", save_and_stop)
    assert adapt(tmp_path / "cut", *given) == 143
    monkeypatch.setattr(few_shot, "_save", save)
    trained = read_expert(experts[0])
    save_expert(replace(trained, deltas={m: 2 * d for m, d in trained.deltas.items()}), experts[0], overwrite=True)
    with pytest.warns(UserWarning, match="it begins again"):
        assert main(["adapt", "--resume", str(tmp_path / "cut"), "--quiet"]) == 0
    assert adapt(tmp_path / "uncut", *given) == 0
    cut, uncut = report_of(tmp_path / "cut"), report_of(tmp_path / "uncut")
    assert cut["alpha"] == uncut["alpha"] and cut["evaluations"] == uncut["evaluations"] == 18
    assert cut["details"]["made_from"]["math"] == weights_of(experts[0])


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("report.json", '"task"', "", "is damaged .*; it is made again"),
        ("report.json", '"code": "', '"code": "0', "of experts that were retrained since; it is made again"),
        ("search.json", '"trace"', "", "cannot be read; it begins again"),
    ],
)
def test_what_a_resumed_run_cannot_use_is_made_again(run, tmp_path, file, old, new, said):
    cut = shutil.copytree(run, tmp_path / "cut")
    content = (cut / file).read_text()
    assert old in content
    (cut / file).write_text(content.replace(old, new))
    if file == "search.json":
        (cut / "report.json").unlink()
    with pytest.warns(UserWarning, match=said):
        assert main(["adapt", "--resume", str(cut), "--quiet"]) == 0
    for key in ("alpha", "evaluations", "result", "details"):
        assert report_of(cut)[key] == report_of(run)[key]


@pytest.mark.parametrize(
    "more",
    [
        ["--adapt.granularity", "kind", "--adapt.mix", "normalised", "--adapt.base_member", "true"],
        [
            "--adapt.search",
            "sep_cma",
            "--adapt.granularity",
            "layer",
            "--adapt.max_rows",
            "5",
            "--adapt.max_evaluations",
            "6",
        ],
        ["--adapt.preset", "reference", "--adapt.max_evaluations", "12", "--data.protocol", "paper"],
    ],
)
def test_settings(adapt, tmp_path, more, capsys):
    assert adapt(tmp_path / "run", *more, "--adapt.controls", "false") == 0
    report = report_of(tmp_path / "run")
    assert report["controls"] == {}
    mix = next((name for name in ("raw", "normalised") if name in more), "raw" if "reference" in more else None)
    assert f", alpha {'' if mix is None else f'({mix}) '}" in capsys.readouterr().out
    if "reference" in more:
        assert report["protocol"] == "paper" and report["n"] == 12 and len(report["alpha"]) == 14
        settings = report["details"]["settings"]
        assert report["evaluations"] == 12 and (settings["population"], settings["generations"]) == (6, 3)  # the flags'
        assert (settings["high"], settings["keep_best"]) == (1.0, True)
    if "kind" in more:
        assert set(report["alpha"]) >= {"mlp.up_proj"} and "base" in report["alpha"]["mlp.up_proj"]


def test_protocol_paper_chooses_the_iteration_on_the_scored_rows_and_says_so(adapt, tmp_path, capsys):
    more = ["--adapt.generations", "6", "--adapt.std", "0.6", "--adapt.controls", "false"]
    assert adapt(tmp_path / "paper", "--data.protocol", "paper", *more) == 0
    report = report_of(tmp_path / "paper")
    shots, records = report["details"]["few_shot"], (tmp_path / "paper" / "records.jsonl").read_text()
    assert report["protocol"] == "paper" and all("/test/" in shot and f'"{shot}"' not in records for shot in shots)
    chosen = report["details"]["selected_on_scored_rows"]
    assert len(chosen["scores"]) == 6 > chosen["iteration"] and len(set(chosen["scores"])) > 1
    assert report["result"]["accuracy"] == max(chosen["scores"])
    assert chosen["iteration"] == 1 + chosen["scores"].index(max(chosen["scores"]))
    trace = json.loads((tmp_path / "paper" / "search.json").read_text())["trace"]
    ends = trace[chosen["iteration"] - 1]["answer"]
    assert list(report["alpha"].values()) == [round(a, 4) for a in ends]
    assert "was chosen on the scored rows" in capsys.readouterr().out


def test_protocol_paper_chooses_on_the_rows_that_are_scored_alone(adapt, tmp_path):
    more = ["--trainer.limit_test_batches", "1", "--data.eval_batch_size", "3"]
    more += ["--adapt.std", "0.6", "--adapt.controls", "false"]
    assert adapt(tmp_path / "paper", "--data.protocol", "paper", *more) == 0
    report = report_of(tmp_path / "paper")
    scores = report["details"]["selected_on_scored_rows"]["scores"]
    assert report["n"] == 3 and report["result"]["accuracy"] == max(scores)
    assert all(round(score * report["n"], 6).is_integer() for score in scores)


def test_the_clean_protocol_ends_where_the_search_ends(run):
    trace = json.loads((run / "search.json").read_text())["trace"]
    assert list(report_of(run)["alpha"].values()) == [round(a, 4) for a in trace[-1]["answer"]]
    assert "selected_on_scored_rows" not in report_of(run)["details"]


def test_the_answer_may_be_the_best_member(adapt, tmp_path):
    more = ["--adapt.answer", "best", "--adapt.elite_ratio", "0.5", "--adapt.controls", "false"]
    assert adapt(tmp_path / "best", *more) == 0
    report, state = report_of(tmp_path / "best"), json.loads((tmp_path / "best" / "search.json").read_text())
    assert list(report["alpha"].values()) == [round(a, 4) for a in state["search"]["best"]]
    assert state["trace"][-1]["answer"] != state["search"]["best"] and report["details"]["answer"] == "best"


def test_a_config_may_hold_the_settings_of_every_strategy(adapt, world, tmp_path):
    config = tmp_path / "all.yaml"
    config.write_text(f"adapt: {{population: 4, soft: true, classifier: {world[1][1]}}}\n")
    assert adapt(tmp_path / "p", "--strategy", "prompt", "--config", str(config), "--adapt.controls", "false") == 0
    details = report_of(tmp_path / "p")["details"]
    assert "chosen" in details and "dispatch" not in details  # no labelled requests


def test_missing_experts_of_a_shipped_config_are_named_before_a_model_is_loaded(tmp_path, capfd):
    flags = ["--data.task", "gsm8k", "--model.base", "/no/model", "--run_dir", str(tmp_path / "run"), "--quiet"]
    for config in ("math", "humaneval", "arc_challenge"):
        assert main(["adapt", "--config", f"conf/adapt_llama8b_{config}.yaml", *flags]) == 2
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("transformer2:")]
        assert len(error) == 1 and "adapt.experts 'runs/math/expert' does not exist" in error[0]


def test_dispatch_by_prompt_and_by_classifier(adapt, world, tmp_path):
    assert adapt(tmp_path / "cls", "--strategy", "cls", "--adapt.classifier", world[1][1]) == 0
    report = report_of(tmp_path / "cls")
    assert sum(report["details"]["chosen"].values()) == pytest.approx(1, abs=1e-3) and report["alpha"] is None
    records = [json.loads(line) for line in (tmp_path / "cls" / "records.jsonl").read_text().splitlines()]
    assert {r["choice"] for r in records} == {"no category"} and records[0]["first_pass"]  # random weights name none
    assert report["details"]["made_from"]["first pass: code"] == weights_of(world[1][1])
    assert (tmp_path / "cls" / "figures" / "confusion.png").is_file()


@pytest.mark.parametrize("soft", [False, True])
def test_dispatch_by_scores(adapt, world, tmp_path, capsys, soft):
    flags = ["--adapt.classifier", world[1][1], "--adapt.controls", "false", "--adapt.soft", str(soft).lower()]
    assert adapt(tmp_path / "run", "--strategy", "scores", *flags) == 0
    details, out = report_of(tmp_path / "run")["details"], capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    for record in records:
        of = record["probabilities"]
        assert list(of) == ["math", "code", "reasoning", "other"] and sum(of.values()) == pytest.approx(1, abs=1e-5)
        assert record["choice"] == max(of, key=of.get) and "first_pass" not in record
    assert sum(details["likeliest" if soft else "chosen"].values()) == pytest.approx(1, abs=1e-3)
    assert ("scores: chose" in out) != soft
    if soft:
        mean = {name: sum(r["probabilities"][name] for r in records) / len(records) for name in of}
        assert details["mean_weights"] == pytest.approx(mean, abs=1e-4) and "scores: mean weights" in out
    assert (tmp_path / "run" / "figures" / "confusion.png").is_file()


def test_without_a_config_all_four_on_the_embedded_model(tmp_path, capsys):
    few = [
        "--adapt.population",
        "2",
        "--adapt.generations",
        "1",
        "--data.few_shot",
        "2",
        "--adapt.dispatch_limit",
        "16",
    ]
    small = [*few, "--data.test_limit", "4", "--quiet"]
    assert main(["adapt", "--strategy", "all", *small, "--run_dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "tiny_code_math" in out and "uniform mixture" in out and "exact McNemar" in out
    strategies = report_of(tmp_path / "run")["strategies"]
    assert list(strategies) == ["cem", "prompt", "cls", "scores"] and all(r["n"] == 4 for r in strategies.values())
    assert strategies["cem"]["controls"] == strategies["cls"]["controls"]
    for name in ("prompt", "cls", "scores"):
        dispatch = strategies[name]["details"]["dispatch"]
        assert dispatch["with other"]["n"] == 16 > dispatch["without other"]["n"]
        assert set(strategies[name]["details"]["confusion"]) == {"math", "code", "reasoning", "other"}
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [r["strategy"] for r in records] == [name for name in strategies for _ in range(4)]
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == {
        "cem_alpha.png",
        "prompt_confusion.png",
        "cls_confusion.png",
        "scores_confusion.png",
    }
    for name, picture in {name: "cem/alpha" if name == "cem" else "dispatch/confusion" for name in strategies}.items():
        (events,) = (tmp_path / "run" / name).glob("events*")
        tags = EventAccumulator(str(events)).Reload().Tags()
        assert tags["images"] == [picture] and f"adapt/{name}/second_pass" in tags["scalars"]
    assert main(["report", str(tmp_path / "run")]) == 0 and "dispatch, without other" in capsys.readouterr().out
    before = report_of(tmp_path / "run")
    assert main(["adapt", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert report_of(tmp_path / "run") == before  # nothing is done twice


def test_cls_needs_a_classification_expert_before_anything_is_loaded(adapt, tmp_path, capsys, monkeypatch):
    run = []
    monkeypatch.setattr("transformer2.cli.adapt._run", lambda config, names, *_: run.append(names) or 0)
    assert adapt(tmp_path / "cls", "--strategy", "cls") == 2
    assert "adapt.classifier (train one with fit)" in capsys.readouterr().err and not run
    assert adapt(tmp_path / "all", "--strategy", "all") == 0
    assert run == [["cem", "prompt", "scores"]] and "cls is left out of all: name" in capsys.readouterr().out
    assert (
        adapt(tmp_path / "with", "--strategy", "all", "--adapt.classifier", str(tiny.expert_path(tiny.CLASSIFIER))) == 0
    )
    assert run[1] == ["cem", "prompt", "cls", "scores"]


def test_a_strategy_of_one_s_own_is_a_callback_without_a_task(adapt, world, tmp_path, capsys):
    options = {"experts": world[1], "controls": False}
    own = {"class_path": "transformer2.callbacks.evaluator.AdaptationEvaluator", "init_args": options}
    in_fit = {**own, "init_args": {**options, "task": "toy_task.FirstLetter"}}  # not for `adapt`
    file = tmp_path / "callbacks.yaml"
    file.write_text(json.dumps({"trainer": {"callbacks": [own, in_fit]}}))
    assert adapt(tmp_path / "run", "--config", str(file), *BRIEF) == 0
    strategies = report_of(tmp_path / "run")["strategies"]
    assert list(strategies) == ["base", "cem"] and strategies["base"]["result"] == strategies["base"]["base"]
    capsys.readouterr()
    # Each would take the folder and the row of the other.
    alike = json.dumps([own, {**own, "init_args": {**options, "seed": 1}}])
    assert adapt(tmp_path / "no", "--trainer.callbacks", alike) == 2 and not (tmp_path / "no").exists()
    assert "two strategies are called base" in capsys.readouterr().err
    assert adapt(tmp_path / "no", "--trainer.callbacks", json.dumps([in_fit])) == 2 and not (tmp_path / "no").exists()
    assert "AdaptationEvaluator with a task of its own runs in fit; leave its task out" in capsys.readouterr().err


def test_batches_are_limited_where_wanted(adapt, tmp_path):
    flags = ["--data.eval_batch_size", "4", "--trainer.limit_test_batches", "0.5", *BRIEF]
    assert adapt(tmp_path / "run", *flags) == 0 and report_of(tmp_path / "run")["n"] == 8
    flags[3] = "1"
    assert adapt(tmp_path / "one", *flags) == 0 and report_of(tmp_path / "one")["n"] == 4
    for key, value in (("limit_test_batches", "0.01"), ("limit_predict_batches", "1")):
        assert adapt(tmp_path / key, f"--trainer.{key}", value) == 2


def test_rows_that_share_one_id_are_told_apart(adapt, world, tmp_path):
    few = ["--adapt.population", "2", "--adapt.generations", "1", "--adapt.classifier", world[1][1]]
    with pytest.warns(
        UserWarning, match=r"15 rows of same_ids/test repeat an earlier id \(first: 'row' in rows 0 and 1"
    ):
        assert adapt(tmp_path / "run", "--strategy", "all", "--data.task", "toy_task.SameIds", *few) == 0
    for strategy, report in report_of(tmp_path / "run")["strategies"].items():
        assert report["n"] == 16 and report["base"] == report["result"] and report["paired_p"] == 1, strategy
        assert {score["accuracy"] for score in report["controls"].values()} == {report["base"]["accuracy"]} == {0.5}
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [r["row"] for r in records] == 4 * list(range(16))
    assert [r["question"] for r in records] == 4 * [f"say {i}" for i in range(80, 96)]
    assert all(r["base_correct"] == r["correct"] == (r["row"] % 2 == 0) for r in records)


def test_records_hold_the_question_and_the_prompt_where_wanted(run, adapt, tmp_path):
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert [r["question"] for r in records] == [f"say {i}" for i in range(80, 96)] and "prompt" not in records[0]
    flags = ["--data.keep_prompts", "true", "--data.test_limit", "2", *BRIEF]
    assert adapt(tmp_path / "run", *flags) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == [prompt_of("say 80"), prompt_of("say 81")]
    assert "template_date: '2024-07-26'" in (tmp_path / "run" / "config.yaml").read_text()
    assert adapt(tmp_path / "other", *flags, "--data.template_date", "2031-02-03") == 0
    assert "template_date: '2031-02-03'" in (tmp_path / "other" / "config.yaml").read_text()


def prompt_of(question):
    parts = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
    return parts[0] + question + parts[1] + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_both_passes_read_the_bare_contents_where_no_template_is_wanted(adapt, tmp_path, monkeypatch):
    asked = []
    generate = HFEngine.generate

    def listen(self, policy, prompts, *rest):
        asked.extend(self.tokenizer.batch_decode(prompts.input_ids_BP))
        return generate(self, policy, prompts, *rest)

    monkeypatch.setattr(HFEngine, "generate", listen)
    flags = ["--strategy", "prompt", "--data.test_limit", "2", "--adapt.controls", "false"]
    assert adapt(tmp_path / "run", *flags, "--data.chat_template", "none") == 0
    assert len(asked) >= 4 and not any("header" in text for text in asked), asked


@pytest.mark.parametrize("strategy", ["prompt", "scores"])
def test_a_request_whose_dispatch_question_the_model_cannot_read_is_the_base_s(
    adapt, tmp_path, capsys, monkeypatch, strategy
):
    """It is longer than the request, which fits: gpt2 failed on it, others were asked beyond their context."""
    lengths = []
    render = dispatch.render
    monkeypatch.setattr(dispatch, "render", lambda *given: lengths.append(ids := render(*given)) or ids)
    soft = ["--adapt.soft", "true"] if strategy == "scores" else []
    few = ["--strategy", strategy, "--data.test_limit", "2", "--adapt.controls", "false", *soft]
    assert adapt(tmp_path / "whole", *few) == 0
    longest = max(map(len, lengths))
    for name, room in (("just", 10), ("long", 9)):  # "reasoning" and EOS, a token a byte
        monkeypatch.setattr(dispatch, "context_of", lambda config, room=room: longest + room)
        assert adapt(tmp_path / name, *few) == 0
    assert report_of(tmp_path / "just")["result"] == report_of(tmp_path / "whole")["result"]
    report, out = report_of(tmp_path / "long"), capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "long" / "records.jsonl").read_text().splitlines()]
    assert all(r["choice"] == "no category" and r["completion"] == r["base_completion"] for r in records)
    assert f"{strategy}: the base answered 2 of 2 requests, whose dispatch question is longer" in out
    assert not soft or report["details"]["mean_weights"]["other"] == 1


def test_a_dispatch_task_of_real_rows_measures_the_dispatch(adapt, some_rows, tmp_path):
    options = "{experts: {math: gsm8k, code: tiny_code, reasoning: arc_easy}, prompts_per_category: 10}"
    task = ["--data.task", "arc_challenge", "--data.data_dir", str(some_rows), "--data.test_limit", "3"]
    dispatch = ["--adapt.dispatch_task", "dispatch", "--adapt.dispatch_options", options, "--adapt.controls", "false"]
    few = ["--data.few_shot", "2", "--model.sampling.max_new_tokens", "4"]
    assert adapt(tmp_path / "run", "--strategy", "prompt", *task, *dispatch, *few) == 0
    details = report_of(tmp_path / "run")["details"]
    assert details["dispatch"]["with other"]["n"] == 8 and details["dispatch"]["without other"]["n"] == 6
    assert set(details["confusion"]) == {"math", "code", "reasoning", "other"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strategy", "cen"], "did you mean 'cem'"),
        (["--adapt.populatoin", "8"], "unknown config key adapt.populatoin; did you mean adapt.population?"),
        (["--data.few_shots", "8"], "did you mean data.few_shot?"),
        (["--data.few_shot", "65"], "leaves nothing of the 64 rows of first_letter/train"),
        (["--data.few_shot", "16", "--data.protocol", "paper"], "leaves nothing of the 16 rows of first_letter/test"),
        (["--data.test_limit", "0"], "data.test_limit must be an integer >= 1"),
        (["--data.chat_template_kwargs", "{tokenize: true}"], "data.chat_template_kwargs.tokenize cannot be set"),
        (["--data.template_date", "tomorrow"], "'tomorrow' is not a date of the form 2024-07-26"),
        (["--data.task", "../.."], "unknown task '../..'"),
        (["--data.task", "gsm8k", "--data.data_dir", "/no/rows"], "data_dir '/no/rows' does not exist"),
        (["--data.protocol", "dirty"], "protocol"),
        (["--data.task", "tiny_code_mth"], "did you mean 'tiny_code_math'"),
        (["--adapt.experts", "[/no/expert]"], "/no/expert"),
        (["--adapt.experts", "null"], "name the expert folders"),
        (["--adapt.search", "cmm"], "search"),
        (["--adapt.generations", "null"], "needs an end"),
        (["--strategy", "cls"], "adapt.classifier"),
        (["--strategy", "cls", "--adapt.first_pass", "constrained"], "adapt.first_pass is gone"),
        (["--strategy", "scores", "--adapt.soft", "very"], "adapt.soft must be"),
        (["--strategy", "prompt", "--adapt.soft", "true"], "unknown config key adapt.soft"),
        (["--strategy", "prompt", "--adapt.dispatch_task", "gsm8k"], "gsm8k has no labels"),
        (["--data.task_options", "{size: 1}"], "has no option 'size'; it takes none"),
        (["--strategy", "prompt", "--adapt.population", "8"], "unknown config key adapt.population"),
        (["--resume", "/nowhere"], "holds no run"),
        (["--model.adapter", "{peft_type: LORA, target_modules: [q_proj]}"], "peft_type: SVF"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(adapt, tmp_path, capfd, more, message):
    assert adapt(tmp_path / "run", *more) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("transformer2:")]
    assert len(error) == 1 and message in error[0]


def test_a_run_folder_is_never_overwritten(run, adapt, capsys):
    assert adapt(run) == 2 and "already holds a run" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from transformer2.cli import main; main(['adapt', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: transformer2 adapt"), done.stderr
