"""`transformer2 sandbox check`, and what a refusal looks like from the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from transformer2.cli import main


def test_it_prints_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "check"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(("sandbox: full", "sandbox: no-namespaces"))
    for layer in ("seccomp", "landlock", "rlimits", "capabilities", "pid", "net"):
        assert f"\n  {layer} " in text
    assert "6 honest programs passed, 19 attacks failed" in text


def test_help_and_typos(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox"]) == 0 and "sandbox check" in capsys.readouterr().out
    assert main(["sandbox", "chekc"]) == 2
    assert "use `sandbox check`" in capsys.readouterr().err


def test_without_landlock_it_says_what_is_missing_and_fails() -> None:
    code = (
        "import sys; import jailed; jailed.take_away('landlock'); "
        "from transformer2.cli import main; sys.exit(main(['sandbox', 'check']))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("sandbox: unsafe") and "landlock      MISSING" in done.stdout
    assert "attacks failed" not in done.stdout  # nothing hostile was tried without that layer
