"""What `ask`, `chat` and `serve` have in common: which base, which experts, and how one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer2.adaptation import DISPATCHED
from transformer2.arguments import written
from transformer2.cli.compose import Flags, yaml_value
from transformer2.cli.values import check_base, check_model_kwargs, number, one_of
from transformer2.errors import ConfigError, shown
from transformer2.files import check_directory
from transformer2.svf.base_folder import instead

if TYPE_CHECKING:
    from transformer2.adaptive.chat import Chat
    from transformer2.adaptive.model import SelfAdaptive
    from transformer2.adaptive.request import Job

__all__ = ["MODEL_HELP", "SAMPLING_HELP", "load", "model_of", "sampling_of", "start_all"]

SAMPLING_HELP = """\
  --max_new_tokens N      most tokens of an answer (default: 512, or what the model has room for)
  --temperature T         0 (default) is greedy
  --top_p P               nucleus mass (default 1)
  --seed N                of the sampling (default 0)
"""
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


def model_of(flags: Flags, is_final: bool = True) -> dict[str, Any]:
    """The model that the flags describe, as arguments of `SelfAdaptive.from_pretrained`; nothing heavy is imported.

    Args:
        flags: The command's.
        is_final: Whether what answers and the strategy stay as they are given, and so must be used.

    Raises:
        ConfigError: A value that cannot be meant, with the nearest one; a folder that is not there; a flag that chooses
            where nothing is chosen.
    """
    options, soft = flags.options, "soft" in flags.switches
    strategy = options.get("strategy", "auto")
    if strategy == "cem":
        raise ConfigError(
            "--strategy cem searches a mixture on rows with answers: run transformer2 adapt, then answer with the "
            "expert that it saves, --experts NAME=RUN/expert --use NAME; or call SelfAdaptive.adapt"
        )
    one_of("--strategy", strategy, ("auto", *DISPATCHED))
    choosing = [f"--{name}" for name in ("strategy", "soft", "classifier") if name in {*options, *flags.switches}]
    if is_final and choosing and options.get("use", "auto") != "auto":
        raise ConfigError(f"{choosing[0]} says how to choose, and --use leaves no choice; give one of them")
    if is_final and strategy == "prompt" and "classifier" in options:
        raise ConfigError("--classifier is not read by --strategy prompt; leave it out, or choose cls or scores")
    given: dict[str, Any] = {
        name: options[name] for name in ("base", "classifier", "dtype", "device") if name in options
    }
    check_base(given.get("base", "tiny"), on_disk=True)
    if "classifier" in given:
        check_directory(given["classifier"], "--classifier", EXPERT_NEEDED, ConfigError)
    if "experts" in options:
        given["experts"] = _experts(options["experts"])
    if "model_kwargs" in options:
        given["model_kwargs"] = value = yaml_value("model_kwargs", options["model_kwargs"])
        if not isinstance(value, dict):
            wanted = "a mapping such as '{attn_implementation: eager}'"
            raise ConfigError(f"--model_kwargs must be {wanted}, not {written(value)}")
        check_model_kwargs(value, "--model_kwargs ", instead("--"))
    return {**given, "soft": soft, "strategy": "scores" if soft and strategy == "auto" else strategy}


def sampling_of(options: dict[str, str]) -> dict[str, Any]:
    """The flags that say how answers are drawn, as arguments of `SelfAdaptive.start`."""
    return {
        "max_new_tokens": number(options, "max_new_tokens", None, 1),
        "temperature": number(options, "temperature", 0.0, 0.0, 100.0),
        "top_p": number(options, "top_p", 1.0, 1e-9, 1.0),
        "seed": number(options, "seed", 0, 0, 2**63 - 1),
        "stop": [options["stop"]] if "stop" in options else [],
    }


def load(model: dict[str, Any], **options: Any) -> SelfAdaptive:
    """The model of `model_of`; this imports the heavy libraries."""
    from transformer2.adaptive.model import SelfAdaptive
    from transformer2.cli.train import silence_libraries

    silence_libraries(True)
    return SelfAdaptive.from_pretrained(**model, **options)


def start_all(model: SelfAdaptive, chat: Chat | list[Any], uses: Sequence[Any], sampling: dict[str, Any]) -> list[Job]:
    """The answer of each use to a chat, under way.

    Raises:
        UserError: One of them cannot be given; after any error none is under way.
    """
    jobs: list[Job] = []
    try:
        for use in uses:
            jobs.append(model.start(chat, use=use, **sampling))
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    return jobs


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
