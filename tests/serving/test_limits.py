"""What a server refuses: too many, too large, too long, strangers, other sites; and experts that come and go."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from transformer2 import tasks

openai = pytest.importorskip("openai", reason="nox -s serve installs it")
pytestmark = pytest.mark.serve
QUESTION = tasks.get("tiny_math").examples("test")[0].question
CHAT = b'{"model": "base", "max_tokens": 4, "messages": [{"role": "user", "content": "?"}]}'


def ask(client, model="auto", **options):
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24, **options)


def limits(**given):
    from transformer2.serving.guard import Limits

    return Limits(**given)


def test_who_finds_the_queue_full_is_told_when_to_come_again(serve):
    served = serve(limits=limits(queue=0))  # 16 rows

    async def go():
        async with served.client(kind="async") as client:
            options = {"model": "base", "prompt": [5, 6, 7], "temperature": 1.9, "max_tokens": 120}
            stream = await client.completions.create(n=16, seed=1, stream=True, **options)
            with pytest.raises(openai.RateLimitError) as refused:
                await client.completions.create(**options)
            await stream.close()
            assert int(refused.value.response.headers["retry-after"]) >= 1
            assert refused.value.type == "rate_limit_error"
            patient = client.with_options(max_retries=5)
            assert (await patient.completions.create(**options)).choices

    asyncio.run(go())


@pytest.mark.parametrize("how", ["announced", "chunked"])
def test_a_large_body_is_refused_before_it_is_read(serve, how):
    served = serve(limits=limits(body=1000))
    body = CHAT.replace(b"?", b"word " * 300)
    content = body if how == "announced" else iter([body[:900], body[900:]])
    response = served.post("/v1/chat/completions", content)
    assert response.status_code == 413 and response.json()["error"]["type"] == "invalid_request_error"
    assert served.post("/v1/chat/completions", CHAT).status_code == 200


MESSAGE = {"role": "user", "content": "?"}


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("completions", {"prompt": [{}] * 10_000}),
        ("completions", {"prompt": [[{}]] * 10_000}),
        ("completions", {"prompt": [[5]] * 10_000 + [0]}),
        ("chat/completions", {"messages": [0] * 10_000}),
        ("chat/completions", {"messages": [MESSAGE] * 10_001}),
        ("chat/completions", {"messages": [{"role": "user", "content": [0] * 10_000}]}),
        ("chat/completions", {"messages": [MESSAGE], "stop": [0] * 10_000}),
        ("chat/completions", {"messages": [MESSAGE], "stream_options": {f"a{i}": 0 for i in range(10_000)}}),
        ("experts", {"name": "a", "path": "a", **{f"a{i}": 0 for i in range(10_000)}}),
    ],
    ids=range(9),
)
def test_one_thing_that_is_wrong_is_found_and_not_ten_thousand(path, wrong):
    from pydantic import ValidationError

    from transformer2.serving import schemas

    kinds = {"completions": schemas.CompletionRequest, "chat/completions": schemas.ChatRequest}
    with pytest.raises(ValidationError) as refused:
        kinds.get(path, schemas.AddExpert).model_validate(wrong if path == "experts" else {"model": "base", **wrong})
    assert refused.value.error_count() <= 4  # of a union, one of each


def test_a_budget_and_a_time_limit(serve):
    served = serve(limits=limits(tokens=8))
    client = served.client()
    with pytest.raises(openai.BadRequestError, match="8"):
        ask(client)
    messages = [{"role": "user", "content": QUESTION}]
    assert client.chat.completions.create(model="math", messages=messages).usage.completion_tokens <= 8
    slow = serve(limits=limits(seconds=1))
    step = slow.model.step
    slow.model.step = lambda: time.sleep(0.6) or step()
    try:
        with pytest.raises(openai.InternalServerError, match="within 1 s") as late:
            ask(slow.client(max_retries=5))
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match="within 1 s"):
            list(ask(slow.client(), stream=True))
    finally:
        slow.model.step = step
    assert ask(slow.client()).choices


@pytest.mark.parametrize("asked", [{"n": 10**9}, {"prompt": ["a"] * 200_000}])
def test_too_many_answers_are_refused_before_any_is_prepared(served, client, asked, monkeypatch):
    monkeypatch.setattr(served.model, "start", lambda *_, **__: pytest.fail("an answer was prepared"))
    with pytest.raises(openai.BadRequestError, match="of one request"):
        client.completions.create(**{"model": "base", "prompt": "a", **asked})


def test_more_answers_than_can_ever_run_or_wait_are_no_matter_of_time(serve, model):
    served = serve(limits=limits(queue=0))
    with pytest.raises(openai.BadRequestError, match="ask for fewer"):
        ask(served.client(), n=model.max_rows + 1)


def test_callers_must_know_the_key(serve):
    served = serve(api_key="s3cret")
    for key in ("wrong", "s3cre", "s3crets", "clé"):
        headers = {"authorization": f"Bearer {key}".encode()}
        assert served.get("/v1/models", **headers).status_code == 401
    assert served.get("/v1/models").status_code == served.get("/metrics").status_code == 401
    with pytest.raises(openai.AuthenticationError, match="API key"):
        ask(served.client())
    assert ask(served.client(api_key="s3cret")).choices and served.get("/health").status_code == 200


def test_other_sites_cannot_use_a_server_on_their_readers_machine(served):
    port = served.url.rpartition(":")[2]
    assert served.get("/v1/models", host=f"localhost:{port}").status_code == 200
    assert served.get("/v1/models", origin=served.url).status_code == 200
    for headers in ({"host": "evil.example"}, {"host": "localhost.evil.example"}, {"host": ""}, {"host": "[::1"}):
        assert served.get("/v1/models", **headers).status_code in (400, 403)
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        response = served.post("/v1/chat/completions", CHAT, origin=origin)
        assert response.status_code == 403 and response.json()["error"]["code"] == "wrong_origin"
        assert not any(name.startswith("access-control") for name in response.headers)
    # What a page may send without asking first is no JSON request.
    assert served.post("/v1/chat/completions", CHAT, **{"content-type": "text/plain"}).status_code == 400


def test_experts_come_and_go_while_it_answers(serve, copies):
    served = serve(experts_dir=copies)
    client = served.client()

    def change(method, path, body=None):
        return getattr(client, method)(path, cast_to=object, **({} if body is None else {"body": body}))

    async def go():
        async with served.client(kind="async") as other:
            expected = (await ask(other, "math")).choices[0].message.content
            under_way = [asyncio.create_task(ask(other, "math")) for _ in range(8)]
            await other.post("/experts", cast_to=object, body={"name": "sums", "path": "runs/sums"})
            assert (await ask(other, "sums")).choices[0].message.content == expected
            under_way += [asyncio.create_task(ask(other, "sums")) for _ in range(8)]
            await asyncio.sleep(0.05)
            await other.delete("/experts/sums", cast_to=object)
            for answer in await asyncio.gather(*under_way, return_exceptions=True):
                # One that had not been started when the expert went may be refused, but is never another's answer.
                if isinstance(answer, Exception):
                    assert isinstance(answer, openai.APIStatusError), answer
                else:
                    assert answer.choices[0].message.content == expected

    asyncio.run(go())
    with pytest.raises(openai.NotFoundError):
        ask(client, "sums")
    for name in ("sums", "base"):
        with pytest.raises(openai.NotFoundError):
            change("delete", f"/experts/{name}")
    with pytest.raises(openai.ConflictError):
        change("post", "/experts", {"name": "math", "path": "runs/sums"})
    for path in ("../outside", "/etc", "link", "runs/../../outside", "runs", "nothing", "", "runs/sums\0", "~"):
        with pytest.raises(openai.BadRequestError):
            change("post", "/experts", {"name": "new", "path": path})
    for name in ("base", "auto", "mix", "../x", "mix:math=1", ""):
        with pytest.raises((openai.BadRequestError, openai.ConflictError)):
            change("post", "/experts", {"name": name, "path": "runs/sums"})
    assert served.model.experts == ["math", "code", "reasoning"]


def test_an_added_expert_leaves_auto_to_the_others_as_it_was(serve, copies):
    served = serve(experts_dir=copies)
    client = served.client()
    before = ask(client).transformer2
    added = client.post("/experts", cast_to=object, body={"name": "sums", "path": "runs/sums"})
    try:
        assert added == {"id": "sums", "object": "model", "transformer2": {"auto": False}}
        facts = {m.id: m.transformer2 for m in client.models.list()}
        assert [facts[name]["auto"] for name in ("math", "code", "reasoning", "sums")] == [True, True, True, False]
        after = ask(client).transformer2
        assert {**after, "seconds": None} == {**before, "seconds": None} and after["choice"] == "math"
        assert ask(client, "sums").transformer2["choice"] == "sums"
    finally:
        client.delete("/experts/sums", cast_to=object)


def test_experts_do_not_change_unless_allowed(served, client):
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/experts", cast_to=object, body={"name": "new", "path": "x"})
    assert refused.value.status_code in (404, 405)


def test_a_client_that_says_nothing_holds_nobody_up(served, client):
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        silent.sendall(b"GET ")
        assert ask(client).choices


def test_a_failing_model_is_an_error_and_not_the_end(served, client):
    step = served.model.step
    served.model.step = lambda: 1 / 0
    try:
        with pytest.raises(openai.InternalServerError, match="division"):
            ask(client)
    finally:
        served.model.step = step
    assert ask(client).choices[0].message.content and served.engine.answers == 0
