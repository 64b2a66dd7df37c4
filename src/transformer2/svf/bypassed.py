"""Layers that a model goes past: it reads their weight, or calls what is inside, and never the layer itself.

Nothing of SVF acts there in training, and all of it does once z is merged into the weight, so such layers are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from transformer2.errors import ConfigError
from transformer2.svf.layer import SVFLayer
from transformer2.svf.register import register_after

__all__ = ["check_all_called"]


@contextmanager
def check_all_called(layers: Mapping[str, SVFLayer]) -> Iterator[None]:
    """Watch what a forward pass inside does with these layers. One that it does not meet at all is let be.

    Args:
        layers: By module path.

    Raises:
        ConfigError: At the end, some are bypassed; the message names them and how to leave them out.
    """
    called: set[str] = set()
    entered: set[str] = set()
    hooks = []
    for name, layer in layers.items():
        layer.weight_was_read = False
        hooks.append(layer.register_forward_pre_hook(lambda module, args, name=name: called.add(name)))
        hooks.append(layer.base_layer.register_forward_pre_hook(lambda module, args, name=name: entered.add(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    bypassed = [
        name for name, layer in layers.items() if name not in called and (layer.weight_was_read or name in entered)
    ]
    if bypassed:
        leaves = sorted({name.rpartition(".")[2] for name in bypassed})
        raise ConfigError(
            f"this model uses the weight of {bypassed[0]} without calling it ({len(bypassed)} such layers), so z would "
            f"do nothing there in training; leave them out with exclude_modules={leaves}"
        )


register_after(__name__)
