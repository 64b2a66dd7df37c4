"""`python -m transformer2` is the command `transformer2`."""

import os
import sys

from transformer2.callbacks.interrupt import ignore_signals
from transformer2.cli import main


def run() -> None:
    """The command as a process of its own: once it has said its last word, one more Ctrl-C changes nothing.

    OpenMP's threads sleep while they wait for each other. They would spin, and on cores that others use as well each
    then burns the time that the other one needs (docs/training.md). Read when torch is imported, so set before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    code = main()
    if code > 128:
        ignore_signals()
    sys.exit(code)


if __name__ == "__main__":
    run()
