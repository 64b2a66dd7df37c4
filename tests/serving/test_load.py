"""Many clients at once: the answers of one alone, no waiting for others, rows freed by those who leave."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from transformer2 import tasks, tiny

openai = pytest.importorskip("openai", reason="nox -s serve installs it")
pytestmark = pytest.mark.serve
NAMES = ["auto", "base", *tiny.EXPERTS, "mix:math=0.6,code=0.9"]
QUESTIONS = [
    e.question for name in ("tiny_math", "tiny_code", "tiny_reasoning") for e in tasks.get(name).examples("test")[:22]
]
ASKED = [(question, NAMES[i % len(NAMES)]) for i, question in enumerate(QUESTIONS[:64])]


def chat(client, question, model, **options):
    options = {"temperature": 0, "max_tokens": 24, **options}
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **options)


async def wait_for(what):
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_64_clients_get_what_each_gets_alone(served):
    alone = [chat(served.client(), *asked).choices[0].message.content for asked in ASKED]
    widest, rng = 0, random.Random(0)

    async def one(question, model):
        await asyncio.sleep(rng.random())
        async with served.client(kind="async") as client:
            answer = await chat(client, question, model)
            return answer.choices[0].message.content

    async def everybody():
        nonlocal widest
        answers = asyncio.gather(*(one(*asked) for asked in ASKED))
        while not answers.done():
            widest = max(widest, served.model.rows_under_way)
            await asyncio.sleep(0.01)
        return await answers

    assert asyncio.run(everybody()) == alone
    assert widest > 4  # they shared a batch
    assert served.engine.answers == 0


def test_who_arrives_beside_16_others_has_a_token_within_3_steps(serve):
    from transformer2.adaptive.model import SelfAdaptive

    served = serve(model=SelfAdaptive.from_pretrained("tiny", strategy="scores", max_rows=32))
    model, steps, beside, first = served.model, 0, {}, {}
    real_step, real_start = model.step, model.start

    def step():
        nonlocal steps
        steps += 1
        moved = real_step()
        for job in moved:
            if job.row is not None and job.row.tokens:
                first.setdefault(job, steps)
        return moved

    def start(*args, **options):
        rows, now = model.rows_under_way, steps
        job = real_start(*args, **options)
        if rows >= 16:
            beside[job] = now
        return job

    model.step, model.start = step, start

    async def go():
        async with served.client(kind="async") as client:
            long = {"prompt": [5, 6, 7], "temperature": 1.9, "max_tokens": 120, "stream": True}
            streams = [await client.completions.create(model=NAMES[i % 5], seed=i, n=4, **long) for i in range(6)]
            await wait_for(lambda: model.rows_under_way >= 16)
            await asyncio.gather(*(chat(client, question, model) for question, model in ASKED[:5]))
            for stream in streams:
                await stream.close()

    asyncio.run(go())
    assert len(beside) >= 5 and max(first[job] - now for job, now in beside.items() if job in first) <= 3


def test_a_stream_that_is_left_frees_its_row(served):
    async def go():
        async with served.client(kind="async") as client:
            options = {"model": "base", "prompt": [5, 6, 7], "temperature": 1.9, "max_tokens": 120}
            streams = [await client.completions.create(stream=True, n=2, seed=i, **options) for i in range(4)]
            await wait_for(lambda: served.model.rows_under_way > 2)
            for stream in streams:
                await stream.close()
            waiting = asyncio.create_task(client.completions.create(n=4, **options))
            await wait_for(lambda: served.engine.answers == 4)
            waiting.cancel()
            await wait_for(lambda: served.engine.answers == 0 and served.model.is_idle)

    asyncio.run(go())
    assert served.model.rows_under_way == 0 and not served.engine._calls
    metrics = served.get("/metrics").text
    assert "transformer2_requested 0.0" in metrics and "transformer2_rows 0.0" in metrics
