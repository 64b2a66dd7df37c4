"""Experts as adapters of a policy, for as long as they are needed; and the base, z = 1, as one more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peft import PeftModel
from peft.utils import set_peft_model_state_dict

from transformer2.errors import ConfigError
from transformer2.experts import Expert
from transformer2.experts.format import delta_key
from transformer2.svf.config import SVFConfig
from transformer2.svf.fingerprint import warn_of_another_base
from transformer2.svf.layer import tuned_layers

__all__ = ["matrices", "members"]


def matrices(policy: PeftModel) -> list[str]:
    """Paths of the tuned matrices in module order: the axis L of `z_rows`."""
    return list(tuned_layers(policy))


@contextmanager
def members(policy: PeftModel, experts: Sequence[Expert]) -> Iterator[list[str]]:
    """Adapter names of the experts and, last, of the base. They are gone again after any exit; training sees none.

    Args:
        policy: A model with an SVF adapter.
        experts: K experts that fit it.

    Raises:
        ConfigError: The policy has adapters of another kind.
        ExpertError: An expert does not fit the model.
    """
    if not all(isinstance(config, SVFConfig) for config in policy.peft_config.values()):
        raise ConfigError("experts are mixed in SVF models only; set model.adapter.peft_type: SVF")
    warn_of_another_base({e.name: (e.base_fingerprint, e.base_quantisation) for e in experts}, policy)
    names: list[str] = []
    try:
        for k, expert in enumerate(experts):
            _add(policy, f"member_{k}", expert, names)
        with_layers = [m for e in experts for m in e.deltas] or matrices(policy)
        policy.add_adapter("member_base", SVFConfig(target_modules=sorted(set(with_layers)), inference_mode=True))
        names.append("member_base")
        yield list(names)
    finally:
        for name in reversed(names):
            policy.delete_adapter(name)


def _add(policy: PeftModel, name: str, expert: Expert, names: list[str]) -> None:
    config = SVFConfig(target_modules=sorted(expert.deltas), inference_mode=True)
    policy.add_adapter(name, config)
    names.append(name)
    state = {delta_key(m): delta_R for m, delta_R in expert.deltas.items()}
    set_peft_model_state_dict(policy, state, adapter_name=name)
