"""Without a network the Hub is asked once: its own client would ask six times, for each of several files."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("from transformer2 import tasks; tasks.get('gsm8k').examples('test')", "the Hub could not be reached"),
        ("from transformer2.svf.base_folder import base_folder; base_folder('org/model')", "the Hub did not give it"),
    ],
)
def test_a_hub_that_hangs_up_is_asked_once(tmp_path: Path, code: str, says: str) -> None:
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept_and_close() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                calls.append(line)
                line.close()

        threading.Thread(target=accept_and_close, daemon=True).start()
        variables = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        variables |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert says in done.stderr.splitlines()[-1], done.stderr
    assert len(calls) == 1
