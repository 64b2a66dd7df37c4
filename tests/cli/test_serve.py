"""`serve` without its extra, and the signal that ends a server; with it: tests/serving."""

import os
import signal

import pytest

from transformer2.callbacks.interrupt import Interrupted, listening
from transformer2.cli import main


def test_without_its_extra_serve_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("transformer2.cli.serve.NEEDED", ("no_such_package",))
    assert main(["serve"]) == 2
    assert "pip install 'transformer2[serve]'" in capsys.readouterr().err
    assert main(["serve", "--help"]) == 0


def test_the_first_signal_stops_a_server_and_the_second_interrupts():
    stopped = []
    with pytest.raises(Interrupted), listening() as listener:
        listener.stop = lambda: stopped.append(listener.number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped == [0] and listener.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped == [0] and listener.number == signal.SIGTERM
