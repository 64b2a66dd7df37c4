"""`sandbox check`: what this machine offers for running code that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence

from transformer2.cli.compose import flags_of
from transformer2.errors import ConfigError, shown

HELP = """\
usage: transformer2 sandbox check

Start the sandbox of the code tasks (humaneval, mbpp_pro, ...), test its isolation layers, and print the level reached
and what is missing.
Exit code 0: programs are run here; 2: they are refused.
"""
LAYERS = {
    "seccomp": "system calls are filtered (needs a kernel with CONFIG_SECCOMP_FILTER, x86-64 or aarch64)",
    "landlock": "only the standard library can be read (needs Linux 5.13 with landlock in the kernel's lsm= list)",
    "no_new_privs": "no privileges can be gained",
    "capabilities": "root's powers are dropped",
    "user": "root becomes nobody",
    "rlimits": "CPU time, memory, files and threads are bounded",
    "pid": "own processes (containers: allow user namespaces or CAP_SYS_ADMIN)",
    "net": "no network",
    "ipc": "no shared memory with others",
    "uts": "own host name",
    "mnt": "a file system of nothing but the standard library",
}
LEVELS = {
    "full": "every layer is on",
    "no-namespaces": "the required layers are on; what is missing below would be a second line of defence",
    "unsafe": "a required layer is missing: model-written code is refused",
}


def sandbox(args: Sequence[str]) -> int:
    """Print the level of isolation, layer by layer."""
    words = flags_of(args or ["--help"], HELP, takes_words=True).words
    if words != ["check"]:
        raise ConfigError(f"unknown verb {shown(repr(' '.join(words)))}; use `sandbox check`")

    from transformer2.sandbox import Sandbox

    box = Sandbox(size=1)
    found = box.check()
    box.pool.close()
    missing, failed = dict(found["missing"]), list(found["failed"])
    print(f"sandbox: {found['level']} ({LEVELS[found['level']]})")
    for layer in dict.fromkeys([*LAYERS, *missing]):
        state = f"MISSING: {missing[layer]}" if layer in missing else "on"
        print(f"  {layer:<13} {state:<12} {LAYERS.get(layer, '')}".rstrip())
    if failed:
        print(*(f"  self-test FAILED: {line}" for line in failed), sep="\n")
    elif not found["refused"]:
        print(f"  self-test: {found['controls']} honest programs passed, {found['probes']} attacks failed")
    return 2 if found["refused"] else 0
