"""What runs inside vLLM's workers: new tuned weights between rollouts, from z alone or as they are.

    PYTHONPATH=<this folder> VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server \
        --worker-extension-cls transformer2_worker.SVFWorker ...

vLLM adds the methods below to its worker and calls them over `/collective_rpc`. It lives in an environment of its own
(it pins other versions of what we use), so this file imports torch, safetensors and vLLM alone.

vLLM fuses neighbours (q, k, v; gate, up) and packs them for its kernels, and a fused weight is loaded whole or not at
all. So whatever is loaded here comes with all parameters of its parent module, which no fusion crosses.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor

VERSION = 2  # of these methods; the other side asks for it


class SVFWorker:
    """Methods for vLLM's worker; `self` is the worker."""

    device: torch.device
    get_model: Any
    reload_weights: Any

    def svf_version(self) -> list[int]:
        """What this side speaks."""
        return [VERSION]

    def svf_start(self) -> None:
        """Forget the run before this one: its z, what it kept, and the weights that follow from them."""
        if self.__dict__.get("svf_changed"):
            self.reload_weights()  # from where they were loaded
        self.svf_kept: dict[str, Tensor] = {}
        self.svf_deltas: dict[str, Tensor] = {}
        self.svf_changed = False

    def svf_keep(self, content: str, kind: str) -> None:
        """Keep, in host memory, parameters (their checkpoint names) and bases for `svf_set`.

        Args:
            content: A safetensors file's path, or its bytes in base64.
            kind: `file` or `data`.
        """
        # Copies: a file is mapped, and would stay in the memory-backed file system for as long as it is read.
        self.svf_kept.update({name: value.clone() for name, value in _read(content, kind).items()})

    def svf_set(self, content: str, kind: str) -> None:
        """Compose W' in fp32 for the modules named, and load it with its neighbours.

        Args:
            content: z - 1, fp32 (r,), by module path; as in `svf_keep`.
            kind: See `svf_keep`.
        """
        changed = _read(content, kind)
        self.svf_deltas.update(changed)
        self._svf_load(self._svf_composed({_parent(module) for module in changed}))

    def svf_load(self, content: str, kind: str) -> None:
        """Load parameters as they are, by checkpoint name; they come with their neighbours."""
        self._svf_load(iter(_read(content, kind).items()))

    @torch.no_grad()
    def _svf_composed(self, parents: set[str]) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.svf_kept.items():
            module, _, kind = name.rpartition(".")
            if _parent(module) not in parents or kind.startswith("svf_"):
                continue
            if kind == "weight" and module in self.svf_deltas:
                value = self._svf_compose(module, value)
            yield name, value

    def _svf_compose(self, module: str, weight: Tensor) -> Tensor:
        """W' as transformer2.svf.forms.compose_weight has it, in the orientation W is stored in."""
        from_right = f"{module}.svf_right" in self.svf_kept
        basis = self.svf_kept[f"{module}.svf_{'right' if from_right else 'left'}"].to(self.device).float()
        step_RR = (basis * self.svf_deltas[module].to(self.device)) @ basis.T
        w = weight.to(self.device).float()
        return (torch.addmm(w, w, step_RR) if from_right else torch.addmm(w, step_RR, w)).to(weight.dtype)

    def _svf_load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self.svf_changed = True
        # Before vLLM could reload by layer, weights were kept as they were loaded, so that loading again is enough.
        if find_spec("vllm.model_executor.model_loader.reload") is None:
            self.get_model().load_weights(weights)
        else:
            self.reload_weights(weights_iterator=weights)


def _read(content: str, kind: str) -> dict[str, Tensor]:
    return load_file(content) if kind == "file" else load(base64.b64decode(content))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
