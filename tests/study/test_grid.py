"""A study file as command lines: matrix, references, refusals."""

import shlex

import pytest
import yaml
from omegaconf import OmegaConf

from transformer2.errors import ConfigError
from transformer2.study.grid import as_flag, cells, with_folders

SKILLS = {"skills": {"math": "conf/tiny_math.yaml", "code": "conf/tiny_code.yaml"}}
FIT = {"command": "fit", "matrix": {"skill": ["math", "code"]}, "config": ["${skills.${skill}}"]}


def study(**runs):
    return OmegaConf.create({**SKILLS, "common": {"fit": {"trainer.max_steps": 5, "model.base": "tiny"}}, "runs": runs})


def test_a_cell_for_each_value_of_the_matrix():
    math, code = cells(study(svf={**FIT, "set": {"trainer.max_steps": 6}, "tune": {"model.optimizer.lr": [0.1, 0.2]}}))
    assert (math.name, code.name) == ("svf-math", "svf-code")
    assert math.configs == ("conf/tiny_math.yaml",) and code.labels == {"skill": "code"}
    assert math.flags == {"trainer.max_steps": 6, "model.base": "tiny"}  # a run's own is on top of what is common
    assert math.tune == {"model.optimizer.lr": [0.1, 0.2]}


def test_matrix_values_keep_their_type():
    """A number of the matrix is a number in a flag, also through an interpolation."""
    first, _ = cells(study(cem={"command": "adapt", "matrix": {"shots": [3, 5]}, "set": {"data.few_shot": "${shots}"}}))
    assert first.flags["data.few_shot"] == 3 and first.labels == {"shots": "3"} and first.name == "cem-3"


def test_references_name_the_folder_of_another_run():
    experts = {"adapt.experts": ["@svf-math/expert", "@svf-code/expert"]}
    test = {"command": "test", "expert": "@svf-code/expert"}
    *_, adapt, test = cells(study(svf=FIT, adapt={"command": "adapt", "set": experts}, test=test))
    assert adapt.needs() == ["svf-code", "svf-math"] and test.needs() == ["svf-code"]
    assert with_folders(adapt.flags["adapt.experts"], {"svf-math": "a", "svf-code": "b"}) == ["a/expert", "b/expert"]


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        ({}, "no runs"),
        ({"svf": 3}, "runs.svf"),
        ({"a b": FIT}, "a b"),
        ({"svf": {**FIT, "comand": "fit"}}, "comand"),
        ({"svf": {**FIT, "command": "fits"}}, "fits"),
        ({"svf": {"config": []}}, "command"),
        ({"svf": {**FIT, "matrix": {"skill": "math"}}}, "matrix"),
        ({"svf": {**FIT, "matrix": {"skill": ["maths"]}}}, "maths"),
        ({"svf": {**FIT, "config": "${nothing}"}}, "nothing"),
        ({"svf": {**FIT, "set": ["x"]}}, "set"),
        ({"svf": {**FIT, "tune": {"a": [1], "b": [2]}}}, "tune"),
        ({"svf": {**FIT, "tune": {"a": 1}}}, "tune"),
        ({"svf": {**FIT, "tune": {"seed_everything": [1, 2]}}}, "give runs.svf.seeds"),
        ({"svf": {**FIT, "config": [3]}}, "config files, not"),
        ({"svf": {**FIT, "matrix": {"skill": ["math"], "lr": [1, 2]}}}, r"svf-math-1 and .*-2 are one .* \$\{lr\}"),
        ({"svf": FIT, "a": {"command": "adapt", "expert": "@svf-math/expert"}}, "adapt.experts"),
        ({"svf": {**FIT, "seeds": 3}}, "seeds"),
        ({"t": {"command": "test", "expert": "@svf-math/expert"}}, "@svf-math"),
        ({"svf": FIT, "t": {"command": "test", "expert": "@svf-maths/expert"}}, "svf-math"),
        ({"svf": FIT, "svf-math": {"command": "fit"}}, "svf-math"),
        ({"a": {"command": "test", "expert": "@a/expert"}}, "cycle: a -> a"),
        ({"a": {"command": "test", "expert": "@b/expert"}, "b": {"command": "fit", "expert": "@a/expert"}}, "cycle"),
    ],
)
def test_what_is_wrong_is_named(runs, named):
    with pytest.raises(ConfigError, match=named):
        cells(study(**runs))


@pytest.mark.parametrize("common", [{"fitt": {}}, {"fit": 3}, 3, "fit"], ids=str)
def test_what_is_common_is_of_a_command(common):
    with pytest.raises(ConfigError, match="common"):
        cells(OmegaConf.create({**SKILLS, "common": common, "runs": {"svf": FIT}}))


def test_one_run_is_read_at_several_targets():
    runs = {"svf": {"command": "fit", "config": ["conf/tiny.yaml"], "matrix": {"target": [50, 75]}}}
    assert [cell.name for cell in cells(study(**runs))] == ["svf-50", "svf-75"]
    same = OmegaConf.create({"skills": {"math": "conf/tiny.yaml", "code": "conf/tiny.yaml"}, "runs": {"svf": FIT}})
    assert len(cells(same)) == 2  # so are two names that stand for the same


VALUES = [
    None,
    True,
    0,
    -3,
    0.1,
    1e-7,
    1e300,
    "",
    "3",
    "1e-3",
    "yes",
    "null",
    "@svf-math/expert",
    "a: b",
    "- x",
    "#",
    "{a",
]
VALUES += [
    "[0, 1]",
    "'",
    '"',
    "a\nb",
    " a ",
    "%",
    "!x",
    "&a",
    "*a",
    "~",
    "é",
    [],
    {},
    [1, ["@x/y", None]],
    {"a": {"b": [1.5, "2"]}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_flags_read_back_as_the_same_value(value):
    """Through a shell and YAML, as the command line reads them: also @x, 1e-3, "3", "", "yes" and line breaks."""
    (word,) = shlex.split(shlex.quote(as_flag(value)))
    assert yaml.safe_load("- " + word.replace("\n", "\n  ")) == [value]
