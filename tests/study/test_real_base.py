"""The study files of conf/paper on another base: a small random Llama and real rows, by the same command line."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from fakes import make_llama
from omegaconf import OmegaConf

from transformer2.cli import main
from transformer2.cli.compose import merge
from transformer2.cli.study import Plan
from transformer2.study.results import read_study

FILES = sorted((Path(__file__).parents[2] / "conf" / "paper").glob("*.yaml"))
# One step and one learning rate, a handful of rows, a search of one generation: what runs is what is run on 8B.
SMALL = shlex.split("""
--trainer.max_steps 1 --trainer.val_check_interval 1 --trainer.accelerator cpu
--data.batch_size 4 --data.validation_limit 4 --data.test_limit 4 --data.eval_batch_size 4 --data.drop_long_prompts true
--model.dtype float32 --model.sampling.max_new_tokens 200 --adapt.population 2 --adapt.generations 1
""")


@pytest.fixture(scope="module")
def setting(tmp_path_factory, real_data):
    """A folder with two bases, rows, and a world of one learning rate.

    MBPP's rows are in the form of MBPP+ for mbpp_pro; of MATH only test rows are here, some of which stand for train.
    """
    folder = tmp_path_factory.mktemp("studies")
    make_llama(folder / "base", 0)
    make_llama(folder / "other", 1)
    rows = folder / "rows"
    rows.mkdir()
    for task in real_data.iterdir():
        if task.is_dir() and task.name != "math":
            (rows / task.name).symlink_to(task)
    with gzip.open(real_data / "math" / "test.jsonl.gz", "rt") as lines:
        math = list(lines)
    (rows / "math").mkdir()
    (rows / "math" / "train.jsonl").write_text("".join(math[:50]))
    (rows / "math" / "test.jsonl").write_text("".join(math[50:]))
    (rows / "mbpp_pro").mkdir()
    with gzip.open(real_data / "mbpp" / "full.jsonl.gz", "rt") as lines:
        mbpp = [json.loads(line) for line in lines]
    plus = [
        {
            "task_id": row["task_id"],
            "prompt": row["text"],
            "code": row["code"],
            "test_imports": [],
            "test_list": row["test_list"],
            "test": "\n".join(row["test_list"]),
        }
        for row in mbpp
    ]
    (rows / "mbpp_pro" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plus))
    rates = yaml.safe_load((FILES[0].parent / "world" / "real.yaml").read_text())["rates"]
    world = {"_base_": "conf/paper/world/real.yaml", "rates": {name: values[:1] for name, values in rates.items()}}
    (folder / "world.yaml").write_text(yaml.safe_dump(world))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_study_runs_on_another_base(setting, file):
    """Runs that several studies share are made once: the folder is the same for all of them."""
    names = {"base": "base", "other_base": "other", "world": "world.yaml", "run_dir": "runs"}
    options = {key: str(setting / name) for key, name in names.items()} | {"seeds": "0"}
    # What a run sets by itself is made small in its file, as no flag changes it; flags that no run takes are left out.
    text = re.sub(
        r"((max_steps|val_check_interval|generations): )\d+", r"\g<1>1", OmegaConf.to_yaml(merge([str(file)]))
    )
    (setting / file.name).write_text(text)
    flags = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--data.data_dir": str(setting / "rows")}
    small = {key[2:]: value for key, value in flags.items() if f"{key[2:]}:" not in text}
    plan = Plan(str(setting / file.name), setting / "runs", set(), options, [*small.items()])
    given = {key: value for key, value in (options | small).items() if key not in plan.unused}
    words = [word for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["study", str(setting / file.name), *words, "--jobs", "2", "--quiet"]) == 0
    (made,) = (setting / "runs").glob(f"{file.stem}-base-*")
    study = read_study(made)
    assert {run.state for run in study.runs} == {"done"}
    outputs = [path for path in made.iterdir() if path.suffix in (".md", ".png")]
    assert outputs and all(path.stat().st_size for path in outputs)
