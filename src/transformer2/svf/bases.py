"""Where the bases of a model's layers come from: its own weights, the files of the unquantised ones, or the cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from transformers import PreTrainedModel

from transformer2.errors import ConfigError
from transformer2.svf.basis import Basis, compute_basis
from transformer2.svf.cache import BasisCache, of_matrix
from transformer2.svf.fingerprint import fingerprint
from transformer2.svf.layer import probe_weight
from transformer2.svf.quantised import quantisation_name, unquantised_checkpoint
from transformer2.svf.register import register_after
from transformer2.svf.targets import features_of

__all__ = ["Bases"]

# From this r on a model's decomposition takes half a minute and goes to the default cache unless the config says
# otherwise.
_CACHED_FROM_R = 512


class Bases:
    """The bases of one model.

    Args:
        model: The base, plain or with SVF layers in place.
        targets: Paths of the modules to tune.
        cache: See `SVFConfig.basis_cache`.

    Attributes:
        dtype: Of P where packed weights do not say it; None where they do.
        cache: None where nothing is cached.

    Raises:
        ConfigError: A weight is off-loaded to the CPU or the disk.
    """

    def __init__(self, model: nn.Module, targets: Sequence[str], cache: str | None) -> None:
        for name in targets if getattr(model, "hf_device_map", None) else ():
            if any(p.is_meta for p in model.get_submodule(name).parameters()):
                raise ConfigError(
                    f"device_map off-loads {name}, and SVF tunes weights where they are; load the base without a "
                    "device_map, or quantised"
                )
        quantisation = quantisation_name(model)
        self.dtype = None if quantisation is None else cast(PreTrainedModel, model).dtype
        self._checkpoint = unquantised_checkpoint(model)
        if quantisation is not None and self._checkpoint is None:
            warnings.warn(
                f"the unquantised weights of this {quantisation} base are not to be had as plain files, so its bases "
                "are those of the quantised weights: experts of the unquantised model fit it in part only "
                "(docs/quantised.md)",
                stacklevel=2,
            )
        if cache is None:
            sizes = [features_of(model.get_submodule(name)) for name in targets]
            if max((min(size) for size in sizes if size), default=0) < _CACHED_FROM_R:
                cache = "off"
        self.cache = None if cache == "off" else BasisCache(cache, fingerprint(model))

    def of(self, name: str, layer: nn.Module) -> Basis | None:
        """The basis of a layer's weight; None where that has no values yet (meta device) and none is cached.

        Raises:
            BasisError: The weight has none; the message names the layer.
        """
        if self.cache is None and any(p.is_meta for p in layer.parameters()):
            return None

        def weight() -> Tensor:
            if self._checkpoint is None:
                return probe_weight(layer)
            return self._checkpoint.matrix(name).to(next(layer.parameters()).device)

        with gather_params_ctx(list(layer.parameters()), modifier_rank=None):
            return self.cache.get(name, weight) if self.cache else of_matrix(name, lambda: compute_basis(weight()))


register_after(__name__)
