"""Runs the hostile corpus inside `outer_jail.py` and prints what happened, as JSON.

    python outer_jail.py jailed.py [--without namespaces|landlock|seccomp] [--only NAME]

`--without` takes a layer away as an old or a locked-down kernel would: the system calls fail.
"""

import ctypes
import errno
import json
import os
import platform
import struct
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

from hostile_programs import (  # noqa: E402  # the path comes first
    BOMBS,
    BREAKOUT_TESTS,
    BREAKOUTS,
    FORGERIES,
    HONEST,
    HONEST_TESTS,
    SECRET_TESTS,
)

from transformer2.errors import SandboxError  # noqa: E402
from transformer2.sandbox import Program, Sandbox  # noqa: E402

# (number, first argument or None for any) by machine, and how the call fails.
CALLS = {
    "namespaces": ({"x86_64": [(272, None), (308, None)], "aarch64": [(97, None), (268, None)]}, errno.EPERM),
    "landlock": ({"x86_64": [(444, None)], "aarch64": [(444, None)]}, errno.ENOSYS),
    "seccomp": ({"x86_64": [(157, 22), (317, None)], "aarch64": [(167, 22), (277, None)]}, errno.EINVAL),
}


def take_away(layer: str) -> None:
    """From here on, these system calls fail in this process and all that it starts."""
    by_machine, error = CALLS[layer]
    load, equal, ret = 0x20, 0x15, 0x06
    ops = []
    for number, argument in by_machine[platform.machine()]:
        refuse = [struct.pack("=HBBI", ret, 0, 0, 0x50000 | error)]
        if argument is not None:
            allow = struct.pack("=HBBI", ret, 0, 0, 0x7FFF0000)
            look = [struct.pack("=HBBI", load, 0, 0, 16), struct.pack("=HBBI", equal, 0, 1, argument)]
            refuse = [*look, *refuse, allow]
        ops += [struct.pack("=HBBI", load, 0, 0, 0), struct.pack("=HBBI", equal, 0, len(refuse), number), *refuse]
    code = b"".join([*ops, struct.pack("=HBBI", ret, 0, 0, 0x7FFF0000)])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.addressof(program), 0, 0) == 0, os.strerror(ctypes.get_errno())


def traces() -> dict[str, list[str]]:
    """Files in /tmp, other processes, and sockets of this network namespace."""
    files = [str(p) for p in Path("/tmp").iterdir()]  # what is mounted there stands in it before and after
    processes = []
    for p in Path("/proc").iterdir():
        if p.name.isdigit() and int(p.name) not in (1, os.getpid()):
            try:
                processes.append((p / "comm").read_text().strip())
            except OSError:
                continue
    sockets = []
    for kind in ("tcp", "udp", "tcp6", "udp6", "unix"):
        table = Path(f"/proc/net/{kind}")
        if table.exists():
            sockets += table.read_text().splitlines()[1:]
    shared = [line for kind in ("shm", "msg", "sem") for line in _table(f"/proc/sysvipc/{kind}")]
    return {"files": files, "processes": processes, "sockets": sockets, "shared": shared}


def _table(path: str) -> list[str]:
    return Path(path).read_text().splitlines()[1:] if Path(path).exists() else []


def main() -> None:
    arguments = sys.argv[1:]
    without = arguments[arguments.index("--without") + 1] if "--without" in arguments else None
    only = arguments[arguments.index("--only") + 1] if "--only" in arguments else None
    assert os.geteuid() != 0, "hostile programs are not run as root"
    if without:
        take_away(without)
    before = traces()
    sandbox = Sandbox()
    kinds = [
        ("forgery", FORGERIES, SECRET_TESTS),
        ("breakout", BREAKOUTS, BREAKOUT_TESTS),
        ("bomb", BOMBS, SECRET_TESTS),
        ("honest", HONEST, HONEST_TESTS),
    ]
    chosen = [
        (kind, name, Program(code, tests, ("f",)))
        for kind, programs, tests in kinds
        for name, code in programs.items()
        if only in (None, name)
    ]
    start = time.monotonic()
    try:
        outcomes = sandbox.run([p for _, _, p in chosen])
        refused = None
    except SandboxError as e:
        outcomes, refused = [], str(e)
    seconds = time.monotonic() - start
    found = dict(sandbox.check())
    sandbox.pool.close()
    time.sleep(0.3)
    after = traces()
    result = {
        "level": found["level"],
        "missing": found["missing"],
        "failed": found["failed"],
        "refused": refused,
        "seconds": seconds,
        "left": {key: [x for x in after[key] if x not in before[key]] for key in before},
        "outcomes": [
            {"kind": kind, "name": name, "outcome": o.outcome, "reason": o.reason}
            for (kind, name, _), o in zip(chosen, outcomes, strict=False)
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
