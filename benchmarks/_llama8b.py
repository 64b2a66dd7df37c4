"""Random-weight models of Llama-3-8B's shape, made where they run: no checkpoint, no decomposition, no host copy.

`svf_policy` gives every tuned matrix of a size the same random orthogonal P instead of decomposing 96 matrices.
W P P^T is W for any orthogonal P, so the forms agree as they do with the real one, and neither seconds nor bytes depend
on its values; every layer holds a copy of its own. For the same reason `random_factors` gives the reference algorithm U
and V^T with orthonormal columns and rows, and one sigma, at which W' has the spread of W.

At toy size (`--toy`) the same code runs a model of two narrow layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from _common import DEVICE
from _models import MLP, rollouts
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from transformer2.plan.shape import KNOWN
from transformer2.policy import build_policy
from transformer2.svf.basis import Basis
from transformer2.svf.config import SVFConfig
from transformer2.svf.layer import SVFLayer
from transformer2.svf.targets import find_targets
from transformer2.types import Rollouts

__all__ = ["DTYPE", "HIDDEN", "INTERMEDIATE", "NEVER", "llama_config", "model", "num_layers", "random_factors",
           "svf_policy", "training_batch"]  # fmt: skip

DTYPE = torch.bfloat16
NEVER = 10**6  # a token id that no model has: completions run to their budget
HIDDEN, INTERMEDIATE = 4096, 14336
WHOLE_MODEL_GIB = 72  # of GPU memory for the 32 layers of every part; smaller cards get a share of the layers

_TOY = {"hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}


def num_layers(toy: bool, of: int = 32) -> int:
    """Decoder layers: `of` on a card of 80 GB, in proportion on a smaller one."""
    if toy:
        return 2
    if DEVICE.type != "cuda":
        return of
    gib = torch.cuda.get_device_properties(DEVICE).total_memory / 2**30
    return of if gib >= WHOLE_MODEL_GIB else max(1, int(of * gib / WHOLE_MODEL_GIB))


def llama_config(layers: int, toy: bool) -> dict[str, Any]:
    """A config.json of so many layers of Llama-3-8B."""
    config = KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"] | {"num_hidden_layers": layers}
    return config | ({**_TOY, "vocab_size": 512} if toy else {})


def model(layers: int, toy: bool, seed: int = 0) -> PreTrainedModel:
    """Such a model in bf16, frozen, its weights drawn on the device."""
    torch.manual_seed(seed)  # of every device
    config = llama_config(layers, toy)
    config.pop("model_type")
    with DEVICE:
        made = AutoModelForCausalLM.from_config(LlamaConfig(**config, pad_token_id=0, eos_token_id=None), dtype=DTYPE)
    return made.requires_grad_(False).eval()


def training_batch(toy: bool) -> Rollouts:
    """Completions of one length: 8 rows of 256 + 256 tokens."""
    return rollouts(*((2, 8, 24) if toy else (8, 256, 256)), llama_config(1, toy)["vocab_size"])


def svf_policy(base: PreTrainedModel, form: str = "delta") -> Any:
    """The base with SVF on its MLP, as `build_policy` makes it, on random orthogonal bases. Changes `base`."""
    config = SVFConfig(target_modules=list(MLP), form=form, basis_cache="off")  # type: ignore[arg-type]
    basis: Basis | None = None
    for name in find_targets(base, config):
        parent, _, leaf = name.rpartition(".")
        linear = base.get_submodule(name)
        m, n = linear.weight.shape
        if basis is None or basis.sigma_R.numel() != min(m, n):
            basis = _orthogonal(min(m, n))
        setattr(base.get_submodule(parent), leaf, SVFLayer(linear, "default", config, basis))
    with warnings.catch_warnings():
        # PEFT takes layers that are there already for an adapter of before.
        warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT for a second time")
        return build_policy(base, config)


def _orthogonal(r: int) -> Basis:
    q_RR = torch.linalg.qr(torch.randn(r, r, device=DEVICE))[0]
    return Basis("in", q_RR, torch.ones(r, device=DEVICE))


def random_factors() -> Callable[[nn.Linear], tuple[Tensor, Tensor, Tensor]]:
    """A function that gives U (m, r), sigma (r,) and V^T (r, n) for a layer, fp32, the same for layers of one shape."""
    made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def factors(linear: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
        m, n = linear.weight.shape
        r = min(m, n)
        if (m, n) not in made:
            u_mR, v_nR = (torch.linalg.qr(torch.randn(size, r, device=DEVICE))[0] for size in (m, n))
            made[m, n] = (u_mR, v_nR.T)
        sigma = linear.weight.std().float() * max(m, n) ** 0.5
        return made[m, n][0], sigma.expand(r).clone(), made[m, n][1]

    return factors
