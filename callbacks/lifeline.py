"""When one process of a run dies, the others end too, within seconds.

A process that waits in a collective for a dead one would wait for the collective's timeout (ten minutes and more with
NCCL), and Lightning's own launcher watches its children only, not its parent. So every process holds one TCP connection
to rank 0. The kernel closes the connections of a process however it ends: whoever sees its line closed without a
goodbye ends, which closes the next line. No heartbeat, so a process that is merely slow is never taken for dead.
A signal that reached one process goes down the lines too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from pathlib import Path
from typing import cast

import lightning as L

from transformer2.arguments import Positive, check_arguments
from transformer2.callbacks import interrupt
from transformer2.errors import UserError

ENDED = "another process of this run has ended"
CONNECT_SECONDS = 60
GOODBYE = b"\xff"  # any other byte is the number of a signal
TOKEN_BYTES = 16  # whoever connects must know it: a port scanner that hangs up is no rank that died


class Lifeline(L.Callback):
    """Watches the other processes while a trainer runs; does nothing in a run of one process.

    Args:
        grace: Seconds that this process has to end by itself (it may have an error of its own to report).
    """

    def __init__(self, grace: Positive = 10.0) -> None:
        check_arguments("Lifeline", Lifeline.__init__, locals())
        self.grace = grace
        self.lines: list[socket.socket] = []
        self.is_first = True
        self.broken = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Connect every rank to rank 0, and watch."""
        if trainer.world_size == 1:
            return
        self.is_first = trainer.is_global_zero
        if (listener := interrupt.current()) is not None and not self.is_first:
            listener.grace = interrupt.GRACE + 2  # it goes after rank 0
        server = socket.create_server(("", 0)) if trainer.is_global_zero else None
        invitation = (server.getsockname()[1], secrets.token_bytes(TOKEN_BYTES)) if server else (0, b"")
        port, token = trainer.strategy.broadcast(invitation)
        if server is not None:
            self.lines = _accept(server, token, trainer.world_size - 1)
        else:
            cluster = trainer.strategy.cluster_environment  # type: ignore[attr-defined]  # all of several processes have it
            self.lines = [_connect((cluster.main_address, port), token)]
        threading.Thread(target=self._watch, args=(list(self.lines),), daemon=True, name="lifeline").start()

    def pass_on(self, number: int) -> None:
        """Tell the others of a signal; rank 0 saves and goes first: when a child ends, Lightning kills its parent."""
        for line in self.lines:
            with contextlib.suppress(OSError):
                line.sendall(bytes([number]))
        if self.lines and not self.is_first:
            self.broken.wait()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A collective that failed because a process has gone is no bug of this one."""
        ours = isinstance(exception, UserError) or not isinstance(exception, RuntimeError)
        if self.lines and not ours and self.broken.wait(timeout=2):
            last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            raise UserError(f"{ENDED}; resolve what ended it, and resume with --ckpt_path {last}") from exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The work is done: say goodbye. Lightning does not come here after an error."""
        for line in self.lines:
            try:
                line.sendall(GOODBYE)
                line.shutdown(socket.SHUT_WR)
            except OSError:  # the other side has said goodbye and gone
                pass
        self.lines = []

    def _watch(self, lines: list[socket.socket]) -> None:
        with selectors.DefaultSelector() as selector:
            for line in lines:
                selector.register(line, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    said = _read(cast(socket.socket, key.fileobj), len(GOODBYE))
                    if said in (GOODBYE, b""):
                        selector.unregister(key.fileobj)
                    if not said:
                        self._end()
                    elif said != GOODBYE and (listener := interrupt.current()) is not None:
                        listener.deliver(said[0])

    def _end(self) -> None:
        self.broken.set()
        time.sleep(self.grace)
        print(f"transformer2: {ENDED}", file=sys.stderr)
        os._exit(1)


def _accept(server: socket.socket, token: bytes, count: int) -> list[socket.socket]:
    """Lines to `count` processes that know the token."""
    server.settimeout(CONNECT_SECONDS)
    lines: list[socket.socket] = []
    with server:
        while len(lines) < count:
            line, _ = server.accept()
            line.settimeout(CONNECT_SECONDS)
            if _read(line, TOKEN_BYTES) == token:
                line.settimeout(None)
                lines.append(line)
    return lines


def _connect(address: tuple[str, int], token: bytes) -> socket.socket:
    line = socket.create_connection(address, timeout=CONNECT_SECONDS)
    line.sendall(token)
    line.settimeout(None)
    return line


def _read(line: socket.socket, count: int) -> bytes:
    """Up to `count` bytes; fewer where the other side is gone."""
    data = b""
    try:
        while len(data) < count and (part := line.recv(count - len(data))):
            data += part
    except OSError:  # reset: gone all the same
        pass
    return data
