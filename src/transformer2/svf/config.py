"""SVFConfig: what is tuned, in which form, and what an expert folder says of itself.

Departures from PEFT's configs: the saved file always describes z - 1 (`parametrization` is "direct" in it, and
`trained_parametrization` keeps how it was trained), names no folder of the machine it was made on, and carries a
sha256 of the weights file next to it, and one of everything else in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from peft.config import PeftConfig
from safetensors.torch import load_file
from torch import Tensor

from transformer2.arguments import NotNegativeInt, fits
from transformer2.errors import ConfigError
from transformer2.svf.card import write_card
from transformer2.svf.format import CONFIG, FORMAT_VERSION, OLD_FORMS, WEIGHTS, checksums
from transformer2.svf.forms import FORMS, Form
from transformer2.svf.register import extend_peft_types, register_after

__all__ = ["PARAMETRIZATIONS", "SVFConfig", "check_form"]

Parametrization = Literal["direct", "sigmoid_renorm"]
PARAMETRIZATIONS: tuple[str, ...] = get_args(Parametrization)

extend_peft_types()


@dataclass
class SVFConfig(PeftConfig):
    """Configuration of singular value fine-tuning.

    Attributes:
        target_modules: "mlp", "attention" or "all-linear" (found by role in any decoder), a list or set of such roles
            and module names, or a string that is a regular expression for full module paths.
        layers_to_transform: Decoder layers to tune, an index or a list; None means all.
        layers_pattern: Name(s) of the module list that holds the decoder layers; needed only where several do.
        form: How z enters the forward pass: "delta", exactly the base at z = 1, or "factored" (see svf/forms.py).
        parametrization: "direct" trains z - 1; "sigmoid_renorm" is the reference code's: p ~ N(0.1, 0.01^2),
            z = sigmoid(p) sum(sigma) / sum(sigma sigmoid(p)).
        basis_cache: Folder of the basis cache. None means the default folder where a decomposition takes long
            (r >= 512), and no folder otherwise; "off" means never. Never saved.
        exclude_modules: Module names, or a regular expression, to leave out.
        modules_to_save: As in PEFT: modules trained and saved whole alongside z.
        task: Name of the task the expert was trained on.
        step: Optimizer step of the saved weights.
        score: Validation accuracy at that step, in [0, 1].
        base_fingerprint: "<arch>:<weights>" of the base model; stamped when the adapter is saved.
        base_quantisation: How the base was quantised in training (`nf4`, `int8`, ...); None means not at all.
        shots: Digests of the few-shot rows it was made with (`data.modules.mark_of`), which it is not scored on.
        protocol: `clean` or `paper`, under which it was made; see `Report`.
        shuffled: The seed by which z was put in another order within each matrix (a control); None means as trained.
        trained_parametrization: How a saved expert was trained.
        expert_format_version: Version of the folder's format.
        sha256: Of adapter_model.safetensors; stamped when the adapter is saved. None where transformers saved it, which
            writes the weights last.
        config_sha256: Of all other fields of adapter_config.json; stamped when the adapter is saved.

    Raises:
        ConfigError: A value that cannot be used; the message names it and the remedy.
    """

    # What peft.utils.hotswap reads off any config, LoRA's or not: here nothing scales z.
    r: ClassVar[int] = 1
    lora_alpha: ClassVar[int] = 1
    use_rslora: ClassVar[bool] = False
    rank_pattern: ClassVar[dict[str, int]] = {}
    alpha_pattern: ClassVar[dict[str, int]] = {}

    target_modules: str | list[str] | set[str] = "mlp"
    layers_to_transform: NotNegativeInt | list[NotNegativeInt] | None = None
    layers_pattern: str | list[str] | None = None
    form: Form = "delta"
    parametrization: Parametrization = "direct"
    basis_cache: str | None = None
    exclude_modules: str | list[str] | set[str] | None = None
    modules_to_save: list[str] | None = None
    task: str | None = None
    step: int | None = None
    score: float | None = None
    base_fingerprint: str | None = None
    base_quantisation: str | None = None
    shots: list[str] | None = field(default=None, repr=False)
    protocol: str | None = None
    shuffled: int | None = None
    trained_parametrization: Parametrization | None = None
    expert_format_version: int = FORMAT_VERSION
    sha256: str | None = field(default=None, repr=False)
    config_sha256: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        from peft.utils.peft_types import PeftType

        self.peft_type = PeftType("SVF")
        self.target_modules = "mlp" if self.target_modules is None else _names("target_modules", self.target_modules)
        if not self.target_modules:
            raise ConfigError("target_modules is empty; give 'mlp', 'attention', 'all-linear' or module names")
        if self.exclude_modules is not None:
            self.exclude_modules = _names("exclude_modules", self.exclude_modules)
        if isinstance(self.modules_to_save, str):  # PEFT would take each letter for a name
            self.modules_to_save = [self.modules_to_save]
        layers = self.layers_to_transform
        if layers is not None and (not fits(NotNegativeInt | list[NotNegativeInt], layers) or layers in ([], ())):
            raise ConfigError(
                f"layers_to_transform={layers!r} must be a layer index or a non-empty list of them (0 is the first)"
            )
        if self.layers_pattern and layers is None:
            raise ConfigError(f"layers_pattern={self.layers_pattern!r} has no effect without layers_to_transform")
        check_form(self.form)
        if self.parametrization not in PARAMETRIZATIONS:
            raise ConfigError(f"parametrization={self.parametrization!r} is not one of {', '.join(PARAMETRIZATIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values; sets become sorted lists, so that a saved file is reproducible."""
        return {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json as an expert folder has it, and complete README.md.

        PEFT writes the weights first, so their sha256 can be stamped here; transformers does so afterwards, and what
        lies there now is not what will.

        Args:
            save_directory: The expert folder.
            **kwargs: Passed to PEFT.
        """
        folder = Path(save_directory)
        weights, gathered = folder / WEIGHTS, self.__dict__.pop("_svf_gathered", None)
        self.sha256 = None
        if weights.is_file() and gathered in (None, tensors_sha256(load_file(weights))):
            self.sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        super().save_pretrained(save_directory, **kwargs)
        file = folder / CONFIG
        saved = checksums(
            json.loads(file.read_text(encoding="utf-8"))
            | {
                "parametrization": "direct",
                "trained_parametrization": self.trained_parametrization or self.parametrization,
                "basis_cache": None,
            }
        )
        file.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_card(folder, saved)


def _names(field: str, value: Any) -> Any:
    """A regular expression, or a list or set of names, checked."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as e:
            raise ConfigError(f"{field}={value!r} is not a regular expression ({e}); give a list of names") from e
        return value
    value = list(value) if isinstance(value, tuple | frozenset) else value
    if not isinstance(value, list | set) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{field}={value!r} must be a string or a list of module names")
    return value


def check_form(form: str) -> None:
    """Raise ConfigError where this is not a form."""
    if form in OLD_FORMS:
        raise ConfigError(
            f"form={form!r} is no longer a form of training; leave it out for 'delta', which is exact (rollouts and "
            "exports merge by themselves)"
        )
    if form not in FORMS:
        raise ConfigError(f"form={form!r} is not one of {', '.join(FORMS)}")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of the z among some tensors, whatever their names and order."""
    parts = sorted(hashlib.sha256(t.numpy(force=True).tobytes()).digest() for k, t in tensors.items() if ".svf_z." in k)
    return hashlib.sha256(b"".join(parts)).hexdigest()


register_after(__name__)
