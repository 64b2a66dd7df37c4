"""`python -m transformer2` is the command `transformer2`."""

import sys

from transformer2.callbacks.interrupt import ignore_signals
from transformer2.cli import main


def run() -> None:
    """The command as a process of its own: once it has said its last word, one more Ctrl-C changes nothing."""
    code = main()
    if code > 128:
        ignore_signals()
    sys.exit(code)


if __name__ == "__main__":
    run()
