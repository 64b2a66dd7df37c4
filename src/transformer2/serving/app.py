"""The server's routes: OpenAI's models, chats and completions; experts; health, metrics and the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from transformer2.adaptive.chat import Chat, PictureSource
from transformer2.adaptive.model import SelfAdaptive
from transformer2.adaptive.request import BASE
from transformer2.errors import ExpertError, shown
from transformer2.experts import read_expert
from transformer2.files import inside
from transformer2.serving.answers import DONE, ChatAnswer, TextAnswer, event
from transformer2.serving.engine import Call, Engine
from transformer2.serving.faults import Fault, as_fault, handle_faults
from transformer2.serving.guard import Guard, Limits
from transformer2.serving.metrics import Metrics
from transformer2.serving.schemas import AddExpert, ChatRequest, CompletionRequest

__all__ = ["create_app"]

PAGE = Path(__file__).parent / "page"
POLL = 0.5  # seconds after which a client that has gone is noticed
PING = 15.0  # seconds since its last event after which a stream says that it is alive; others' tokens are no news
GRACE = 5.0  # seconds beyond the limit that a client has to read what there is
PAGE_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


def create_app(
    model: SelfAdaptive,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
    experts_dir: str | Path | None = None,
    image_dir: str | Path | None = None,
) -> FastAPI:
    """The server of a model; `app.state.engine` runs it while the app is up.

    Args:
        model: Answers.
        limits: What is taken on.
        api_key: See `Guard`.
        hosts: See `Guard`.
        experts_dir: The folder from which experts may be added while it runs; None allows no changes.
        image_dir: The folder from which chats may show pictures by path; None takes pictures in `data:` URLs alone.
    """
    limits = limits or Limits()
    if limits.tokens is not None:
        model.usual_answer = min(model.usual_answer, limits.tokens)
    engine = Engine(model, limits)

    # FastAPI's documentation pages load scripts from another host.
    app = FastAPI(title="transformer2", lifespan=lambda _: engine.running(), docs_url=None, redoc_url=None)
    app.state.engine, app.state.metrics = engine, Metrics(engine)
    handle_faults(app, app.state.metrics.fault)
    _add_answers(app, limits, PictureSource(None if image_dir is None else Path(image_dir), confined=True))
    _add_models(app)
    if experts_dir is not None:
        _add_experts(app, Path(experts_dir))
    _add_health(app)
    app.router.default = _Page(directory=PAGE, html=True)  # a mount would answer for other methods of the routes, too
    app.add_middleware(Guard, api_key=api_key, hosts=hosts, body=limits.body)
    return app


def _add_answers(app: FastAPI, limits: Limits, source: PictureSource) -> None:
    engine: Engine = app.state.engine
    metrics: Metrics = app.state.metrics

    async def answer(request: Request, body: ChatRequest | CompletionRequest, kind: type[ChatAnswer]) -> Response:
        engine.model.check_use(body.model)
        if body.answers > limits.answers:  # before anything is made for each of them
            message = f"{body.answers} answers are more than the {limits.answers} of one request; ask for fewer"
            raise Fault(400, message, "invalid_value", "n")
        options = await asyncio.to_thread(body.starts, engine.model, limits, source)
        starts = [partial(engine.model.start, **given) for given in options]
        pictures = isinstance(chat := options[0]["prompt"], Chat) and bool(chat.images)
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        shape = kind(body.model, usage, body.n or 1)
        async with AsyncExitStack() as stack:
            call = await stack.enter_async_context(engine.call(starts, bool(body.stream), pictures))
            if body.stream:
                return _EventStream(_events(call, shape, metrics), stack.pop_all().aclose, limits.seconds + GRACE)
            while not call.check():
                await call.moved(POLL)
                if await request.is_disconnected():
                    raise Fault(499, "the client went away")
            for job in call.jobs:
                metrics.count(job)
            return JSONResponse(shape.body(call.jobs))

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        return await answer(request, body, ChatAnswer)

    @app.post("/v1/completions")
    async def complete(request: Request, body: CompletionRequest) -> Response:
        return await answer(request, body, TextAnswer)


def _add_models(app: FastAPI) -> None:
    model, started = app.state.engine.model, int(time.time())

    def card(name: str, **facts: Any) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "transformer2", "transformer2": facts}

    def known() -> list[dict[str, Any]]:
        found = [
            card("auto", kind="strategy", strategy=model.strategy),
            card(BASE, kind="base", max_tokens=model.longest, pictures=model.takes_pictures),
        ]
        for name in model.experts:
            expert = model.expert(name)
            facts: dict[str, Any] = {"auto": name in model.choosable}
            facts |= {key: getattr(expert, key) for key in ("task", "step", "score", "base", "base_fingerprint")}
            found.append(card(name, kind="expert", matrices=len(expert.deltas), **facts))
        return found

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": known()}

    @app.get("/v1/models/{name}")
    async def one(name: str) -> dict[str, Any]:
        use = model.check_use(name)
        named = {entry["id"]: entry for entry in known()}
        return named.get(name) or card(name, kind="mix", weights=use)

    @app.get("/v1/experts/{name}/z")
    def z(name: str) -> Response:  # in a thread: it may be millions of numbers
        matrices = {matrix: [round(value, 5) for value in z_R.tolist()] for matrix, z_R in model.z(name).items()}
        return JSONResponse({"name": name, "object": "transformer2.z", "matrices": matrices})


def _add_experts(app: FastAPI, root: Path) -> None:
    model: SelfAdaptive = app.state.engine.model  # its lock lets changes in between two steps

    @app.post("/v1/experts", status_code=201)
    async def add(body: AddExpert) -> dict[str, Any]:
        if body.name in model.experts:
            raise Fault(409, f"there is an expert {body.name!r}; remove it first, or take another name", None, "name")
        if (folder := inside(root, body.path)) is None:
            raise ExpertError(f"{shown(repr(body.path))} is not inside --experts_dir; copy the expert there")
        expert = await asyncio.to_thread(read_expert, folder, body.name)
        await asyncio.to_thread(model.add_expert, body.name, expert)
        return {"id": body.name, "object": "model", "transformer2": {"auto": body.name in model.choosable}}

    @app.delete("/v1/experts/{name}")
    async def remove(name: str) -> dict[str, Any]:
        await asyncio.to_thread(model.remove_expert, name)
        return {"id": name, "object": "model", "deleted": True}


def _add_health(app: FastAPI) -> None:
    @app.get("/health")
    async def health() -> Response:
        draining = app.state.engine.draining
        return JSONResponse({"status": "shutting down" if draining else "ok"}, 503 if draining else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _events(call: Call, shape: ChatAnswer, metrics: Metrics) -> AsyncIterator[bytes]:
    """The events of a stream."""
    open_jobs, opened, heard, spoke = dict(enumerate(call.jobs)), set[int](), False, time.monotonic()
    try:
        while open_jobs:
            call.check()
            for i, job in list(open_jobs.items()):
                done = job.answer is not None  # looked at first: it may come meanwhile
                said: list[bytes] = []
                if i not in opened and job.choice is not None:
                    opened.add(i)
                    said.append(shape.opening(i, job))
                if text := job.take():
                    if not heard:
                        heard = True
                        metrics.first.observe(time.monotonic() - call.started)
                    said.append(shape.text(i, text, job))
                if done:
                    metrics.count(job)
                    del open_jobs[i]
                    said.append(shape.ending(i, job))
                if said:
                    yield b"".join(said)
                    spoke = time.monotonic()
            if open_jobs:
                if time.monotonic() - spoke >= PING:
                    yield b": still here\n\n"
                    spoke = time.monotonic()
                await call.moved(spoke + PING - time.monotonic())
        if shape.with_usage:
            yield shape.usage(call.jobs)
        yield DONE
    except Exception as e:  # the response has begun: its status cannot say so any more
        fault = as_fault(e)
        metrics.fault(fault)
        yield event(fault.body)


class _EventStream(StreamingResponse):
    """Server-sent events; `end` is called however they end. A client that does not read is cut off after `seconds`."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], Awaitable[None]], seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.end, self.seconds = end, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    await super().__call__(scope, receive, send)
        finally:
            await self.end()


class _Page(StaticFiles):
    """The page, which loads nothing from other hosts and cannot be framed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
