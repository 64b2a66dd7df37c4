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

VERSION = 1  # of these methods; the other side asks for it


class SVFWorker:
    """Methods for vLLM's worker; `self` is the worker."""

    device: torch.device
    get_model: Any
    reload_weights: Any

    def svf_version(self) -> list[int]:
        """What this side speaks."""
        return [VERSION]

    def svf_keep(self, content: str, kind: str) -> None:
        """Keep, in host memory, parameters (their checkpoint names) and bases (`<module>.svf_basis`) for `svf_set`.

        Args:
            content: A safetensors file's path, or its bytes in base64.
            kind: `file` or `data`.
        """
        self._svf("kept").update(_read(content, kind))

    def svf_set(self, content: str, kind: str) -> None:
        """Compose W' = W + W P diag(z - 1) P^T in fp32 for the modules named, and load them with their neighbours.

        Args:
            content: z - 1, fp32 (r,), by module path; as in `svf_keep`.
            kind: See `svf_keep`.
        """
        changed = _read(content, kind)
        self._svf("delta").update(changed)
        self._load(self._composed({name.rpartition(".")[0] for name in changed}))

    def svf_load(self, content: str, kind: str) -> None:
        """Load parameters as they are, by checkpoint name; they come with their neighbours."""
        self._load(iter(_read(content, kind).items()))

    def _svf(self, what: str) -> dict[str, Tensor]:
        return self.__dict__.setdefault(f"svf_{what}", {})

    @torch.no_grad()
    def _composed(self, parents: set[str]) -> Iterator[tuple[str, Tensor]]:
        kept, deltas = self._svf("kept"), self._svf("delta")
        for name, value in kept.items():
            module, _, kind = name.rpartition(".")
            if module.rpartition(".")[0] not in parents or kind == "svf_basis":
                continue
            if kind == "weight" and module in deltas:
                value = _compose(*(t.to(self.device) for t in (value, kept[f"{module}.svf_basis"], deltas[module])))
            yield name, value

    def _load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        # Before vLLM could reload by layer, weights were kept as they were loaded, so that loading again is enough.
        if find_spec("vllm.model_executor.model_loader.reload") is None:
            self.get_model().load_weights(weights)
        else:
            self.reload_weights(weights_iterator=weights)


def _read(content: str, kind: str) -> dict[str, Tensor]:
    return load_file(content) if kind == "file" else load(base64.b64decode(content))


def _compose(weight_mn: Tensor, basis_RR: Tensor, delta_R: Tensor) -> Tensor:
    """W' as transformer2.svf.forms.compose_weight has it: P is on the side of the smaller dimension."""
    weight, basis = weight_mn.float(), basis_RR.float()
    step_RR = (basis * delta_R) @ basis.T
    m, n = weight.shape
    product = torch.addmm(weight, weight, step_RR) if n <= m else torch.addmm(weight, step_RR, weight)
    return product.to(weight_mn.dtype)
