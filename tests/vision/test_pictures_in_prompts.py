"""What a picture does in a prompt, for every family: seen, by nobody else, and alike wherever it stands."""

from __future__ import annotations

import copy
import gc
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from vision_bases import FAMILIES, drawn, inputs, make_vision

from transformer2 import SelfAdaptive, z_rows
from transformer2.adaptive.chat import Chat
from transformer2.adaptive.request import prompt_ids
from transformer2.data.prompts import collate, render
from transformer2.errors import ConfigError, DataError, UserError
from transformer2.module.scores import score
from transformer2.pictures import PictureBytes, PictureFile
from transformer2.policy import build_policy, check_halves, hidden_states, lm_head, load_base, load_tokenizer
from transformer2.rollout.base import Sampling
from transformer2.rollout.continuous import ContinuousBatch, Row
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.probe import can_share
from transformer2.types import Example, PromptBatch
from transformer2.vision import FIRST, as_image_ids, family_class, picture_tokens, pictures_of
from transformer2.vision.tokens import _blocks

EOS = [1]
SIZES = ((80, 50), (80, 50), (40, 90), (64, 64))
GREEDY, FREE = Sampling(0.0, max_new_tokens=8), Sampling(1.0, max_new_tokens=8)


class World:
    """A policy that sees, its tokenizer, and questions about four pictures."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = make_vision(folder / "base", family)
        self.tokenizer = load_tokenizer(str(self.folder))
        self.policy = build_policy(load_base(str(self.folder), "float32"), {"peft_type": "SVF"})
        self.head = lm_head(self.policy)
        self.engine = HFEngine(self.tokenizer, EOS)
        self.pictures = []
        for i, size in enumerate(SIZES):
            drawn(i, size).save(folder / f"{i}.png")
            self.pictures.append(PictureFile(str(folder / f"{i}.png")))

    def example(self, *pictures: int, text: str = "How many?") -> Example:
        """A question about some of the pictures."""
        message = {"role": "user", "content": text}
        return Example(f"q{pictures}", (message,), "", images=tuple(self.pictures[i] for i in pictures))

    def batch(self, *examples: Example) -> PromptBatch:
        ids = [render(self.tokenizer, e) for e in examples]
        return collate(examples, ids, self.tokenizer.pad_token_id)

    def mixed(self) -> PromptBatch:
        """Rows with a picture, another one, two, and none."""
        longer = self.example(1, text="How many? Sam has 3 cups.")
        return self.batch(self.example(0), longer, self.example(2), self.example(), self.example(3, 0))

    def logits(self, batch: PromptBatch) -> torch.Tensor:
        with torch.no_grad():
            return self.head(hidden_states(self.policy, batch.input_ids_BP, batch.attention_mask_BP))


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def trained(world: World) -> Any:
    """The world with an expert that changes answers."""
    torch.manual_seed(1)
    before = {n: p.detach().clone() for n, p in world.policy.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in world.policy.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    yield world
    with torch.no_grad():
        for n, p in world.policy.named_parameters():
            if p.requires_grad:
                p.copy_(before[n])


def test_prompt_and_logits_are_those_of_the_models_own_processor_and_forward(world: World) -> None:
    batch = world.batch(world.example(0), world.example(1))
    raw = inputs(world.folder, [drawn(0, SIZES[0]), drawn(1, SIZES[1])])
    image_id = world.tokenizer.family.image_id
    assert [as_image_ids(ids, image_id) for ids in batch.input_ids_BP.tolist()] == raw["input_ids"].tolist()
    plain = transformers.AutoModelForImageTextToText.from_pretrained(world.folder).eval()
    with torch.no_grad():
        expected = plain(**raw).logits
    known = torch.ones(expected.shape[-1], dtype=torch.bool)
    known[pictures_of(world.policy).banned] = False
    assert (world.logits(batch) - expected)[..., known].abs().max() < 1e-5
    check_halves(world.policy, world.head)


def test_other_pictures_other_answers(world: World) -> None:
    batch, swapped = world.batch(world.example(0), world.example(1)), world.batch(world.example(1), world.example(0))
    drawn_so = [world.engine.generate(world.policy, b, GREEDY, 0).completions for b in (batch, swapped)]
    assert drawn_so[0] == drawn_so[1][::-1] and drawn_so[0][0] != drawn_so[0][1]
    assert not torch.equal(world.logits(batch), world.logits(swapped))
    without = world.batch(world.example())
    assert world.engine.generate(world.policy, without, GREEDY, 0).completions[0] not in drawn_so[0]


def test_a_row_does_not_depend_on_its_company(world: World) -> None:
    together = world.engine.generate(world.policy, world.mixed(), FREE, 7)
    for row, example in enumerate(together.examples):
        alone = world.engine.generate(world.policy, replace(world.batch(example), row_ids=(row,)), FREE, 7)
        assert alone.completions[0] == together.completions[row]


def test_one_picture_under_questions_of_unequal_length(world: World) -> None:
    # Their common beginning is run once; under the padding of the shorter ones stand tokens of the picture.
    texts = ("How many?", "How many? " + "Sam has 3 cups. " * 12, "How many? " + "Sam has 3 cups. " * 5)
    batch = world.batch(*(world.example(0, text=t) for t in texts)).repeat(2)
    together = world.engine.generate(world.policy, batch, FREE, 3)
    for row, example in enumerate(batch.examples):
        alone = world.engine.generate(world.policy, replace(world.batch(example), row_ids=(row,)), FREE, 3)
        assert alone.completions[0] == together.completions[row]
    with torch.no_grad():
        shared, apart = (score(world.policy, world.head, together, "full", share=share) for share in (True, False))
    assert (shared.logprobs_N - apart.logprobs_N).abs().max() < 1e-5


def test_a_template_without_bos_leaves_it_to_the_tokenizer(world: World) -> None:
    tokenizer = copy.deepcopy(world.tokenizer)
    bos, image = tokenizer.bos_token, tokenizer.family.image_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    written = as_image_ids(render(tokenizer, world.example(0)), image)
    assert written == as_image_ids(render(world.tokenizer, world.example(0)), image) and written.count(written[0]) == 1
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    assert as_image_ids(render(tokenizer, world.example(0)), image) == written


@pytest.mark.parametrize("pictures", [(), (0,)], ids=["text", "picture"])
def test_messages_reach_the_model_or_are_refused(world: World, pictures: tuple[int, ...]) -> None:
    tokenizer, asked = copy.deepcopy(world.tokenizer), world.example(*pictures, text="How many?")
    system = replace(asked, messages=({"role": "system", "content": "Sam"}, *asked.messages))

    def said(example: Example) -> str:
        return tokenizer.decode(as_image_ids(render(tokenizer, example), tokenizer.family.image_id, once=True))

    assert said(system).index("Sam") < said(system).index("many")  # this template knows no system role
    tokenizer.chat_template = "{{ messages[0]['content'] | trim }}"
    with pytest.raises(DataError, match="knows no messages in parts"):
        render(tokenizer, asked)
    tokenizer.chat_template = "{{ messages[0]['content'] + '!' }}"
    for example in (asked, system):
        with pytest.raises(DataError, match="refuses a prompt"):
            render(tokenizer, example)


def test_z_of_one_is_the_base_bit_for_bit(world: World) -> None:
    batch = world.mixed()
    adapted = world.logits(batch)
    with world.policy.disable_adapter():
        assert torch.equal(world.logits(batch), adapted)


@pytest.mark.parametrize("share", [False, True], ids=["alone", "shared"])
def test_scored_as_sampled(trained: World, share: bool) -> None:
    assert can_share(trained.policy, torch.device("cpu"))
    batch = trained.mixed().repeat(3)
    rollouts = trained.engine.generate(trained.policy, batch, FREE, 1)
    with torch.no_grad():
        scores = score(trained.policy, trained.head, rollouts, "full", share=share)
    said_N = rollouts.logprobs_BC[rollouts.completion_mask_BC.bool()]
    assert (scores.logprobs_N - said_N).abs().max() < 1e-5
    assert scores.kl_N.isfinite().all() and scores.kl_N.sum() > 0.01
    part = rollouts.rows([4, 0, 13])
    with torch.no_grad():
        again = score(trained.policy, trained.head, part, None).logprobs_N
    assert (again - part.logprobs_BC[part.completion_mask_BC.bool()]).abs().max() < 1e-5


def test_merged_weights_draw_the_same(trained: World) -> None:
    merged = HFEngine(trained.tokenizer, EOS, merge=True).generate(trained.policy, trained.mixed(), GREEDY, 0)
    assert merged.completions == trained.engine.generate(trained.policy, trained.mixed(), GREEDY, 0).completions


def test_rows_of_different_z_are_those_experts_alone(trained: World) -> None:
    batch = trained.mixed()
    weights_BK = torch.tensor([[1.0], [0.0], [0.5], [1.0], [0.2]])
    with z_rows(trained.policy, weights_BK, ["default"]):
        rows = trained.engine.generate(trained.policy, batch, GREEDY, 0).completions
    for b, example in enumerate(batch.examples):
        with z_rows(trained.policy, weights_BK[b : b + 1], ["default"]):
            alone = trained.engine.generate(trained.policy, trained.batch(example), GREEDY, 0)
        assert alone.completions[0] == rows[b]


def test_a_running_batch_answers_as_a_fixed_one(trained: World) -> None:
    batch = trained.mixed()
    expected = trained.engine.generate(trained.policy, batch, GREEDY, 0).completions
    layers = {m: m.scales["default"].detach() - 1 for m in trained.policy.modules() if hasattr(m, "scales")}
    running = ContinuousBatch(trained.policy)
    rows = [Row(render(trained.tokenizer, e), layers, GREEDY, trained.engine) for e in batch.examples]
    for row in rows:
        running.submit(row)
        running.step()  # they join one after the other
    while not running.is_idle:
        running.step()
    assert [row.text for row in rows] == list(expected)


def test_the_image_id_is_neither_sampled_nor_scored(world: World) -> None:
    banned = world.tokenizer.family.image_id
    head = world.policy.get_base_model().get_output_embeddings()
    kept = head.weight[banned].clone()
    batch = world.batch(world.example(0))
    with torch.no_grad():
        state = hidden_states(world.policy, batch.input_ids_BP, batch.attention_mask_BP)[0, -1]
        head.weight[banned] = 100 * state / state.norm()  # the likeliest by far
    try:
        rollouts = world.engine.generate(world.policy, batch.repeat(4), FREE, 0)
        assert banned not in rollouts.completion_ids_BC
        assert (world.logits(batch)[..., banned] == -3e4).all()
        scores = score(world.policy, world.head, rollouts, "full")
        assert scores.kl_N.isfinite().all() and scores.logprobs_N.isfinite().all()
    finally:
        with torch.no_grad():
            head.weight[banned] = kept


def test_an_image_id_without_a_picture_is_refused(world: World) -> None:
    family = world.tokenizer.family
    with pytest.raises(DataError, match=r"1 pictures and 2 times"):
        render(world.tokenizer, world.example(0, text=f"what is {family.image_token}?"))
    with pytest.raises(DataError, match=r"0 pictures and 1 times"):
        render(world.tokenizer, world.example(text=f"what is {family.image_token}?"))
    batch = world.batch(world.example(0))
    bare = replace(batch, input_ids_BP=batch.input_ids_BP.clamp(max=family.image_id))
    with pytest.raises(UserError, match="no picture for it"):
        world.logits(bare)


def test_a_video_id_is_no_picture(world: World) -> None:
    """Where the template drops the picture and the text holds a video, their numbers agree."""
    if len(world.tokenizer.family.banned) == 1:
        assert not hasattr(world.policy.config, "video_token_id")
        return
    tokenizer = copy.deepcopy(world.tokenizer)
    image, video = (tokenizer.convert_ids_to_tokens(i) for i in tokenizer.family.banned)
    tokenizer.chat_template = tokenizer.chat_template.replace(image, "")
    with pytest.raises(DataError, match=r"1 pictures and 1 times"):
        render(tokenizer, world.example(0, text=f"How many {video}?"))
    ids_11 = torch.tensor([[tokenizer.family.banned[1]]])
    with pytest.raises(UserError, match="no picture for it"):
        hidden_states(world.policy, ids_11, torch.ones_like(ids_11))


def test_a_family_that_is_like_another_is_refused_by_name() -> None:
    for config in (
        transformers.LlavaConfig(vision_config={"model_type": "pixtral"}),
        transformers.AutoConfig.for_model("idefics3"),
    ):
        with pytest.raises(DataError, match=f"a base of the family {config.model_type} takes pictures in a way"):
            family_class(config)


def test_a_copy_of_the_embedding_or_the_head_is_none_of_the_model(world: World) -> None:
    saved = {"target_modules": r".*language_model.*q_proj", "modules_to_save": ["embed_tokens", "lm_head"]}
    policy = build_policy(load_base(str(world.folder), "float32"), {"peft_type": "LORA", **saved})
    base: Any = policy.get_base_model()
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        copied = module.modules_to_save["default"]
        assert copied.forward.func.__self__ is pictures_of(policy) and copied.forward.args[0].__self__ is copied
    batch = world.mixed()
    with torch.no_grad():
        logits = lm_head(policy)(hidden_states(policy, batch.input_ids_BP, batch.attention_mask_BP))
    assert torch.equal(logits, world.logits(batch))


def test_raw_text_holds_no_id_that_stands_for_a_picture(world: World) -> None:
    for banned in world.tokenizer.family.banned:  # it would fail a step that others share
        with pytest.raises(UserError, match=rf"raw text holds '{re.escape(world.tokenizer.decode([banned]))}'"):
            prompt_ids(Chat.of("x"), [5, banned], world.tokenizer)


def test_features_that_are_not_those_of_the_places_are_refused(world: World) -> None:
    """Else the features of another picture would stand there."""
    shown = [PictureBytes(Path(p.path).read_bytes() + b"\0\0") for p in world.pictures]
    batch = world.batch(*(replace(world.example(0), images=(picture,)) for picture in shown))
    for picture in shown:
        (block,) = vars(picture)["_blocks"].values()
        block.layout = replace(block.layout, tokens=block.layout.tokens - 1)
    with pytest.raises(ConfigError, match=r"picture .* is \d+ features and \d+ tokens: .* save both from one model"):
        world.logits(batch)


@pytest.mark.parametrize(("family", "file", "key", "value"), [
    ("llava_next", "config.json", "image_grid_pinpoints", [[32, 64], [64, 32]]),
    ("llava_next", "processor_config.json", "image_grid_pinpoints", [[32, 64], [64, 32]]),
    ("llava_next", "processor_config.json", "image_grid_pinpoints", [[32, 64], [64, 32], [64, 64], [96, 96]]),
    ("llava", "processor_config.json", "num_additional_image_tokens", 0),
    ("qwen2_5_vl", "preprocessor_config.json", "merge_size", 1),
])  # fmt: skip
def test_a_processor_of_another_model_is_refused_before_anything_is_drawn(
    tmp_path: Path, family: str, file: str, key: str, value: Any
) -> None:
    base = make_vision(tmp_path / "base", family)
    whole = json.loads((base / file).read_text())
    part = whole if key in whole else whole["image_processor"]
    assert part[key] != value
    (base / file).write_text(
        json.dumps({**whole, key: value} if part is whole else {**whole, "image_processor": {**part, key: value}})
    )
    with pytest.raises(ConfigError, match="processor and config do not belong together; save both from one model"):
        SelfAdaptive.from_pretrained(str(base), strategy=None)


def test_parts_say_where_pictures_stand(world: World) -> None:
    parts = ({"type": "text", "text": "Sam"}, {"type": "image"}, {"type": "text", "text": "How many?"})
    ids = render(world.tokenizer, replace(world.example(0), messages=({"role": "user", "content": parts},)))
    first = next(t for t, i in enumerate(ids) if i >= FIRST)
    assert "Sam" in world.tokenizer.decode(ids[:first]) and "many" in world.tokenizer.decode(
        as_image_ids(ids[first:], 0)
    )


def test_ids_follow_content_and_die_with_their_picture(world: World) -> None:
    family = world.tokenizer.family
    content = Path(world.pictures[0].path).read_bytes()
    sent = [PictureBytes(content), PictureBytes(content)]
    assert picture_tokens(family, sent[0]) == picture_tokens(family, sent[1])
    assert picture_tokens(family, sent[0]) == picture_tokens(family, world.pictures[0])
    assert not set(picture_tokens(family, sent[0])) & set(picture_tokens(family, world.pictures[1]))
    other = PictureBytes(Path(world.pictures[2].path).read_bytes() + b"\0")  # as good as the picture
    batch = world.batch(Example("", ({"role": "user", "content": "How many?"},), "", images=(other,)))
    bare = replace(batch, examples=())
    gc.collect()
    count = len(_blocks)
    del other, batch
    gc.collect()
    assert len(_blocks) == count - 1
    with pytest.raises(DataError, match="is gone"):
        world.logits(bare)


def test_features_are_forgotten_within_their_budget(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.logits(world.mixed())
    inputs = pictures_of(world.policy)
    kept = inputs._bytes
    monkeypatch.setattr("transformer2.vision.embedding.CACHE_BYTES", kept // 2)
    assert torch.equal(world.logits(world.mixed()), before)
    assert 0 < inputs._bytes <= kept // 2 + 4096
    assert inputs._bytes == sum(f.nbytes for f in inputs._features.values())
    assert torch.equal(world.logits(world.mixed()), before)
