"""Experts of the reference implementation (SakanaAI/self-adaptive-llms) as ours.

Its files hold p, one vector per MLP weight in bf16, and its layer composes
W' = U diag(sigma m) V^T sum(sigma) / sum(sigma m) with m = sigmoid(p); as a plain SVF expert that is

    z = m sum(sigma) / sum(sigma m).

Two layouts exist: `learnable_params*.pt`, a dict of weight name -> p, and `policy_params*.pt`, a state dict of a
ParameterList, `learnable_params_module_list.<i>`, whose order is that of the base model's MLP weights. Departure: m is
computed in fp32; the reference rounds it to bf16, which moves z by up to 2e-3.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transformer2.errors import ExpertError
from transformer2.experts.folder import Expert
from transformer2.svf.format import plain_name
from transformer2.svf.scales import renorm_decode

__all__ = ["import_reference_checkpoint"]

_POSITION = re.compile(r"learnable_params_module_list\.(\d+)")


def import_reference_checkpoint(
    path: str | Path,
    base: str | Path,
    cache_dir: str | Path | None = None,
    name: str | None = None,
    task: str | None = None,
    progress: bool = True,
) -> Expert:
    """Read a .pt file of the reference implementation. It is unpickled with `weights_only=True`: no code is run.

    The singular values of the base model are needed; they come from the basis cache, which is filled on the way.

    Args:
        path: `learnable_params*.pt` or `policy_params*.pt`.
        base: The base model it was trained on: a local folder, a Hub id, or "tiny".
        cache_dir: Root of the basis cache; None means the default one.
        name: Name of the expert; None takes the file's name.
        task: Task it was trained on; the file does not say.
        progress: Show a bar while bases are computed.

    Returns:
        The expert, in memory; `save_expert` writes it.

    Raises:
        ExpertError: An unreadable file, another layout, or vectors that do not fit the base model.
        UserError: See `svf.decompose`.
    """
    # transformers and peft load in seconds; reading and mixing experts does without them.
    from transformer2.svf.cache import BasisCache
    from transformer2.svf.checkpoint import LocalCheckpoint
    from transformer2.svf.decompose import bases
    from transformer2.svf.fingerprint import fingerprint_checkpoint

    path = Path(path).expanduser()
    checkpoint = LocalCheckpoint.of_base(base)
    params = _named(path, _unpickle(path), checkpoint.skeleton)
    cache, deltas = BasisCache(cache_dir, fingerprint_checkpoint(checkpoint)), {}
    for module, basis in bases(checkpoint, list(params), cache, progress):
        p_R, sigma_R = params[module].float(), basis.sigma_R
        if p_R.shape != sigma_R.shape:
            raise ExpertError(
                f"{path}: {module} has {tuple(p_R.shape)} values, the base model's weight needs "
                f"{tuple(sigma_R.shape)}; give the base model it was trained on"
            )
        deltas[module] = renorm_decode(p_R.double(), sigma_R).nan_to_num(nan=0.0).float()  # W = 0 has no z
    called = name or plain_name(path.stem)
    return Expert(called, task=task, base=str(base), base_fingerprint=cache.fingerprint, deltas=deltas)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ExpertError(f"{path} is missing; give a .pt file of the reference implementation") from None
    except Exception as e:  # a foreign file can trip the unpickler in any way
        first = (str(e).splitlines() or [""])[0][:120]
        raise ExpertError(
            f"{path} is not a plain file of tensors ({type(e).__name__}: {first}); it was not loaded"
        ) from e
    if not isinstance(content, dict) or not content:
        raise ExpertError(f"{path} holds a {type(content).__name__}, not a dict of tensors; give learnable_params.pt")
    return content


def _named(path: Path, content: dict[str, Any], skeleton: nn.Module) -> dict[str, Tensor]:
    """Module path -> p (r,), in the order of the base model."""
    weights = [key for key in skeleton.state_dict() if "mlp" in key]
    if "adaptive_weights" in content:
        raise ExpertError(
            f"{path} is a mixture of the few-shot search; import its experts and mix them with mix_experts"
        )
    params: dict[str, Tensor] = {}
    for key, value in content.items():
        position = _POSITION.fullmatch(str(key))
        if position and len(content) != len(weights):
            raise ExpertError(
                f"{path} has {len(content)} vectors, the base model {len(weights)} MLP weights; give the base "
                "model it was trained on"
            )
        weight = weights[int(position[1])] if position and int(position[1]) < len(weights) else str(key)
        if weight not in weights or not isinstance(value, Tensor) or value.ndim != 1 or not value.is_floating_point():
            raise ExpertError(f"{path}: entry {str(key)[:80]!r} is not a vector for an MLP weight of the base model")
        if not bool(torch.isfinite(value).all()):
            raise ExpertError(f"{path}: entry {str(key)[:80]!r} has non-finite values")
        params[weight] = value.detach()
    return {weight.removesuffix(".weight"): params[weight] for weight in weights if weight in params}
