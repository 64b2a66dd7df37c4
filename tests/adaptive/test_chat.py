"""What a prompt may be: pictures in OpenAI's shape and in ours, and where they may come from."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import pytest
from vision_bases import drawn, encoded

from transformer2.adaptive.chat import MAX_PICTURES, Chat, PictureSource
from transformer2.errors import DataError, UserError
from transformer2.pictures import PictureBytes, PictureFile

BUFFER = io.BytesIO()
drawn(0, (40, 30)).save(BUFFER, "PNG")
PNG = BUFFER.getvalue()
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str = "What is it?") -> dict[str, Any]:
    return {"type": "text", "text": words}


def url(named: Any, **options: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": named, **options}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures, beside a secret, with links that lead there."""
    inner = tmp_path / "pictures"
    (inner / "deep").mkdir(parents=True)
    (inner / "deep" / "a b.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    (inner / "up").symlink_to(tmp_path)
    (inner / "loop").symlink_to(inner / "loop")
    os.mkfifo(inner / "fifo")
    return inner


def test_both_shapes_are_one_chat() -> None:
    ours = Chat.of(user({"type": "image", "image": PictureBytes(PNG)}, text()))
    theirs = Chat.of(user(url(URL), text()))
    assert ours == theirs and ours.images[0].size() == (40, 30)
    assert ours.messages[0]["content"] == ({"type": "image"}, text())
    assert Chat.of(user(url(URL, detail="auto"), text())) == ours
    assert Chat.of("What is it?", images=ours.images) == ours
    assert ours.example.images == ours.images


def test_keys_without_a_value_say_nothing() -> None:
    assert Chat.of([{"role": "user", "content": "a", "refusal": None, "tool_calls": None}]) == Chat.of("a")


def test_parts_of_text_alone_are_text() -> None:
    assert Chat.of(user(text("a"), text("b"))) == Chat.of("ab")


def test_a_first_pass_is_asked_about_the_last_message_and_its_pictures() -> None:
    one, two = PictureBytes(PNG, "one"), PictureBytes(PNG, "two")
    chat = Chat.of(
        [
            *user({"type": "image", "image": one}, text("And this?")),
            {"role": "assistant", "content": "A sign."},
            *user(text("And"), {"type": "image", "image": two}, text("that?")),
        ]
    )
    assert chat.images == (one, two) and chat.request.images == (two,)
    assert chat.request.question == "And\nthat?"
    assert Chat.of([*chat.messages[:0], *user(text("no picture"))]).request.images == ()


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "input_audio", "input_audio": {}}, "'input_audio' cannot be read"),
        ({"type": "image_url"}, "has no image_url"),
        ({"type": "image_url", "image_url": URL}, 'image_url is {"url": ...}, not the text \'data:image/png'),
        ({"type": "image"}, "has no image"),
        ({"type": "text", "text": 3}, "has no text"),
        ({"text": "x"}, "must be text"),
        ("x", "must be text"),
        (url(URL, detail="high"), "'detail' of a part is not supported"),
        ({**text(), "cache_control": {}}, "'cache_control' of a part"),
        (url(3), "a picture is a path"),
        (url(""), "a picture is a path"),
        (url("https://example.org/a.png"), "is not fetched; send it as a data: URL"),
        (url("HTTP://example.org/a.png"), "is not fetched"),
        (url("data:text/plain;base64,QUJD"), "begins data:image/png;base64,"),
        (url("data:image/png,QUJD"), "begins data:image/png;base64,"),
        (url("data:image/png;base64"), "begins data:image/png;base64,"),
        (url(URL + "\n"), "is no base64"),
        (url(URL[:-1]), "is no base64"),
        (url(URL.replace("/", "_")), "begins|is no base64"),
        (url("file://elsewhere/a.png"), "file:///PATH"),
        (url("file:a.png"), "file:///PATH"),
        (text("half \ud800"), "UTF-8"),
    ],
)
def test_a_part_that_cannot_be_read_is_refused_in_one_line(part: Any, named: str) -> None:
    with pytest.raises(UserError, match=named) as refused:
        Chat.of(user(part, text()))
    assert "\n" not in str(refused.value)


def test_where_pictures_go() -> None:
    with pytest.raises(UserError, match="user messages, and one is in a message of role 'system'"):
        Chat.of([{"role": "system", "content": [url(URL)]}, *user(text())])
    with pytest.raises(UserError, match="in a message of role 'assistant'"):
        Chat.of([*user(text()), {"role": "assistant", "content": [url(URL)]}, *user(text())])
    with pytest.raises(UserError, match=f"more than {MAX_PICTURES} pictures"):
        Chat.of(user(*[url(URL)] * (MAX_PICTURES + 1)))
    with pytest.raises(UserError, match="not empty"):
        Chat.of(user(text(" ")))
    assert Chat.of(user(url(URL))).images


def test_a_broken_picture_is_refused_before_it_shares_a_step() -> None:
    whole = io.BytesIO()
    drawn(1, (200, 200)).resize((400, 400)).save(whole, "PNG")
    chat = Chat.of("What is it?", images=[PictureBytes(whole.getvalue()[:-200])])
    with pytest.raises(DataError, match="is broken"):
        chat.check_pictures()


class Counted(PictureBytes):
    checks = 0

    def check(self) -> None:
        Counted.checks += 1
        super().check()


def test_a_picture_that_is_shown_several_times_is_read_once() -> None:
    contents = [encoded(drawn(i, (30, 20))) for i in (0, 1, 0)]
    chat = Chat.of("Which?", images=[Counted(content) for content in contents])
    assert chat.images[0] is chat.images[2] is not chat.images[1] and chat.pixels == 2 * 30 * 20
    for _ in range(2):  # two answers
        chat.check_pictures()
    assert Counted.checks == 2


def test_files_of_this_process(folder: Path) -> None:
    path = folder / "deep" / "a b.png"
    for named in (path, str(path), f"file://{str(path).replace(' ', '%20')}"):
        (picture,) = Chat.of(user({"type": "image", "image": named})).images
        assert picture == PictureFile(str(path))
    assert PictureSource(folder).picture("deep/a b.png").data() == PNG
    with pytest.raises(DataError, match="no regular file"):
        PictureFile("/dev/zero").data()
    with pytest.raises(DataError, match="no regular file"):
        PictureFile(str(folder / "fifo")).data()


def test_files_of_a_server_lie_in_one_folder(folder: Path) -> None:
    source = PictureSource(folder, confined=True)
    inside = folder / "deep" / "a b.png"
    for named in (
        "deep/a b.png",
        str(inside),
        f"file://{inside}",
        f"file://localhost{str(inside).replace(' ', '%20')}",
    ):
        picture = source.picture(named)
        assert picture.data() == PNG and str(folder) not in PictureSource(folder, True).picture("deep/a b.png").name
    outside = folder.parent / "secret.png"
    links = ("link.png", "up/secret.png", "loop")
    for named in ("../secret.png", "deep/../../secret.png", str(outside), f"file://{outside}", *links):
        with pytest.raises(DataError, match="is not inside"):
            source.picture(named)
    for named in (f"file://{folder}/%2e%2e/secret.png", "a\0.png", "/etc/passwd", "x" * 5000):
        with pytest.raises(DataError, match=r"is not inside|is no file that can be read") as refused:
            source.picture(named)
        assert len(str(refused.value)) < 250
    for named in ("fifo", "deep", "missing.png", "~"):
        with pytest.raises(DataError, match="is no file that can be read") as refused:
            source.picture(named)
        assert str(folder) not in str(refused.value)
    with pytest.raises(DataError, match="no picture file is read here"):
        PictureSource(None, confined=True).picture("deep/a b.png")
