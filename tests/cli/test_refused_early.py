"""What a newcomer gets wrong: exit code 2, one line with the remedy, and nothing heavy done before."""

import json
import subprocess
import sys

import pytest

from transformer2.cli import main
from transformer2.cli.check import check
from transformer2.cli.compose import compose, parse_flags
from transformer2.cli.keys import KEYS

FIT = ["fit", "--config", "conf/tiny_math.yaml"]
PLAN = ["plan", "--config", "conf/tiny_math.yaml"]
KWARGS, ADAPTER, CALLBACKS = "--model.model_kwargs", "--model.adapter", "--trainer.callbacks"
NEXT = ["--model.objective", "next_token"]
DECOMPOSE = ["decompose", "--model.base", "tiny"]
EXPORT = ["export", "--expert", "."]
MIX = ["experts", "mix", ".", ".", "--out", "o"]

EARLY = [  # words, what the line says
    ([*FIT, "--model.objective", "next_tokens"], "did you mean 'next_token'?"),
    ([*FIT, *NEXT, "--model.sampling.num_completions", "4"], "samples none; leave it out"),
    ([*FIT, *NEXT], "learns from sampled completions, not from solutions; choose another optimizer"),
    ([*FIT, *NEXT, "--model.loss.kl", "k3"], "model.loss.kl 'k3' is for sampled completions"),
    ([*FIT, "--data.objective", "next_token"], "set model.objective"),
    ([*FIT, KWARGS, "{load_in_4bit: true}"], "conf/quantisation/nf4.yaml"),
    ([*FIT, KWARGS, "{quantization_config: 4bit}"], "quantization_config must be keys and values"),
    ([*FIT, KWARGS, "{torch_dtype: nonsense}"], "set model.dtype"),
    ([*FIT, KWARGS, "{dtype: float32}"], "set model.dtype"),
    ([*FIT, KWARGS, "{trust_remote_code: maybe}"], "must be true or false"),
    ([*FIT, KWARGS, "{revision: 3}"], "must be a string"),
    ([*FIT, KWARGS, "{config: x}"], "model_kwargs.config is not set here"),
    ([*FIT, KWARGS, "{attn_implementaton: sdpa}"], "did you mean 'attn_implementation'?"),
    (["export", "--expert", ".", "--out", "o", KWARGS, "{load_in_8bit: true}"], "conf/quantisation/int8.yaml"),
    (["export", "--expert", ".", "--out", "o", "--model.foo", "1"], "unknown config key model.foo"),
    (["export", "--expert", ".", "--out", "o", "--model.dtype", "int8"], "model.dtype must be one of"),
    ([*EXPORT, "--out", "o", "--format", "ggml"], "did you mean 'gguf'?"),
    ([*EXPORT, "--out", "o", "--format", "gguf"], "give --out o.gguf"),
    ([*EXPORT, "--out", "o", "--gguf_type", "F16"], "is of --format gguf"),
    ([*EXPORT, "--out", "o.gguf"], "add --format gguf"),
    ([*EXPORT, "--out", "o.gguf", "--format", "gguf", "--gguf_type", "Q4_K"], "Known: F16, Q8_0"),
    ([*EXPORT, "--expert", ".", "--out", "o"], "--weights 0.5,0.5"),
    ([*EXPORT, "--out", "o", "--weights", "0.6;0.9"], "numbers with commas"),
    ([*EXPORT, "--out", "o", "--weights", "0.6,0.9"], "2 weights for 1 experts"),
    ([*DECOMPOSE, KWARGS, "{torch_dtype: x}"], "set model.dtype"),
    ([*DECOMPOSE, "--model", "5"], "model must hold keys and values"),
    (["decompose", *FIT[1:], ADAPTER, "5"], "model.adapter must be"),
    (["decompose", *FIT[1:], "--data.task", "nosuch"], "unknown task 'nosuch'"),
    (["decompose", *FIT[1:], "--model.lrr", "1"], "did you mean model.optimizer.lr?"),
    ([*DECOMPOSE, "--model.adapter.layers_to_transform", "a"], "adapter.layers_to_transform must be"),
    ([*DECOMPOSE, "--model.adapter.layers_to_transform", "-1"], "adapter.layers_to_transform must be"),
    ([*DECOMPOSE, "--model.dtype", "int8"], "model.dtype must be one of"),
    ([*DECOMPOSE, "--device", "gpu"], "--device must be"),
    (["report", "nosuch"], "folder 'nosuch' does not exist"),
    (["study", "--docs", "d", "--seeds", "0"], "--seeds is for the runs of a study file"),
    (["study", "--docs", "d", "--data.data_dir", "d"], "--data.data_dir is for the runs"),
    (["report", ".", "--out", "x.pgn"], "must end in .png"),
    (["report", ".", "--out", "x"], "must end in .png"),
    (["report", ".", ".", "--out", "x.png"], "there are 2 runs"),
    ([*FIT, "--model.base", "nosuch.gguf"], "'nosuch.gguf' is no file here"),
    ([*PLAN, "--model.base", "nosuch.gguf"], "'nosuch.gguf' is no file here"),
    ([*FIT, "--model.base", __file__], "is a file, but no GGUF file"),
    (["ask", "--base", "nosuch.gguf", "Hello?"], "'nosuch.gguf' is no file here"),
    ([*FIT, "--model.base", "smolm2"], "did you mean 'smollm2'?"),
    ([*FIT, ADAPTER, "{peft_type: LORRA}"], "did you mean 'LORA'?"),
    ([*FIT, ADAPTER, "{target_modles: x}"], "did you mean 'target_modules'?"),
    ([*FIT, ADAPTER, "{parametrization: bad}"], "one of direct, sigmoid_renorm"),
    ([*FIT, ADAPTER, "{target_modules: []}"], "adapter.target_modules must be"),
    ([*FIT, ADAPTER, "{target_modules: 5}"], "adapter.target_modules must be"),
    ([*FIT, ADAPTER, "{form: merged}"], "adapter.form: 'merged' is gone; leave it out"),
    ([*PLAN, ADAPTER, "{form: auto}"], "adapter.form: 'auto' is gone; leave it out"),
    ([*FIT, ADAPTER, "{init_std: 0.1}"], "adapter.init_std: 0.1 is gone; leave it out"),
    ([*FIT, ADAPTER, "{r: 4}"], "unknown key model.adapter.r for SVF"),
    *(
        ([*FIT, f"{ADAPTER}.{key}", value], f"model.adapter.{key} is written when an expert is saved; leave it out")
        for key, value in {"inference_mode": "true", "score": "0.9", "shuffled": "3", "sha256": "x"}.items()
    ),
    (["adapt", "--strategy", "CEM"], "did you mean 'cem'?"),
    ([*FIT, "--trainer.default_root_dir", "x"], "set --run_dir"),
    ([*FIT, "--default_root_dir", "x"], "did you mean --run_dir?"),
    ([*FIT, "--data.task_options.prompt", "{question} How many?"], "put double quotes of its own around text"),
    (["adapt", "--trainer.limit_test_batches", "0"], "limit_test_batches is 0, so adapt has nothing to do"),
    ([*FIT, ADAPTER, "{peft_type: LORA, lora_alpha: .nan}"], "lora_alpha must be a finite number"),
    ([*PLAN, "--gpus", "0"], "--gpus must be a whole number from 1 to 1000000"),
    ([*PLAN, "--gpus", "1.5"], "--gpus must be a whole number from 1 to 1000000"),
    ([*PLAN, "--gpus", "two"], "--gpus must be a whole number from 1 to 1000000"),
    ([*PLAN, "--gpu-memory", "80"], "did you mean --gpu_memory?"),
    ([*PLAN, "--gpu_memory", "80GB"], "--gpu_memory must be a number"),
    ([*PLAN, "--device", "h1000"], "did you mean 'h100'?"),
    ([*PLAN, "--nodes", "-1"], "--nodes must be a whole number"),
    ([*PLAN, "--prompt_tokens", "-1"], "--prompt_tokens must be a whole number"),
    ([*FIT, "--trainer.max_time", "foo"], "DD:HH:MM:SS"),
    ([*FIT, "--trainer.val_check_interval", "foo"], "trainer.val_check_interval"),
    ([*FIT, "--trainer.devices", "1,1"], "names a device twice"),
    ([*FIT, "--model.test.samples", "10", "--model.test.temperature", "0"], "model.test.temperature 0"),
    (
        [*FIT, "--model.lr_scheduler.warmup_steps", "100", "--trainer.max_steps", "100"],
        "warmup_steps 100 leaves no step",
    ),
    ([*FIT, "--model.base", "tinny"], "did you mean 'tiny'?"),
    ([*FIT, "--model.base", "tiny/"], "did you mean 'tiny'?"),
    ([*FIT, "--model.base", "a b c"], "nor a Hub id"),
    (["adapt", "--adapt.experts", "[]"], "adapt.experts is empty"),
    (["adapt", "--strategy", "cls", "--adapt.classifier", "nosuch"], "adapt.classifier 'nosuch' does not exist"),
    (["adapt", "--adapt.population", "1"], "adapt.population must be an integer >= 2 or auto, not 1"),
    (["adapt", "--model.base", "smollm2"], "name the task: data.task"),
    *(
        (["adapt", f"--{key}", value], f"{key} is not read by adapt; leave it out")
        for key, value in {
            "model.test.samples": "4",
            "model.sampling.num_completions": "4",
            "model.sampling.temperature": "0.5",
            "model.rollout": "paged",
            "model.optimizer.lr": "1",
            "model.loss": "{kl: k3}",
            "trainer.max_steps": "3",
        }.items()
    ),
    (
        ["adapt", "--strategy", "prompt", "--adapt.dispatch_limit", "4", "--model.base", ".", "--data.task", "gsm8k"],
        "adapt.dispatch_limit counts labelled requests; name them: adapt.dispatch_task",
    ),
    *(
        (words, "leave --name out")
        for words in (
            ["adapt", "--run_dir", "r", "--name", "n"],
            [*FIT, "--run_dir", "r", "--name", "n"],
            ["test", "--run_dir", "r", "--name", "n"],
        )
    ),
    # What had a second spelling names the one that is left.
    ([*FIT, "--rollout", "vllm"], "unknown flag --rollout; did you mean --config conf/rollout/ENGINE.yaml?"),
    ([*PLAN, "--rollout=vllm"], "unknown flag --rollout; did you mean --config conf/rollout/ENGINE.yaml?"),
    ([*PLAN, "--quantisation", "nf4"], "did you mean --config conf/quantisation/KIND.yaml?"),
    (["decompose", "--base", "tiny"], "unknown flag --base; did you mean --model.base?"),
    ([*FIT, "--base", "tiny"], "unknown flag --base; did you mean --model.base?"),
    (["ask", "--model.base", "tiny", "hi"], "unknown flag --model.base; did you mean --base?"),
    (["serve", "--model.base=tiny"], "unknown flag --model.base; did you mean --base?"),
    (["chat", "--model.sampling.temperature", "1"], "did you mean --temperature?"),
    ([*DECOMPOSE, "--target_modules", "mlp"], "did you mean --model.adapter.target_modules?"),
    ([*DECOMPOSE, "--layers", "1"], "did you mean --model.adapter.layers_to_transform?"),
    ([*DECOMPOSE, "--cache_dir", "x"], "did you mean --model.adapter.basis_cache?"),
    (
        ["export", "--expert", ".", "--out", "o", "--dtype", "float32"],
        "unknown flag --dtype; did you mean --model.dtype?",
    ),
    (["experts", "show", "nosuch"], "folder 'nosuch' does not exist"),
    ([*MIX, "--weights", ".7"], "1 weights for 2 experts"),
    ([*MIX, "--weights", "nan", ".7"], "from -100 to 100"),
    ([*MIX, "--weights", "1e30", ".7"], "from -100 to 100"),
    ([*MIX, "--weights", "1", "-1", "--mix", "normalised"], "sum to zero"),
    ([*MIX, "--weights=.7", ".7"], "--weights W W"),
    ([*MIX, "--weights", ".7", "--weights", ".7"], "given twice"),
    (["fit", "conf/tiny_math.yaml"], "write --config conf/tiny_math.yaml"),
    (["fit", "-c", "x"], "write --config x"),
    ([*FIT, "--print-config"], "did you mean --print_config?"),
    ([*FIT, "--ckpt_path", "/dev/zero"], "/dev/zero is not a file"),
    ([*FIT, "--name", "-"], "not '-'"),
    *(([*FIT, "--data.task", task], "module.Class") for task in ("os", "json:loads", "./nosuch.py")),
]
FILES = [  # content, what the line says
    ("5\n", "holds a number, not keys and values"),
    ("some words\n", "holds text, not keys and values"),
    ("null: 2\n", "has a key that is null"),
    ("model: {null: 2}\n", "has a key that is null"),
    ("_base_: ''\n", "_base_ must be"),
    ("_base_: secret\n", "secret holds text"),
]
REPORTS = ["[]", '{"strategies": 5}', "{", "{}", "null", '{"strategies": {}}', '{"details": 5}']


def refusal(words, capfd) -> str:
    """The one line of a command that is refused."""
    capfd.readouterr()
    assert main(words) == 2, words
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("transformer2: ")
    return line


def test_words(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    for words, says in EARLY:
        assert says in refusal(words, capfd), words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "flags", "unread"),
    [
        ("test", ["--model.sampling.temperature=0.5", "--model.test.temperature=0.5"], [0, 1]),
        ("test", ["--model.test.samples=2", "--model.test.temperature=0.5", "--model.rollout=paged"], []),
        ("validate", ["--trainer.max_steps=3", "--trainer.limit_val_batches=1", "--model.loss.kl_coef=1"], [0, 2]),
        ("fit", ["--trainer.max_steps=3", "--model.loss.kl_coef=1", "--model.vllm.url=http://x"], [2]),
    ],
)
def test_flags_that_decide_nothing_are_named(command, flags, unread, recwarn) -> None:
    assert main([command, *FIT[1:], *flags, "--ckpt_path", "nosuch"]) == 2
    said = [str(w.message) for w in recwarn if "does not read" in str(w.message)]
    named = ", ".join(flags[i].partition("=")[0][2:] for i in unread)
    assert [line.partition("read ")[2].startswith(named) for line in said] == [True] * bool(unread)


@pytest.mark.parametrize("command", ["decompose", "spectrum"])
def test_flags_of_training_are_named_where_nothing_is_trained(command, recwarn) -> None:
    unread = ["data.batch_size", "trainer.max_steps", "model.loss.kl_coef"]
    read = ["--model.dtype=float32", "--model.adapter.form=factored", "--model.adapter.peft_type=LORA"]
    whole = "--model={base: tiny}", "--seed_everything=1"  # which a study gives to every run
    assert main([command, *whole, *(f"--{key}=1" for key in unread), *read]) == 2
    (said,) = [str(w.message) for w in recwarn if "does not read" in str(w.message)]
    assert said == f"{command} does not read {', '.join(unread)}; leave it out"


def test_epochs_are_not_cut_off_by_a_default(recwarn) -> None:
    for trainer, steps in (({"max_epochs": 3}, -1), ({"max_epochs": 3, "max_steps": 5}, 5), ({"max_epochs": -1}, None)):
        check(config := {"trainer": trainer}, "fit", folders=False)
        assert config["trainer"].get("max_steps") == steps
    for more, said in ([], 1), (["--trainer.max_steps=-1"], 0):
        recwarn.clear()
        assert main([*FIT, "--trainer.max_epochs=3", *more, "--ckpt_path", "nosuch"]) == 2
        assert sum("--trainer.max_steps -1 leaves the end to" in str(w.message) for w in recwarn) == said


def test_off_is_a_word_to_yaml_and_to_the_basis_cache() -> None:
    check(config := compose([], [(f"{ADAPTER[2:]}.basis_cache", "off")], KEYS), "fit", folders=False)
    assert config["model"]["adapter"]["basis_cache"] == "off"


def test_a_seed_that_is_text_is_a_number_where_it_is_read(monkeypatch) -> None:
    monkeypatch.setenv("SEED", "7")
    for command in ("fit", "adapt"):
        check(config := compose([], [("seed_everything", "${oc.env:SEED}")], KEYS), command, folders=False)
        assert config["seed_everything"] == 7


def test_a_task_without_solutions_is_not_trained_on_them(capfd) -> None:
    for command in ("fit", "plan"):
        line = refusal([command, *FIT[1:], *NEXT, "--data.task", "toy_task.FirstLetter"], capfd)
        assert "task first_letter says no solutions" in line and "model.objective reinforce" in line


def test_no_word_of_them_needs_the_heavy_libraries(tmp_path) -> None:
    code = (
        "import json, sys; from transformer2.cli import main; [main(words) for words in json.load(sys.stdin)];"
        "print(sorted({'torch', 'lightning', 'transformers', 'peft'} & set(sys.modules)))"
    )
    words = json.dumps([words for words, _ in EARLY])
    done = subprocess.run([sys.executable, "-c", code], input=words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_files(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("password of root\n" * 30)
    for content, says in FILES:
        (tmp_path / "bad.yaml").write_text(content)
        line = refusal(["fit", "--config", "bad.yaml"], capfd)
        assert says in line and "password" not in line, content


def test_a_damaged_report(tmp_path, capfd) -> None:
    for content in REPORTS:
        (tmp_path / "report.json").write_text(content)
        line = refusal(["report", str(tmp_path)], capfd)
        assert "report.json is damaged" in line, content
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE"])
def test_a_rank_that_is_no_number(name, monkeypatch, capfd) -> None:
    monkeypatch.setenv(name, "foo")
    assert f"environment variable {name} must be a number" in refusal(FIT, capfd)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([KWARGS, "{foo: 1}"], "unknown key model.model_kwargs.foo"),
        ([CALLBACKS, "[{class_path: Foo}]"], "there is no class 'Foo'"),
        ([CALLBACKS, "[{class_path: no.Such}]"], "there is no class 'no.Such'"),
        ([CALLBACKS, "[{class_path: os.system}]"], "'os.system' is not a callback"),
        ([CALLBACKS, "[{class_path: EarlyStopping, init_args: {monitr: x}}]"], "did you mean 'monitor'?"),
        (
            ["--trainer.logger", "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dirr: x}}"],
            "CSVLogger takes no save_dirr; did you mean 'save_dir'?",
        ),
        ([ADAPTER, "{peft_type: LORA, rank: 4}", "--optimizer", "AdamW"], "did you mean 'r'?"),
    ],
)
def test_what_only_the_libraries_know(words, says, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refusal([*FIT, *words, "--quiet"], capfd)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--model.rollout", "vllm"], ["--config", "conf/rollout/vllm.yaml"]], ids=" ".join)
def test_vllm_weighs_its_tokens_however_it_is_asked_for(words) -> None:
    for more, cap in {(): 2.0, ("--model.loss.importance_cap", "null"): None}.items():
        flags = parse_flags(["--config", "conf/tiny_math.yaml", *words, *more], (), (), KEYS)
        config = compose(flags.configs, flags.overrides, KEYS)
        check(config, "plan")
        assert config["model"]["loss"]["importance_cap"] == cap


def test_a_layer_that_is_not_there(tmp_path, capfd) -> None:
    words = [*DECOMPOSE, "--model.adapter.layers_to_transform", "[0, 99]"]
    assert "layer 99" in refusal(words, capfd)


@pytest.mark.parametrize("name", ["jsonl", "adapt_llama8b_math", "llama8b_gsm8k"])
def test_a_shipped_config_prints(name, tmp_path, monkeypatch, capfd) -> None:
    """All of them: tests/cli/test_configs.py."""
    monkeypatch.chdir(tmp_path)
    command = "adapt" if name.startswith("adapt_") else "fit"
    own = ["--data.task_options.path=my.jsonl"] if name == "jsonl" else []
    assert main([command, "--config", f"conf/{name}.yaml", *own, "--print_config"]) == 0, capfd.readouterr().err
    assert "model:" in capfd.readouterr().out


def test_help_has_no_source_in_it(capfd) -> None:
    for command in ("fit", "adapt"):
        assert main([command, "--help"]) == 0
        assert "field(" not in capfd.readouterr().out


def test_who_asks_where_peft_is_may_not_import_it() -> None:
    code = (
        "import sys, transformer2, importlib.util; importlib.util.find_spec('peft');"
        "print([type(f).__name__ for f in sys.meta_path].count('_AfterPeft'), 'peft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr
