"""`export`: base and experts as one model, for programs that know no experts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformer2.arguments import check_weights, written
from transformer2.cli.check import check
from transformer2.cli.compose import Flags, compose, flags_of
from transformer2.cli.keys import KEYS
from transformer2.cli.train import silence_libraries, take_from_expert, warn_of_unread
from transformer2.cli.values import one_of
from transformer2.errors import ConfigError, shown
from transformer2.svf.gguf_base import gguf_file, names_gguf

CONVERT = (
    "export with --format hf and convert that folder: python llama.cpp/convert_hf_to_gguf.py DIR --outfile FILE.gguf"
)

HELP = """\
usage: transformer2 export --expert DIR --out DIR [--model.base BASE] [--model.dtype DTYPE]
       transformer2 export --expert DIR --out FILE.gguf --format gguf [--gguf_type F16|Q8_0]
       transformer2 export --expert DIR --expert DIR2 --weights 0.6,0.9 ...

Write base and expert as one plain model: weights with z composed into them in fp32, tokenizer, chat template, and the
processor of a base that takes pictures.
  hf      a model folder, for whatever reads those, e.g.
          lm_eval --model hf --model_args pretrained=DIR --tasks gsm8k --apply_chat_template
  gguf    a GGUF file, for llama.cpp and what is built on it; the base must be one (a file, or smollm2)

  --expert DIR ...        an expert folder, of SVF or (hf) any of PEFT's methods that merge; several with --weights
  --weights W,W           one weight per --expert: z = 1 + sum w (z - 1)
  --out PATH              hf: a new or empty folder; gguf: a new file
  --format hf|gguf        default hf
  --gguf_type F16|Q8_0    how merged matrices are stored (default F16); all others stay as they are in the base
  --model.base BASE       tiny, smollm2, a folder, a GGUF file, or a Hub id (default: the expert's own)
  --model.dtype DTYPE     dtype of the weights (default: as stored); gguf: the one the expert was trained in
  --model.KEY VALUE       as for fit, e.g. --model.model_kwargs '{revision: v1}'
  --quiet                 no progress bar
"""


def export(args: Sequence[str]) -> int:
    """Write base and experts as one model."""
    flags = flags_of(args, HELP, KEYS)
    experts = [Path(folder) for folder in flags.repeated.get("expert", ())]
    if not experts or "out" not in flags.options:
        raise ConfigError("export needs --expert DIR (an expert folder) and --out PATH (a new folder, or FILE.gguf)")
    if missing := next((folder for folder in experts[1:] if not folder.is_dir()), None):
        raise ConfigError(f"--expert {shown(missing)} is no expert folder; give one such as runs/tiny_math/expert")
    out, weights = Path(flags.options["out"]), _weights(flags, len(experts))
    kind, gguf_type = _format(flags, out)
    config = compose(flags.configs, flags.overrides, KEYS)
    take_from_expert(config, "export", experts[0])
    check(config, "export")
    warn_of_unread("export", [key for key, _ in flags.overrides], config)
    model = config["model"]
    if model.get("base") is None:
        raise ConfigError(f"{experts[0]} does not say which base it belongs to; give --model.base")
    base_file = _base_file(model["base"]) if kind == "gguf" else None
    silence_libraries("quiet" in flags.switches)

    from transformer2.experts import mix_folders, read_config
    from transformer2.export import export_merged, new_folder
    from transformer2.export_gguf import export_gguf
    from transformer2.policy import build_policy, expert_adapter, load_base, load_config, load_expert, load_tokenizer
    from transformer2.svf.dtype import stored_dtype

    if base_file is None:
        new_folder(out)
    elif (method := read_config(experts[0])["peft_type"]) != "SVF":
        raise ConfigError(f"{experts[0]} is a {method} adapter, and a GGUF file is written from SVF experts; {CONVERT}")
    options = model.get("model_kwargs") or {}
    with ExitStack() as stack:
        expert = experts[0]
        if weights:
            expert = Path(stack.enter_context(TemporaryDirectory())) / "mixture"
            mix_folders(experts, weights, expert)
        tokenizer = load_tokenizer(model["base"], options)
        dtype = model.get("dtype", "auto")
        if base_file is None and dtype == "auto":
            dtype = str(stored_dtype(load_config(model["base"], options)) or "auto").removeprefix("torch.")
        base = load_base(model["base"], dtype, **options)
        policy = build_policy(base, expert_adapter(expert, model.get("adapter") or {}, base))
        policy.peft_config["default"].base_model_name_or_path = model["base"]
        load_expert(policy, expert)
        if base_file is None:
            done = export_merged(policy, tokenizer, out)
        else:
            done = export_gguf(policy, base_file, out, gguf_type)
    parts = " + ".join(f"{w:g} {e}" for w, e in zip(weights, experts, strict=True)) if weights else str(experts[0])
    print(f"{done}: {model['base']} with {parts} merged into it")
    return 0


def _weights(flags: Flags, experts: int) -> list[float]:
    """One weight per expert; none where there is one expert and nothing was said."""
    text = flags.options.get("weights")
    if text is None:
        if experts > 1:
            raise ConfigError(f"{experts} experts are mixed by weights: --weights {','.join(['0.5'] * experts)}")
        return []
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights takes numbers with commas between them, not {written(text)}") from None
    check_weights(weights, experts)
    return weights


def _format(flags: Flags, out: Path) -> tuple[str, Any]:
    """The format and, of a GGUF file, the type of its merged matrices."""
    kind, gguf_type = flags.options.get("format", "hf"), flags.options.get("gguf_type", "F16")
    one_of("--format", kind, ("hf", "gguf"))
    if kind == "hf":
        if "gguf_type" in flags.options:
            raise ConfigError("--gguf_type is of --format gguf; add that, or leave it out")
        if out.suffix == ".gguf":
            raise ConfigError(f"--out {shown(out)} is named like a file; add --format gguf, or name a folder")
        return kind, None
    one_of("--gguf_type", gguf_type, ("F16", "Q8_0"))
    if out.suffix != ".gguf":
        raise ConfigError(f"--format gguf writes one file; give --out {shown(out)}.gguf")
    if os.path.lexists(out):
        raise ConfigError(f"{shown(out)} exists; name a new file to export to")
    return kind, gguf_type


def _base_file(base: str) -> Path:
    config = Path(base).expanduser() / "config.json"
    if config.is_file() and b'"vision_config"' in config.read_bytes():
        raise ConfigError(
            f"base {shown(base)} takes pictures, and a GGUF file holds a language model alone; {CONVERT}, and once "
            "more with --mmproj for the tower (of the families that llama.cpp knows)"
        )
    if not names_gguf(base):
        raise ConfigError(f"base {shown(base)} is no GGUF file; {CONVERT}")
    return gguf_file(base)
