"""`ask` and `chat` as a user types them, on the embedded model."""

import io
import json
import re
import signal

import pytest
from vision_bases import drawn, make_vision

from transformer2 import tiny
from transformer2.adaptive.model import SelfAdaptive
from transformer2.cli import main
from transformer2.cli.ask import _of_file
from transformer2.cli.chat import Conversation
from transformer2.errors import DataError, UserError
from transformer2.pictures import PictureFile

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


def test_a_row_has_a_system_message_of_its_own_in_place_of_the_flags(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "\n".join(map(json.dumps, [{"prompt": "x", "system": "Be brief."}, {"prompt": "x", "system": None}]))
    )
    _, chats = _of_file(file, "Be kind.")
    assert [chat.messages[0]["content"] for chat in chats] == ["Be brief.", "Be kind."]


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
        ('{"prompt": "x", "prompt": "y"}', "line 2 is not JSON (the key 'prompt' is there twice)"),
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
        (["--strategys", "cls"], "did you mean --strategy"),
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
        (["--use", "math", "--strategy", "scores"], "--strategy says how to choose, and --use leaves no choice"),
        (["--use", "mix:math=1", "--soft"], "--soft says how to choose"),
        (["--use", "base", "--classifier", str(tiny.expert_path("dispatch"))], "--classifier says how to choose"),
        (["--strategy", "prompt", "--classifier", str(tiny.expert_path("dispatch"))], "not read by --strategy prompt"),
        (["--experts", "none", "--strategy", "scores"], "there are no experts to choose from"),
        (["--base", "tiny_b", "--soft"], "there are no experts to choose from"),
        (["--device", "mps"], "device mps is not on this machine"),
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


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A base that takes pictures, and two of them beside it."""
    folder = tmp_path_factory.mktemp("seeing")
    for i in range(2):
        drawn(i, (60, 40)).save(folder / f"{i}.png")
    make_vision(folder / "base")
    return folder


def test_a_picture_with_every_prompt(seeing, capsys):
    command = ["ask", "--base", str(seeing / "base"), "--json", "--max_new_tokens", "4"]
    image = [str(seeing / "0.png"), str(seeing / "1.png")]
    assert main([*command, "--image", image[0], "--image", image[1], "How many?", "Of what?"]) == 0
    assert main([*command, "--image", image[1], "How many?"]) == 0
    both, other, one = map(json.loads, capsys.readouterr().out.splitlines())
    assert both["image"] == other["image"] == image and one["image"] == image[1:]
    assert both["prompt_tokens"] > one["prompt_tokens"]


def test_rows_name_their_pictures_from_where_the_file_is(seeing, capsys):
    file, out = seeing / "prompts.jsonl", seeing / "out.jsonl"
    (seeing / "cut.png").write_bytes((seeing / "0.png").read_bytes()[:-40])
    parts = [{"type": "image_url", "image_url": {"url": "0.png"}}, {"type": "text", "text": "How many?"}]
    rows = [
        {"prompt": "How many?", "image": "0.png"},
        {"messages": [{"role": "user", "content": parts}]},
        {"prompt": "How many?", "image": ["0.png", "1.png"]},
        {"prompt": "How many?", "image": "cut.png"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    command = ["ask", "--base", str(seeing / "base"), "--file", str(file), "--out", str(out), "--max_new_tokens", "4"]
    assert main(command) == 2 and "1 of 4 prompts" in capsys.readouterr().err
    one, same, two, cut = map(json.loads, out.read_text().splitlines())
    assert one["answer"] == same["answer"] and two["prompt_tokens"] > one["prompt_tokens"]
    assert cut["answer"] is None and "cut.png is broken" in cut["error"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"prompt": "x", "image": "2.png"}, "line 1: picture .*2.png is not there"),
        ({"prompt": "x", "image": 3}, "line 1: a picture is a path"),
        *(
            ({"prompt": "x", key: "1.png"}, f"line 1: '{key}' is not read; name it 'image'")
            for key in ("images", "image_url", "picture", "pictures", "image_path")
        ),
        *(
            ({"prompt": "x", key: "1.png"}, f"line 1: '{key}' is not read; name it 'image'.*, or leave it out")
            for key in (
                "image_1",
                "image 2",
                "image-path",
                "image_file_name",
                "input_image",
                "base64_image",
                "file_name",
            )
        ),
        ({"prompt": "x", "image": "1.png", "image_2": "2.png"}, "line 1: 'image_2' is not read"),
        (
            {"messages": [{"role": "user", "content": "x", "image": "1.png"}]},
            "line 1: 'image' of a message is not read",
        ),
        ({"prompt": "x", "system": 5}, "line 1: the content of a message of role 'system' must be text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "line 1: a message has role 'robot'"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch, line, named):
    monkeypatch.setattr("transformer2.cli.ask.load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    assert main(["ask", "--file", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert re.search(named, capsys.readouterr().err)


def test_a_picture_that_turns_bad_is_the_error_of_its_row(seeing, tmp_path, capsys, monkeypatch):
    decode = PictureFile.open

    def turned_bad(picture):
        if picture.name.endswith("1.png"):
            raise DataError(f"picture {picture.name} has turned bad")
        return decode(picture)

    monkeypatch.setattr(PictureFile, "open", turned_bad)
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "How many?", "image": str(seeing / f"{i}.png"), "images": None} for i in (0, 1, 0)]
    file.write_text("\n".join(map(json.dumps, rows)))
    command = ["ask", "--base", str(seeing / "base"), "--file", str(file), "--out", str(out), "--max_new_tokens", "4"]
    assert main(command) == 2 and "1 of 3 prompts" in capsys.readouterr().err
    one, bad, same = map(json.loads, out.read_text().splitlines())
    assert one["answer"] == same["answer"] and bad["answer"] is None and "has turned bad" in bad["error"]


def test_a_picture_that_cannot_be_shown_is_refused_in_one_line(seeing, tmp_path, capsys, monkeypatch):
    assert main(["ask", "--image", str(seeing / "0.png"), QUESTION]) == 2
    assert "--base tiny_vision" in capsys.readouterr().err
    monkeypatch.setattr("transformer2.cli.ask.load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "notes.png").write_text("no picture")
    for path, named in ((tmp_path / "x.png", "cannot be read"), (tmp_path / "notes.png", "no picture of a known kind")):
        assert main(["ask", "--image", str(path), QUESTION]) == 2
        err = capsys.readouterr().err.strip().splitlines()
        assert len(err) == 1 and named in err[0]
    assert main(["ask", "--image", "x.png", "--file", "x.jsonl"]) == 2
    assert "rows of --file name their own" in capsys.readouterr().err


def test_a_picture_goes_with_the_next_message_of_a_chat(seeing, capsys):
    model = SelfAdaptive.from_pretrained(str(seeing / "base"))
    chat = Conversation(model, {"max_new_tokens": 4}, None, None)
    chat.say(f"/image {seeing / '0.png'}")
    chat.say(f"/image {seeing / '1.png'}")
    for line, named in (("/image", "name a picture"), (f"/image {seeing / 'none.png'}", "cannot be read")):
        with pytest.raises(UserError, match=named):
            chat.say(line)
    chat.say("How many?")
    chat.say("And now?")
    shown = [0 if isinstance(m["content"], str) else len(m["content"]) - 1 for m in chat.messages]
    assert shown == [2, 0, 0, 0] and "2 shown with the next message" in capsys.readouterr().out
    chat.say(f"/image {seeing / '0.png'}")
    chat.say("/new")
    assert not chat.pictures


def test_a_chat_with_a_base_of_text_alone_takes_no_picture(conversation, seeing):
    with pytest.raises(UserError, match="--base tiny_vision"):
        conversation.say(f"/image {seeing / '0.png'}")


def test_words_after_two_dashes_are_prompts(capsys):
    assert main(["ask", "--max_new_tokens", "4", "--", "--help"]) == 0
    assert "usage" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["-"], [CODE, "-"]])
def test_a_dash_is_standard_input(capsys, monkeypatch, arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"\ufeff{QUESTION}\n"))  # as Windows writes it
    assert main(["ask", "--json", "--max_new_tokens", "2", "--use", "base", *arguments]) == 0
    prompts = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert prompts == [QUESTION if word == "-" else word for word in arguments]


def test_the_base_by_another_name_is_called_so(capsys):
    assert main(["ask", "--use", "mix:base=1", QUESTION]) == 0
    assert "[base; " in capsys.readouterr().err


@pytest.mark.parametrize("before", [1, 9])
def test_a_prompt_that_cannot_be_answered_is_refused_before_others_are(capsys, monkeypatch, before):
    monkeypatch.setattr(SelfAdaptive, "step", lambda _: pytest.fail("a token was drawn"))
    assert main(["ask", "--max_rows", "1", *[QUESTION] * before, "word " * 500]) == 2
    out, err = capsys.readouterr()
    assert not out and "shorten" in err


@pytest.mark.parametrize("command", ["ask", "chat", "serve"])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("{load_in_4bit: true}", "quantization_config: {load_in_4bit: true}"),
        ("{dtype: bfloat16}", "--dtype"),
        ("{base: x}", "--base"),
        ("{attn_implementatio: eager}", "did you mean 'attn_implementation'"),
        ("{quantization_config: nf4}", "--model_kwargs quantization_config must be"),
    ],
)
def test_model_kwargs_are_refused_before_the_model_is_loaded(capsys, monkeypatch, command, given, named):
    monkeypatch.setattr(f"transformer2.cli.{command}.load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("transformer2.cli.serve.NEEDED", ())
    assert main([command, "--model_kwargs", given]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and named in err[0] and "--model_kwargs" in err[0] and "model.model" not in err[0]


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


def test_an_answer_has_more_room_than_the_conversation_leaves(model, capsys, monkeypatch):
    show, budgets = Conversation._show, []
    monkeypatch.setattr(
        Conversation, "_show", lambda self, jobs: budgets.append(jobs[0].sampling.max_new_tokens) or show(self, jobs)
    )
    chat = Conversation(model, {"max_new_tokens": None}, "math", None)
    for _ in range(5):
        chat.say(QUESTION)
    assert "oldest exchange is forgotten" in capsys.readouterr().out and min(budgets) >= 32
    assert len(chat.messages) < 10


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
    before = conversation.messages
    for line in ("/expert mth", "/strategy score", "/exprt math", "word " * 300, "half \ud800"):
        with pytest.raises(Exception, match=r"did you mean|too many|shorten|UTF-8"):
            conversation.say(line)
    assert conversation.messages is before and "forgotten" not in capsys.readouterr().out
    assert conversation.use == "auto" and conversation.model.strategy == "scores"


def test_a_strategy_chooses_after_an_expert_was_chosen_by_hand(conversation, capsys):
    for line in ("/expert math", "/strategy", "/strategy scores", CODE, "/strategy"):
        conversation.say(line)
    out = capsys.readouterr().out
    assert (
        "strategy: cls; math answers until /expert auto\n" in out and "strategy: scores\n" in out and "[code; " in out
    )
    by_hand = Conversation(conversation.model, {}, "mix:math=1", None)
    by_hand.say("/strategy soft")
    by_hand.use = "code"
    by_hand.welcome()
    out = capsys.readouterr().out
    assert "strategy: scores, soft; code answers until /expert auto. /help" in out
    with pytest.raises(UserError, match="did you mean 'math'"):
        Conversation(conversation.model, {}, "maths", None)


def test_a_server_that_experts_may_come_to_keeps_its_strategy(tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="nox -s serve installs it")
    model = SelfAdaptive.from_pretrained("tiny", experts={})
    given = []

    def load(arguments, **options):
        given.append(arguments)
        return model

    monkeypatch.setattr("transformer2.cli.serve.load", load)
    monkeypatch.setattr("transformer2.serving.run.run", lambda app, bound, ready: bound.close())
    command = ["serve", "--port", "0", "--experts", "none", "--strategy", "prompt"]
    assert main([*command, "--experts_dir", str(tmp_path)]) == 0 and model.strategy == "prompt"
    assert main(command) == 0 and given[1]["strategy"] == "prompt" and "strategy" not in given[0]


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


def test_ctrl_c_before_an_answer_begins_does_not_end_the_chat(capsys, monkeypatch):
    before, start, calls = signal.getsignal(signal.SIGINT), SelfAdaptive.start, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return start(*args, **options)

    monkeypatch.setattr(SelfAdaptive, "start", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n{QUESTION}\n"))
    try:
        assert main(["chat", "--use", "math", "--max_new_tokens", "4"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    assert out.count("  stopped\n") == 1 and out.count("[math; ") == 1


def test_chat_reads_until_its_input_ends(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n/nonsense\n\n/expert base\n{QUESTION}\n"))
    try:
        assert main(["chat", "--max_new_tokens", "30"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    assert "[math; " in out and "unknown command /nonsense" in out and "[base; " in out
