"""The embedded model: a teaching-size Llama and its world, shipped with the package.

python -m transformer2.tiny.build --out DIR              rebuilds data, tokenizer and weights from nothing
python -m transformer2.tiny.train_experts --out DIR      trains the shipped experts again
"""

from pathlib import Path

__all__ = ["CLASSIFIER", "EXPERTS", "expert_path", "model_path"]

EXPERTS = ("math", "code", "reasoning")
CLASSIFIER = "dispatch"  # names the category of a request


def model_path() -> Path:
    """Folder of the shipped model, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
    return Path(__file__).parent / "model"


def expert_path(name: str) -> Path:
    """Folder of a shipped expert: one of `EXPERTS`, or `CLASSIFIER`."""
    return Path(__file__).parent / "experts" / name
