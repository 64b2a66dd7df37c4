"""A worker that verifies answers of one task: `python -m transformer2.verifiers._task_worker TASK_FILE`."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from transformer2.verifiers._serve import Channel, serve
from transformer2.verifiers.isolated import attempt


def main() -> None:
    """Read the task that the owner pickled, then serve."""
    channel = Channel()  # before the task's module is imported, which may print
    task = pickle.loads(Path(sys.argv[1]).read_bytes())
    serve(lambda request: pickle.dumps(attempt(task, *pickle.loads(request))), channel=channel)


if __name__ == "__main__":
    main()
