"""`adapt --resume`: one table is of one config, one base and the same rows; else it is refused or made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import toy_task
import yaml
from safetensors.torch import load_file, save_file

from transformer2.cli import main
from transformer2.cli.adapt import FREE, LIMITS, _check_same, _flat
from transformer2.cli.keys import ELSEWHERE, sections
from transformer2.errors import ConfigError

GENERATIONS = 3
BRIEF = ("--adapt.population", "2", "--adapt.generations", "1")  # where no search is looked at


@pytest.fixture(scope="module")
def adapt(world):
    base, experts = world

    def adapt(run, *more):
        flags = {
            "model.base": base,
            "model.dtype": "float32",
            "data.task": "toy_task.FirstLetter",
            "data.few_shot": "4",
            "adapt.experts": json.dumps(experts),
            "adapt.population": "6",
            "adapt.generations": str(GENERATIONS),
            "adapt.controls": "false",
            "run_dir": str(run),
        }
        given = dict(zip((key.removeprefix("--") for key in more[::2]), more[1::2], strict=True))
        return main(
            ["adapt", "--quiet", *(word for key, value in (flags | given).items() for word in (f"--{key}", value))]
        )

    return adapt


@pytest.fixture(scope="module")
def made(adapt, tmp_path_factory):
    run = tmp_path_factory.mktemp("made") / "run"
    assert adapt(run) == 0
    return run


@pytest.fixture
def finished(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def cut(finished):
    """As after a signal between the search and the scored rows."""
    (finished / "report.json").unlink()
    (finished / "records.jsonl").unlink()
    return finished


def resume(run, *more):
    return main(["adapt", "--resume", str(run), "--quiet", *more])


def report_of(run):
    report = json.loads((run / "report.json").read_text())
    del report["seconds"]
    return report


def contents(run):
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_other_settings_are_refused_and_nothing_is_changed(finished, tmp_path, capfd):
    (tmp_path / "other.yaml").write_text("data: {test_limit: 3}\n")
    before = contents(finished)
    for flags, was, asked in [
        (["--data.task", "toy_task.SameIds"], "data.task 'toy_task.FirstLetter'", "'toy_task.SameIds'"),
        (["--data.test_limit", "8"], "data.test_limit null", "8"),
        (["--config", str(tmp_path / "other.yaml")], "data.test_limit null", "3"),
        (["--trainer.limit_test_batches", "1"], "trainer.limit_test_batches null", "1"),
        (["--model.sampling.max_new_tokens", "2"], "model.sampling.max_new_tokens null", "2"),
        (["--adapt.search", "random"], "adapt.search 'cem'", "'random'"),
        (["--adapt.search", "sep_cma"], "adapt.search 'cem'", "'sep_cma'"),
        (["--adapt.granularity", "kind"], "adapt.granularity 'expert'", "'kind'"),
        (["--adapt.population", "8"], "adapt.population 6", "8"),
        (["--seed_everything", "1"], "seed_everything 0", "1"),
        (["--strategy", "all"], "strategy 'cem'", "'all'"),
    ]:
        assert resume(finished, *flags) == 2
        said = (
            f"--resume {finished} was begun with {was}, not {asked}; leave it out, or begin again in another --run_dir"
        )
        assert capfd.readouterr().err == f"transformer2: {said}\n"
    assert resume(finished, "--run_dir", str(tmp_path / "b")) == 2 and "leave --run_dir out" in capfd.readouterr().err
    assert contents(finished) == before and not (tmp_path / "b").exists()


def test_every_key_but_those_of_speed_and_length_must_be_the_same():
    old = {"strategy": "cem", "seed_everything": 0} | {section: {} for section in sections(True)}
    keys = {f"{section}.{key}" for section, known in sections(True).items() for key in known} - {*ELSEWHERE}
    free = set()
    for key in {*keys, "seed_everything", "strategy"}:
        section, _, name = key.rpartition(".")
        new = old | ({section: {name: "other"}} if section else {name: "other"})
        try:
            _check_same("run", old, new)
            free.add(key)
        except ConfigError as e:
            assert key in str(e)
    assert {key for key in free if not key.startswith("trainer.")} == {
        *("data.data_dir", "data.eval_batch_size"),
        *("adapt.generations", "adapt.max_evaluations", "adapt.max_minutes", "adapt.max_rows"),
    }
    assert not free & {*LIMITS} and all(key.startswith(FREE) for key in free)
    limited = old | {"trainer": {"limit_test_batches": 2}}
    with pytest.raises(ConfigError, match=r"data\.eval_batch_size null, not 2"):  # a limit counts batches
        _check_same("run", limited, limited | {"data": {"eval_batch_size": 2}})
    preset = old | {"adapt": {"preset": "paper"}}
    _check_same("run", preset, old | {"adapt": {"preset": "paper", "generations": 3}})
    with pytest.raises(ConfigError, match=r"adapt\.population 'auto', not 16"):
        _check_same("run", preset, old | {"adapt": {"preset": "paper", "population": 16}})
    assert _flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_what_decides_no_number_may_change_and_a_finished_run_keeps_its_config(finished):
    before = report_of(finished), (finished / "config.yaml").read_bytes()
    same = ["--adapt.population", "6", "--adapt.mix", "delta", "--data.task", "toy_task.FirstLetter"]
    assert resume(finished, "--trainer.callbacks", "[]", "--data.eval_batch_size", "3", *same) == 0
    assert (report_of(finished), (finished / "config.yaml").read_bytes()) == before


@pytest.mark.parametrize("count", [GENERATIONS + 2, GENERATIONS - 1])
def test_another_number_of_generations_is_that_of_an_uncut_run(finished, adapt, tmp_path, count):
    said = ["run is of other settings; it is made again"]
    said += ["has gone further than 2 generations; it begins again"] if count < GENERATIONS else []
    with pytest.warns(UserWarning) as warned:
        assert resume(finished, "--adapt.generations", str(count)) == 0
    assert all(any(words in str(w.message) for w in warned) for words in said)
    assert adapt(tmp_path / "uncut", "--adapt.generations", str(count)) == 0
    assert report_of(finished) == report_of(tmp_path / "uncut") and report_of(finished)["evaluations"] == 6 * count
    assert yaml.safe_load((finished / "config.yaml").read_text())["adapt"]["generations"] == count


def test_what_decides_a_search_is_kept_with_it(made):
    settings = json.loads((made / "search.json").read_text())["settings"].keys()
    whole = yaml.safe_load((made / "config.yaml").read_text())["adapt"].keys()
    search = {"search", "population", "std", "elite_ratio", "keep_best", "low", "high"}
    assert settings == {*search, "granularity", "mix", "base_member", "seed", "eos_ids", "stop"}, whole - settings


@pytest.mark.parametrize(
    "edit",
    [
        {"adapt": {"search": "sep_cma"}},
        {"adapt": {"seed": 1}},
        {"data": {"few_shot": 5}},
        {"data": {"task": "toy_task.SameIds"}},
        {"model": {"sampling": {"max_new_tokens": 2}}},
        {"model": {"sampling": {"stop": ["e"]}}},
    ],
    ids=str,
)
def test_a_search_does_not_resume_under_what_would_decide_it_otherwise(cut, edit):
    config = yaml.safe_load((cut / "config.yaml").read_text())
    for section, values in edit.items():
        config[section] |= values
    (cut / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.warns(UserWarning, match=r"search.json is of .*; it begins again"):
        assert resume(cut) == 0
    assert report_of(cut)["evaluations"] == GENERATIONS * config["adapt"]["population"]


@pytest.mark.parametrize(("what", "split"), [("answer", "test"), ("fields", "train"), ("messages", "test")])
def test_rows_that_were_replaced_are_not_beside_the_old_ones(finished, monkeypatch, what, split):
    examples = toy_task.FirstLetter.examples
    other = {"answer": "late", "fields": {"tests": ["late"]}, "messages": ({"role": "user", "content": "sing"},)}[what]

    def replaced(self, wanted, data_dir=None):
        rows = examples(self, wanted, data_dir)
        return [replace(e, **{what: other}) for e in rows] if wanted == split else rows

    monkeypatch.setattr(toy_task.FirstLetter, "examples", replaced)
    with pytest.warns(UserWarning) as warned:
        assert resume(finished) == 0
    said = " ".join(str(w.message) for w in warned)
    assert "run is of another base, other rows or an edited task; it is made again" in said
    assert ("search.json is of another base, other rows or an edited task" in said) == (split == "train")


def test_an_edited_task_of_ones_own_is_another(adapt, tmp_path, monkeypatch, recwarn):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited.py").write_text("from toy_task import FirstLetter\nclass Mine(FirstLetter):\n    name = 'm'\n")
    run = tmp_path / "run"
    assert adapt(run, "--data.task", "edited.Mine", *BRIEF) == 0
    assert resume(run) == 0 and not [w for w in recwarn if "made again" in str(w.message)]
    (tmp_path / "edited.py").write_text((tmp_path / "edited.py").read_text() + "# edited\n")
    with pytest.warns(UserWarning, match="run is of .* an edited task; it is made again"):
        assert resume(run) == 0


def test_experts_and_rows_may_have_moved(world, adapt, tmp_path, recwarn, capfd):
    """Experts are compared by what they hold; of a file of rows elsewhere the run is made again."""
    run, rows, moved = tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / "moved"
    rows.write_text("".join(json.dumps({"question": f"q{i}", "answer": str(i)}) + "\n" for i in range(60)))
    given = ["--data.task", "jsonl", "--data.task_options.path", str(rows)]
    assert adapt(run, *given, "--model.sampling.max_new_tokens", "4", *BRIEF) == 0
    before = report_of(run)
    experts = json.dumps([str(shutil.copytree(path, moved / Path(path).name)) for path in world[1]])
    other = str(shutil.copytree(world[1][0], tmp_path / "another"))
    assert resume(run, "--adapt.experts", json.dumps([other, *world[1][1:]])) == 2  # a slip costs no finished run
    assert "was begun with adapt.experts" in capfd.readouterr().err
    assert resume(run, "--adapt.experts", experts) == 0
    assert report_of(run) == before and not [w for w in recwarn if "made again" in str(w.message)]
    rows.rename(moved / "r.jsonl")
    assert resume(run, "--data.task_options.path", str(moved / "r.jsonl"), "--adapt.experts", experts) == 0
    assert report_of(run)["result"] == before["result"]


def test_a_strategy_of_ones_own_is_made_again_under_other_arguments(world, adapt, tmp_path):
    def own(controls):
        options = {"experts": world[1], "controls": controls}
        return json.dumps(
            [{"class_path": "transformer2.callbacks.evaluator.AdaptationEvaluator", "init_args": options}]
        )

    run = tmp_path / "run"
    assert adapt(run, "--trainer.callbacks", own(False), "--adapt.controls", "false", *BRIEF) == 0
    report = json.loads((run / "base" / "report.json").read_text())
    assert not report["controls"] and resume(run, "--trainer.callbacks", own(False)) == 0
    with pytest.warns(UserWarning, match="run/base is of other settings; it is made again"):
        assert resume(run, "--trainer.callbacks", own(True)) == 0
    assert json.loads((run / "base" / "report.json").read_text())["controls"]


def test_the_seconds_of_a_search_that_was_cut_count(cut):
    state = json.loads((cut / "search.json").read_text())
    (cut / "search.json").write_text(json.dumps({**state, "seconds": 1000.0}))
    assert resume(cut) == 0
    assert 1000 <= json.loads((cut / "report.json").read_text())["seconds"]["first_pass"] < 1100


def test_a_base_that_was_replaced_is_another(world, adapt, tmp_path):
    base = shutil.copytree(world[0], tmp_path / "base")
    assert adapt(tmp_path / "run", "--model.base", str(base), *BRIEF) == 0
    weights = load_file(base / "model.safetensors")
    save_file({name: 1.5 * w for name, w in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="run is of another base, other rows or an edited task; it is made again"):
        assert resume(tmp_path / "run") == 0


def test_the_folder_of_a_fit_is_named_as_that(tmp_path, capfd):
    assert main(["fit", "--config", "conf/tiny.yaml", "--print_config"]) == 0
    (tmp_path / "config.yaml").write_text(capfd.readouterr().out)
    assert resume(tmp_path) == 2
    said = f"holds a run of fit, validate or test, not of adapt; a fit is resumed with fit --ckpt_path {tmp_path}/"
    assert said in capfd.readouterr().err
