"""Tasks are found by name and by class path, take options, and say what they are."""

import importlib
import json

import pytest
from PIL import Image
from rows import PICTURED_ROWS, ROWS, SPLITS, own_rows

from transformer2 import tasks
from transformer2.errors import ConfigError
from transformer2.tasks import Task

NEEDED = {"jsonl": {"path": "mine.jsonl"}}  # options without which a task cannot be


def test_the_table_names_every_task_there_is():
    for module in {where.partition(".")[0] for where in tasks.SHIPPED.values()}:
        importlib.import_module(f"transformer2.tasks.{module}")
    named = {(cls.name, cls.__name__) for cls in subclasses(Task) if cls.__module__.startswith("transformer2.")}
    there = {(name, where.rpartition(".")[2]) for name, where in tasks.SHIPPED.items()}
    assert {pair for pair in named if pair[0]} == there
    assert tasks.names() == sorted(tasks.SHIPPED)


def subclasses(cls):
    found = {c for sub in cls.__subclasses__() for c in [sub, *subclasses(sub)]}
    return {c for c in found if isinstance(getattr(c, "name", None), str)}


@pytest.mark.parametrize("name", tasks.names())
def test_every_shipped_task_says_what_it_is(name):
    task = tasks.get(name, **NEEDED.get(name, {}))
    assert task.name == name and task.max_new_tokens > 0 and task.protocol == "clean"
    assert task.description and "\n" not in task.description and len(task.description) < 100
    assert "test" in task.splits
    page = f"{type(task).__doc__} {importlib.import_module(type(task).__module__).__doc__}"
    assert "One row:" in page or "Example" in page


class Half(Task):
    name = "half"

    def examples(self, split, data_dir=None):
        return []


class Sized(Half):
    description = "takes options"

    def __init__(self, size: int = 1):
        self.size = size

    def verify(self, example, completion):
        raise NotImplementedError


class Needs(Sized):
    def __init__(self, size: int):
        self.size = size


class Anything(Sized):
    def __init__(self, **options):
        super().__init__(options["size"])


@pytest.mark.parametrize("cls", ["Sized", "Anything"])
def test_options_reach_the_constructor(cls):
    assert tasks.get(f"{__name__}.{cls}", size=3).size == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gsm9k", {}, "unknown task 'gsm9k'; did you mean 'gsm8k'?"),
        ("gsm8k", {"revison": None}, "task 'gsm8k' has no option 'revison'; did you mean 'revision'?"),
        ("tiny_math", {"size": 1}, "task 'tiny_math' has no option 'size'; it takes none"),
        (f"{__name__}.Sized", {"sizes": 1}, "did you mean 'size'?"),
        (f"{__name__}.Half", {}, "lacks verify, description"),
        (f"{__name__}.Nobody", {}, "cannot be imported"),
        ("nowhere.Nobody", {}, "No module named 'nowhere'"),
        *((odd, {}, f"unknown task {odd!r}") for odd in ("../..", ".", "..x", "a/b.c", "a..b", "", "gsm8k.", "a b.c")),
        (f"{__name__}.Needs", {}, "missing a required argument: 'size'; give it in task_options"),
        ("json.JSONDecoder", {}, "is not a class derived from transformer2.tasks.Task"),
        ("json.dumps", {}, "is not a class derived from transformer2.tasks.Task"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(name, options, message):
    with pytest.raises(ConfigError) as e:
        tasks.get(name, **options)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy", "arc_challenge"])
def test_rows_of_the_hub_are_pinned(name):
    assert len(tasks.get(name).revision) == 40 and tasks.get(name, revision=None).revision is None


def rows_of(name, folder):
    """The options of a task whose one row, where it reads any, is put into a folder."""
    if name in PICTURED_ROWS:
        Image.new("RGB", (8, 8)).save(folder / "sign.png")
    if found := {**ROWS, **PICTURED_ROWS}.get(name):
        file, row = found
        (folder / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    if name == "jsonl":
        (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own_rows(60)))
        return {"path": str(folder / "mine.jsonl")}
    return {"experts": {"math": "tiny_math"}, "prompts_per_category": 10} if name == "dispatch" else {}


@pytest.mark.parametrize("name", [name for name in tasks.names() if name != "easy_vqa"])  # its rows are a package
def test_every_task_takes_a_system_message_and_a_prompt(name, tmp_path):
    options, split = rows_of(name, tmp_path), SPLITS.get(name, "test")
    plain = tasks.get(name, **options).examples(split, str(tmp_path))[0]
    fields = {"mbpp": ["question", "test"], "arc_": ["question", "options"], "disp": ["request"]}.get(name[:4])
    shown = " | ".join(f"{{{field}}}" for field in fields or ["question"])
    task = tasks.get(name, system="Be \\boxed{}.", prompt=f"<< {shown} >> \\frac{{1}}{{2}} {{{{x}}}}", **options)
    (system, user) = task.examples(split, str(tmp_path))[0].messages
    assert system == {"role": "system", "content": "Be \\boxed{}."}
    head = user["content"].partition(" | ")[0]
    assert user["content"].startswith("<< ") and user["content"].endswith(" >> \\frac{1}{2} {x}")
    assert head[3:].partition(" >> ")[0] in plain.question or name == "dispatch"
    assert [m["role"] for m in tasks.get(name, system=None, **options).examples(split, str(tmp_path))[0].messages] == [
        "user"
    ]
    assert [m["role"] for m in tasks.get(name, system=" ", **options).examples(split, str(tmp_path))[0].messages] == [
        "user"
    ]


@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "Answer."}, r"prompt lacks \{(question|request)\}"),
        ({"prompt": "{question} {request} {qestion}"}, r"unknown field \{\w+\}; did you mean '\w+'\?"),
        ({"prompt": 5}, "is not text"),
        ({"system": ["Be brief."]}, "is not text"),
    ],
)
def test_what_a_prompt_cannot_show_is_refused_by_name(name, options, said):
    with pytest.raises(ConfigError, match=said) as e:
        tasks.get(name, **{**NEEDED.get(name, {}), **options})
    assert name in str(e.value) and "\n" not in str(e.value)
