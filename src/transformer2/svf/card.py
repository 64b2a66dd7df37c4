"""The README.md of an expert folder: what it is, what it was trained on, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer2.errors import shown
from transformer2.svf.base_folder import is_local

__all__ = ["write_card"]

_BEGIN, _END = "<!-- transformer2: begin -->", "<!-- transformer2: end -->"

_SECTION = """{begin}
# SVF expert{title}

One scale z per singular value of each tuned weight matrix: W' = U diag(sigma z) V^T
([Transformer-Squared](https://arxiv.org/abs/2501.06252)). The file holds z - 1, so zeros are the base model.

| | |
|---|---|
{rows}

```python
{more}import transformer2  # first: it makes PEFT know SVF (KeyError: 'SVF' without it)
from peft import {imports}
from transformers import AutoModelForCausalLM

folder = "path/to/this/folder"
base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, folder)
```
{end}"""

# A folder of the machine it was trained on is nobody else's business: the config has it, the card does not.
_FROM_CONFIG = "Path(PeftConfig.from_pretrained(folder).base_model_name_or_path).expanduser()"


def write_card(folder: Path, config: Mapping[str, Any]) -> None:
    """Write or refresh our section of README.md.

    PEFT's empty template is replaced; a card that somebody wrote is kept, with the section in place or at its end.

    Args:
        folder: The expert folder.
        config: The saved adapter_config.json.
    """
    score, given, revision = config.get("score"), config.get("base_model_name_or_path"), config.get("revision")
    local = given is None or is_local(str(given))
    facts = {
        "base model": f"{Path(str(given)).name} (a local folder)" if given and local else given,
        "base revision": revision,
        "base fingerprint": config.get("base_fingerprint"),
        "base quantised as": config.get("base_quantisation"),
        "task": config.get("task"),
        "step": config.get("step"),
        "validation accuracy": None if score is None else f"{100 * score:.1f} %",
        "tuned": _words(config.get("target_modules")),
        "layers": _words(config.get("layers_to_transform")),
        "trained as": config.get("trained_parametrization"),
        "sha256": config.get("sha256"),
    }
    section = _SECTION.format(
        begin=_BEGIN,
        end=_END,
        title=f": {shown(config['task'])}" if config.get("task") else "",
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None),
        more="from pathlib import Path\n\n" if given and local else "",
        imports="PeftConfig, PeftModel" if given and local else "PeftModel",
        base=_code(None if given is None else str(given), revision, local),
    )
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    header = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    if header and given:  # PEFT names the folder that the base was loaded from
        text = _public_header(header.group(0), str(given), local) + text[header.end() :]
    if _BEGIN in text and _END in text:
        head, rest = text.split(_BEGIN, 1)
        text = head + section + rest.split(_END, 1)[1]
    elif "[More Information Needed]" in text or not text.strip():
        header = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
        text = (header.group(0) + "\n" if header else "") + section + "\n"
    else:
        text = text.rstrip() + "\n\n" + section + "\n"
    file.write_text(text, encoding="utf-8")


def _code(base: str | None, revision: str | None, local: bool) -> str:
    """The arguments of `from_pretrained` that find the base."""
    if base is None:
        return '"path/to/the/base/model"'
    if local:
        return _FROM_CONFIG
    where = "transformer2.tiny.model_path()" if base == "tiny" else ascii(base)
    return where + (f", revision={revision!a}" if revision else "")


def _public_header(header: str, base: str, local: bool) -> str:
    """PEFT's metadata without paths: the Hub id where the base has one."""
    lines = [line for line in header.splitlines() if not line.startswith(("base_model:", "- base_model:adapter:"))]
    if not local and base != "tiny":
        lines.insert(1, f"base_model: {json.dumps(base)}")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return shown(value, 400).replace("|", "\\|")


def _words(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value[:8]) + (f", ... ({len(value)})" if len(value) > 8 else "")
    return None if value is None else str(value)
