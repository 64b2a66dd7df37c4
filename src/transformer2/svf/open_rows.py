"""Which z every row of the batch has, for the code that runs inside `rows.z_rows`."""

from __future__ import annotations

import threading
import warnings
from contextvars import ContextVar
from typing import Any, ClassVar

from torch import Tensor, nn

from transformer2.errors import UserError

__all__ = ["Rows"]


class Rows:
    """A context manager: inside, layers find their z - 1 of every row, (B, r), with `Rows.of`.

    Each thread and each asyncio task sees its own, as with torch.no_grad().
    """

    _of_this_code: ContextVar[tuple[Rows, ...]] = ContextVar("svf_rows", default=())
    everywhere: ClassVar[set[Rows]] = set()  # all that are open

    def __init__(self, deltas: dict[Any, Tensor]):
        self.deltas, self.thread = deltas, threading.get_ident()

    def __enter__(self) -> Rows:
        self.everywhere.add(self)
        self._of_this_code.set((*self._of_this_code.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        mine = self._of_this_code.get()
        self.everywhere.discard(self)
        self._of_this_code.set(tuple(rows for rows in mine if rows is not self))
        if mine[-1:] != (self,):
            raise UserError(
                "z_rows was left in another order, thread or task than it was entered (a generator that was suspended "
                "inside?), so rows ran under z that are not theirs; leave it before you yield"
            )

    @classmethod
    def of(cls, layer: nn.Module) -> Tensor | None:
        """The layer's rows in this code; None outside `z_rows`."""
        for rows in reversed(cls._of_this_code.get()):
            if layer in rows.deltas and rows in cls.everywhere:
                return rows.deltas[layer]
        if any(rows.thread != threading.get_ident() for rows in cls.open_anywhere(layer)):
            warnings.warn(
                "z_rows is open in another thread and not in this one, which runs under the active adapter; a thread "
                "opens z_rows itself, or passes adapter_names",
                stacklevel=2,
            )
        return None

    @classmethod
    def open_anywhere(cls, layer: nn.Module) -> list[Rows]:
        """All that are open for this layer, in whatever thread."""
        return [rows for rows in tuple(cls.everywhere) if layer in rows.deltas]
