"""A worker for tests of the pool: `<what to do> <text>` -> text."""

import os
import signal
import subprocess
import sys
import time

from transformer2.sandbox.pool import serve

print("a stray line before the ready frame")
if os.environ.get("WORKER_FAILS"):
    sys.exit(7)


def handle(request: bytes) -> bytes:
    what, _, text = request.partition(b" ")
    if what == b"sleep":
        time.sleep(float(text))
    elif what == b"stuck":  # in C code that holds the GIL
        9**9**9
    elif what == b"exit":
        os._exit(3)
    elif what == b"raise":
        raise ValueError(text)
    elif what == b"print":
        print("a stray line")
        sys.stdout.flush()
    elif what == b"read":
        return sys.stdin.buffer.read(1) + b"nothing"
    elif what == b"pid":
        return str(os.getpid()).encode()
    elif what == b"child":  # a process of its own, and then stuck
        child = subprocess.Popen(["sleep", "600"])
        with open(text, "w") as f:
            f.write(f"{os.getpid()} {child.pid}")
        signal.pause()
    return text


serve(handle)
