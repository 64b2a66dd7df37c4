"""What a base that takes pictures makes of them: their tokens, their features, their positions.

families.py   one small class per model family
tokens.py     token ids that stand for one particular picture, and where they stand in a prompt
embedding.py  hooks on a model: features in the places of those ids; the image id is never sampled nor scored
"""

from transformer2.vision.embedding import BANNED, attach_pictures, pictures_of
from transformer2.vision.families import Family, family_class, load_family
from transformer2.vision.tokens import FIRST, as_image_ids, picture_tokens, pictures_in, positions

__all__ = [
    "BANNED",
    "FIRST",
    "Family",
    "as_image_ids",
    "attach_pictures",
    "family_class",
    "load_family",
    "picture_tokens",
    "pictures_in",
    "pictures_of",
    "positions",
]
