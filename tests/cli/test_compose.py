"""Configs compose before they resolve, and every mistake is one line with the remedy."""

import pytest
import yaml

from transformer2.cli.compose import compose, find_config, flags_of, parse_flags
from transformer2.cli.keys import ELSEWHERE, OURS, sections
from transformer2.cli.optimizers import HOMES
from transformer2.errors import ConfigError

KEYS = ("seed_everything", "model", "data", "trainer")


@pytest.fixture
def write(tmp_path):
    def write(name, **content):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


def test_later_wins_from_base_to_flag(write):
    write("base.yaml", model={"optimizer": {"lr": 1}, "loss": {"kl": "k3"}, "base": "a"})
    first = write("first.yaml", _base_="base.yaml", model={"optimizer": {"lr": 2}, "base": "b"})
    second = write("second.yaml", model={"base": "c"})
    assert compose([first, second], [("model.loss.kl", "k2")], KEYS) == {
        "model": {"optimizer": {"init_args": {"lr": 2}}, "loss": {"kl": "k2"}, "base": "c"}
    }


def test_interpolation_sees_the_override(write):
    config = write("a.yaml", data={"n": 8}, trainer={"steps": "${data.n}"})
    assert compose([config], [("data.n", "16")], KEYS)["trainer"] == {"steps": 16}
    loss = {"kl_coef": "${model.optimizer.lr}", "kl": "${..optimizer.init_args.eps}"}
    config = write(
        "a.yaml", data={"m": "x${model.optimizer.lr}"}, model={"optimizer": {"lr": 2, "eps": 1}, "loss": loss}
    )
    found = compose([config], [("model.optimizer.lr", "3"), ("data.n", "${model.optimizer.lr}")], KEYS)
    assert found["model"]["loss"] == {"kl_coef": 3, "kl": 1} and found["data"] == {"m": "x3", "n": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{a: b}", {"a": "b"}),
        ("mlp", "mlp"),
    ],
)
def test_flag_values_are_yaml(text, value):
    assert compose([], [("model.x", text)], KEYS) == {"model": {"x": value}}


def test_lists_and_mappings_are_replaced_by_flags_and_sections_merged_as_by_files(write):
    a = write("a.yaml", model={"adapter": {"peft_type": "SVF", "form": "delta"}})
    b = write("b.yaml", model={"adapter": {"form": "factored"}})
    assert compose([a, b], [], KEYS)["model"]["adapter"] == {"peft_type": "SVF", "form": "factored"}
    assert compose([a], [("model.adapter", "{peft_type: LORA}")], KEYS)["model"]["adapter"] == {"peft_type": "LORA"}
    section = "{base: b, optimizer: {lr: 1}}"  # a whole one is on top of what is there: else its task or base were lost
    assert compose([a], [("model", section)], KEYS)["model"] == {
        "adapter": {"peft_type": "SVF", "form": "delta"}, "base": "b", "optimizer": {"init_args": {"lr": 1}}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--modle.lr", "1"], "unknown flag --modle.lr; did you mean"),
        (["--run_di", "x"], "unknown flag --run_di; did you mean --run_dir"),
        (["--model.optimizer.lr"], "--model.optimizer.lr needs a value"),
        (["--config", "--quiet"], "--config needs a value"),
        (["oops"], "unexpected argument 'oops'"),
    ],
)
def test_bad_flags(args, message):
    with pytest.raises(ConfigError, match=message):
        parse_flags(args, ("run_dir",), ("quiet",), KEYS)


@pytest.mark.parametrize("known", [KEYS, (*KEYS, "adapt")], ids=["fit", "adapt"])
def test_a_key_without_its_section_is_told_it(known, write):
    others = {*known, *HOMES, *OURS, *(name.rpartition(".")[2] for name in ELSEWHERE)}
    for own in sections("adapt" in known).values():
        for key in own.keys() - others:
            said = rf"did you mean (--)?\w+\.{key}\?"
            with pytest.raises(ConfigError, match=f"unknown flag --{key}; {said}"):
                parse_flags([f"--{key}", "x"], ("run_dir", "expert"), ("print_config",), known)
            with pytest.raises(ConfigError, match=f"unknown config key '{key}'; {said}"):
                compose([write("a.yaml", **{key: 1})], [], known)
    with pytest.raises(ConfigError, match=r"did you mean --data\.data_dir\?"):
        parse_flags(["--data_dir", "x"], ("run_dir",), (), known)


def test_flags_taken_apart():
    flags = parse_flags(
        ["--config", "a", "--model.optimizer.lr=-1", "--quiet", "--run_dir", "r"], ("run_dir",), ("quiet",), KEYS
    )
    assert (flags.configs, flags.overrides, flags.switches) == (["a"], [("model.optimizer.lr", "-1")], {"quiet"})
    assert flags.options == {"run_dir": "r"}


HELP = """\
usage: transformer2 command [options]

  --image FILE ...     pictures; may be repeated
  --out FILE           a file
  --strategy NAME      a key of the config
  --model.KEY VALUE    any key
  --quiet              no bar
"""


def test_flags_are_those_of_the_help(capsys):
    words = ["a", "--image", "1", "--image=2", "--quiet", "--strategy", "cem", "--", "--out"]
    flags = flags_of(words, HELP, (*KEYS, "strategy"), takes_words=True)
    assert (flags.words, flags.switches, flags.options) == (["a", "--out"], {"quiet"}, {})
    assert flags.repeated == {"image": ["1", "2"]} and flags.overrides == [("strategy", "cem")]
    for wrong, message in (
        ("--otu", "did you mean --out?"),
        ("--quiet=1", "takes no value"),
        ("--KEY", "unknown flag"),
    ):
        with pytest.raises(ConfigError, match=message):
            flags_of([wrong, "x"], HELP, KEYS)
    with pytest.raises(SystemExit) as asked:
        flags_of(["-h"], HELP)
    assert asked.value.code == 0 and capsys.readouterr().out == HELP


def test_bad_files(write, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'conf/tiny_math.yaml'"):
        find_config("conf/tiny_mat.yaml")
    circle = write("circle.yaml", _base_="circle.yaml")
    with pytest.raises(ConfigError, match="its own _base_"):
        compose([circle], [], KEYS)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        compose([str(broken)], [], KEYS)
    with pytest.raises(ConfigError, match="unknown config key 'modell'; did you mean 'model'"):
        compose([write("typo.yaml", modell={})], [], KEYS)
    with pytest.raises(ConfigError, match="cannot be resolved"):
        compose([write("dangling.yaml", data={"n": "${nowhere.n}"})], [], KEYS)
    listed = tmp_path / "list.yaml"
    listed.write_text("- 1\n")
    with pytest.raises(ConfigError, match="not keys and values"):
        compose([str(listed)], [], KEYS)
