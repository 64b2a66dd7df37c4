"""What a prompt may be: text, or a chat, whose user messages may hold pictures in OpenAI's shape or in ours.

    {"role": "user", "content": [{"type": "image", "image": "sign.png"}, {"type": "text", "text": "What does it say?"}]}
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}, ...]}

One reader for `SelfAdaptive`, the command line and the server, which differ in where pictures may come from. It knows
no torch, so that a command refuses a prompt before a model is loaded.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from transformer2.errors import DataError, UserError, shown
from transformer2.files import inside, read_file
from transformer2.pictures import MAX_BYTES, Picture, PictureBytes, PictureFile
from transformer2.types import Example, Message, text_of

__all__ = ["Chat", "PictureSource", "Prompt", "as_pictures", "as_prompts", "check_characters"]

ROLES = ("system", "user", "assistant")
MAX_PICTURES = 64  # of one chat: each costs time before its tokens are counted
Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PictureSource:
    """Where the pictures of chats may come from: `data:` URLs always, files as said here, other hosts never.

    Attributes:
        folder: Where relative paths begin; None is no files at all.
        confined: Whether files outside of `folder` are refused, whatever links and `..` lead there.
    """

    folder: Path | None = Path()
    confined: bool = False

    def picture(self, named: Any) -> Picture:
        """The picture that a path, a URL or a `Picture` names.

        Raises:
            DataError: It may not come from there, or is no base64; a file that may be read is not yet looked at.
        """
        if isinstance(named, Picture):
            return named
        if isinstance(named, os.PathLike):
            named = os.fspath(named)
        if not isinstance(named, str) or not named.strip():
            raise DataError(f"a picture is a path, a data: URL or a Picture, not {shown(repr(named), 40)}")
        scheme, colon, rest = named.partition(":")
        match scheme.lower() if colon else "":
            case "data":
                return _decoded(rest)
            case "http" | "https" | "ftp":
                raise DataError(f"the picture at {shown(named, 80)} is not fetched; send it as a data: URL")
            case "file":
                return self._file(_path(rest))
        return self._file(named)

    def _file(self, path: str) -> Picture:
        if self.folder is None:
            raise DataError(f"no picture file is read here ({shown(path, 80)}); send the picture as a data: URL")
        if not self.confined:
            return PictureFile(str(self.folder / os.path.expanduser(path)))
        found = inside(self.folder, path)
        if found is None:
            raise DataError(f"picture {shown(path, 80)} is not inside the folder of pictures; copy it there")
        try:  # now: what a link or a name stands for may be another file later
            return PictureBytes(read_file(found, MAX_BYTES, DataError), shown(path, 80))
        except DataError as e:  # which names the folder: callers need not learn it
            raise DataError(f"picture {shown(path, 80)} is no file that can be read; copy it there") from e


@dataclass(frozen=True)
class Chat:
    """A chat that a user has the last word in.

    Attributes:
        messages: Role and content each: text, or parts where there are pictures among them.
        images: The pictures, in the order of the image parts.
    """

    messages: tuple[Message, ...]
    images: tuple[Picture, ...] = ()

    @classmethod
    def of(cls, prompt: Any, source: PictureSource | None = None, images: Sequence[Picture] = ()) -> Chat:
        """A chat from what a caller gave.

        Args:
            prompt: Text, or a list of messages {role, content}; content is text or a list of parts.
            source: Where pictures may come from; None is wherever this process can read.
            images: Further pictures, shown before the last message's text.

        Raises:
            UserError: It is no chat, or says what is not read; the message names it.
            DataError: A picture cannot come from where it is said to be.
        """
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        try:
            given = [(str(m["role"]), m["content"], [k for k, v in m.items() if v is not None]) for m in prompt]
        except (TypeError, KeyError, AttributeError) as e:
            raise UserError("a prompt is text, or a list of messages {role, content}") from e
        messages: list[Message] = []
        found: list[Picture] = []
        unique: dict[Picture, Picture] = {}  # one that is shown several times is read once
        for i, (role, content, keys) in enumerate(given):
            if unread := [key for key in keys if key not in ("role", "content")]:
                what = f"{shown(repr(unread[0]), 40)} of a message is not read"
                raise UserError(f"{what}; leave it out (pictures are parts of the content)")
            if role not in ROLES:
                raise UserError(f"a message has role {shown(repr(role), 40)}; use {', '.join(ROLES)}")
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            if not isinstance(content, list | tuple):
                raise UserError(f"the content of a message of role {role!r} must be text, or a list of parts")
            parts = [_part(part) for part in content]
            if images and i == len(given) - 1:
                parts = [*({"type": "image", "image": image} for image in images), *parts]
            named = [part["image"] for part in parts if part["type"] == "image"]
            if named and role != "user":
                raise UserError(f"pictures go into user messages, and one is in a message of role {role!r}")
            if len(found) + len(named) > MAX_PICTURES:
                raise UserError(f"a prompt has more than {MAX_PICTURES} pictures; show fewer")
            pictures = [(source or PictureSource()).picture(image) for image in named]
            found += [unique.setdefault(picture, picture) for picture in pictures]
            texts = [part["text"] for part in parts if part["type"] == "text"]
            kept = tuple({"type": "image"} if part["type"] == "image" else part for part in parts)
            messages.append({"role": role, "content": kept if named else "".join(texts)})
        last = messages[-1] if messages else {"role": "", "content": ""}
        if last["role"] != "user" or not (_pictures(last) or text_of(last).strip()):
            raise UserError("a prompt must end with a user message that is not empty")
        return cls(tuple(messages), tuple(found))

    @cached_property
    def example(self) -> Example:
        """The question."""
        return Example("", self.messages, "", images=self.images)

    @property
    def pixels(self) -> int:
        """Of all its different pictures, by their headers.

        Raises:
            DataError: A picture is not there or cannot be used.
        """
        return sum(math.prod(picture.size()) for picture in {*self.images})

    def check_pictures(self) -> None:
        """Decode the pictures, once: a broken one must not fail a step that other prompts share.

        It takes seconds for large ones, so check their sizes against any limit first.

        Raises:
            DataError: A picture is not there or cannot be used.
        """
        if "_checked" not in self.__dict__:  # as functools.cached_property keeps what it knows
            for picture in dict.fromkeys(self.images):
                picture.check()
            self.__dict__["_checked"] = True

    @property
    def request(self) -> Example:
        """The last message alone, with its pictures before its text: what a first pass is asked about."""
        last = self.messages[-1]
        images = self.images[len(self.images) - _pictures(last) :]
        return Example("", ({"role": "user", "content": text_of(last)},), "", images=images)


def as_prompts(prompts: Any) -> list[Any]:
    """One prompt or an iterable of several, as a list; `Chat.of` says what each is.

    Raises:
        UserError: It is neither.
    """
    if isinstance(prompts, str | Chat | Mapping):
        return [prompts]
    try:
        many = [*prompts]
    except TypeError as e:
        raise UserError(f"a prompt is text, or a list of messages {{role, content}}, not {prompts!r:.60}") from e
    return [many] if many and isinstance(many[0], Mapping) else many


def as_pictures(named: Any, source: PictureSource | None = None) -> tuple[Picture, ...]:
    """The pictures that a row's `image` names: one or a list of them; none where there is None.

    Raises:
        DataError: See `PictureSource.picture`.
    """
    several = named if isinstance(named, list | tuple) else [] if named is None else [named]
    return tuple((source or PictureSource()).picture(image) for image in several)


def check_characters(text: str) -> None:
    """Refuse half a character (JSON can write one, and a terminal's bytes can be one), which no tokenizer takes.

    Raises:
        UserError: There is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UserError("a prompt has bytes or halves of characters that are no text; write it as UTF-8") from e


def _part(part: Any) -> dict[str, Any]:
    """A part as {"type": "text", "text"} or {"type": "image", "image"}."""
    if not isinstance(part, Mapping) or "type" not in part:
        raise UserError("the content of a message must be text, or a list of parts {'type': 'text', 'text': ...}")
    kind, rest = part["type"], {name: value for name, value in part.items() if name != "type" and value is not None}
    if kind not in ("text", "image", "image_url"):
        raise UserError(f"a part of type {shown(repr(kind), 40)} cannot be read; use text, image_url or image")
    content = rest.pop(kind, None)
    if kind == "image_url":
        if isinstance(content, str):
            raise UserError(f'image_url is {{"url": ...}}, not the text {shown(repr(content), 40)}; wrap it')
        of_url = dict(content) if isinstance(content, Mapping) else {}
        content = of_url.pop("url", None)
        if of_url.get("detail") == "auto":  # which leaves it to the model, as we do; another one is another picture
            del of_url["detail"]
        rest |= of_url
    if content is None or (kind == "text" and not isinstance(content, str)):
        raise UserError(f"a part of type {kind!r} has no {kind}; give it one, as text or {{'url': ...}}")
    if rest:
        raise UserError(f"{shown(repr(next(iter(rest))), 40)} of a part is not supported; leave it out")
    if kind == "text":
        check_characters(content)
        return {"type": "text", "text": content}
    return {"type": "image", "image": content}


def _pictures(message: Message) -> int:
    """How many a message shows."""
    return 0 if isinstance(message["content"], str) else sum(part["type"] == "image" for part in message["content"])


def _decoded(rest: str) -> Picture:
    """The picture of a data: URL, from behind its scheme."""
    kind, comma, data = rest.partition(",")
    if not (comma and kind.lower().startswith("image/") and kind.lower().endswith(";base64")):
        raise DataError(
            f"a picture's data: URL begins data:image/png;base64, and not data:{shown(kind, 40)}; correct it"
        )
    try:
        return PictureBytes(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError) as e:
        raise DataError(f"a picture's data: URL is no base64 ({e}); encode it without line breaks") from e


def _path(rest: str) -> str:
    """The path of a file: URL, from behind its scheme."""
    host, slash, path = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or host not in ("", "localhost") or not slash:
        raise DataError(f"a picture's URL is file:///PATH, and not file:{shown(rest, 80)}; correct it")
    return f"/{unquote(path)}"
