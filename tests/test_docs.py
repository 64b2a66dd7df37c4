"""Pages link to files that exist, and what they show in fences runs.

Python blocks run for real. Commands are read by the command line itself, which composes, checks and instantiates their
configs (`--print_config`); `plan` runs whole here, and so do, under the `slow` mark, the commands of HERE and the pages
for newcomers, from top to bottom.
"""

import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from causal_families import ACCEPTED, REFUSED

from transformer2 import tiny
from transformer2.cli import COMMANDS, main
from transformer2.cli.keys import ELSEWHERE, sections
from transformer2.cli.schema import arguments

ROOT = Path(__file__).parents[1]


FENCED = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
PAGES = ["ARCHITECTURE.md", "CHANGELOG.md", *FENCED]
PAGES.remove("docs/log.md")  # names files as they were called
# Commands that are run whole (the embedded model, minutes), not only read.
EXPERTS = ("math", "code", "reasoning", "dispatch")
HERE = (
    "transformer2 fit --config conf/tiny_math.yaml",
    "transformer2 adapt --strategy all",
    "transformer2 sandbox check",
    "transformer2 fit --config conf/tiny.yaml --data.task mytasks.Reverse --data.data_dir words",
)
# Pages for newcomers, in the order in which they are read.
FIRST = ("docs/quickstart.md", "docs/your_data.md", "docs/how_it_works.md", "docs/reproduce.md")
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--data.validation_limit", "8"]
# Programs of others in the blocks; `nox` and `pip` are looked into below.
FOREIGN = ("pip", "nox", "export", "tensorboard", "torchrun", "srun", "llama-cli", "curl")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def lines_of(block: str) -> list[list[str]]:
    """The words of every command of a bash block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command line of the pages, and of the comments of the shipped configs."""
    found = []
    for page in FENCED:
        found += [(page, words) for block in blocks(page, "bash") for words in lines_of(block)]
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        lines = re.findall(r"^#\s+(transformer2 .*)$", file.read_text(), re.M)
        found += [(str(file.relative_to(ROOT)), shlex.split(line)) for line in lines]
    return found


OURS = [(page, words[words.index("transformer2") + 1 :]) for page, words in commands() if "transformer2" in words]
OURS = [*{tuple(words): (page, words) for page, words in reversed(OURS)}.values()][::-1]  # each once


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "{TABLE}" not in text
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
    for target in re.findall(r"\b(?:docs|conf|tests|benchmarks)/[\w./-]+\.(?:md|yaml|py|png)\b", text):
        assert (ROOT / target).exists(), f"{page} names {target}"


def test_the_page_of_models_lists_the_families_that_are_tested() -> None:
    accepted, _, refused = (ROOT / "docs/models.md").read_text().partition("Refused, and why")
    listed = re.search(r"`model_type`\):\n\n(.*?)\n\n", accepted, re.DOTALL)
    assert listed and re.findall(r"[\w-]+", listed[1]) == sorted(ACCEPTED)
    assert sorted(re.findall(r"[\w-]+", " ".join(re.findall(r"^\| (\w.*?) \|", refused, re.MULTILINE)))) == sorted(
        REFUSED
    )


GUIDES = {p: (ROOT / p).read_text() for p in FENCED if p not in ("docs/log.md", "docs/paper.md", "docs/claims.md")}


def test_every_key_is_in_a_guide() -> None:
    """By its whole name, or by its own beside the name of its section (trainer is Lightning's)."""
    found = [sections(adapt=True), sections(adapt=False), sections(adapt=False, few_shot=True)]
    keys = {f"adapt.{key}" for key in arguments("transformer2.callbacks.evaluator.AdaptationEvaluator")}
    for section, known in ((s, k) for of in found for s, k in of.items() if s != "trainer"):
        for key, argument in known.items():
            inner = argument.hint if isinstance(argument.hint, dict) else {}
            keys |= {f"{section}.{key}.{part}" for part in inner} or {f"{section}.{key}"}

    def named(key: str) -> bool:
        group, _, own = key.rpartition(".")
        return any(
            re.search(rf"\b{key}\b", page) or ((f"{group}." in page or f"`{group}`" in page) and f"`{own}`" in page)
            for page in GUIDES.values()
        )

    assert [key for key in sorted(keys - {*ELSEWHERE}) if not named(key)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_in_a_guide(command, capsys) -> None:
    assert main([command, "--help"]) == 0
    flags = set(re.findall(r"--[a-z]\w*\b(?!\.)", capsys.readouterr().out))
    text = "\n".join(GUIDES.values())
    assert [flag for flag in sorted(flags) if not re.search(rf"{flag}\b", text)] == []


@pytest.fixture
def there(tmp_path, monkeypatch, llama_folder):
    """A folder with what the commands name: a model, rows, an expert, a task of one's own; and their words for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # torchrun is there, also where the environment is not active.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for name in (*EXPERTS, *(f"tiny_{expert}" for expert in EXPERTS), "jsonl"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        shipped = "math" if name == "jsonl" else name.removeprefix("tiny_")
        (tmp_path / "runs" / name / "expert").symlink_to(tiny.expert_path(shipped))
    (tmp_path / "mytasks.py").write_text(blocks("docs/tasks.md", "python")[0])
    (tmp_path / "words").mkdir()
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "words" / f"{split}.txt").write_text(" ".join(f"{split}{i}" for i in range(80)))

    def words(given: list[str]) -> list[str]:
        places = {
            r"^/models/[\w.-]+": str(llama_folder),
            r"^/data\b": str(tmp_path / "data"),
            r"^/shared\b": str(tmp_path),
        }
        for there, here in places.items():
            given = [re.sub(there, here, word) for word in given]
        return given

    return words


@pytest.mark.parametrize("page", [page for page in FENCED if blocks(page, "python")])
def test_python_runs(page, there, tmp_path) -> None:
    for block in blocks(page, "python"):
        scope: dict = {}
        exec(compile(block, page, "exec"), scope)
        if "Reverse" in scope:
            task = scope["Reverse"]()
            example = task.examples("test", "words")[0]
            assert task.verify(example, example.answer).correct and not task.verify(example, "no").correct


@pytest.mark.parametrize(("page", "words"), OURS, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:70])
def test_commands_are_understood(page, words, there, capsys) -> None:
    command, *flags = there(words)
    if command in ("fit", "validate", "test", "adapt"):
        assert main([command, *flags, "--print_config"]) == 0
        assert "model:" in capsys.readouterr().out
    elif command == "plan":
        assert main([command, *flags]) == 0
    elif command == "study":
        assert main([command, *flags, *(() if "--dry_run" in flags else ("--dry_run",))]) == 0
    else:
        assert (
            command
            in ("ask", "chat", "serve", "decompose", "experts", "export", "report", "sandbox", "spectrum", "study")
            and main([command, "--help"]) == 0
        )
        text = capsys.readouterr().out
        verbs = flags[:1] if command in ("experts", "sandbox") else []
        assert all(word in text for word in [*verbs, *(flag for flag in flags if flag.startswith("--"))])


SHOWN = [
    found
    for page in ("README.md", "docs/quickstart.md")
    for found in re.findall(r"^(transformer2 ask [^`\n]*)\n```\n```\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
]


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_the_answers_that_pages_show_are_the_models(command, shown, capsys) -> None:
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == shown


def test_other_programs_are_known_and_what_they_name_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sessions = set(re.findall(r"@nox.session\ndef (\w+)", (ROOT / "noxfile.py").read_text()))
    for page, words in commands():
        assert words[0] in (*FOREIGN, "transformer2"), f"{page}: {' '.join(words)}"
        if words[0] == "nox" and "-s" in words:
            assert words[-1] in sessions, f"{page}: {' '.join(words)}"
        for named in re.findall(r"\.\[([\w,-]+)\]", " ".join(words)):
            assert set(named.split(",")) <= set(extras), f"{page} names the extra {named}"


@pytest.mark.slow
@pytest.mark.parametrize("line", HERE)
def test_commands_run(line, there) -> None:
    words = line.split()[1:]
    assert any(words == ours for _, ours in OURS), "no page shows it"
    short = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"] if "mytasks.Reverse" in words else []
    quiet = [] if "sandbox" in words else ["--quiet"]
    assert main([*words, *short, *quiet]) == 0


@pytest.mark.slow
def test_the_pages_for_newcomers_run_from_top_to_bottom(tmp_path, monkeypatch) -> None:
    """In one folder; runs of the embedded model are cut short, and other models' are read by the test above."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    for page in FIRST:
        for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
            if language == "python":
                exec(compile(block, page, "exec"), {})
                continue
            for program, *words in lines_of(block):
                if program != "transformer2" or re.search("llama|qwen|/models/", " ".join(words)):
                    continue
                more = (
                    SHORT if words[0] == "fit" else ["--data.test_limit", "8"] if words[0] in ("test", "adapt") else []
                )
                more = [*more, "--adapt.generations", "1"] if words[0] == "adapt" else more
                assert main([*words, *more]) == 0, (page, words)
                ran += 1
    assert ran >= 12
