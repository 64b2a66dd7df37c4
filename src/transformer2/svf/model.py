"""SVFModel: PEFT's tuner for SVF, and what it needs beyond a layer.

    from peft import get_peft_model
    model = get_peft_model(base, transformer2.SVFConfig(target_modules="mlp"))

Departures from PEFT's tuners:

1. An adapter file holds z - 1, fp32, one vector per tuned matrix, and nothing else, whatever the parametrisation; what
   is loaded is checked (names, shapes, finite values) before it is used.
2. The resolved module names live alongside `target_modules`, which stays what the user wrote.
3. Merging checks before it writes, and unmerging restores the original parameters.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK
from peft.utils.peft_types import PeftType, register_peft_method
from torch import Tensor, nn

from transformer2.errors import BasisError, ConfigError, ExpertError, UserError
from transformer2.svf.bases import Bases
from transformer2.svf.config import SVFConfig, tensors_sha256
from transformer2.svf.fingerprint import fingerprint, warn_of_another_base
from transformer2.svf.format import BASE, CONFIG, WEIGHTS, delta_key, mixture_facts, module_path
from transformer2.svf.layer import SVFLayer, svf_layers
from transformer2.svf.mixing import Mix, mix_deltas, mixing_weights
from transformer2.svf.quantised import keep_differentiable, quantisation_name
from transformer2.svf.rows import check_loaded, check_only_z, rows_by_name
from transformer2.svf.scales import DirectScale, RenormScale, renorm_decode, renorm_encode
from transformer2.svf.targets import check_all_called, find_targets, is_excluded

__all__ = ["SVFModel"]

_NARROWING = ("layers_to_transform", "layers_pattern", "exclude_modules")
_SAVED_KEY = re.compile(r"^(?P<layer>.*)\.svf_z\.(?P<adapter>[^.]+)\.(?P<what>delta|logit)$")


class SVFModel(BaseTuner):
    """The tuner that `get_peft_model` builds for an SVFConfig; see peft.tuners.tuners_utils.BaseTuner."""

    prefix = "svf_"
    tuner_layer_cls = SVFLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    # Injection

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's injection; "all-linear" stays "all-linear" in the config."""
        config = self.peft_config[adapter_name]
        requested = config.target_modules
        try:
            if not adapter_name or "." in adapter_name or hasattr(nn.ModuleDict, adapter_name):
                raise ConfigError(
                    f"adapter name {adapter_name!r} is empty, has a dot or is a name of torch's; choose another"
                )
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:
            self._take_out(model, adapter_name)
            raise
        finally:
            config.target_modules = requested

    def _take_out(self, model: nn.Module, adapter_name: str) -> None:
        """Leave nothing of an adapter whose injection failed."""
        self.peft_config.pop(adapter_name, None)
        for name, layer in svf_layers(model):
            if adapter_name in layer.svf_z:
                del layer.svf_z[adapter_name]
            if not layer.svf_z:
                parent, _, leaf = name.rpartition(".")
                self._replace_module(model.get_submodule(parent), leaf, layer.base_layer, layer)

    def _prepare_model(self, peft_config: SVFConfig, model: nn.Module) -> None:
        # The first hook that sees both: everything that can be refused is refused here, before a module is touched.
        targets = find_targets(model, peft_config)
        peft_config._svf_targets = frozenset(targets)
        peft_config._svf_loaded = ("", peft_config.step, peft_config.score)
        if peft_config.base_fingerprint is not None and not any(p.is_meta for p in model.parameters()):
            warn_of_another_base({"the expert": (peft_config.base_fingerprint, peft_config.base_quantisation)}, model)
        keep_differentiable(model)
        self._bases = Bases(model, targets, peft_config.basis_cache)
        self._watched_once = False  # what the model does with its layers
        # Some models have one layer under several names.
        self._places: defaultdict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in model.modules():
            for name, child in module._modules.items():
                if child is not None:
                    self._places[child].append((module, name))

    @staticmethod
    def _check_target_module_exists(config: SVFConfig, key: str) -> bool | _ExcludedModule:
        if is_excluded(key, config):
            return _ExcludedModule()  # falsy; PEFT warns about an exclude_modules that never gives it
        return key in getattr(config, "_svf_targets", ())

    def _create_and_replace(
        self,
        peft_config: SVFConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, SVFLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = SVFLayer(target, adapter_name, peft_config, self._bases.of(current_key, target), self._bases.dtype)
        shard = getattr(next(target.parameters(), None), "convert_to_zero_parameters", None)
        if shard is not None:  # the base is sharded among processes (ZeRO-3): so is its basis, as it is made
            shard([layer.svf_basis])
        if adapter_name not in self.active_adapters:
            layer.svf_z.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # A new SVFLayer is on its base layer's device already, and an unloaded base layer never left it.
        places = self._places.pop(child, [(parent, child_name)])
        for holder, name in places:
            setattr(holder, name, new_module)
        self._places[new_module] = places

    # Forward

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's hook around forward and `generate`: `adapter_names`, see `rows_by_name`."""
        names = kwargs.pop("adapter_names", None)
        with ExitStack() as stack:
            if names is not None:
                stack.enter_context(rows_by_name(self, names, args, kwargs))
            watch = not (self._watched_once or torch.compiler.is_compiling())
            if watch and not any(layer.merged for _, layer in svf_layers(self.model)):
                stack.enter_context(check_all_called(dict(svf_layers(self.model))))
                stack.callback(setattr, self, "_watched_once", True)
            yield

    # Adapter files

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: SVFConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        layers = dict(svf_layers(model))
        # A layer that the model has under several names is saved under the first.
        everywhere = (n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, SVFLayer))
        aliases = set(everywhere) - layers.keys()
        saved: dict[str, Tensor] = {}
        for key, value in state_dict.items():
            match = _SAVED_KEY.match(key)
            if match is None or match["adapter"] != adapter_name or match["layer"] in aliases:
                continue
            if match["what"] == "logit":
                own_R = layers[match["layer"]].svf_sigma  # where the state dict is of trainables only
                sigma_R = cast(Tensor, state_dict.get(f"{match['layer']}.svf_sigma", own_R))
                value = renorm_decode(value.float(), sigma_R)
            saved[f"{match['layer']}.svf_z.{adapter_name}.delta"] = value.detach().float()
        config._svf_gathered = tensors_sha256(saved)
        trained = any(p.requires_grad for layer in layers.values() for p in layer.parameters_of(adapter_name))
        digest, *facts = config._svf_loaded
        if trained and digest != config._svf_gathered and facts == [config.step, config.score]:
            config.step = config.score = None  # said of another z, before it was trained
        # The base is noted once: an expert that was only loaded keeps the one it was trained on.
        if not config.base_fingerprint or (trained and not getattr(config, "_svf_stamped", False)):
            try:
                config.base_fingerprint, config.base_quantisation = fingerprint(model), quantisation_name(model)
                config._svf_stamped = True
            except BasisError as e:  # sharded or on the meta device, from an unknown folder
                warnings.warn(f"the expert is saved without its base model's fingerprint: {e}", stacklevel=2)
        return saved

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SVFConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        layers = {delta_key(module_path(n)): (n, m) for n, m in svf_layers(model) if adapter_name in m.svf_z}
        given = {BASE + module_path(key): key for key in state_dict}
        _check_keys(layers, [key for key in given if ".svf_" in key])
        config._svf_loaded = (tensors_sha256(state_dict), config.step, config.score)
        remapped: dict[str, Tensor] = {}
        for full_key, key in given.items():
            value = state_dict[key]
            if full_key not in layers:  # modules_to_save and the like are PEFT's
                remapped[key] = value
                continue
            name, layer = layers[full_key]
            _check_value(full_key, value, layer.r)
            if adapter_name in layer.merged_adapters:
                raise UserError(f"adapter {adapter_name!r} is merged into the weights; call unmerge_adapter() first")
            if isinstance(layer.svf_z[adapter_name], RenormScale):
                assert layer.svf_sigma is not None
                remapped[f"{name}.svf_z.{adapter_name}.logit"] = renorm_encode(value, layer.svf_sigma)
            else:
                remapped[f"{name}.svf_z.{adapter_name}.delta"] = value
        return remapped

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's, where every name is one of an adapter."""
        check_loaded(self, [adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's; every layer then has the same adapter active, where PEFT takes one of each layer's own."""
        alone = self.active_adapters == [adapter_name]
        super().delete_adapter(adapter_name)
        if alone and self.peft_config:
            self.set_adapter(min(self.peft_config))

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """PEFT's merge, all or nothing: when one layer refuses, those merged by this call are restored."""
        check_loaded(self, adapter_names or [])
        before = {layer for _, layer in svf_layers(self.model) if layer.merged}
        try:
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        except UserError:
            for _, layer in svf_layers(self.model):
                if layer.merged and layer not in before:
                    layer.unmerge()
            raise

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        check_loaded(self, adapter_names or [])
        for name, layer in svf_layers(self.model):
            if not merge:
                layer.unmerge()
                continue
            layer.weight_mn()  # refuses quantised layers before the first one is touched
            delta_R = layer.delta(adapter_names or layer.active_adapters)
            if delta_R is not None and not bool(torch.isfinite(delta_R).all()):
                raise UserError(f"{name}: z has non-finite entries, so it was not merged; the model is unchanged")
        return super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )

    # Mixing

    @torch.no_grad()
    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        mix: Mix = "delta",
        combination_type: str = "linear",
    ) -> None:
        """Make a new adapter out of others. It is not made active.

        Args:
            adapters: Names of K adapters.
            weights: K finite numbers.
            adapter_name: Name of the new one.
            mix: See svf/mixing.py. A matrix that an adapter does not tune counts as z_k = 1.
            combination_type: PEFT's word; z combine linearly, and in no other way.

        Raises:
            UserError: Unknown or taken names, counts that differ, weights beyond -100 to 100 or (normalised) zero-sum.
        """
        if combination_type != "linear":
            raise ConfigError(f"combination_type={combination_type!r} is LoRA's; experts combine as 'linear', see mix")
        unknown = [name for name in adapters if name not in self.peft_config]
        if unknown or adapter_name in self.peft_config:
            problem = f"unknown adapter {unknown[0]!r}" if unknown else f"adapter {adapter_name!r} exists"
            raise UserError(f"{problem}; adapters here: {', '.join(self.peft_config)}")
        mixing_K = mixing_weights(weights, len(adapters), mix)
        configs = [self.peft_config[name] for name in adapters]
        check_only_z(self, adapters, active=False)
        targets = frozenset().union(*(config._svf_targets for config in configs))
        same = all(config._svf_targets == targets for config in configs)
        self.peft_config[adapter_name] = replace(
            configs[0],
            **({} if same else {**dict.fromkeys(_NARROWING), "target_modules": sorted(targets)}),
            parametrization="direct",
            **mixture_facts(configs),
            **dict.fromkeys(("task", "step", "score", "sha256", "config_sha256", "trained_parametrization")),
        )
        self.inject_adapter(self.model, adapter_name)
        for _, layer in svf_layers(self.model):
            if adapter_name in layer.svf_z:
                deltas = [layer.detached_delta([name]) for name in adapters]
                cast(DirectScale, layer.svf_z[adapter_name]).delta.copy_(mix_deltas(mixing_K, deltas, mix))


def _check_keys(expected: Collection[str], given: list[str]) -> None:
    extra = [key for key in given if key not in expected]
    missing = [key for key in expected if key not in given]
    if extra or missing:
        parts = [f"{len(extra)} unknown (first: {extra[0]})"] if extra else []
        parts += [f"{len(missing)} missing (first: {missing[0]})"] if missing else []
        raise ExpertError(
            f"{WEIGHTS} does not fit this model and {CONFIG}: keys {', '.join(parts)}; "
            "is it an expert for another base model?"
        )


def _check_value(key: str, value: Tensor, r: int) -> None:
    if tuple(value.shape) != (r,) or not value.is_floating_point():
        raise ExpertError(
            f"{key} has shape {tuple(value.shape)} and dtype {value.dtype}, this model's weight needs fp32 ({r},): "
            "entry i of z is of the i-th largest singular value, so z moves between equal ranks only (docs/svf.md); "
            "give the base it was trained on, or train on this one"
        )
    if not bool(torch.isfinite(value).all()):
        raise ExpertError(f"{key} has non-finite values; the file is damaged")


if "SVF" not in PEFT_TYPE_TO_TUNER_MAPPING:  # a reloaded module finds itself registered
    register_peft_method(name="svf", config_cls=SVFConfig, model_cls=SVFModel, prefix="svf_")
    # hotswap_adapter copies a file's tensors as they are: z - 1 into z - 1, and not into logits.
    CONFIG_KEYS_TO_CHECK[PeftType("SVF")] = ["parametrization"]
