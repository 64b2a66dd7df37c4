"""Shared fixtures."""

import gc
import gzip
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: a test never waits for the network

import pytest
from fake_experts import make_experts
from fakes import make_llama

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """What the libraries' imports made stays: collections of garbage need not walk through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight Llama."""
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights large enough that a scale of singular values changes what the model says."""
    return make_llama(tmp_path_factory.mktemp("llama"), init=0.25)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """A small Llama that answers at random, and folders of experts for it."""
    folder = tmp_path_factory.mktemp("world")
    base = str(make_llama(folder / "llama", init=0.25))
    return base, make_experts(folder, base)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real benchmark rows, next to the checkout."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"NO REAL DATA: {REAL_DATA.name} is not next to the checkout, so this was not checked")
    return REAL_DATA


@pytest.fixture(scope="session")
def some_rows(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of each of their files: to read and render all of them takes seconds."""
    folder = tmp_path_factory.mktemp("data")
    for file in real_data.rglob("*.jsonl.gz"):
        (folder / file.parent.name).mkdir(exist_ok=True)
        with gzip.open(file) as rows, gzip.open(folder / file.parent.name / file.name, "wb") as some:
            some.writelines(islice(rows, 80))
    return folder
