"""Tasks about pictures, read from drawn pictures in the schemas of their sources; what is refused by name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vqa_rows import drawn, row, write_textvqa

from transformer2 import tasks
from transformer2.errors import ConfigError, DataError
from transformer2.pictures import PictureFile, PictureInTable
from transformer2.tasks._rows import load_rows
from transformer2.verifiers import verify_all

PROMPT = "what does it say?\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory):
    return write_textvqa(tmp_path_factory.mktemp("data") / "textvqa")


def test_textvqa_is_read_from_the_hubs_files_with_references_for_pictures(hub_files):
    task = tasks.get("textvqa")
    examples = task.examples("test", str(hub_files))
    assert len(examples) == 20 and examples[3].id == "textvqa/test/3"
    example = examples[13]
    assert example.messages == ({"role": "user", "content": PROMPT},) and example.question == PROMPT
    assert example.answer == "stop" and example.fields["answers"] == ("stop",) * 7 + ("go",) * 3
    (picture,) = example.images
    assert isinstance(picture, PictureInTable) and picture.row == 3 and "00001" in picture.file
    assert picture.data() == drawn((800 + 13) // 2) and picture.open().getpixel((0, 0)) == (150, 1, 99)


def test_no_picture_is_trained_on_and_validated_and_the_test_split_without_answers_is_never_read(hub_files):
    task = tasks.get("textvqa")
    train, validation, test = (task.examples(split, str(hub_files)) for split in task.splits)
    pictures = [{e.images[0].digest() for e in examples} for examples in (train, validation, test)]
    assert len(train) + len(validation) == 400 and 2 <= len(pictures[1]) <= 30
    assert not pictures[0] & pictures[1] and not (pictures[0] | pictures[1]) & pictures[2]
    again = tasks.get("textvqa").examples("validation", str(hub_files))
    assert again == validation


def test_paper_trains_on_all_and_validates_on_what_it_scores(hub_files):
    task = tasks.get("textvqa", protocol="paper")
    assert task.protocol == "paper" and len(task.examples("train", str(hub_files))) == 400
    validation, test = (task.examples(split, str(hub_files)) for split in ("validation", "test"))
    assert [e.images for e in validation] == [e.images for e in test]


def test_answers_are_judged_softly(hub_files):
    task = tasks.get("textvqa")
    examples = task.examples("test", str(hub_files))[:3]
    right, some, wrong = verify_all(task, examples, ["The STOP.", "go", "a picture of a sign"])
    assert [v.score for v in (right, some, wrong)] == [1, 0.9, 0] and [right.reward, wrong.reward] == [1, -0.1]
    soft = tasks.get("textvqa", reward="soft")
    assert soft.verify(examples[0], "go").reward == pytest.approx(0.89)


def test_the_hub_is_read_without_pixels_and_pictures_are_found_in_its_cache(hub_files, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_rows("textvqa", "train", None, str(hub_files / "textvqa"), pictures="image")
    assert len(rows) == 400 and "train row 399" in rows[399].source
    assert isinstance(rows[0]["image"], PictureInTable) and rows[0]["image"].file.endswith(".arrow")
    assert [rows[i]["image"].data() for i in (0, 201, 399)] == [drawn(i // 2) for i in (0, 201, 399)]


def write_folder(folder, rows):
    """Rows as a folder of files: JSON lines and pictures."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i, given in enumerate(rows):
        (folder / "images" / f"{i}.png").write_bytes(drawn(i))
        lines.append({"image": f"images/{i}.png", **given})
    for split in ("train", "validation", "val2014"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


QUESTION = {"question": "What sport?", "answers": ["race"] * 6 + ["ride"] * 4}


@pytest.mark.parametrize("name", ["textvqa", "okvqa"])
def test_a_folder_of_files(name, tmp_path):
    write_folder(tmp_path / name, [QUESTION] * 60)
    task = tasks.get(name)
    train, validation, test = (task.examples(split, str(tmp_path)) for split in task.splits)
    assert len(train) + len(validation) == len(test) == 60 and validation
    assert test[7].images == (PictureFile(str(tmp_path / name / "images" / "7.png")),)
    assert test[7].images[0].data() == drawn(7) and task.verify(test[7], "race").score == 1


def test_the_answers_of_huggingfacem4_are_what_was_said_not_its_stem(tmp_path):
    said = [{"answer": "ride", "raw_answer": "riding", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    write_folder(tmp_path / "okvqa", [{"question": "What sport?", "image_id": 7, "answers": said}] * 3)
    (example, *_) = tasks.get("okvqa").examples("test", str(tmp_path))
    assert example.answer == "riding" and tasks.get("okvqa").verify(example, "Riding.").correct


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": None}, "field 'question' is None"),
        ({"answers": []}, "holds no answer, so nothing can be scored"),
        ({"answers": [""] * 10}, "holds no answer"),
        ({"answers": ["race"] * 3}, "3 annotators are too few for the VQA accuracy"),
        ({"answers": "race"}, "field 'answers' is 'race'"),
        ({"answers": ["race", 3]}, "holds one that is no text"),
        ({"image": None}, "field 'image' is None"),
        ({"image": "images/none.png"}, "images/none.png is not there"),
        ({"image": 7}, "field 'image' is 7"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_by_name(change, said, tmp_path):
    write_folder(tmp_path / "okvqa", [QUESTION, {**QUESTION, **change}])
    with pytest.raises(DataError, match=r"val2014.jsonl, line 2") as refused:
        tasks.get("okvqa").examples("test", str(tmp_path))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_table_whose_pictures_have_no_id_cannot_be_divided(tmp_path):
    rows = [{k: v for k, v in row(i).items() if k != "image_id"} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"field 'image_id' is missing"):
        tasks.get("textvqa").examples("train", str(tmp_path))
    assert len(tasks.get("textvqa", protocol="paper").examples("train", str(tmp_path))) == 4


def test_options_are_checked():
    with pytest.raises(ConfigError, match="reward"):
        tasks.get("textvqa", reward="hard")
    with pytest.raises(ConfigError, match=r"lacks \{question\}"):
        tasks.get("okvqa", prompt="What?")


def pictured(tmp_path, count=200, **more):
    (tmp_path / "images").mkdir(exist_ok=True)
    for i in range(count):
        (tmp_path / "images" / f"{i}.png").write_bytes(drawn(i))
    rows = [
        {"question": f"Question {q}, {i % 2}?", "answer": f"answer {i} {q}", "image": f"images/{i}.png", **more}
        for i in range(count)
        for q in range(2)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tasks.get("jsonl", path=str(tmp_path / "mine.jsonl"))


def test_rows_of_ones_own_with_pictures_are_divided_by_picture(tmp_path):
    task = pictured(tmp_path)
    by_split = {split: task.examples(split) for split in task.splits}
    assert sum(map(len, by_split.values())) == 400 and all(by_split.values())
    pictures = [{e.images for e in examples} for examples in by_split.values()]
    assert sum(map(len, pictures)) == 200  # the two questions about a picture are on the same side
    example = by_split["test"][0]
    assert example.images[0].path == str(tmp_path / "images" / f"{example.answer.split()[1]}.png")


def test_the_same_picture_under_two_names_is_one(tmp_path):
    task = pictured(tmp_path)
    before = {e.images[0].digest(): split for split in task.splits for e in task.examples(split)}
    for i in range(200):
        (tmp_path / "images" / f"{i}.png").write_bytes(drawn(i // 2))
    after = {e.images[0].digest(): split for split in task.splits for e in task.examples(split)}
    assert all(before[digest] == split for digest, split in after.items()) and len(after) == 100


@pytest.mark.parametrize("kind", ["path", "list", "bytes", "struct", "struct of a path", "null struct"])
def test_a_table_holds_pictures_or_their_paths_and_some_rows_none(tmp_path, kind):
    pictured(tmp_path, 50)
    rows = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    for i, asked in enumerate(rows):
        path, none, asked["question"] = asked["image"], i % 5 == 0, f"Question {i}?"
        content = None if none else (tmp_path / path).read_bytes()
        made = {"path": path, "list": [path], "bytes": content, "struct": {"bytes": content, "path": None}}
        made["struct of a path"], made["null struct"] = {"bytes": None, "path": path}, made["struct"]
        asked["image"] = made[kind] if not none or kind == "struct" else [] if kind == "list" else None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    task = tasks.get("jsonl", path=str(tmp_path / "mine.parquet"))
    examples = [e for split in task.splits for e in task.examples(split)]
    assert len(examples) == 100
    for e in examples:
        number = int(e.id.rpartition("/")[2])
        assert [p.data() for p in e.images] == ([] if number % 5 == 0 else [drawn(number // 2)])


def test_a_path_in_a_table_that_leads_nowhere_is_refused_with_its_row(tmp_path):
    pictured(tmp_path, 50)
    rows = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    rows[6]["image"] = "images/none.png"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"images/none.png cannot be read .*mine.parquet, row 6"):
        tasks.get("jsonl", path=str(tmp_path / "mine.parquet")).check_rows()


def test_a_picture_of_ones_own_that_is_missing_is_refused_with_its_line(tmp_path):
    task = pictured(tmp_path)
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"mine.jsonl, line 7: the picture .*3.png is not there"):
        task.check_rows()
