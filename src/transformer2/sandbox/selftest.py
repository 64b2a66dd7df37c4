"""What a judge tries before it takes work: honest programs must pass, attacks must fail.

An honest program that fails here would have cost a right answer its reward (an interpreter under a folder that nobody
may enter, too few threads); an attack that works here would work for every completion.
"""

from __future__ import annotations

from collections.abc import Callable

from transformer2.sandbox.program import Outcome, Program

__all__ = ["CONTROLS", "PROBES", "self_test"]


def _program(code: str, *tests: str, names: tuple[str, ...] = ("f",)) -> Program:
    return Program(code, tests, names)


CONTROLS = [
    _program("def f(x):\n    return sorted(x)\n", "assert f([3, 1, 2]) == [1, 2, 3]"),
    _program(
        "def f():\n    import colorsys, decimal, email.mime.image, logging.config, sched, xml.sax\n"
        "    from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor\n"
        "    return str(decimal.Decimal(1) / 7) + str('é'.encode('cp1252'))\n",
        "assert f().startswith('0.142857') and f().endswith(\"b'\\\\xe9'\")",
    ),
    _program(
        "import threading\n"
        "def f(n):\n    all_here = threading.Barrier(n)\n"
        "    ts = [threading.Thread(target=all_here.wait) for _ in range(n)]\n"
        "    [t.start() for t in ts]\n    [t.join() for t in ts]\n    return n\n",
        "assert f(16) == 16",
    ),
    _program("def f():\n    return len(bytearray(100 << 20))\n", "assert f() == 100 << 20"),
    _program(
        "class Pair:\n    def __init__(self, a):\n        self.a = a\n"
        "def f(x):\n    print('noise')\n    return (y for y in (x.a, None, 1.5, {2: b'b'}))\n",
        "p = Pair(3)\np.a = (4,)\nassert list(f(p)) == [(4,), None, 1.5, {2: b'b'}]",
        names=("f", "Pair"),
    ),
    _program(
        "import asyncio\n"
        "async def g(x):\n    await asyncio.sleep(0.001)\n    return await asyncio.to_thread(abs, x)\n"
        "async def h():\n    return await asyncio.gather(g(-1), asyncio.wait_for(g(-2), 1))\n"
        "def f():\n    return asyncio.run(h())\n",
        "assert f() == [1, 2]",
    ),
]

# Each tries one thing and returns whether it worked. None must, at any level but `unsafe`.
PROBES = {
    "read a file": "open('/etc/passwd').read(1)",
    "write a file": "open('/tmp/transformer2-probe', 'w')",
    "write where it is": "open('transformer2-probe', 'w')",
    "list the root": "len(os.listdir('/')) > 3 or os.listdir('/home')",
    "fork": "os._exit(0) if os.fork() == 0 else True",
    "start a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "open a socket": "socket.socket()",
    "open a pair of datagram sockets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "open a pair of internet sockets": "socket.socketpair(socket.AF_INET)",
    "pass a descriptor": "socket.send_fds(socket.socketpair()[0], [b'x'], [0])",
    "send to an address": "socket.socketpair()[0].sendto(b'x', '/tmp/x')",
    "connect": "socket.socketpair()[0].connect('/tmp/x')",
    "signal another process": "os.kill(os.getppid() or 1, 0)",
    "trace": "libc.ptrace(0, 0, 0, 0) == 0",
    "make a file in memory": "os.memfd_create('x')",
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "make a namespace": "libc.unshare(0x10000000) == 0",
    "gain privileges": "os.setuid(0) is None",
    "see the environment": "'HOME' in os.environ or 'PATH' in os.environ",
}
_PROBE = _program(
    "import ctypes, os, socket\n"
    "libc = ctypes.CDLL(None)\n"
    f"attempts = {PROBES!r}\n"
    "def f():\n    worked = []\n    for name, code in attempts.items():\n"
    "        try:\n            if eval(code):\n                worked.append(name)\n"
    "        except (OSError, MemoryError):\n            pass\n    return worked\n",
    "worked = f()\nif worked:\n    raise ValueError(', '.join(worked))",
)


def self_test(run: Callable[[Program], Outcome], level: str) -> list[str]:
    """What went wrong, one line each; empty when all is well.

    Args:
        run: Runs one program.
        level: `unsafe` runs the controls only: attacks would work, on this very machine.
    """
    programs = {f"honest program {number}": control for number, control in enumerate(CONTROLS, 1)}
    if level != "unsafe":
        programs["attacks"] = _PROBE
    results = {name: run(program) for name, program in programs.items()}
    return [f"{name}: {r.outcome} ({r.reason})" for name, r in results.items() if r.outcome != "passed"]
