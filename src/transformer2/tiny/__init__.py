"""The embedded models, shipped with the package: a teaching-size Llama, a teaching-size LLaVA-NeXT, and their worlds.

python -m transformer2.tiny.build --out DIR              rebuilds data, tokenizer and weights from nothing
python -m transformer2.tiny.build --seed 1 --out DIR     rebuilds the second one, model_b: same world, other weights
python -m transformer2.tiny.vision.build --out DIR       rebuilds pictures, processor and weights on top of them
python -m transformer2.tiny.train_experts --out DIR      trains the shipped experts again
"""

from pathlib import Path

__all__ = [
    "CLASSIFIER",
    "EXPERTS",
    "VISION_EXPERTS",
    "expert_path",
    "model_b_path",
    "model_path",
    "shipped",
    "vision_model_path",
]

EXPERTS = ("math", "code", "reasoning")
VISION_EXPERTS = ("textvqa", "reasoning")
CLASSIFIER = "dispatch"  # names the category of a request


def model_path() -> Path:
    """Folder of the shipped model, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
    return Path(__file__).parent / "model"


def model_b_path() -> Path:
    """Folder of a second model of the same shape, tokenizer and world, from another seed: its spectra are its own.

    For what one model's z does on another (paper, Tables 5 and 9); no experts ship with it.
    """
    return Path(__file__).parent / "model_b"


def vision_model_path() -> Path:
    """Folder of the shipped vision model, for `AutoModelForImageTextToText` and `AutoProcessor`."""
    return Path(__file__).parent / "vision" / "model"


def expert_path(name: str, vision: bool = False) -> Path:
    """Folder of a shipped expert: one of `EXPERTS` or `CLASSIFIER`, or of the vision model's, `VISION_EXPERTS`."""
    return Path(__file__).parent / ("vision" if vision else "") / "experts" / name


def shipped(base: str) -> list[Path]:
    """Folders of the experts to choose from that ship for a base: "tiny", "tiny_vision"; none for any other."""
    names = {"tiny": EXPERTS, "tiny_vision": VISION_EXPERTS}.get(base, ())
    return [expert_path(name, vision=base == "tiny_vision") for name in names]
