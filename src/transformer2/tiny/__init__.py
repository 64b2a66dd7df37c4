"""The embedded model: a teaching-size Llama and its world, shipped with the package.

python -m transformer2.tiny.build --out DIR      rebuilds data, tokenizer and weights from nothing
"""

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """Folder of the shipped model, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
    return Path(__file__).parent / "model"
