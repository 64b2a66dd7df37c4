"""Rows of one's own: read, verified by name, split by hash; what cannot be used is refused with file and line."""

import gzip
import json
import pickle
import sys
from decimal import Decimal

import pytest
from rows import own_rows
from vqa_rows import drawn

from transformer2 import tasks
from transformer2.cli import main
from transformer2.errors import ConfigError, DataError
from transformer2.tasks._answers import KINDS
from transformer2.tasks.jsonl import SHARES
from transformer2.types import Example
from transformer2.verifiers import verify_all

CODE = {"answer": "def net(x):\n    return x / 2", "tests": ["assert net(4) == 2", "assert net(6) == 3"]}


def write(path, rows, encode=json.dumps):
    path.write_text("".join(encode(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def split_of(task):
    return {e.messages[-1]["content"]: split for split in task.splits for e in task.examples(split)}


def test_every_row_is_in_one_split_that_neither_order_nor_new_rows_change(tmp_path):
    rows = own_rows(200)
    before = split_of(tasks.get("jsonl", path=write(tmp_path / "a.jsonl", rows)))
    assert len(before) == 200 and {tuple(SHARES)} == {tasks.get("jsonl", path="x").splits}
    more = [*reversed(rows), *own_rows(300)[200:]]
    after = split_of(tasks.get("jsonl", path=write(tmp_path / "b.jsonl", more)))
    assert len(after) == 300 and before.items() <= after.items()
    sizes = [sum(s == split for s in after.values()) for split in SHARES]
    assert sum(sizes) == 300 and abs(sizes[0] - 210) < 30 and min(sizes[1:]) > 20


def test_questions_that_are_one_are_on_one_side(tmp_path):
    rows = own_rows(60)
    again = [{**row, "question": f"  {row['question'].upper()}\u00a0 "} for row in rows]
    task = tasks.get("jsonl", path=write(tmp_path / "a.jsonl", [*rows, *rows, *again]))
    sides = {}
    for split in task.splits:
        for example in task.examples(split):
            sides.setdefault(example.question.lower().strip(), set()).add(split)
    assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())
    assert sum(len(task.examples(split)) for split in task.splits) == 60  # one of each: evidence counts once
    with pytest.warns(
        UserWarning, match=r"120 rows ask what an earlier row asks and are left out \(first: line 61, as"
    ):
        tasks.get("jsonl", path=write(tmp_path / "b.jsonl", [*rows, *rows, *again])).check_rows()
    rows[7] = {**rows[3], "question": rows[3]["question"].swapcase(), "answer": "another"}
    with pytest.raises(DataError, match=r"another answer to the same question stands at .*line 4"):
        tasks.get("jsonl", path=write(tmp_path / "c.jsonl", rows)).check_rows()


@pytest.mark.parametrize(
    ("verifier", "row", "right", "wrong"),
    [
        (
            "exact",
            {"answer": "Zürich"},
            ["Zürich", "  zürich.\n", "**Zürich**", '"ZÜRICH"', "Zu\u0308rich"],
            ["Bern", ""],
        ),
        ("exact", {"answer": "Zürich"}, [], ["Zürich or Bern", "Bern. Zürich", "The city is Zürich", "Zurich"]),
        ("exact", {"answer": "C++"}, ["c++", "`C++`"], ["C"]),
        ("numeric", {"answer": 26}, ["#### 26", "26", "The answer is 26 days."], ["#### 27", "26 or 27", ""]),
        ("numeric", {"answer": "1,234.5"}, ["1234.50", "$1,234.50"], ["1234"]),
        ("numeric", {"answer": "1.234,5"}, ["#### 1234.5", "1.234,50 €", "1,234.5"], ["1.2345", "1.234"]),
        ("numeric", {"answer": 2.5}, ["The answer is 5/2."], ["2"]),
        ("numeric", {"answer": 1 / 1e6}, ["#### 1e-06", "0.000001", "The answer is 1 x 10^-6."], ["1e-05", "10^-6"]),
        ("numeric", {"answer": 1e16}, ["1e16", "10,000,000,000,000,000"], ["16", "1e6"]),
        ("numeric", {"answer": "1.5e-5"}, ["0.000015", r"\boxed{1.5 \times 10^{-5}}"], ["1.5"]),
        ("choice", {"choices": ["a leaf", "a root"], "answer": "B"}, ["The answer is (B)", "a root"], ["A", "A or B"]),
        ("choice", {"choices": ["a leaf", "a root"], "answer": "a root"}, ["B"], ["(A)"]),
        (
            "choice",
            {"choices": {"text": ["a leaf", "a root"], "label": ["A", "B"]}, "answer": "B"},
            ["The answer is (B)", "a root"],
            ["A", "A or B"],
        ),
        ("choice", {"choices": {"text": ["a leaf", "a root"], "label": ["1", "2"]}, "answer": "2"}, ["B"], ["(A)"]),
        ("choice", {"choices": {"label": ["B", "A"], "text": ["a leaf", "a root"]}, "answer": "A"}, ["B"], ["(A)"]),
        ("choice", {"choices": {"label": ["1", "2"], "text": ["a leaf", "a root"]}, "answer": "a leaf"}, ["A"], ["B"]),
        ("code", {**CODE, "tests": ["def t(f):\n    assert f(4) == 2", "t(net)"]}, ["def net(x): return x / 2"], [""]),
        ("code", CODE, ["```python\ndef net(y):\n    return 0.5 * y\n```"], ["def net(x): return x", "no program"]),
    ],
)
def test_a_verifier_by_name_says_what_is_right(verifier, row, right, wrong, tmp_path):
    rows = [{**own, **row} for own in own_rows(60)]
    task = tasks.get("jsonl", path=write(tmp_path / "a.jsonl", rows), verifier=verifier)
    example = task.examples("train")[0]
    verdicts = verify_all(task, [example] * len(right + wrong), right + wrong)
    assert [v.correct for v in verdicts] == [True] * len(right) + [False] * len(wrong), verdicts
    assert all(v.reward is not None for v in verdicts)
    assert [m["role"] for m in example.messages] == ["system", "user"]
    assert pickle.loads(pickle.dumps(task)).examples("train")[0].id == example.id  # as worker processes get it


@pytest.mark.parametrize("what", ["answer", "solution"])
def test_a_program_that_fails_its_own_tests_is_refused(what, tmp_path):
    rows = [{**own, **CODE, "why": f"```python\n{CODE['answer']}\n```"} for own in own_rows(40)]
    rows[7] |= {"answer": "def net(x):\n    return x"} if what == "answer" else {"why": "def net(x):\n    return x"}
    keys = {} if what == "answer" else {"solution": "why"}
    task = tasks.get("jsonl", path=write(tmp_path / "a.jsonl", rows), verifier="code", keys=keys)
    with pytest.raises(DataError, match=f"its own {what} fails its tests .* drop it .*line 8"):
        task.examples("test")


@pytest.mark.parametrize("name", ["a.PARQUET", "a.arrow", "stream.arrow", "a.jsonl.GZ", "a.csv"])
def test_tables_of_every_kind_hold_the_numbers_that_were_written(name, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path, asked = tmp_path / name, [row["question"] for row in own_rows(60)]
    kinds = {"a.arrow": pyarrow.decimal128(5, 1), "stream.arrow": pyarrow.float16()}
    numbers = pyarrow.array([i / 10 for i in range(60)], pyarrow.float32())
    if name == "a.arrow":
        numbers = pyarrow.array([Decimal(i) / 10 for i in range(60)], kinds[name])
    table = pyarrow.table({"question": asked, "answer": numbers.cast(kinds.get(name, pyarrow.float32()))})
    if name == "a.PARQUET":
        parquet.write_table(table, path)
    elif path.suffix == ".arrow":
        new = pyarrow.ipc.new_stream if name == "stream.arrow" else pyarrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        lines = "".join(json.dumps({"question": q, "answer": f"{i / 10}"}) + "\n" for i, q in enumerate(asked))
        path.write_bytes(gzip.compress(lines.encode()))
    task = tasks.get("jsonl", path=str(path), verifier="numeric")
    if name == "a.csv":
        with pytest.raises(DataError, match=r"\.csv is not read; give \.jsonl, .* pandas\.read_csv"):
            task.check_rows()
        return
    told = {e.question: e.answer for split in task.splits for e in task.examples(split)}
    assert told == {q: str(i / 10) for i, q in enumerate(asked)}


def test_one_picture_under_two_names_is_one(tmp_path):
    rows = [{**row, "question": "What?", "image": f"{i}.png"} for i, row in enumerate(own_rows(60))]
    for i in range(61):
        (tmp_path / f"{i}.png").write_bytes(drawn(i % 60))
    rows.append({**rows[0], "image": "60.png", "answer": "another"})
    with pytest.raises(DataError, match=r"another answer to the same question stands at .*line 1\)?;.*line 61"):
        tasks.get("jsonl", path=write(tmp_path / "a.jsonl", rows)).check_rows()


def test_what_the_model_is_shown(tmp_path):
    named = {"q": "Who?", "a": "B", "opts": ["one", "two"], "say": "Be brief."}
    rows = [{**named, "q": f"Who {i}?"} for i in range(60)]
    rows += [{**named, "q": f"What {i}?", "say": None} for i in range(60)]
    keys = {"question": "q", "answer": "a", "choices": "opts", "system": "say"}
    options = {"path": write(tmp_path / "a.jsonl", rows), "verifier": "choice", "keys": keys}
    first = {e.question[:4]: e.messages for e in tasks.get("jsonl", **options).examples("train")}
    assert first["Who "][0]["content"] == "Be brief." and "The answer is (X)" in first["What"][0]["content"]
    assert first["What"][1]["content"].endswith("?\n\n(A) one\n(B) two")
    bare = tasks.get("jsonl", **options, system=None, prompt="{question} {options}!").examples("train")
    assert {len(e.messages) for e in bare} == {1, 2} and all(e.question.endswith("(B) two!") for e in bare)


@pytest.mark.parametrize("form", ["bom", "packed", "parquet", "other alphabets"])
def test_files_as_people_have_them(form, tmp_path):
    rows = own_rows(60)
    path = tmp_path / "my rows é.jsonl"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    if form == "bom":
        path.write_text("\ufeff" + lines + "\n\n", encoding="utf-8")
    elif form == "packed":
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode()))
    elif form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, [{"question": f"首都 {i}? 🙂", "answer": "東京"} for i in range(60)])
    task = tasks.get("jsonl", path=str(path))
    assert sum(len(task.examples(split)) for split in task.splits) == 60
    assert not task.examples("train")[0].question.startswith("\ufeff")
    assert all(task.verify(e, e.answer).correct for e in task.examples("test"))


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("10²", ["10²", "**10²**", '"10²".'], ["102", "10", "10₂", "10^2"]),
        ("x²", ["X²"], ["x2", "x₂"]),
        ("①", ["`①`"], ["1"]),
        ("H₂O", ["h₂o"], ["H2O"]),
        ("ℝ", [], ["R"]),
        ("Yes", ["yes.", "“Yes.”", "*Yes*", "'yes'."], ["Yes!", "Yes?"]),
        ("n!", ["N!"], ["n"]),
        ("A*", ["`A*`", "a*."], ["A", "*A*"]),
        ("5'", ["5’"], ['5"', "5"]),
        ("New York", ["New\u00a0York", "Ｎｅｗ\u3000Ｙｏｒｋ", "new\n york。"], ["NewYork"]),
        ("Fu\u0308ße", ["FÜSSE", "füße"], ["Fuße"]),
        ("ﬁve ガ…", ["five ｶﾞ..."], ["five カ"]),
        ("10-12", ["10–12", "10\u201112"], ["1012"]),
    ],
)
def test_an_exact_answer_is_told_from_what_only_looks_like_it(answer, right, wrong):
    example = Example("", ({"role": "user", "content": "?"},), answer)
    verdicts = [KINDS["exact"].verify(example, text).correct for text in [answer, *right, *wrong]]
    assert verdicts == [True] * (1 + len(right)) + [False] * len(wrong)


@pytest.mark.parametrize("form", ["path", "list", "table", "table of lists"])
def test_a_picture_is_read_under_the_files_own_name(form, tmp_path):
    rows = [{**row, "images": f"{i}.png"} for i, row in enumerate(own_rows(60))]
    for i, row in enumerate(rows):
        (tmp_path / row["images"]).write_bytes(drawn(i))
    if form.startswith("table"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        cells = [{"bytes": drawn(i), "path": None} for i in range(60)]
        rows = [{**row, "images": [cell] if "lists" in form else cell} for row, cell in zip(rows, cells, strict=True)]
        path = str(tmp_path / "a.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        rows = [{**row, "images": [row["images"]]} if form == "list" else row for row in rows]
        path = write(tmp_path / "a.jsonl", [*rows, {**own_rows(61)[60], "images": [] if form == "list" else None}])
    with pytest.raises(DataError, match=r"'images' is not read; .*{image: ITS_NAME}, or leave it out .*(line 1|row 0)"):
        tasks.get("jsonl", path=path).check_rows()
    task = tasks.get("jsonl", path=path, keys={"image": "images"})
    examples = [e for split in task.splits for e in task.examples(split)]
    shown = {e.id.rpartition("/")[2]: [picture.data() for picture in e.images] for e in examples}
    assert len(examples) >= 60 and all(shown[str(i)] == [drawn(i)] for i in range(60)) and not shown.get("60")


def test_columns_that_are_not_read_are_named_once(tmp_path, recwarn):
    rows = [{**row, "context": "c", "id": i, "system": None, "note": None} for i, row in enumerate(own_rows(60))]
    path = write(tmp_path / "a.jsonl", rows)
    for task in (tasks.get("jsonl", path=path), tasks.get("jsonl", path=path)):
        task.check_rows()
        assert [len(task.examples(split)) > 0 for split in task.splits] == [True] * 3
    (said,) = [str(warning.message) for warning in recwarn]
    assert "a.jsonl: nothing is read of 'context', 'id';" in said and "\n" not in said
    tasks.get("jsonl", path=write(tmp_path / "b.jsonl", own_rows(60))).check_rows()
    assert len(recwarn) == 1


@pytest.mark.parametrize("field", ["image", "system", "solution"])
def test_a_name_in_keys_that_no_row_has_is_refused(field, tmp_path):
    path = write(tmp_path / "a.jsonl", [{**row, "photo": "a.png"} for row in own_rows(60)])
    with pytest.raises(DataError, match=rf"keys say \{{{field}: photos\}}, and no row has it; there is .*'photo'"):
        tasks.get("jsonl", path=path, keys={field: "photos"}).check_rows()


GOOD = {"question": "How many?", "answer": "3"}
BAD = {  # name -> (options, the second line, what is said besides file and line)
    "no JSON": ({}, "{'question': 1}", "is not JSON"),
    "a list": ({}, "[1]", "is not a JSON object"),
    "half a row": ({}, '{"question": "Q", "ans', "is not JSON"),
    "half a character": ({}, '{"question": "\\ud800", "answer": "x"}', "half a character"),
    "no answer": (
        {},
        {"question": "Q"},
        "field 'answer' is missing, there is 'question'; add it, or say keys: {answer:",
    ),
    "no question": ({}, {"prompt": "Q", "answer": "x"}, "say keys: {question: ITS_NAME}"),
    "blank question": ({}, {**GOOD, "question": " \n"}, "field 'question' is"),
    "a number asked": ({}, {**GOOD, "question": 5}, "field 'question' is 5"),
    "null": ({}, {**GOOD, "answer": None}, "field 'answer' is None"),
    "true": ({}, {**GOOD, "answer": True}, "field 'answer' is True"),
    "a number as text": ({}, {**GOOD, "answer": 5}, "put it in quotes, or set verifier: numeric"),
    "only dots": ({}, {**GOOD, "answer": "..."}, "holds no word"),
    "a list as answer": ({}, {**GOOD, "answer": ["3"]}, "field 'answer' is ['3']"),
    "system": ({}, {**GOOD, "system": 5}, "field 'system' is 5"),
    **{
        name: ({}, {**GOOD, name: value}, f"{name!r} is not read; name it 'image'")
        for name, value in {"images": ["a"], "image_url": "a", "picture": {"path": "a"}, "pictures": "a"}.items()
    },
    "two pictures": ({}, {**GOOD, "image": ["a.png", "b.png"]}, "there are 2 pictures"),
    "a picture in a list that is not there": ({}, {**GOOD, "image": ["a.png"]}, "a.png is not there"),
    "unread choices": ({}, {**GOOD, "choices": ["3", "4"]}, "set verifier: choice"),
    "unread tests": ({}, {**GOOD, "tests": ["assert f()"]}, "set verifier: code"),
    "contradiction": ({}, {"question": "Q0?", "answer": "other"}, "another answer to the same question stands at"),
    "no number": ({"verifier": "numeric"}, {**GOOD, "answer": "three apples"}, "is no number"),
    "NaN": ({"verifier": "numeric"}, '{"question": "Q", "answer": NaN}', "is no number"),
    "a yes": ({"verifier": "numeric"}, {**GOOD, "answer": True}, "is no number"),
    "no choices": ({"verifier": "choice"}, GOOD, "field 'choices' is missing"),
    "one choice": ({"verifier": "choice"}, {**GOOD, "choices": ["3"]}, "there are 1 choices"),
    "same choices": ({"verifier": "choice"}, {**GOOD, "choices": ["3", "3 "]}, "that differ are needed"),
    "not chosen": ({"verifier": "choice"}, {**GOOD, "choices": ["4", "5"]}, "names none of the choices"),
    "two chosen": ({"verifier": "choice"}, {"question": "Q", "answer": "A", "choices": ["B", "A"]}, "more than one"),
    **{
        f"an index, {answer}": ({"verifier": "choice"}, {**GOOD, "answer": answer, "choices": choices}, said)
        for answer, choices in [(0, ["3", "4"]), (4, ["3", "4"]), (1.0, {"text": ["3", "4"], "label": ["1", "2"]})]
        for said in ["is a number, which may count from 0 or from 1; give the option's letter or its text"]
    },
    **{
        f"choices {choices}": ({"verifier": "choice"}, {**GOOD, "choices": choices}, said)
        for choices, said in [
            ({"A": "3", "B": "4"}, "give a list of texts, or {text: [...], label: [...]}"),
            ("3|4", "give a list of texts, or {text: [...], label: [...]}"),
            (None, "give a list of texts, or {text: [...], label: [...]}"),
            ({"text": ["3", "4"], "label": ["A"]}, "has labels A for 2 texts"),
            ({"text": ["3", "4"], "label": ["A", "A"]}, "has labels A, A for 2 texts"),
            ({"text": ["3", "3"], "label": ["A", "B"]}, "that differ are needed"),
            ({"text": ["3", 4], "label": ["A", "B"]}, "blank or not text"),
        ]
    },
    "a label that is another's text": (
        {"verifier": "choice"},
        {**GOOD, "answer": "2", "choices": {"text": ["2", "1"], "label": ["1", "2"]}},
        "more than one",
    ),
    **{
        f"digits of a double, {value}": (
            {"verifier": "numeric"},
            {**GOOD, "answer": value},
            f"{value} has more than 15",
        )
        for value in (0.1 + 0.2, 1 / 3, 0.10000000149011612)
    },
    "nine choices": ({"verifier": "choice"}, {**GOOD, "choices": [*"345678abc"]}, "there are 9 choices; 2 to 8"),
    **{
        f"a test that cannot fail, {tests}": ({"verifier": "code"}, {**GOOD, **CODE, "tests": tests}, "assert")
        for tests in (
            *(["net(4) == 2"], ["assert net(4) == 2", "net(6) == 3"], ["net(4)"], ["print(net(4) == 2)"]),
            *(["def test_net():\n    assert net(4) == 2"], ["assert net(4)", "async def t():\n    assert net(4) == 2"]),
            ["class Test:\n    def test(self):\n        assert net(4) == 2"],
            ["def t():\n    assert net(4) == 2\nif __name__ == '__main__':\n    t()"],
            *(["assert (net(4) == 2, 'half')"], ["assert net(4)", "assert (net(4) == 2, 1)"], ["net(4)\nassert 1"]),
        )
    },
    "no tests": ({"verifier": "code"}, {**GOOD, "tests": []}, "the tests hold none"),
    "no Python": ({"verifier": "code"}, {**GOOD, "answer": "def f(:", "tests": ["f()"]}, "are no Python"),
    "tests of nothing": ({"verifier": "code"}, {**GOOD, "answer": "x = 1", "tests": ["f()"]}, "use nothing that"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_in_one_line_with_file_line_and_remedy(name, tmp_path):
    options, row, said = BAD[name]
    more = {"numeric": {"answer": 3}, "choice": {"choices": ["3", "4"], "answer": "3"}, "code": CODE}
    rows = [{**own, **more.get(options.get("verifier"), {})} for own in own_rows(60)]
    if name == "contradiction":
        rows[0] = {"question": "Q0?", "answer": "one"}
    lines = [json.dumps(rows[0]), row if isinstance(row, str) else json.dumps(row), *map(json.dumps, rows[1:])]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    task = tasks.get("jsonl", path=str(path), **options)
    for read in (task.check_rows, lambda: task.examples("train"), lambda: task.examples("test")):
        with pytest.raises(DataError) as e:
            read()
        text = str(e.value)
        assert said in text and str(path) in text and "line 2" in text and "\n" not in text, text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no rows"),
        (b"\xef\xbb\xbf\n", "no rows"),
        ("Grüße\n".encode("latin-1"), "is not UTF-8"),
        ('{"question": "q"}\n'.encode("utf-16"), "is not UTF-8"),
        (b'[{"question": "q", "answer": "a"}]', "one object a line is expected"),
        (b'{"question": "q", "answer": "a"}\n' * 100, "has 1 different questions"),
        (b"".join(b'{"question": "q%d", "answer": "a"}\n' % i for i in range(39)), "give at least 40"),
    ],
)
def test_a_file_that_cannot_be_used(content, said, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said) as e:
        tasks.get("jsonl", path=str(tmp_path / "a.jsonl")).check_rows()
    assert "a.jsonl" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "missing a required argument: 'path'; give it in task_options, as --data.task_options.path"),
        ({"path": 5}, "path 5 names no file"),
        ({"path": "x", "verifier": "number"}, "unknown verifier 'number'; did you mean 'numeric'?"),
        ({"path": "x", "verifier": ["exact"]}, "unknown verifier"),
        ({"path": "x", "keys": {"qestion": "q"}}, "unknown field 'qestion'; did you mean 'question'?"),
        ({"path": "x", "keys": ["q", "a"]}, "must map fields"),
        ({"path": "x", "keys": {"question": 5}}, "must map fields"),
        ({"path": "x", "verifer": "exact"}, "did you mean 'verifier'?"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ConfigError) as e:
        tasks.get("jsonl", **options)
    assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("path", ["nope.jsonl", ".", "x" * 5000])
def test_a_file_that_is_none_is_refused_before_torch(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)  # importing it would fail
    assert main(["fit", "--config", "conf/jsonl.yaml", f"--data.task_options.path={path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert path[:10] in line and "name a file with one JSON object a line" in line


def test_fit_test_and_adapt_on_a_file_of_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn = tasks.get("tiny_math").examples("train")[:80]
    write(tmp_path / "my.jsonl", [{"question": e.question, "answer": int(e.answer)} for e in drawn])
    rows = ["--data.task_options.path=my.jsonl", "--data.task_options.verifier=numeric", "--quiet"]
    short = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--data.batch_size=8", "--trainer.logger=false"]
    assert main(["fit", "--config=conf/jsonl.yaml", *rows, *short]) == 0
    out = capsys.readouterr().out
    task = tasks.get("jsonl", path="my.jsonl", verifier="numeric")
    sizes = ", ".join(f"{len(task.examples(split))} {split}" for split in task.splits)
    assert f"jsonl   questions: {sizes}\n" in out and f"test split, n = {len(task.examples('test'))}," in out
    more = ["--data.task_options.system=null", "--model.sampling.max_new_tokens=40"]
    assert main(["test", "--expert=runs/jsonl/expert", *more, *rows]) == 0  # the expert says its task
    for options, said in (
        ([], "give it in task_options, as --data.task_options.path"),
        (["--data.task_options.pth=x"], "task 'jsonl' has no option 'pth'; did you mean 'path'?"),
        (["--data.task_options=3"], "data.task_options must be"),
    ):
        capsys.readouterr()
        assert main(["test", "--expert=runs/jsonl/expert", *options]) == 2
        assert said in capsys.readouterr().err
    more.append("--data.task=jsonl")
    search = ["--adapt.population=2", "--adapt.generations=1", "--data.few_shot=4", "--data.test_limit=8"]
    assert main(["adapt", *more, *rows, *search, "--run_dir=adapted"]) == 0
    assert "jsonl   n = 8" in capsys.readouterr().out
    report = json.loads((tmp_path / "adapted" / "report.json").read_text())
    assert report["base"]["accuracy"] > 0 and all("/train/" in shot for shot in report["details"]["few_shot"])
