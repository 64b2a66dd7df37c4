"""The README.md of an expert folder: what it is, what it was trained on, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer2.errors import shown
from transformer2.svf.base_folder import EMBEDDED, NAMES, is_local
from transformer2.svf.gguf_base import SMOLLM2

__all__ = ["facts_of", "write_card"]

_BEGIN, _END = "<!-- transformer2: begin -->", "<!-- transformer2: end -->"

_SECTION = """{begin}
# SVF expert{title}

One scale z per singular value of each tuned weight matrix: W' = U diag(sigma z) V^T
([Transformer-Squared](https://arxiv.org/abs/2501.06252)). The file holds z - 1, so zeros are the base model.

| | |
|---|---|
{rows}

```python
import transformer2  # first: it makes PEFT know SVF (KeyError: 'SVF' without it)
from peft import {imports}
from transformers import {auto}
{more}
folder = "path/to/this/folder"
base = {auto}.from_pretrained({base})
model = PeftModel.from_pretrained(base, folder)
```
{end}"""


def write_card(folder: Path, config: Mapping[str, Any]) -> None:
    """Write or refresh our section of README.md.

    PEFT's empty template is replaced; a card written by hand is kept, with the section in place or at its end.

    Args:
        folder: The expert folder.
        config: The saved adapter_config.json.
    """
    given, revision = config.get("base_model_name_or_path"), config.get("revision")
    base = None if given is None else str(given)
    local = base is not None and is_local(base)
    facts = {
        "base model": f"{Path(str(base)).name} (a local folder)" if local else base,
        **facts_of(config),
        "tuned": _words(config.get("target_modules")),
        "layers": _words(config.get("layers_to_transform")),
        "trained as": config.get("trained_parametrization"),
    }
    if base is None:
        code = '"path/to/the/base/model"'
    elif local:  # a path on this machine: the config has it, the card, which others read, does not
        code = "base_folder(PeftConfig.from_pretrained(folder).base_model_name_or_path)"
    else:
        named = {name: f"transformer2.tiny.{path.__name__}()" for name, path in EMBEDDED.items()}
        named |= {SMOLLM2: f"base_folder({SMOLLM2!a})"}
        code = named.get(str(base), ascii(base))
        code += f", revision={revision!a}" if revision else ""
    section = _SECTION.format(
        begin=_BEGIN,
        end=_END,
        title=f": {shown(config['task'])}" if config.get("task") else "",
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None),
        more="from transformer2.svf.base_folder import base_folder\n" if "base_folder" in code else "",
        imports="PeftConfig, PeftModel" if local else "PeftModel",
        auto="AutoModelForImageTextToText" if _takes_pictures(config) else "AutoModelForCausalLM",
        base=code,
    )
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    header, body = (found[0], text[found.end() :]) if found else ("", text)
    if header and base:
        header = _public_header(header, None if local or base in NAMES else base)
    if _BEGIN in body and _END in body:
        before, rest = body.split(_BEGIN, 1)
        body = before + section + rest.split(_END, 1)[1]
    elif "[More Information Needed]" in body or not body.strip():
        body = ("\n" if header else "") + section + "\n"
    else:
        body = body.rstrip() + "\n\n" + section + "\n"
    file.write_text(header + body, encoding="utf-8")


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a card, or a listing, says of an expert besides its base; None where it is not known."""
    score, shuffled = config.get("score"), config.get("shuffled")
    return {
        "task": config.get("task"),
        "step": config.get("step"),
        "validation accuracy": None if score is None else f"{100 * score:.1f} %",
        "base revision": config.get("revision"),
        "base fingerprint": config.get("base_fingerprint"),
        "base quantised as": config.get("base_quantisation"),
        "shuffled": None if shuffled is None else f"a control: z in another order within each matrix (seed {shuffled})",
        "sha256": config.get("sha256"),
    }


def _takes_pictures(config: Mapping[str, Any]) -> bool:
    """Whether the base is a model of several modalities, by its class or, of a mixture, by the paths of its layers."""
    saved, targets = config.get("auto_mapping"), config.get("target_modules")
    if isinstance(saved, Mapping) and str(saved.get("base_model_class")).endswith("ForConditionalGeneration"):
        return True
    return isinstance(targets, list) and any("language_model." in str(name) for name in targets)


def _public_header(header: str, base: str | None) -> str:
    """PEFT's metadata without the folder that the base was loaded from: its Hub id, if it has one."""
    lines = [line for line in header.splitlines() if not line.startswith(("base_model:", "- base_model:adapter:"))]
    if base is not None:
        lines.insert(1, f"base_model: {json.dumps(base)}")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return shown(value, 400).replace("|", "\\|")


def _words(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value[:8]) + (f", ... ({len(value)})" if len(value) > 8 else "")
    return None if value is None else str(value)
