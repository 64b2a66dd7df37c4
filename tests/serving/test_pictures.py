"""Pictures in OpenAI's messages: data: URLs, files of one folder, what is refused, and that nothing is kept."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import threading
from contextlib import aclosing

import pytest
from fake_experts import make_experts
from vision_bases import TurnsBad, drawn, encoded, make_vision

openai = pytest.importorskip("openai", reason="nox -s serve installs it")
pytestmark = pytest.mark.serve
GREEDY = {"temperature": 0, "max_tokens": 6}


def data_url(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def messages(url, text="How many?", **options):
    picture = {"type": "image_url", "image_url": {"url": url, **options}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


def ask(client, url, model="auto", **options):
    return client.chat.completions.create(model=model, messages=messages(url), **{**GREEDY, **options})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures, with a secret beside it."""
    folder = tmp_path_factory.mktemp("served") / "pictures"
    folder.mkdir()
    for i in range(3):
        drawn(i, (60, 40)).save(folder / f"{i}.png")
    drawn(9, (60, 40)).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return folder


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    from transformer2.adaptive.model import SelfAdaptive

    folder = tmp_path_factory.mktemp("seeing")
    base = str(make_vision(folder / "base"))
    experts = make_experts(folder / "experts", base, ("math", "code"), std=0.3)
    return SelfAdaptive.from_pretrained(base, experts, strategy="scores", max_rows=8)


@pytest.fixture
def served(serve, seeing, pictures):
    return serve(model=seeing, image_dir=pictures)


def test_a_picture_is_seen_from_a_url_and_from_a_file(served, pictures, seeing):
    client = served.client()
    answers = []
    for i in range(3):
        path = pictures / f"{i}.png"
        whole = ask(client, data_url(path.read_bytes()))
        (expected,) = seeing.generate(
            [{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": "How many?"}]}],
            max_new_tokens=6,
        )
        assert whole.choices[0].message.content == expected.text
        assert whole.usage.prompt_tokens == expected.prompt_tokens  # those of the picture too
        assert whole.transformer2["probabilities"] == pytest.approx(expected.choice.probabilities, abs=1e-4)
        for named in (path.name, str(path), f"file://{path}"):
            assert ask(client, named, n=2).choices[1].message.content == expected.text
        chunks = list(ask(client, data_url(path.read_bytes()), stream=True, extra_body={"user": "me"}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected.text
        answers.append(expected.text)
    assert len(set(answers)) == 3
    data = served.get("/v1/models").json()["data"]
    assert next(m for m in data if m["id"] == "base")["transformer2"]["pictures"] is True


def test_what_cannot_be_shown_is_refused_in_openais_shape(served, serve, seeing, pictures, model):
    whole = encoded(drawn(0, (300, 300)))
    bomb = encoded(drawn(0, (4, 4)).resize((4, 4)).convert("1").resize((16_000, 16_000)))
    for url, named in (
        ("https://example.org/a.png", "is not fetched; send it as a data: URL"),
        ("data:image/png;base64,not base64!", "is no base64"),
        ("data:text/html;base64,QUJD", "begins data:image/png;base64,"),
        (data_url(b"no picture"), "no picture of a known kind"),
        (data_url(whole[:-100]), "is broken"),
        (data_url(encoded(drawn(0, (64, 64)).convert("CMYK"), "JPEG")), "stored as CMYK"),
        (data_url(encoded(drawn(0, (4, 4)).resize((1, 1)))), "too few or too narrow"),
        (data_url(bomb), "million pixels"),
        ("../secret.png", "is not inside"),
        ("link.png", "is not inside"),
        ("file:///etc/passwd", "is not inside"),
        ("none.png", "is no file that can be read"),
    ):
        with pytest.raises(openai.BadRequestError, match=named) as refused:
            ask(served.client(), url)
        assert refused.value.type == "invalid_request_error" and str(pictures) not in str(refused.value)
    url = data_url(whole)
    for wrong, named in (
        ({"messages": messages(url, detail="high")}, "'detail' of a part is not supported"),
        (
            {"messages": [{**messages(url)[0], "role": "system"}, *messages(url)]},
            "one is in a message of role 'system'",
        ),
        ({"messages": messages(url, text="<image>")}, "1 pictures and 2 times"),
        ({"messages": messages(url) * 100}, "more than 64 pictures"),
        ({"messages": messages(url) * 60}, "shorten the prompt"),  # its pictures count
    ):
        with pytest.raises(openai.BadRequestError, match=named):
            served.client().chat.completions.create(model="base", **wrong)
    ids = [5, seeing.tokenizer.family.image_id]
    for prompt in (ids, "a <image>", [5, 2**41]):
        with pytest.raises(openai.BadRequestError, match=r"no picture for it|there is no token"):
            served.client().completions.create(model="base", prompt=prompt)
    with pytest.raises(openai.BadRequestError, match="no picture file is read here"):
        ask(serve(model=seeing).client(), "0.png")
    with pytest.raises(openai.BadRequestError, match="the base takes none"):
        ask(serve().client(), url)
    assert ask(served.client(), url).choices, "none of them hurt the server"


def test_a_picture_that_turns_bad_is_a_bad_request_of_its_own(served, pictures, monkeypatch):
    from transformer2.adaptive import chat

    bad = encoded(drawn(70))
    monkeypatch.setattr(chat, "PictureBytes", lambda content, *name: (TurnsBad if content == bad else Bytes)(content))
    Bytes = TurnsBad.__base__
    urls = [data_url(content) for content in (bad, *(path.read_bytes() for path in sorted(pictures.glob("[0-9].png"))))]

    async def go():
        async with served.client(kind="async") as client:
            return await asyncio.gather(*(ask(client, url) for url in urls), return_exceptions=True)

    refused, *answered = asyncio.run(go())
    assert isinstance(refused, openai.BadRequestError) and "has turned bad" in str(refused)
    assert all(answer.choices for answer in answered)


def test_pixels_have_a_limit_of_the_whole_request(serve, seeing, pictures):
    from transformer2.serving.guard import Limits

    large = encoded(drawn(0).convert("1").resize((6000, 5000)))
    with pytest.raises(openai.BadRequestError, match="30 million pixels, more than this server's 25 million; scale"):
        ask(serve(model=seeing).client(), data_url(large))
    client = serve(model=seeing, image_dir=pictures, limits=Limits(pixels=5000)).client()
    first, second = (messages(f"{i}.png", "And?")[0] for i in range(2))  # 2,400 each
    again = {"role": "assistant", "content": "Well."}
    for chat in ([first, again, second], [first, again, first, again, first]):
        assert client.chat.completions.create(model="base", messages=chat, **GREEDY).choices
    with pytest.raises(openai.BadRequestError, match="more than this server's"):
        chat = [first, again, second, again, *messages("2.png")]
        client.chat.completions.create(model="base", messages=chat, **GREEDY)


def test_nobody_waits_for_the_pictures_of_others(served, monkeypatch):
    from transformer2.pictures import PictureBytes

    decode, release = PictureBytes.check, threading.Event()
    monkeypatch.setattr(PictureBytes, "check", lambda picture: release.wait(60) and decode(picture))

    async def go():
        async with served.client(kind="async") as client:
            urls = [data_url(encoded(drawn(i, (40, 40)))) for i in range(40)]  # more than asyncio has threads
            slow = asyncio.gather(*(ask(client, url, model="base") for url in urls))
            await asyncio.sleep(0.5)
            message = {"role": "user", "content": "How many?"}
            assert (await client.chat.completions.create(model="base", messages=[message], **GREEDY)).choices
            assert not slow.done()
            release.set()
            assert all(answer.choices for answer in await slow)

    asyncio.run(go())


def test_the_limit_of_the_body_is_that_of_pictures(serve, seeing):
    from transformer2.serving.guard import Limits

    served = serve(model=seeing, limits=Limits(body=20_000))
    large = base64.b64encode(bytes(20_000)).decode()
    with pytest.raises(openai.APIStatusError, match="more than the 20000") as refused:
        ask(served.client(), f"data:image/png;base64,{large}")
    assert refused.value.status_code == 413
    assert ask(served.client(), data_url(encoded(drawn(0, (40, 40))))).choices


def test_hundreds_of_pictures_leave_nothing_behind(served, seeing):
    from transformer2.vision import pictures_of
    from transformer2.vision.tokens import _blocks

    inputs = pictures_of(seeing.policy)

    async def go(start):
        async with served.client(kind="async") as client:

            async def one(i):
                url = data_url(encoded(drawn(i, (40 + i % 7, 48))))
                if i % 5:
                    return await ask(client, url, model="base", max_tokens=1)
                stream = await ask(client, url, model="base", stream=True, max_tokens=40)
                # Goes away. Generators are closed here: one left to the collector dies in some other thread, and the
                # traceback that Python and pytest keep of it keeps that thread's pictures.
                async with aclosing(stream.response.aiter_raw()) as pieces:
                    await anext(pieces)
                await stream.close()

            for first in range(start, start + 240, 8):
                await asyncio.gather(*(one(i) for i in range(first, first + 8)))

    asyncio.run(go(1000))
    last = ask(served.client(), data_url(encoded(drawn(1, (40, 40)))), model="base", max_tokens=1)
    assert last.choices
    for _ in range(50):
        gc.collect()
        if not _blocks:
            break
        served.get("/health")
    assert not _blocks and len(inputs._features) <= 8
    assert inputs._bytes == sum(f.nbytes for f in inputs._features.values())


def test_a_body_that_is_no_chat_is_named(served):
    body = {"model": "base", "messages": [{"role": "user", "content": [[1]]}]}
    response = served.post("/v1/chat/completions", json.dumps(body).encode())
    assert response.status_code == 400 and response.json()["error"]["param"].startswith("messages")
