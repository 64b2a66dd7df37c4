"""SelfAdaptive on small random models that see: both passes are shown the picture, and nothing is kept of it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_experts import make_experts
from vision_bases import TurnsBad, drawn, encoded, make_vision

from transformer2.adaptive.model import SelfAdaptive
from transformer2.errors import DataError, LengthError, UserError
from transformer2.pictures import PictureBytes, PictureFile
from transformer2.vision import pictures_of
from transformer2.vision.tokens import _blocks

BUDGET = {"max_new_tokens": 6, "top_logprobs": 0}
SIZES = ((80, 50), (40, 90), (64, 64))


class Seeing:
    def __init__(self, folder: Path) -> None:
        base = str(make_vision(folder / "base"))
        self.folder, self.base = folder, base
        self.experts = make_experts(folder / "experts", base, ("math", "code"), std=0.3)
        self.model = SelfAdaptive.from_pretrained(base, self.experts, strategy="scores")
        self.files = []
        for i, size in enumerate(SIZES):
            self.files.append(str(folder / f"{i}.png"))
            drawn(i, size).save(self.files[-1])


def asked(path: Any, text: str = "How many?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": text}]}]


def said(answer: Any) -> list[float]:
    return [token.logprob for token in answer.logprobs]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    return Seeing(tmp_path_factory.mktemp("seeing"))


@pytest.mark.parametrize("strategy", ["scores", "prompt"])
def test_answers_follow_the_picture_in_any_company(seeing: Seeing, strategy: Any) -> None:
    seeing.model.set_strategy(strategy)
    prompts = [asked(path) for path in seeing.files] + ["How many?"]
    together = seeing.model.generate(prompts, **BUDGET)
    assert len({a.text for a in together}) == 4
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = seeing.model.generate([prompt], **BUDGET)
        assert alone.text == answer.text and alone.choice.name == answer.choice.name
        torch.testing.assert_close(said(alone), said(answer), rtol=0, atol=1e-4)
    first = [a.choice.probabilities or a.choice.first_pass for a in together]
    assert first[0] != first[1] != first[2], "the first pass sees the picture"
    assert together[0].prompt_tokens > together[3].prompt_tokens
    seeing.model.set_strategy("scores")


@pytest.mark.parametrize("use", ["auto", "base"])
@pytest.mark.parametrize("strategy", ["scores", "prompt"])
def test_a_picture_that_turns_bad_ends_its_own_request_alone(seeing: Seeing, strategy: Any, use: str) -> None:
    seeing.model.set_strategy(strategy)
    expected = [a.text for a in seeing.model.generate([asked(path) for path in seeing.files], use=use, **BUDGET)]
    bad = [TurnsBad(encoded(drawn(50 + i)), f"bad {i}") for i in range(2)]
    under_way = seeing.model.start(asked(seeing.files[0]), use=use, **BUDGET)
    seeing.model.step()
    jobs = [seeing.model.start(asked(shown), use=use, **BUDGET) for shown in (bad[0], *seeing.files, bad[1])]
    while not seeing.model.is_idle:
        seeing.model.step()
    assert [job.result().text for job in (under_way, *jobs[1:-1])] == [expected[0], *expected]
    for job, picture in zip((jobs[0], jobs[-1]), bad, strict=True):
        with pytest.raises(DataError, match=f"{picture.name} has turned bad"):
            job.result()


def test_tokens_are_counted_before_a_picture_is_decoded(seeing: Seeing) -> None:
    broken = PictureBytes(encoded(drawn(0, (300, 300)), "JPEG")[:-100])
    with pytest.raises(LengthError, match="shorten the prompt"):
        seeing.model.start(asked(broken, "word " * 1024))
    with pytest.raises(DataError, match="is broken"):
        seeing.model.start(asked(broken))
    assert seeing.model.is_idle


def test_streams_and_experts(seeing: Seeing) -> None:
    (whole,) = seeing.model.generate([asked(PictureFile(seeing.files[0]))], use="math", **BUDGET)
    pieces = list(seeing.model.stream(asked(seeing.files[0]), use="math", **BUDGET))
    assert "".join(piece.text for piece in pieces) == whole.text
    (base,) = seeing.model.generate([asked(seeing.files[0])], use="base", **BUDGET)
    assert said(base) != said(whole)


def test_rows_with_pictures_are_adapted_to(seeing: Seeing) -> None:
    files = [PictureFile(path) for path in seeing.files]  # features are kept for as long as these are
    rows = [{"question": "How many?", "answer": "3", "image": file} for file in files[:2]]
    rows += [{"question": "How many?", "answer": "4", "image": [seeing.files[0], files[2]]}]
    model = SelfAdaptive.from_pretrained(seeing.base, seeing.experts, strategy="scores")
    alpha = model.adapt(rows, task="tiny_math", generations=1, population=2)
    inputs: Any = pictures_of(model.policy)
    assert set(alpha) == {"math", "code"} and len(inputs._features) == 3
    with pytest.raises(DataError, match=r"picture nowhere\.png cannot be read"):
        model.adapt([{"question": "?", "answer": "1", "image": "nowhere.png"}], task="tiny_math", generations=1)
    broken = {"question": "?", "answer": "1", "image": PictureBytes(encoded(drawn(0))[:-50])}
    with pytest.raises(DataError, match=r"row 2: picture .* is broken"):
        model.adapt([rows[0], broken], task="tiny_math", generations=1)


def test_nothing_is_kept_of_pictures_that_have_been_answered(seeing: Seeing) -> None:
    inputs: Any = pictures_of(seeing.model.policy)
    for i in range(6):
        drawn(10 + i, (48, 48)).save(seeing.folder / "sent.png")
        seeing.model.generate([asked(seeing.folder / "sent.png")], use="base", max_new_tokens=1)
    gc.collect()
    assert not [b for b in _blocks.values() if b.picture.name.endswith("sent.png")]
    alive = PictureFile(seeing.files[0])
    seeing.model.generate([asked(alive)], use="base", max_new_tokens=1)
    assert len(inputs._features) == 1, "those of the one picture that is alive"
    assert inputs._bytes == sum(f.nbytes for f in inputs._features.values())


def test_raw_ids_hold_no_pictures(seeing: Seeing) -> None:
    family = seeing.model.tokenizer.family
    with pytest.raises(UserError, match="no picture for it"):
        seeing.model.start("x", ids=[5, family.image_id])
    with pytest.raises(UserError, match="0 pictures and 1 times"):
        seeing.model.start(f"what is {family.image_token}?")


def test_a_base_of_text_alone_takes_no_picture(seeing: Seeing) -> None:
    model = SelfAdaptive.from_pretrained("tiny")
    assert seeing.model.takes_pictures and not model.takes_pictures
    with pytest.raises(DataError, match=r"the base takes none; .*--base tiny_vision"):
        model.generate([asked(seeing.files[0])])
    assert model.is_idle
