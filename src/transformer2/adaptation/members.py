"""Experts as adapters of a policy, for as long as they are needed; and the base, z = 1, as one more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from torch import Tensor

from transformer2.errors import ConfigError
from transformer2.experts import Expert
from transformer2.svf.config import SVFConfig
from transformer2.svf.fingerprint import warn_of_another_base
from transformer2.svf.format import delta_key
from transformer2.svf.layer import tuned_layers

__all__ = ["add_member", "members"]


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
        for expert in experts:
            names.append(add_member(policy, expert.deltas))
        names.append(
            add_member(policy, {m: None for e in experts for m in e.deltas} or dict.fromkeys(tuned_layers(policy)))
        )
        yield list(names)
    finally:
        for name in reversed(names):
            policy.delete_adapter(name)


def add_member(policy: PeftModel, deltas: Mapping[str, Tensor | None]) -> str:
    """Load z - 1 of some matrices, None for the base's, as an adapter that is not trained; its name.

    Raises:
        ExpertError: It does not fit the model, which is then as before.
    """
    name = next(name for n in count() if (name := f"member_{n}") not in policy.peft_config)
    policy.add_adapter(name, SVFConfig(target_modules=sorted(deltas), inference_mode=True))
    state = {delta_key(m): delta_R for m, delta_R in deltas.items() if delta_R is not None}
    if state:
        try:
            set_peft_model_state_dict(policy, state, adapter_name=name)
        except BaseException:
            policy.delete_adapter(name)
            raise
    return name
