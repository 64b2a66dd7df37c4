"""`ask` and `chat` as a user types them, on the embedded model."""

import io
import json
import signal

import pytest

from transformer2 import tiny
from transformer2.adaptive.model import SelfAdaptive
from transformer2.cli import main
from transformer2.cli.chat import Conversation

QUESTION = "Skokap carries 24 pens, eats 2, finds 7, sells 6. How many?"
CODE = "Make drokat(x): lower by 6, triple, raise by 1, lift by 6."
SAMPLING = {"max_new_tokens": 40}


def test_an_answer_and_what_was_chosen_for_it(capsys):
    assert main(["ask", QUESTION]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "[math; " in err and " tokens]" in err


def test_lines_of_standard_input_beside_the_base(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\n{CODE}\n"))
    assert main(["ask", "--compare", "--json"]) == 0
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["prompt"], two["prompt"]) == (QUESTION, CODE)
    assert (one["choice"]["name"], two["choice"]["name"]) == ("math", "code")
    assert one["base_answer"] != one["answer"] and two["base_answer"] and "seconds" in two


def test_a_file_of_prompts(tmp_path, capsys):
    messages = [{"role": "user", "content": CODE}]
    rows = [{"prompt": QUESTION, "id": 7}, QUESTION, {"messages": messages}]
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    file.write_text("\ufeff" + "\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    command = ["ask", "--file", str(file), "--out", str(out), "--use", "mix:math=0.5,code=0.5"]
    assert main(command) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("id") for row in found] == [7, None, None] and found[2]["messages"] == messages
    assert found[0]["answer"] == found[1]["answer"] and found[0]["choice"]["weights"] == {"math": 0.5, "code": 0.5}
    assert not list(tmp_path.glob("*.part"))
    assert main(command) == 2 and "exists" in capsys.readouterr().err
    assert out.read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2 is not JSON"),
        ("3", "line 2 must be"),
        ('{"prompt": 3}', "line 2 must be"),
        ('{"text": ""}', "line 2"),
        ('{"prompt": "x", "id": ' + "1" * 5000 + "}", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, capsys, line, named):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"fine"\n{line}\n')
    assert main(["ask", "--file", str(file), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert named in capsys.readouterr().err and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--strategy", "score"], "did you mean 'scores'"),
        (["--strategy", "cem"], "transformer2 adapt"),
        (["--strategys", "cls"], "did you mean 'strategy'"),
        (["--experts", "math"], "NAME=DIR"),
        (["--experts", "math=nowhere"], "does not exist"),
        (["--experts", f"a={tiny.expert_path('math')},a={tiny.expert_path('code')}"], "twice"),
        (["--classifier", "nowhere"], "does not exist"),
        (["--temperature", "hot"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--max_new_tokens", "0"], "at least 1"),
        (["--top_p", "1.5"], "--top_p"),
        (["--model_kwargs", "3"], "--model_kwargs"),
        (["--use", "maths"], "did you mean 'math'"),
        (["--out", "x.jsonl"], "--file"),
        (["--base", "nowhere/at/all"], "base"),
        (["--base", str(tiny.model_path()), "--strategy", "cls"], "classifi"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_refused_in_one_line(capsys, flags, named):
    assert main(["ask", QUESTION, *flags]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and named in err[0]


def test_a_prompt_that_cannot_be_answered_leaves_the_others_theirs(tmp_path, capsys):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n".join(map(json.dumps, [QUESTION, "word " * 500, CODE])))
    command = ["ask", "--file", str(file), "--out", str(out), "--max_rows", "1"]
    assert main(command) == 2 and "1 of 3 prompts" in capsys.readouterr().err
    one, two, three = (json.loads(line) for line in out.read_text().splitlines())
    assert one["answer"] and three["answer"] and two["answer"] is None and "shorten" in two["error"]
    out.rename(tmp_path / "out.jsonl.part")
    assert main(command) == 2 and "interrupted run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'{"prompt": "x", "answer": 3}', "'answer' is a name of ours"),
        (b'"caf\xe9"', "not UTF-8"),
        (b'{"prompt": "x", "id": "\\ud800"}', "half a character"),
    ],
)
def test_rows_that_would_be_lost_or_changed_are_refused(tmp_path, capsys, data, named):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(data)
    assert main(["ask", "--file", str(file), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert named in capsys.readouterr().err


def test_words_after_two_dashes_are_prompts(capsys):
    assert main(["ask", "--max_new_tokens", "4", "--", "--help"]) == 0
    assert "usage" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def model():
    return SelfAdaptive.from_pretrained("tiny")


@pytest.fixture
def conversation(model):
    model.set_strategy("auto")
    return Conversation(model, dict(SAMPLING), None, None)


def test_a_conversation_keeps_its_messages_and_forgets_the_oldest(conversation, capsys):
    for _ in range(6):
        conversation.say(QUESTION)
    out = capsys.readouterr().out
    assert out.count("[math; ") == 6 and "oldest exchange is forgotten" in out
    roles = [m["role"] for m in conversation.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2) and 2 <= len(roles) < 12
    conversation.say("/new")
    assert conversation.messages == []


def test_commands_change_what_answers(conversation, capsys):
    for line in (
        "/compare",
        "/expert code",
        QUESTION,
        "/strategy soft",
        "/expert auto",
        CODE,
        "/experts",
        "/help",
        "/system be brief",
    ):
        conversation.say(line)
    out = capsys.readouterr().out
    assert "  base:\n" in out and "  code:\n" in out and "[mix of math" in out and "scores, soft" in out
    assert conversation.system == "be brief"
    for line in ("/expert mth", "/strategy score", "/exprt math", "word " * 300):
        with pytest.raises(Exception, match=r"did you mean|too many|shorten"):
            conversation.say(line)
    assert conversation.use == "auto" and conversation.model.strategy == "scores"


def test_ctrl_c_stops_an_answer_and_not_the_chat(conversation, capsys, monkeypatch):
    before, steps = signal.getsignal(signal.SIGINT), []
    original = conversation.model.step

    def step():
        steps.append(1)
        if len(steps) == 12:
            signal.raise_signal(signal.SIGINT)
        return original()

    monkeypatch.setattr(conversation.model, "step", step)
    try:
        conversation.say(QUESTION)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "cancelled, stopped]" in capsys.readouterr().out
    assert conversation.model.is_idle
    conversation.say(QUESTION)
    assert "stopped" not in capsys.readouterr().out


def test_chat_reads_until_its_input_ends(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n/nonsense\n\n/expert base\n{QUESTION}\n"))
    try:
        assert main(["chat", "--max_new_tokens", "30"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    assert "[math; " in out and "unknown command /nonsense" in out and "[base; " in out
