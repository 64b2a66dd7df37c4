"""Experts as adapters of a policy, for as long as they are needed; and the base, z = 1, as one more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from peft import PeftModel
from peft.utils import set_peft_model_state_dict

from transformer2.errors import ConfigError
from transformer2.experts import Expert
from transformer2.svf.config import SVFConfig
from transformer2.svf.fingerprint import warn_of_another_base
from transformer2.svf.format import delta_key
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

    def add(name: str, modules: Iterable[str]) -> None:
        policy.add_adapter(name, SVFConfig(target_modules=sorted(modules), inference_mode=True))
        names.append(name)

    try:
        for k, expert in enumerate(experts):
            add(f"member_{k}", expert.deltas)
            state = {delta_key(m): delta_R for m, delta_R in expert.deltas.items()}
            set_peft_model_state_dict(policy, state, adapter_name=names[-1])
        add("member_base", {m for e in experts for m in e.deltas} or matrices(policy))
        yield list(names)
    finally:
        for name in reversed(names):
            policy.delete_adapter(name)
