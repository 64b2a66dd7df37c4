"""One run a folder: claimed at once, reused where nothing was done, and not left behind by a command that failed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from transformer2.cli import main
from transformer2.cli.folder import KEPT, config_name, run_folder
from transformer2.errors import ConfigError

FIT = [
    *("fit", "--config", "conf/tiny.yaml", "--data.task", "tiny_math", "--data.batch_size", "8", "--quiet"),
    *("--data.validation_limit", "4", "--data.test_limit", "4", "--trainer.max_steps", "1"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_at_once_get_a_folder_each(here):
    ready, folders = threading.Barrier(8), []

    def claim():
        ready.wait()
        with run_folder(None, "same") as folder:
            folders.append(folder)
            ready.wait()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, folders)) == sorted(["runs/same", *(f"runs/same-{n}" for n in range(2, 9))])


def test_a_named_folder_is_one_commands(here):
    with run_folder("mine", "name"), pytest.raises(ConfigError, match="mine is in use by another command"):
        run_folder("mine", "name").__enter__()


def test_what_holds_a_run_is_kept_and_what_holds_none_is_reused(here):
    with run_folder(None, "name") as folder:
        (folder / "config.yaml").write_text("")
        (folder / "checkpoints").mkdir()
    with run_folder(None, "name") as again:
        assert again == folder
        (folder / "config.yaml").write_text("")
        (folder / "last.ckpt").write_text("")
    with run_folder(None, "name") as other:
        assert str(other) == "runs/name-2"
    with pytest.raises(ConfigError, match="already holds a run"):
        run_folder(str(folder), "name").__enter__()


@pytest.mark.parametrize("kept", KEPT)
def test_what_a_run_is_for_is_kept_whatever_became_of_its_config(here, kept):
    path = here / "runs" / "name" / kept
    path.parent.mkdir(parents=True)
    if path.suffix:
        path.write_text("")
    else:
        (path / "adapter_model.safetensors").mkdir(parents=True)
    with run_folder(None, "name") as other:
        assert str(other) == "runs/name-2"
    with pytest.raises(ConfigError, match="already holds a run"):
        run_folder("runs/name", "name").__enter__()


@pytest.mark.parametrize("command", ["fit", "adapt"])
@pytest.mark.parametrize("folder", ["mine", "./mine/", "link"])
def test_a_config_that_is_given_is_not_replaced_by_the_run_s_own(here, capsys, command, folder):
    config = here / "mine" / "config.yaml"
    config.parent.mkdir()
    config.write_text("# why\ndata: {test_limit: 4}\n")
    Path("link").symlink_to("mine")
    assert main([command, "--config", "mine/config.yaml", "--run_dir", folder]) == 2
    assert "give another --run_dir" in capsys.readouterr().err and config.read_text().startswith("# why")


def test_a_failure_leaves_nothing_but_what_was_there(here):
    (here / "theirs").mkdir()
    (here / "theirs" / "notes.txt").write_text("mine")
    for given in ("theirs", "new"):
        with pytest.raises(ValueError), run_folder(given, "name") as folder:
            for name in ("config.yaml", "hparams.yaml", "events.out.tfevents.1"):
                (folder / name).write_text("")
            raise ValueError
    assert os.listdir("theirs") == ["notes.txt"] and not Path("new").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--model.base", "/no/where"], "/no/where"),
        (["--data.data_dir", "/no/where", "--data.task", "gsm8k"], "/no/where"),
        (["--data.test_limit", "0"], "test"),
        (["--data.task", "no_test.NoTest"], "test"),
        (["--data.batch_size", "100000"], "batch_size"),
        (["--ckpt_path", "/no/where.ckpt"], "/no/where.ckpt"),
        (["--expert", "/no/where"], "/no/where"),
        (["--model.adapter.target_modules", "[nothing]"], "nothing"),
        (["--trainer.accelerator", "cuda"], "trainer"),
    ],
    ids=str,
)
def test_a_corrected_command_runs_in_the_same_folder(tmp_path, monkeypatch, capfd, wrong, message):
    folder = tmp_path / "run"
    (tmp_path / "no_test.py").write_text(
        "from toy_task import FirstLetter\nclass NoTest(FirstLetter):\n    name = 'no_test'\n"
        "    def examples(self, split, data_dir=None):\n"
        "        return [] if split == 'test' else super().examples(split, data_dir)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main([*FIT, *wrong, "--run_dir", str(folder)]) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("transformer2:")]
    assert len(error) == 1 and message in error[0] and not folder.exists()


@pytest.mark.parametrize("folder", ["/proc/runs/here", "file", "file/below"])
def test_a_folder_that_cannot_be_made_is_one_line(here, capsys, folder):
    Path("file").write_text("")
    assert main([*FIT, "--run_dir", folder]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and folder.split("/")[0] in error


def test_print_config_makes_no_folder(here, capsys):
    assert main(["fit", "--config", "conf/tiny_math.yaml", "--print_config"]) == 0
    assert not Path("runs").exists()


@pytest.mark.slow
def test_no_room_for_anything_is_one_line(tmp_path):
    """A limit on the size of files stands for the full disk: checkpoints, events and experts meet it."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    code += "from transformer2.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, *FIT, "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("kept", "config", "name"),
    [
        ("report.json", "runs/math/config.yaml", "math"),  # the run that wrote it, not `config`
        ("expert", "config.yaml", "project"),
        ("notes.txt", "runs/math/config.yaml", "config"),
        ("report.json", "runs/math/mine.yaml", "mine"),
    ],
)
def test_a_runs_own_config_keeps_its_name(tmp_path, monkeypatch, kept, config, name):
    (tmp_path / "project" / "runs" / "math").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    (Path(config).parent / kept).touch()
    assert config_name(config) == name
