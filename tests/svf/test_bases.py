"""One base for everything that reads it: revision, subfolder, cache and remote code; odd paths; what an expert says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_experts import make_experts
from fakes import byte_tokenizer, make_llama
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from transformer2 import tiny
from transformer2.cli import main
from transformer2.data import ExpertDataModule
from transformer2.errors import UserError
from transformer2.experts import read_expert
from transformer2.module import SVFReinforceModule
from transformer2.plan.shape import model_shape
from transformer2.policy import base_dtype, load_base, load_config, load_tokenizer
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.decompose import decompose
from transformer2.svf.fingerprint import fingerprint, fingerprint_checkpoint

SMALL = ["--data.task", "toy_task.FirstLetter", "--model.sampling.max_new_tokens", "6", "--quiet"]
STEPS = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--data.batch_size", "8"]
STEPS += ["--trainer.logger", "false"]  # no curve is looked at
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}<|start_header_id|>"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache with two revisions of `org/model` that differ in size, dtype, weights and chat template."""
    cache = tmp_path_factory.mktemp("hub")
    repo = cache / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (repo / "refs" / name).write_text(commit)
        folder = make_llama(repo / "snapshots" / commit, hidden=48 if name == "main" else 32, init=0.25)
    load_base(str(folder), "bfloat16").save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return cache


@pytest.fixture(scope="module")
def nested(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same v1, in a subfolder."""
    root = tmp_path_factory.mktemp("nested")
    shutil.copytree(v1(hub), root / "inner")
    return root


def v1(hub: Path) -> Path:
    return hub / "models--org--model" / "snapshots" / ("b" * 40)


@pytest.fixture(params=["revision", "subfolder"])
def source(request: pytest.FixtureRequest, hub: Path, nested: Path) -> tuple[str, dict[str, Any]]:
    if request.param == "revision":
        return "org/model", {"revision": "v1", "cache_dir": str(hub)}
    return str(nested), {"subfolder": "inner"}


def test_everything_reads_the_same_files(source: tuple[str, dict[str, Any]], hub: Path, tmp_path: Path) -> None:
    base, options = source
    assert load_tokenizer(base, options).chat_template == TEMPLATE
    assert load_config(base, options).hidden_size == 32 and base_dtype(base, "auto", options) == torch.bfloat16
    model = load_base(base, "auto", **options)
    ours = fingerprint_checkpoint(LocalCheckpoint(v1(hub)))
    assert model.dtype == torch.bfloat16 and fingerprint(model) == ours
    report = decompose(base, "mlp", cache_dir=tmp_path, progress=False, model_kwargs=options)
    assert report["fingerprint"] == ours and report["matrices"] == 6
    assert model_shape(base, {"target_modules": "mlp"}, model_kwargs=options).D == 32
    data = ExpertDataModule("toy_task.FirstLetter", base, model_kwargs=options)
    data.setup("validate")
    assert data.tokenizer is not None and data.tokenizer.chat_template == TEMPLATE
    module = SVFReinforceModule(base, adapter={"target_modules": "mlp"}, model_kwargs=options)
    module.configure_model()
    assert module.policy.peft_config["default"].revision == options.get("revision")
    assert module.engine.tokenizer.chat_template == TEMPLATE


def test_a_run_at_a_revision_is_scored_at_it(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--model.model_kwargs", f"{{revision: v1, cache_dir: '{hub}', token: hf_secret}}"]
    fit = ["fit", "--config", "conf/tiny.yaml", "--model.base", "org/model", *where, *SMALL, *STEPS]
    assert main([*fit, "--run_dir", str(tmp_path / "fit")]) == 0
    expert = tmp_path / "fit" / "expert"
    assert read_expert(expert).revision == "v1"
    assert read_expert(expert).base_fingerprint == fingerprint_checkpoint(LocalCheckpoint(v1(hub)))
    card = (expert / "README.md").read_text()
    assert "from_pretrained('org/model', revision='v1')" in card and str(hub) not in card
    assert "hf_secret" not in "".join(
        p.read_text() for p in tmp_path.rglob("*") if p.suffix in (".yaml", ".json", ".md")
    )
    again = ["test", "--expert", str(expert), *SMALL, "--model.model_kwargs.cache_dir", str(hub)]
    assert main([*again, "--run_dir", str(tmp_path / "test")]) == 0
    records = [(tmp_path / run / "records.jsonl").read_text() for run in ("fit", "test")]
    assert records[0] == records[1]
    assert main([*again, "--model.model_kwargs", f"{{revision: v2, cache_dir: '{hub}'}}"]) == 2
    assert "at revision 'v2'" in capsys.readouterr().err


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_in_a_folder_runs_where_it_is_trusted_and_nowhere_else(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "own")
    expected = LlamaForCausalLM.from_pretrained(folder)(torch.tensor([[5, 6]])).logits
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    trusted = {"trust_remote_code": True}
    for read in (
        lambda kw: load_config(str(folder), kw),
        lambda kw: load_base(str(folder), **kw),
        lambda kw: model_shape(str(folder), {"target_modules": "mlp"}, model_kwargs=kw),
        lambda kw: decompose(folder, cache_dir=tmp_path / "cache", progress=False, model_kwargs=kw),
    ):
        with pytest.raises(UserError) as e:
            read({})
        assert "\n" not in str(e.value)
        read(trusted)
    assert torch.equal(load_base(str(folder), **trusted)(torch.tensor([[5, 6]])).logits, expected)
    module = SVFReinforceModule(str(folder), adapter={"target_modules": "mlp"}, model_kwargs=trusted)
    module.configure_model()


@pytest.mark.parametrize(
    ("base", "message"),
    [("no_such", "the Hub did not give it"), ("a/b/c", "not a model folder"), ("./x", "not a model folder"),
     ("org/none", "the Hub did not give it"), ("EMPTY", "has no config.json"), ("NO TOKENIZER", "has no tokenizer")],
)  # fmt: skip
def test_a_base_that_is_not_there_is_one_line(base: str, message: str, tmp_path: Path, llama_folder: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "NO TOKENIZER", ignore=shutil.ignore_patterns("tok*", "*.jinja"))
    (tmp_path / "EMPTY").mkdir()
    given = str(tmp_path / base) if base.isupper() else base
    for read in (load_tokenizer, load_config, load_base, decompose)[: 1 if base == "NO TOKENIZER" else None]:
        with pytest.raises(UserError, match=message) as e:
            read(given)
        assert "\n" not in str(e.value)


def test_paths_with_spaces_tildes_and_umlauts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words for a base and an expert in every command (`test`: tests/cli/test_first_minute.py)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    make_llama(tmp_path / "my mödels" / "a base")
    base, run = "~/my mödels/a base", tmp_path / "rüns and more" / "one"
    config = ["--config", "conf/tiny.yaml", "--model.base", base]
    assert main(["decompose", "--model.base", base, "--quiet"]) == 0
    assert main(["plan", *config]) == 0
    assert main(["fit", *config, *SMALL, *STEPS, "--run_dir", str(run)]) == 0
    expert = "~/rüns and more/one/expert"
    assert main(["validate", "--expert", expert, *SMALL, "--run_dir", str(tmp_path / "v")]) == 0
    mixed = "~/an öther place"
    assert main(["experts", "mix", expert, "--weights", "1", "--out", mixed]) == 0
    assert main(["experts", "show", expert, mixed]) == 0
    adapt = ["adapt", "--strategy", "cem", "--model.base", base, "--data.task", "toy_task.FirstLetter", "--quiet"]
    search = ["--adapt.experts", json.dumps([expert, mixed], ensure_ascii=False), "--adapt.generations", "1"]
    few = [
        "--data.few_shot",
        "4",
        "--data.test_limit",
        "4",
        "--model.sampling.max_new_tokens",
        "6",
        "--adapt.population",
        "4",
    ]
    assert main([*adapt, *search, *few, "--run_dir", str(tmp_path / "a")]) == 0
    assert main(["export", "--expert", expert, "--out", "~/plain mödel", "--quiet"]) == 0
    assert (tmp_path / "plain mödel" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "kind", ["tiny", *(pytest.param(k, marks=pytest.mark.slow) for k in ("relative", "absolute", "home"))]
)
def test_the_code_of_a_card_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_llama(tmp_path / "base")
    base = {"tiny": "tiny", "relative": "base", "absolute": str(tmp_path / "base"), "home": "~/base"}[kind]
    run = ["fit", "--config", "conf/tiny.yaml", "--model.base", base, *SMALL, *STEPS, "--run_dir", "run"]
    assert main(run) == 0
    card = (tmp_path / "run" / "expert" / "README.md").read_text()
    assert str(tmp_path) not in card and str(tiny.model_path()) not in card and "~" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("path/to/this/folder", "run/expert") + "\nprint(type(model).__name__, model.active_adapter)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "PeftModel" in done.stdout, done.stderr


def test_a_card_of_a_hub_base_loads_it_by_name(tmp_path: Path) -> None:
    folder = make_experts(tmp_path, "tiny", names=("math",))[0]
    for base, code in (("org/some-model", "'org/some-model'"), ("o/a'\n\"b", ascii("o/a'\n\"b"))):
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        (Path(folder) / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        assert main(["experts", "stamp", folder]) == 0
        assert f"from_pretrained({code})" in (Path(folder) / "README.md").read_text()


@pytest.mark.parametrize("adapter", ["{target_modules: mlp}", "{peft_type: LORA, r: 4, target_modules: [up_proj]}"])
def test_export_is_a_plain_model(adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_llama(tmp_path / "base", init=0.25)
    run = ["fit", "--config", "conf/tiny.yaml", "--model.base", str(base), "--model.adapter", adapter, *SMALL, *STEPS]
    assert main([*run, "--optimizer", "AdamW", "--optimizer.lr", "0.3", "--run_dir", str(tmp_path / "run")]) == 0
    expert, out = tmp_path / "run" / "expert", tmp_path / "out"
    assert main(["export", "--expert", str(expert), "--out", str(out), "--quiet"]) == 0
    ids = torch.arange(5, 25).view(2, 10)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), expert).eval()(ids).logits
    plain, notes = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(out).chat_template
    capsys.readouterr()
    assert main(["export", "--expert", str(expert), "--out", str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_decompose_follows_the_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def built(*args: str) -> str:
        assert main(["decompose", *args, "--model.adapter.basis_cache", str(tmp_path / "cache"), "--quiet"]) == 0
        return capsys.readouterr().out

    assert "21 matrices (21 built" in built("--model.base", "tiny")
    assert "21 matrices (0 built, 21 reused" in built("--config", "conf/tiny_math.yaml")
    assert "9 matrices (0 built" in built("--model.base", "tiny", "--model.adapter.target_modules", "mlp")
    (tmp_path / "c.yaml").write_text("_base_: conf/tiny.yaml\nmodel: {adapter: {layers_to_transform: [1]}}\n")
    assert "7 matrices (0 built" in built("--config", str(tmp_path / "c.yaml"))
    for wrong in (["--device", "cuda"], ["--device", "nowhere"], ["--model.dtype", "int7"]):
        if wrong[1] != "cuda" or not torch.cuda.is_available():
            assert main(["decompose", "--model.base", "tiny", *wrong]) == 2
            assert wrong[1] in (err := capsys.readouterr().err) and err.count("\n") == 1
