"""What is sent to a sampler that keeps its own weights: z, or the weights that follow from it, module by module.

Names are the modules' paths in the base model; a model whose checkpoint calls them otherwise is refused by the server's
loader. Weights are in the orientation they are stored in (GPT-2's Conv1D stores W^T).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transformer2.svf.forms import compose_weight
from transformer2.svf.layer import SVFLayer

__all__ = ["active_deltas", "composed", "weights_and_bases"]


def active_deltas(layers: Mapping[str, SVFLayer]) -> dict[str, Tensor]:
    """z - 1, fp32 (r,) on the CPU, that each layer runs under; 0 where adapters are off."""
    active = {name: () if layer.disable_adapters else layer.active_adapters for name, layer in layers.items()}
    deltas = [layer.detached_delta(active[name]) for name, layer in layers.items()]
    whole = torch.cat([d.to(deltas[-1].device) for d in deltas]).cpu()  # one transfer
    return dict(zip(layers, whole.split([len(d) for d in deltas]), strict=True))


def weights_and_bases(policy: Any, layers: Mapping[str, SVFLayer], wanted: bool) -> Iterator[dict[str, Tensor]]:
    """W and P of tuned modules with the parameters of their neighbours, on the CPU, one parent module at a time.

    P is called `<module>.svf_right` where W' = W + W P diag(d) P^T in the stored orientation, `<module>.svf_left` where
    W' = W + P diag(d) P^T W.

    Args:
        policy: The model.
        layers: See `tuned_layers`.
        wanted: Whether this process needs them; if not it only takes part in gathering shards.
    """
    for parent, parameters in _neighbours(policy, layers):
        bases = {
            f"{name}.svf_{_side(layer)}": layer.svf_basis for name, layer in layers.items() if _parent(name) == parent
        }
        with _gathered([*parameters.values(), *bases.values()]):
            if wanted:
                yield {name: p.detach().to("cpu", copy=True) for name, p in (parameters | bases).items()}


def composed(
    policy: Any, layers: Mapping[str, SVFLayer], deltas: Mapping[str, Tensor], changed: Iterable[str]
) -> Iterator[dict[str, Tensor]]:
    """W' of changed modules with the parameters of their neighbours, one parent module at a time."""
    for parent, parameters in _neighbours(policy, changed):
        values = {name: p.detach() for name, p in parameters.items()}
        for name, layer in layers.items():
            if _parent(name) == parent:
                delta_R = deltas[name].to(layer.svf_basis.device)
                weight_mn = compose_weight(layer.weight_mn(), layer.svf_basis, delta_R, layer.side)
                values[f"{name}.weight"] = weight_mn.T if isinstance(layer.base_layer, Conv1D) else weight_mn
        yield values


def _neighbours(policy: Any, modules: Iterable[str]) -> Iterator[tuple[str, dict[str, nn.Parameter]]]:
    """For each parent of these modules, the parameters of all its children by checkpoint name, without adapters'."""
    base = policy.get_base_model()
    for parent in dict.fromkeys(map(_parent, modules)):
        named = base.get_submodule(parent).named_parameters(prefix=parent)
        own = ((name.replace(".base_layer.", "."), p) for name, p in named if ".svf_" not in name)
        yield parent, {name: p for name, p in own if _parent(_parent(name)) == parent}


def _side(layer: SVFLayer) -> Literal["right", "left"]:
    return "right" if (layer.side == "in") != isinstance(layer.base_layer, Conv1D) else "left"


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


@contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, parameters that DeepSpeed shards are whole on every rank."""
    shards = [p for p in parameters if hasattr(p, "ds_status") and p.ds_status.name != "AVAILABLE"]
    if not shards:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(shards):
        yield
