"""Files of the user's: whether the source of a class is what it was."""

import importlib
import sys

import pytest

from transformer2.files import file_digest, source_digest
from transformer2.tasks import Task

FILES = {
    "own_task": "import json, math\nfrom own_base import Base\nfrom own_checks import right\n\n"
    "class Mine(Base):\n    def verify(self, example, completion):\n        return right(completion)\n",
    "own_base": "from transformer2.tasks import Task\nimport own_words\n\nclass Base(Task):\n    pass\n",
    "own_checks": "def right(text):\n    return True\n",
    "own_words": "WORDS = 1\n",
    "own_other": "unused = 1\n",
}


@pytest.mark.parametrize("package", ["", "own_package"])
def test_a_task_is_edited_where_what_it_imports_of_the_users_is(tmp_path, monkeypatch, package):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / package
    folder.mkdir(exist_ok=True)
    if package:
        (folder / "__init__.py").touch()
    for name, text in FILES.items():
        dotted = text.replace("from own_", "from .own_").replace("import own_", "from . import own_")
        (folder / f"{name}.py").write_text(dotted if package else text)
    prefix = f"{package}." if package else ""
    cls = importlib.import_module(f"{prefix}own_task").Mine
    importlib.import_module(f"{prefix}own_other")
    before = source_digest(cls)
    for name in FILES:
        file = folder / f"{name}.py"
        text = file.read_text()
        file.write_text(text + "# edited\n")
        assert (source_digest(cls) == before) == (name == "own_other"), name
        file.write_text(text)
    assert source_digest(cls) == before and source_digest(Task) is None
    alone = sys.modules[f"{prefix}own_checks"]
    alone.Alone = type("Alone", (), {"__module__": alone.__name__})
    assert source_digest(alone.Alone) == file_digest(folder / "own_checks.py")
