"""What `ask`, `chat` and `serve` have in common: which base, which experts, and how one is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from transformer2.arguments import written
from transformer2.cli.schema import value_of
from transformer2.cli.values import check_base
from transformer2.errors import ConfigError, nearest, shown
from transformer2.files import check_directory

if TYPE_CHECKING:
    from transformer2.adaptive.model import SelfAdaptive

__all__ = ["MODEL_HELP", "ModelOptions", "number"]

STRATEGIES = get_args(value_of("transformer2.adaptive.first_pass.StrategyName"))  # read, not imported: that takes torch
MODEL_HELP = """\
  --base BASE             tiny (default), smollm2, a folder, a .gguf file, or a Hub id
  --experts LIST          NAME=DIR,NAME=DIR,... (default: those that ship with an embedded base)
  --strategy NAME         how an expert is chosen for a prompt: cls (a classification expert names the kind of request;
                          default where there is one), scores (the likeliest category; default elsewhere), prompt (the
                          base names it)
  --classifier DIR        the classification expert (tiny ships with one)
  --soft                  scores: mix the experts by the probabilities of their categories
  --use NAME              what answers, without a choice: base, an expert's name, or mix:math=0.6,code=0.9
  --dtype DTYPE           of the base: auto (default), float32, bfloat16, float16
  --device DEVICE         cpu, cuda, cuda:N, mps (default: the GPU where there is one)
  --model_kwargs YAML     for from_pretrained of transformers, e.g. '{quantization_config: {load_in_4bit: true}}'
"""
EXPERT_NEEDED = "give an expert folder (fit trains one)"


@dataclass(frozen=True)
class ModelOptions:
    """The model that is asked; checked before anything heavy is imported."""

    base: str
    experts: Mapping[str, str] | None
    strategy: str
    classifier: str | None
    soft: bool
    use: str | None
    dtype: str
    device: str | None
    model_kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, options: Mapping[str, str], switches: set[str]) -> ModelOptions:
        """From flags.

        Raises:
            ConfigError: A value that cannot be meant, with the nearest one; a folder that is not there.
        """
        strategy, soft = options.get("strategy", "auto"), "soft" in switches
        if strategy == "cem":
            raise ConfigError(
                "--strategy cem searches a mixture on rows with answers: run transformer2 adapt or SelfAdaptive.adapt, "
                "then answer with --use mix:NAME=WEIGHT,..."
            )
        if strategy not in STRATEGIES:
            raise ConfigError(
                f"unknown --strategy {strategy!r}{nearest(strategy, STRATEGIES)} Known: {', '.join(STRATEGIES)}"
            )
        check_base(options.get("base", "tiny"), on_disk=True)
        classifier = options.get("classifier")
        if classifier is not None:
            check_directory(classifier, "--classifier", EXPERT_NEEDED, ConfigError)
        return cls(
            options.get("base", "tiny"),
            _experts(options["experts"]) if "experts" in options else None,
            "scores" if soft and strategy == "auto" else strategy,
            classifier,
            soft,
            options.get("use"),
            options.get("dtype", "auto"),
            options.get("device"),
            _mapping("--model_kwargs", options.get("model_kwargs", "{}")),
        )

    def load(self, **options: Any) -> SelfAdaptive:
        """The model; this imports the heavy libraries."""
        from transformer2.adaptive.model import SelfAdaptive
        from transformer2.cli.train import silence_libraries

        silence_libraries(True)
        return SelfAdaptive.from_pretrained(
            self.base,
            self.experts,
            self.strategy,  # type: ignore[arg-type]
            classifier=self.classifier,
            soft=self.soft,
            dtype=self.dtype,
            device=self.device,
            model_kwargs=self.model_kwargs,
            **options,
        )


def number(options: Mapping[str, str], name: str, default: Any, low: float, high: float = float("inf")) -> Any:
    """A flag's number, of the type of `low`.

    Raises:
        ConfigError: None, or one out of range.
    """
    if name not in options:
        return default
    kind = type(low)
    try:
        value = kind(options[name])
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        between = f"from {low} to {high}" if high != float("inf") else f"of at least {low}"
        raise ConfigError(f"--{name} must be a number {between}, not {written(options[name])}")
    return value


def _experts(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in [] if text == "none" else text.split(","):
        name, equals, folder = part.strip().partition("=")
        if not equals or not name or not folder:
            raise ConfigError(f"--experts: {shown(part)} is not NAME=DIR; write math=runs/math/expert,code=...")
        if name in found:
            raise ConfigError(f"--experts names {name!r} twice; give each expert its own name")
        check_directory(folder, f"--experts {name}", EXPERT_NEEDED, ConfigError)
        found[name] = folder
    return found


def _mapping(flag: str, text: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{flag} must be a mapping such as '{{attn_implementation: eager}}', not {shown(text)}")
    return value
