"""Files and rows of strangers: whatever is wrong with them is one line that names the file and the remedy."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from rows import ROWS, SPLITS

from transformer2 import tasks
from transformer2.errors import DataError
from transformer2.tasks._rows import load_rows

GOOD = b"\n".join([json.dumps(ROWS["gsm8k"][1]).encode()] * 200) + b"\n"


def packed_and_flipped(content: bytes, at: int) -> bytes:
    packed = bytearray(gzip.compress(content))
    packed[at] ^= 0x55
    return bytes(packed)


FILES = {  # what is wrong -> file, its bytes, what is said
    "deep": ("jsonl", b'{"question": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "line 1 is not valid JSON"),
    "a key twice": ("jsonl", GOOD + b'{"question": "Q", "question": "R"}', "the key 'question' is there twice"),
    "a key twice, within": ("jsonl", b'{"a": [{"b": 1, "b": 1}]}', "the key 'b' is there twice"),
    "deep without end": ("jsonl", b"[" * 200_000, "line 1 is no"),
    "long number": ("jsonl", b'{"question": ' + b"9" * 10_000 + b"}", "line 1 is not valid JSON"),
    "half a character": (
        "jsonl",
        GOOD + rb'{"question": "a\ud800", "answer": "#### 3"}',
        "line 201 holds half a character",
    ),
    "half a character in a key": ("jsonl", rb'{"\udfff": 1}', "line 1 holds half a character"),
    "latin-1": ("jsonl", GOOD + '{"question": "Größe"}'.encode("latin-1"), "line 201 is not UTF-8"),
    "UTF-16": ("jsonl", '{"question": "Q"}'.encode("utf-16"), "line 1 is not UTF-8"),
    "NUL bytes": ("jsonl", GOOD + b"\0" * 4096, "line 201 is not JSON"),
    "CSV": ("jsonl", b"question,answer\nHow many?,3\n", "line 1 is not JSON"),
    "one array": ("jsonl", b"[" + json.dumps(ROWS["gsm8k"][1]).encode() + b"]", "line 1 is not a JSON object"),
    "pretty": ("jsonl", json.dumps(ROWS["gsm8k"][1], indent=1).encode(), "line 1 is not JSON"),
    "text": ("jsonl", b'"a"\n', "line 1 is not a JSON object"),
    "cut": ("jsonl", GOOD[:-30], "line 200 is not JSON"),
    "empty": ("jsonl", b"", "no rows"),
    "blank": ("jsonl", b"\n \n", "no rows"),
    "huge line": ("jsonl", b" " * (2**26 + 2), "line 1 is longer than 64 MiB"),
    "huge line, packed": ("jsonl.gz", gzip.compress(b" " * (2**26 + 2)), "line 1 is longer than 64 MiB"),
    "not packed": ("jsonl.gz", GOOD, "unreadable after line 0"),
    "empty, packed": ("jsonl.gz", gzip.compress(b""), "no rows"),
    "nothing packed": ("jsonl.gz", b"", "no rows"),
    "cut, packed": ("jsonl.gz", gzip.compress(GOOD)[:-9], "unreadable after line"),
    "no parquet": ("parquet", GOOD, "unreadable"),
    "empty parquet": ("parquet", b"", "unreadable"),
    "no arrow": ("arrow", GOOD, "unreadable"),
    **{
        f"flipped at {at}": ("jsonl.gz", packed_and_flipped(os.urandom(2000).hex().encode() + b"\n", at), "")
        for at in (0, 2, 12, 30, 400, -6, -2)
    },
}


def one_line(task: str, folder: Path, split: str = "test") -> str:
    """What is said of a folder that cannot be used."""
    with pytest.raises(DataError) as e:
        tasks.get(task).examples(split, str(folder))
    said = str(e.value)
    assert "\n" not in said and len(said) < 500, said[:1000]
    return said


@pytest.mark.parametrize("wrong", FILES)
def test_a_file_that_cannot_be_read_is_named_with_its_line(wrong: str, tmp_path: Path) -> None:
    suffix, content, said = FILES[wrong]
    (tmp_path / f"test.{suffix}").write_bytes(content)
    message = one_line("gsm8k", tmp_path)
    assert f"test.{suffix}" in message and said in message and re.search("copy|correct|expected|save", message), message


def test_a_task_of_ones_own_reads_the_folder_of_the_one_that_it_is_made_of(tmp_path: Path) -> None:
    mine = type("Mine", (type(tasks.get("arc_easy")),), {"name": "my_arc"})
    (tmp_path / "arc_easy").mkdir()
    (tmp_path / "arc_easy" / "test.jsonl").write_text(json.dumps(ROWS["arc_easy"][1]))
    assert len(mine().examples("test", str(tmp_path / "arc_easy"))) == 1


def test_a_cut_table_is_named(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    pq.write_table(pyarrow.Table.from_pylist([ROWS["gsm8k"][1]] * 99), tmp_path / "test.parquet")
    whole = (tmp_path / "test.parquet").read_bytes()
    for content in (whole[:-10], whole[: len(whole) // 2], whole[:100] + b"\xff" * 40 + whole[140:]):
        (tmp_path / "test.parquet").write_bytes(content)
        assert "test.parquet" in one_line("gsm8k", tmp_path)


@pytest.mark.parametrize(
    ("task", "folder", "refused"),
    [
        ("arc_challenge", "arc_easy", True),
        ("arc_easy", "ARC-Challenge", True),
        ("humaneval", "humanevalplus", True),
        ("arc_challenge", "arc_challenge", False),
        ("arc_easy", "ARC-Easy", False),
        ("arc_easy", "mine", False),
    ],
)
def test_rows_of_another_task_s_folder_are_not_read(task: str, folder: str, refused: bool, tmp_path: Path) -> None:
    """Rows of these tasks have the same fields: read as the other's, they are a number that looks right."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "test.jsonl").write_text(json.dumps(ROWS[task][1]))
    if refused:
        assert f"not of {task}" in one_line(task, tmp_path / folder)
    else:
        assert len(tasks.get(task).examples("test", str(tmp_path / folder))) == 1


ODD: dict[str, object] = {
    "missing": ...,
    "null": None,
    "number": 5,
    "blank": " ",
    "list": [],
    "list of numbers": [1, 2],
    "mapping": {"text": [["deep"]], "label": 1},
    "long digits": "#### " + "9" * 10_000 + "/",
    "NUL": "\0",
    "deep code": "(" * 5000,
}


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("odd", ODD)
def test_a_row_with_an_odd_field_is_named_with_its_file_and_line(task: str, odd: str, tmp_path: Path) -> None:
    name, good = ROWS[task]
    split = SPLITS.get(task, "test")
    file = tmp_path / f"{name}.jsonl"
    file.write_text(json.dumps(good) + "\n")
    assert len(tasks.get(task).examples(split, str(tmp_path))) == 1
    for field in good:
        row = {
            key: ODD[odd] if key == field else value for key, value in good.items() if (key, odd) != (field, "missing")
        }
        file.write_text(f"\n{json.dumps(row)}\n")
        try:
            examples = tasks.get(task).examples(split, str(tmp_path))
        except DataError as e:
            assert f"{file}, line 2" in str(e) and "\n" not in str(e) and len(str(e)) < 500, str(e)
        else:  # a field that is not used, another task's number, or text that is as good as any other
            unused = field in ("task_id", "test_imports", "canonical_solution")
            assert unused or (examples and isinstance(ODD[odd], str)), (field, examples)


def test_a_number_of_thousands_of_digits_is_no_gold_answer_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "Q", "answer": "#### " + "9" * 10_000}))
    task = tasks.get("gsm8k")
    try:
        (example,) = task.examples("test", str(tmp_path))
    except DataError as e:
        assert "test.jsonl, line 1" in str(e) and "\n" not in str(e)
    else:
        assert not task.verify(example, "#### 9").correct


# ---------------------------------------------------------------------- which files are a split


def write(folder: Path, name: str, first: int = 0, count: int = 10) -> None:
    """Rows first ... first + count - 1, in whatever format the name says."""
    rows = [{"n": i} for i in range(first, first + count)]
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith((".parquet", ".arrow")):
        pa = pytest.importorskip("pyarrow")
        table = pa.Table.from_pylist(rows)
        if name.endswith(".parquet"):
            pytest.importorskip("pyarrow.parquet").write_table(table, file)
        else:
            with pa.ipc.new_stream(str(file), table.schema) as stream:
                stream.write_table(table)
    elif name.endswith(".gz"):
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text)


def numbers(folder: Path) -> list[int]:
    return [row["n"] for row in load_rows("set", "train", str(folder), "owner/set", config="main")]


@pytest.mark.parametrize(
    "shard",
    [
        *(f"train-{{:05}}-of-00003.{suffix}" for suffix in ("jsonl", "jsonl.gz", "parquet", "arrow")),
        "train-{:05}-of-00003-0a1b2c3d4e5f6071.parquet",
        "train-{}-of-3.jsonl",
        "set/train-{:05}-of-00003.parquet",
        "set/main/train-{:05}-of-00003.parquet",
        "main/train-{:05}-of-00003.jsonl",
        "train/data-{:05}-of-00003.arrow",
        "set/train/data-{:05}-of-00003.arrow",
    ],
)
@pytest.mark.parametrize("start", [0, 1])
def test_shards_are_read_whole_or_not_at_all(shard: str, start: int, tmp_path: Path) -> None:
    names = [shard.format(i) for i in range(start, start + 3)]
    for i, name in enumerate(names):
        write(tmp_path, name, 10 * i)
    assert numbers(tmp_path) == list(range(30))
    for i, name in enumerate(names):
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(DataError, match=r"of the 3 shards of 'train', \d is missing; copy") as e:
            numbers(tmp_path)
        assert Path(names[i - 1]).name.partition("-")[0] in str(e.value)
        (tmp_path / "away").rename(tmp_path / name)


@pytest.mark.parametrize("folder", ["mbpp/full", "full"])
def test_the_hub_s_own_folders_of_mbpp_are_read(folder: str, tmp_path: Path) -> None:
    numbers = {"prompt": 2, "test": 20, "validation": 520, "train": 720}
    (tmp_path / folder).mkdir(parents=True)
    for split, number in numbers.items():
        row = {**ROWS["mbpp"][1], "task_id": number}
        (tmp_path / folder / f"{split}-00000-of-00001.jsonl").write_text(json.dumps(row))
    found = {split: tasks.get("mbpp").examples(split, str(tmp_path)) for split in tasks.get("mbpp").splits}
    assert {split: [e.id for e in examples] for split, examples in found.items()} == {
        split: [f"mbpp/{split}/{numbers['prompt' if split == 'few_shot' else split]}"] for split in found
    }
    (tmp_path / folder / "test-00000-of-00001.jsonl").unlink()
    assert "has no mbpp/test.jsonl" in one_line("mbpp", tmp_path)


def test_what_was_saved_by_datasets_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"n": i} for i in range(30)])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "set"), num_shards={"train": 3})
    assert numbers(tmp_path) == list(range(30))
    next((tmp_path / "set" / "train").glob("*-00002-of-*")).unlink()
    with pytest.raises(DataError, match="2 is missing"):
        numbers(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.jsonl", "train.parquet"], "are both the split 'train'; keep one"),
        (["train.jsonl", "train.jsonl.gz"], "are both the split"),
        (["train.jsonl", "train-00000-of-00001.parquet"], "are both the split"),
        (["train.jsonl", "train/data-00000-of-00001.arrow"], "are both the split"),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.parquet"], "are both the split"),
        (["set/train.jsonl", "set/main/train.jsonl"], "are both the split"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "is not a shard of"),
        (["train-00000-of-00001.parquet", "train-00000-of-00001 (1).parquet"], "is not a shard of"),
        (["train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"], "is there twice"),
        (["train-00000-of-99999999999.parquet"], "1, 2, 3, 4, 5 is missing"),
        (["train.csv", "train.json"], r"no set/train\.jsonl.*there is train\.csv, train\.json\); put a copy"),
        (["train.jsonl.bak"], r"there is train\.jsonl\.bak"),
        (["train-small.jsonl"], r"there is train-small\.jsonl"),
    ],
)
def test_two_candidates_for_a_split_and_none_are_refused(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        write(tmp_path, name)
    with pytest.raises(DataError, match=said) as e:
        numbers(tmp_path)
    assert "\n" not in str(e.value)


def test_the_folder_of_the_task_goes_before_its_parent(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", 50)
    write(tmp_path, "set/train.jsonl")
    assert numbers(tmp_path) == list(range(10))


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("dataset_info.json", '{"splits": {"train": {"name": "train", "num_examples": %d}}}'),
        ("train/dataset_info.json", '{"splits": {"train": {"name": "train", "num_examples": %d}}}'),
        ("dataset_infos.json", '{"main": {"splits": {"train": {"name": "train", "num_examples": %d}}}}'),
        ("README.md", "---\ndataset_info:\n  splits:\n  - name: train\n    num_examples: %d\n---\n# Set\n"),
        (
            "README.md",
            "---\ndataset_info:\n- config_name: other\n  splits:\n  - name: train\n    num_examples: 7\n"
            "- config_name: main\n  splits:\n  - name: train\n    num_examples: %d\n---\n",
        ),
    ],
)
def test_the_number_of_rows_is_the_one_that_the_data_set_states(name: str, info: str, tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for number in (10, 11):
        (tmp_path / name).write_text(info % number)
        if number == 10:
            assert len(numbers(tmp_path)) == 10
        else:
            with pytest.raises(DataError, match=r"train\.jsonl: 10 rows of 'train' where .* says 11; copy"):
                numbers(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "---\n", "---\n[\n---", "---\ndataset_info: 5\n---", "---\nsplits: {a: 1}\n---", "# Set"]
)
def test_a_readme_of_somebody_else_says_nothing(text: str, tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "dataset_info.json").write_text(text)
    assert len(numbers(tmp_path)) == 10


def test_a_mark_of_windows_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n\r\n{"n": 1}')
    assert numbers(tmp_path) == [0, 1]


@pytest.mark.parametrize("folder", ["with spaces", "größe/数据"])
def test_every_kind_of_path_is_the_same(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, f"{folder}/set/train.jsonl")
    (tmp_path / folder).chmod(0o555)  # nothing is written there
    for name in (f"~/{folder}", folder, tmp_path / folder, f"{folder}/set/"):
        assert len(numbers(Path(name) if isinstance(name, Path) else name)) == 10  # type: ignore[arg-type]
    (tmp_path / folder).chmod(0o755)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("nowhere", "does not exist"),
        ("~nobody-of-that-name/data", "does not exist"),
        ("file", "is not a directory"),
        ("", "has no set/train"),
    ],
)
def test_a_folder_that_is_none_is_named(
    folder: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=said) as e:
        numbers(folder)  # type: ignore[arg-type]
    assert repr(folder) in str(e.value) and "\n" not in str(e.value)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    os.mkfifo(tmp_path / "README.md")
    (tmp_path / "train.parquet").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"there is train\.jsonl, train\.parquet"):
        numbers(tmp_path)


def test_the_hub_out_of_reach_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"the Hub could not be reached for openai/gsm8k; give data_dir \(--data\.data_dir\)"
    ):
        tasks.get("gsm8k").examples("train")
    assert capfd.readouterr().err == ""
