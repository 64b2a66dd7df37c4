"""`python -m transformer2` is the command `transformer2`."""

import signal
import sys

from transformer2.callbacks.interrupt import SIGNALS
from transformer2.cli import main


def run() -> None:
    """The command as a process of its own: once it has said its last word, one more Ctrl-C changes nothing."""
    code = main()
    if code > 128:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
