"""What OpenAI's own client gets from the server: answers, streams, samples, log-probabilities, models, refusals."""

from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace

import httpx2
import pytest
from fakes import byte_tokenizer

from transformer2 import tasks, tiny

openai = pytest.importorskip("openai", reason="nox -s serve installs it")
pytestmark = pytest.mark.serve
QUESTIONS = [
    e.question for name in ("tiny_math", "tiny_code", "tiny_reasoning") for e in tasks.get(name).examples("test")[:4]
]
GREEDY = {"temperature": 0, "max_tokens": 32}


def ask(client, question=QUESTIONS[0], model="auto", **options):
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    return client.chat.completions.create(model=model, messages=messages, **{**GREEDY, **options})


def test_a_chat_is_answered_and_says_by_what(client, model):
    for question in QUESTIONS:
        answer = ask(client, question)
        (expected,) = model_answers(model, [question])
        (choice,) = answer.choices
        assert choice.message.content == expected.text and choice.finish_reason == expected.finish_reason == "stop"
        assert answer.transformer2["choice"] == expected.choice.name
        assert answer.transformer2["probabilities"] == pytest.approx(expected.choice.probabilities, abs=1e-4)
        assert answer.usage.prompt_tokens == expected.prompt_tokens
        assert answer.usage.total_tokens == expected.prompt_tokens + expected.completion_tokens
        assert answer.transformer2["seconds"]["second_pass"] > 0


def model_answers(model, questions, **options):
    """The engine's thread and this one share the model, as they may."""
    return model.generate(questions, temperature=0.0, max_new_tokens=32, **options)


@pytest.mark.parametrize("name", ["base", "math", "code", "mix:math=0.6,code=0.9"])
def test_a_model_name_says_what_answers(client, model, name):
    answer = ask(client, QUESTIONS[5], name)
    (expected,) = model_answers(model, [QUESTIONS[5]], use=name)
    assert answer.choices[0].message.content == expected.text and answer.model == name
    assert answer.transformer2["choice"] == ("mix" if name.startswith("mix") else name)
    assert answer.transformer2["weights"] == dict(expected.choice.weights)


def test_a_stream_is_the_answer_in_pieces(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert len(chunks) > 5 and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].transformer2["choice"] == whole.transformer2["choice"]  # known before the first word
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert chunks[-1].transformer2["seconds"] and chunks[-2].transformer2["choice"] == whole.transformer2["choice"]
    (last,) = list(ask(client, stream=True))[-1:]
    assert last.transformer2["choice"] == whole.transformer2["choice"] and last.choices[0].finish_reason == "stop"


def test_a_stream_that_waits_says_that_it_is_alive_while_others_are_answered(model, served, monkeypatch):
    from transformer2.serving import app
    from transformer2.serving.answers import ChatAnswer
    from transformer2.serving.engine import Call

    monkeypatch.setattr(app, "PING", 0.0)
    call, steps = Call(1, True, 600.0), []

    async def others_moved(seconds):
        steps.append(seconds)
        if len(steps) > 3:
            model.step()
        return True

    monkeypatch.setattr(call, "moved", others_moved)
    call.start([lambda: model.start(QUESTIONS[0], use="math", temperature=0.0, max_new_tokens=4)])

    async def read():
        return [piece async for piece in app._events(call, ChatAnswer("math", False, 1), served.app.state.metrics)]

    pieces = asyncio.run(read())
    assert pieces[:3] == [b": still here\n\n"] * 3 and b"assistant" in b"".join(pieces) and b"[DONE]" in pieces[-1]
    assert not any(seconds > 0 for seconds in steps)


def test_two_samples_follow_the_seed(client):
    options = {"n": 2, "temperature": 1.5, "seed": 7, "model": "base"}
    first, again = ask(client, **options), ask(client, **options)
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in again.choices] and texts[0] != texts[1]
    assert [c.index for c in first.choices] == [0, 1]
    streamed = {0: "", 1: ""}
    for chunk in ask(client, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts
    assert first.usage.prompt_tokens == ask(client, model="base").usage.prompt_tokens  # counted once
    unseeded = {ask(client, temperature=1.5, model="base").choices[0].message.content for _ in range(4)}
    assert len(unseeded) > 1


def test_a_stop_string_ends_the_text_before_it(client):
    whole = ask(client).choices[0].message.content
    stop = whole[6:9]
    stopped = ask(client, stop=[stop, "never said"])
    assert stopped.choices[0].message.content == whole.partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"
    pieces = [c.choices[0].delta.content or "" for c in ask(client, stop=stop, stream=True)]
    assert "".join(pieces) == whole.partition(stop)[0]
    cut = ask(client, max_tokens=None, max_completion_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3


def test_log_probabilities_are_the_models_own(client):
    answer = ask(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens - 1  # EOS is no text
    for token in content:
        likeliest = max(token.top_logprobs, key=lambda t: t.logprob)
        assert len(token.top_logprobs) == 3 and likeliest.token == token.token  # greedy
        assert token.logprob == pytest.approx(likeliest.logprob, abs=1e-4)
        assert bytes(token.bytes).decode() == token.token
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    streamed = [
        token
        for chunk in ask(client, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [t.token for t in streamed] == [t.token for t in content]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in content], abs=1e-3)
    warm = ask(client, logprobs=True, top_logprobs=20, temperature=2, top_p=0.5, seed=1)
    for token in warm.choices[0].logprobs.content:  # of temperature 1, whatever was drawn from
        same = [t.logprob for t in token.top_logprobs if t.token == token.token]
        assert not same or same[0] == pytest.approx(token.logprob, abs=1e-4)


def drawn(kind, text, stop=()):
    """A job of so many drawn tokens, half characters among them, and its answer's shape."""
    from transformer2.adaptive.chat import Chat
    from transformer2.adaptive.request import Job, Selection
    from transformer2.rollout.base import Sampling
    from transformer2.rollout.continuous import Row
    from transformer2.rollout.ending import Ending

    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ending, sampling = Ending(tokenizer, [1], stop), Sampling(1.0, max_new_tokens=len(ids))
    job, row = Job(Chat.of("?"), [5], "base", sampling, ending, 0, 3), Row([5], {}, sampling, ending, 0, 3)
    row.tokens, row.logprobs, row.likeliest = ids, [-1.0] * len(ids), [[(i, -1.0)] for i in ids]
    job.run(row, Selection("base", {}))
    return job, kind("base", False, 1)


def test_text_offsets_count_the_characters_of_the_text():
    from transformer2.serving.answers import TextAnswer

    job, shape = drawn(TextAnswer, "a🙂é b")
    job.finish()
    (choice,) = shape.body([job])["choices"]
    assert choice["text"] == "a🙂é b"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 1, 2, 2, 3, 4]


def test_of_ids_that_read_alike_the_likeliest_is_told():
    from transformer2.serving.answers import TextAnswer

    job, shape = drawn(TextAnswer, "🙂")
    half = job.row.tokens[1]
    job.row.likeliest = [[(i, -1.0), (half, -7.0)] for i in job.row.tokens]
    job.finish()
    (choice,) = shape.body([job])["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"\ufffd": -1.0}] * 4


@pytest.mark.parametrize("completion", [False, True])
def test_a_stream_that_a_stop_string_ends_has_the_log_probabilities_of_all_its_tokens(completion):
    from transformer2.serving.answers import ChatAnswer, TextAnswer

    job, shape = drawn(TextAnswer if completion else ChatAnswer, "a🙂 end", stop=["end"])
    whole = drawn(type(shape), "a🙂 end", stop=["end"])
    whole[0].finish()
    tokens, job.row.tokens, events = list(job.row.tokens), [], []
    for token in tokens:
        job.row.tokens.append(token)
        job.row.logprobs = [-1.0] * len(job.row.tokens)
        if text := job.take():
            events.append(shape.text(0, text, job))
    job.finish()
    events.append(shape.ending(0, job))
    streamed = [json.loads(event.removeprefix(b"data: "))["choices"][0]["logprobs"] for event in events]
    (expected,) = whole[1].body([whole[0]])["choices"]
    for key in ("tokens", "text_offset") if completion else ("content",):
        assert [value for part in streamed if part for value in part[key]] == expected["logprobs"][key]
    assert streamed[-1] is not None and job.result().text == "a🙂 "


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ([-1], "prompt.0: .*greater than or equal to 0"),
        ([[]], "prompt.0: .*at least 1 item"),
        ([], "prompt: .*at least 1 item"),
        (["a", 3], "prompt.1: .*valid string"),
        ([5] * 5000, "shorten the prompt, or allow"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_named(client, prompt, named):
    with pytest.raises(openai.BadRequestError, match=named) as refused:
        client.completions.create(model="base", prompt=prompt)
    assert refused.value.param.startswith("prompt")


def test_white_space_can_be_completed(model):
    from transformer2.serving.guard import Limits
    from transformer2.serving.schemas import CompletionRequest

    reader = SimpleNamespace(tokenizer=byte_tokenizer(), longest=64, usual_answer=8)  # tiny's own has none
    (start,) = CompletionRequest(model="auto", prompt="\n").starts(reader, Limits(), None)
    assert reader.tokenizer.decode(start["ids"]) == "\n"
    (answer,) = model.generate(start["prompt"], ids=[5], max_new_tokens=2)
    assert answer.completion_tokens and answer.choice.probabilities


def test_a_completion_continues_raw_text(client, served):
    tokenizer = served.model.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTIONS[0]}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    chat = ask(client, model="math").choices[0].message.content
    by_ids = client.completions.create(model="math", prompt=ids, **GREEDY)
    assert by_ids.choices[0].text == chat and by_ids.transformer2["choice"] == "math"
    both = client.completions.create(model="math", prompt=[ids, ids[:5]], n=2, logprobs=2, **GREEDY)
    assert [c.index for c in both.choices] == [0, 1, 2, 3] and both.usage.prompt_tokens == len(ids) + 5
    assert both.choices[1].text == chat != both.choices[2].text
    assert both.choices[0].logprobs.tokens[0] in both.choices[0].logprobs.top_logprobs[0]
    raw = client.completions.create(model="auto", prompt="f(x) = x + 3", **GREEDY)
    assert raw.usage.prompt_tokens == len(tokenizer("f(x) = x + 3")["input_ids"])
    pieces = client.completions.create(model="auto", prompt="f(x) = x + 3", stream=True, **GREEDY)
    assert "".join(c.choices[0].text for c in pieces) == raw.choices[0].text
    whole = client.completions.create(model="math", prompt=ids, logprobs=1, **GREEDY).choices[0].logprobs
    pieces = client.completions.create(model="math", prompt=ids, logprobs=1, stream=True, **GREEDY)
    parts = [c.choices[0].logprobs for c in pieces if c.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset] == whole.text_offset


def test_a_stream_of_log_probabilities_counts_on(client, served):
    options = {"model": "math", "prompt": "3 + 4", "logprobs": 1, **GREEDY}
    whole = client.completions.create(**options).choices[0].logprobs

    def first_tokens():
        (line,) = (x for x in served.get("/metrics").text.splitlines() if "first_token_seconds_count" in x)
        return float(line.split()[-1])

    before = first_tokens()
    pieces = [c.choices[0].logprobs for c in client.completions.create(stream=True, **options) if c.choices]
    assert [o for piece in pieces if piece for o in piece.text_offset] == whole.text_offset
    list(client.completions.create(stream=True, **{**options, "logprobs": None}))
    assert first_tokens() == before + 2  # one a stream


def test_models_and_experts_are_told(client, served):
    models = {m.id: m.transformer2 for m in client.models.list()}
    assert list(models) == ["auto", "base", *tiny.EXPERTS]
    assert models["math"]["task"] == "tiny_math" and models["math"]["kind"] == "expert"
    assert client.models.retrieve("mix:math=0.5").transformer2["weights"] == {"math": 0.5}
    z = client.get("/experts/math/z", cast_to=object)["matrices"]
    assert len(z) == models["math"]["matrices"] and all(math.isfinite(v) for row in z.values() for v in row)
    assert list(z) == list(served.model.z("math"))
    for name in ("maths", "base"):
        with pytest.raises(openai.NotFoundError):
            client.get(f"/experts/{name}/z", cast_to=object)


@pytest.mark.parametrize(
    ("options", "error", "code", "named"),
    [
        ({"model": "maths"}, openai.NotFoundError, "model_not_found", "did you mean 'math'"),
        ({"model": "mix:maths=1"}, openai.NotFoundError, "model_not_found", "did you mean 'math'"),
        ({"model": "mix:math=x"}, openai.BadRequestError, None, "no mixture"),
        ({"model": "mix:math=1e30"}, openai.BadRequestError, None, "from -100 to 100"),
        ({"question": "word " * 500}, openai.BadRequestError, "context_length_exceeded", "shorten"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded", "shorten"),
        ({"max_tokens": 0}, openai.BadRequestError, None, "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, None, "temperature"),
        ({"top_p": 0}, openai.BadRequestError, None, "top_p"),
        ({"n": 1000}, openai.BadRequestError, "invalid_value", "128"),
        ({"max_tokens": 10**30}, openai.BadRequestError, None, "^.*max_tokens: "),
        ({"stop": [""]}, openai.BadRequestError, None, "stop.0: .*at least 1 character"),
        ({"stop": ["a"] * 17}, openai.BadRequestError, None, "at most 16 items"),
        ({"top_logprobs": 2}, openai.BadRequestError, None, "logprobs"),
        ({"question": []}, openai.BadRequestError, None, "messages"),
        ({"question": [{"role": "robot", "content": "?"}]}, openai.BadRequestError, None, "robot"),
        ({"question": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError, None, "image"),
        ({"question": [{"role": "user", "content": "?", "name": "me"}]}, openai.BadRequestError, None, "name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, None, "tools"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, None, "response_format"),
        ({"frequency_penalty": 1}, openai.BadRequestError, None, "frequency_penalty"),
        ({"logit_bias": {"3": 1}}, openai.BadRequestError, None, "logit_bias"),
        ({"extra_body": {"top_k": 4}}, openai.BadRequestError, None, "top_k"),
        ({"extra_body": {"x" * 3_000_000: 4}}, openai.BadRequestError, None, "unknown field 'xxx"),
        ({"extra_body": {"temprature": 4}}, openai.BadRequestError, None, "did you mean 'temperature'"),
        ({"extra_body": {"seed": "1"}}, openai.BadRequestError, None, "seed"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, None, "stream"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused(client, served, options, error, code, named, stream):
    if stream and "stream_options" in options:
        return
    with pytest.raises(error, match=named) as found:
        ask(client, **options, **({"stream": True} if stream else {}))
    assert found.value.code == code and set(found.value.body) == {"message", "type", "param", "code"}
    assert served.engine.answers == 0


def test_neutral_fields_and_answers_sent_back_are_taken(client):
    first = ask(client, user="me", frequency_penalty=0, tools=[], response_format={"type": "text"}, n=1)
    said = first.choices[0].message
    parts = [{"type": "text", "text": QUESTIONS[5]}]
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "3 + 4"}, said]
    assert ask(client, [*chat[1:], {"role": "user", "content": parts}], max_tokens=8).choices[0].message.content


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'"text"', b"{}", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(served, body):
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = served.post(path, body)
        assert response.status_code == 400, response.text
        assert json.loads(response.text)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("text", "named"), [("\ud800", "UTF-8"), ("</s>", "empty")])
def test_a_prompt_that_is_no_text_is_refused(served, text, named):
    """Half a character, which JSON can write; and nothing but the token that ends texts, which is taken off."""
    asked = {"/v1/completions": {"prompt": text}}
    if text == "\ud800":
        asked["/v1/chat/completions"] = {"messages": [{"role": "user", "content": text}]}
    for path, given in asked.items():
        response = served.post(path, json.dumps({"model": "base", **given}).encode())
        assert response.status_code == 400 and named in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/nothing", 404, None),
        ("GET", "/v1/completions", 405, "POST"),
        ("HEAD", "/v1/completions", 405, "POST"),
        ("OPTIONS", "/v1/chat/completions", 405, "POST"),
        ("OPTIONS", "/health", 405, "GET"),
        ("DELETE", "/v1/models", 405, "GET"),
        *(("HEAD", path, 200, None) for path in ("/", "/page.js", "/health", "/metrics", "/v1/models/math")),
        ("HEAD", "/v1/models/nobody", 404, None),
    ],
)
def test_what_a_route_answers_to_each_method(served, method, path, status, allow):
    response = httpx2.request(method, f"{served.url}{path}")
    assert (response.status_code, response.headers.get("allow")) == (status, allow)
    assert (not response.content) if method == "HEAD" else response.json()["error"]["message"]
