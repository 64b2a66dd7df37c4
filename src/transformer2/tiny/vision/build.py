"""Build the embedded vision model: `python -m transformer2.tiny.vision.build --out DIR`.

Pictures, processor and weights are a function of the seed, of the embedded text model and of the sources (see
`tiny/build.py`).
"""

import sys
from pathlib import Path

from transformer2.tiny import model_path
from transformer2.tiny.build import TEXT, Recipe
from transformer2.tiny.vision.pretrain import Budget, VisionPretraining

_SOURCES = ("pictures.py", "world.py", "processor.py", "rows.py", "tower.py", "pretrain.py", "measure.py", "build.py")
VISION = Recipe(
    module="transformer2.tiny.vision.build",
    pretraining=VisionPretraining,
    budget=Budget(),
    sources=(*TEXT.sources, *(Path(__file__).parent / name for name in _SOURCES), model_path() / "model.safetensors"),
)

if __name__ == "__main__":
    sys.exit(VISION.main())
