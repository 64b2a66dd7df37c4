"""Every picture of a split is read before a model is loaded: what is wrong with one must not be found after hours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from transformer2.errors import DataError, shown
from transformer2.pictures import Picture
from transformer2.types import Example

SHOWN_FROM = 2000  # pictures; fewer are read in a moment


def check_pictures(examples: Sequence[Example]) -> None:
    """Decode the pictures of questions, each once, in threads.

    Raises:
        DataError: Some cannot be used: their number, and what is wrong with the first.
    """
    for e in examples:
        if not isinstance(e.images, tuple | list) or not all(isinstance(p, Picture) for p in e.images):
            what = shown(repr(e.images), 60)
            raise DataError(f"{e.id}: images is {what}, which are no pictures; give (PictureFile(PATH),)")
    asked = {picture: example.id for example in reversed(examples) for picture in example.images}
    pictures = list(asked)[::-1]
    with ThreadPoolExecutor(os.cpu_count() or 1) as readers:
        found = readers.map(_fault, pictures)
        bar = tqdm(found, "reading pictures", len(pictures), leave=False, disable=len(pictures) < SHOWN_FROM)
        faults = [f"{asked[p]}: {fault}" for p, fault in zip(pictures, bar, strict=True) if fault is not None]
    if faults:
        more = f" ({len(faults)} of {len(pictures)} pictures cannot be used)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}, or drop the row{more}")


def _fault(picture: Picture) -> DataError | None:
    try:
        picture.check()
    except DataError as e:
        return e
    return None
