"""easy-VQA: without its package one line says how to get it; with it, its real rows."""

import importlib.util

import pytest

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.verifiers import verify_all

INSTALLED = importlib.util.find_spec("easy_vqa") is not None


@pytest.mark.skipif(INSTALLED, reason="easy-vqa is installed")
def test_without_the_package_the_command_is_named():
    with pytest.raises(DataError, match="pip install --no-deps easy-vqa"):
        tasks.get("easy_vqa").examples("test")


@pytest.mark.integration
@pytest.mark.skipif(not INSTALLED, reason="needs easy-vqa")
def test_the_real_rows():
    task = tasks.get("easy_vqa")
    train, validation, test = (task.examples(split) for split in task.splits)
    assert len(train) + len(validation) == 38575 and len(test) == 9673 and 3000 < len(validation) < 4500
    assert not {e.images for e in train} & {e.images for e in validation}
    example = test[0]
    assert example.question.startswith("what is the red shape?") and example.answer == "triangle"
    assert example.images[0].size() == (64, 64) and example.images[0].open().mode == "RGB"
    right, wrong = verify_all(task, [example] * 2, ["Triangle.", "a red triangle"])
    assert (right.reward, wrong.reward, right.score) == (1, -1, None)
