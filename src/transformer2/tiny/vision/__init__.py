"""The embedded vision model: a teaching-size LLaVA-NeXT and its pictures, shipped with the package.

python -m transformer2.tiny.vision.build --out DIR       rebuilds pictures, processor and weights
"""

from pathlib import Path

__all__ = ["vision_model_path"]


def vision_model_path() -> Path:
    """Folder of the shipped model, for `AutoModelForImageTextToText.from_pretrained` and `AutoProcessor`."""
    return Path(__file__).parent / "model"
