"""The README.md of an expert folder: what it is, what it was trained on, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
import transformer2  # first: it makes PEFT know SVF (KeyError: 'SVF' without it)
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
{end}"""


def write_card(folder: Path, config: Mapping[str, Any]) -> None:
    """Write or refresh our section of README.md.

    PEFT's empty template is replaced; a card that somebody wrote is kept, with the section in place or at its end.

    Args:
        folder: The expert folder.
        config: The saved adapter_config.json.
    """
    score = config.get("score")
    facts = {
        "base model": config.get("base_model_name_or_path"),
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
        title=f": {config['task']}" if config.get("task") else "",
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items() if value is not None),
        base=config.get("base_model_name_or_path") or "path/to/the/base/model",
    )
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if _BEGIN in text and _END in text:
        head, rest = text.split(_BEGIN, 1)
        text = head + section + rest.split(_END, 1)[1]
    elif "[More Information Needed]" in text or not text.strip():
        header = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
        text = (header.group(0) + "\n" if header else "") + section + "\n"
    else:
        text = text.rstrip() + "\n\n" + section + "\n"
    file.write_text(text, encoding="utf-8")


def _words(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value[:8]) + (f", ... ({len(value)})" if len(value) > 8 else "")
    return None if value is None else str(value).replace("|", "\\|")
