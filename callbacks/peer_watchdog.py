"""When one process of a run dies, the others end too, within seconds.

A process that waits in a collective for a dead one would wait for the collective's timeout (ten minutes and more with
NCCL), and Lightning's own launcher watches its children only, not its parent. So every process holds one TCP connection
to rank 0. The kernel closes the connections of a process however it ends: a process whose connection closes without
the FINISHED message ends as well, which closes the next one. There is no heartbeat, so a slow process is never mistaken
for a dead one. A signal that one process received is forwarded over the same connections.
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

from transformer2.callbacks import interrupt
from transformer2.errors import UserError
from transformer2.files import LAST

ENDED = "another process of this run has ended"
CONNECT_SECONDS = 60
GRACE = 10.0  # seconds that this process has to end by itself (it may have its own error to report)
FINISHED = b"\xff"  # any other byte is the number of a signal
TOKEN_BYTES = 16  # whoever connects must know it: a port scanner that hangs up is not a rank that died


class PeerWatchdog(L.Callback):
    """Watches the other processes while a trainer runs; does nothing in a run of one process."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self.is_first = True
        self.peer_lost = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Connect every rank to rank 0, and watch."""
        if trainer.world_size == 1:
            return
        self.is_first = trainer.is_global_zero
        if (listener := interrupt.current()) is not None and not self.is_first:
            listener.grace = interrupt.GRACE + 2  # it goes after rank 0
        server = socket.create_server(("", 0)) if trainer.is_global_zero else None
        address = (server.getsockname()[1], secrets.token_bytes(TOKEN_BYTES)) if server else (0, b"")
        port, token = trainer.strategy.broadcast(address)
        if server is not None:
            self.connections = _accept(server, token, trainer.world_size - 1)
        else:
            cluster = trainer.strategy.cluster_environment  # type: ignore[attr-defined]  # all of several processes have it
            connection = socket.create_connection((cluster.main_address, port), timeout=CONNECT_SECONDS)
            connection.sendall(token)
            connection.settimeout(None)
            self.connections = [connection]
        threading.Thread(target=self._watch, args=(list(self.connections),), daemon=True, name="peer watchdog").start()

    def forward_signal(self, number: int) -> None:
        """Forward a signal; rank 0 saves and goes first, since Lightning kills the parent of a child that ends."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.sendall(bytes([number]))
        if self.connections and not self.is_first:
            self.peer_lost.wait()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A collective that failed because a process has gone is not a bug of this one."""
        ours = isinstance(exception, UserError) or not isinstance(exception, RuntimeError)
        if self.connections and not ours and self.peer_lost.wait(timeout=2):
            last = Path(trainer.default_root_dir) / LAST
            again = f", and resume with --ckpt_path {last}" if last.exists() else ""
            raise UserError(f"{ENDED}; resolve what ended it{again}") from exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell the others that this process is done. Lightning does not call it after an error."""
        for connection in self.connections:
            try:
                connection.sendall(FINISHED)
                connection.shutdown(socket.SHUT_WR)
            except OSError:  # the other side has finished already
                pass
        self.connections = []

    def _watch(self, connections: list[socket.socket]) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in connections:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    message = _read(cast(socket.socket, key.fileobj), len(FINISHED))
                    if message == FINISHED:
                        selector.unregister(key.fileobj)
                    elif not message:
                        self.peer_lost.set()
                        time.sleep(GRACE)
                        print(f"transformer2: {ENDED}", file=sys.stderr)
                        os._exit(1)
                    elif (listener := interrupt.current()) is not None:
                        listener.deliver(message[0])


def _accept(server: socket.socket, token: bytes, count: int) -> list[socket.socket]:
    """Connections to `count` processes that know the token."""
    server.settimeout(CONNECT_SECONDS)
    connections: list[socket.socket] = []
    with server:
        while len(connections) < count:
            connection, _ = server.accept()
            connection.settimeout(CONNECT_SECONDS)
            if _read(connection, TOKEN_BYTES) == token:
                connection.settimeout(None)
                connections.append(connection)
    return connections


def _read(connection: socket.socket, count: int) -> bytes:
    """Up to `count` bytes; fewer where the other side is gone."""
    data = b""
    try:
        while len(data) < count and (part := connection.recv(count - len(data))):
            data += part
    except OSError:  # reset: gone all the same
        pass
    return data
