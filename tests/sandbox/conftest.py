"""The outer jail, where hostile programs can harm nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def jailed() -> Callable[..., dict[str, object]]:
    """Runs `jailed.py` in the outer jail with some arguments."""

    def run(*arguments: str) -> dict[str, object]:
        command = [sys.executable, str(HELPERS / "outer_jail.py"), str(HELPERS / "jailed.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode == 77:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run
