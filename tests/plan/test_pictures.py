"""What the planner says of pictures: their tokens, the tower, and the bytes of real steps, within 10 %."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import grouped
from measured import measured_and_planned, peak_bytes
from picture_task import draw_pictures
from transformers import AutoModelForImageTextToText, LlavaNextConfig, Qwen2_5_VLConfig
from vision_bases import FAMILIES, drawn, inputs, make_vision

from transformer2 import tasks
from transformer2.cli import main
from transformer2.cli.plan import complete
from transformer2.data import ExpertDataModule
from transformer2.errors import ConfigError
from transformer2.module import SVFReinforceModule
from transformer2.plan.job import Job, job_of
from transformer2.plan.memory import memory
from transformer2.plan.pictures import picture_shape
from transformer2.plan.seconds import DEVICES, step_seconds
from transformer2.plan.shape import model_shape
from transformer2.plan.terms import total
from transformer2.quantisation import KINDS

LLAVA = "llava-hf/llama3-llava-next-8b-hf"
MLP = {"peft_type": "SVF", "target_modules": "mlp"}
SEEN = "picture_task.Pictures"
WITHIN = 0.1


def job(**model: Any) -> Job:
    given = {"base": LLAVA, "dtype": "bfloat16", "adapter": MLP, **grouped(**model)}
    data = {"task": SEEN, "batch_size": 256}
    return job_of(complete(SVFReinforceModule, given), complete(ExpertDataModule, data))


def test_llava_next_8b() -> None:
    """VISION: about 2,900 tokens a picture, 0.38 GB of keys and values a row, 24 MB of features."""
    shape = model_shape(LLAVA, MLP)
    assert shape.params / 1e9 == pytest.approx(8.355, abs=1e-3) and shape.tower / 1e9 == pytest.approx(0.324, abs=1e-3)
    assert shape.pictures is not None and shape.pictures.tokens == 2928
    assert shape.pictures.tokens * shape.D * 2 == pytest.approx(24e6, rel=0.01)
    whole = job(max_new_tokens=8)
    assert whole.prompt_tokens == 256 + 2928 and whole.pictures == 256
    rows = [memory(whole.with_(max_rollout_rows=rows, prompt_tokens=2928)).phases["decode"] for rows in (1, 2)]
    cache = [total(t for t in terms if t.part == "KV cache") for terms in rows]
    assert cache[1] - cache[0] == pytest.approx(0.385e9 + 2928 * 1024 * 2, rel=0.01)
    needed = memory(whole)
    assert "pictures" in needed.phases and total(needed.host) == 4 * 2**30
    assert "pictures" not in memory(whole.with_(pictures=0)).phases


@pytest.mark.parametrize("change", [{}, {"elsewhere": True, "strategy": "ddp", "gpus": 8}])
def test_the_arithmetic_is_open(change: dict[str, Any]) -> None:
    """The printed numbers, put together again, give the printed value."""
    planned = job().with_(**change)
    needed = memory(planned)
    for term in [*needed.host, *needed.phases["pictures"], *step_seconds(planned, DEVICES["h100"])]:
        _, formula, filled, value = re.split(r": | = ", term.explain("", 1).split("   (")[0])
        assert eval(filled, {"min": min, "max": max}) == pytest.approx(float(value), rel=0.01)
        assert "." not in formula


def test_what_a_packed_base_leaves_alone_is_counted_as_it_is() -> None:
    whole, shape = job(max_new_tokens=8), model_shape(LLAVA, MLP)
    assert memory(whole.with_(quantisation=KINDS["nf4"])).part("weights") == pytest.approx(6.0e9, rel=0.05)
    kept = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    spared = {"quantization_config": {"load_in_4bit": True, "llm_int8_skip_modules": kept}}
    assert 0 < shape.packable - shape.linear < shape.tower
    assert model_shape(LLAVA, MLP, model_kwargs=spared).packable == shape.linear


@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_picture_has_as_many_tokens_as_the_processor_makes(family: str, tmp_path: Path) -> None:
    folder = make_vision(tmp_path / family, family)
    shape = model_shape(str(folder), MLP).pictures
    model = AutoModelForImageTextToText.from_pretrained(folder)
    image_id = model.config.image_token_id
    made = [
        int((inputs(folder, [drawn(1, size)])["input_ids"] == image_id).sum())
        for size in [(64, 64), (32, 64), (640, 64), (64, 640), (1000, 1000), (5, 5), (100, 64)]
    ]
    assert shape is not None and shape.tokens == max(made)


TOWERS = {
    "llava_next": lambda dtype: LlavaNextConfig(
        vision_config=dict(
            model_type="clip_vision_model", hidden_size=64, intermediate_size=256, num_hidden_layers=4,
            num_attention_heads=4, image_size=64, patch_size=8, projection_dim=32,
        ),
        text_config=dict(_TEXT, model_type="llama", hidden_size=256),
        image_token_index=3, image_grid_pinpoints=[[128, 128]],
    ),
    "qwen2_5_vl": lambda dtype: Qwen2_5_VLConfig(
        vision_config=dict(
            depth=4, hidden_size=64, intermediate_size=171, num_heads=4, patch_size=8, window_size=32,
            out_hidden_size=192, fullatt_block_indexes=[1],
        ),
        text_config=dict(_TEXT, hidden_size=192, rope_parameters=_ROPE), image_token_id=3, video_token_id=4,
    ),
}  # fmt: skip
_TEXT = dict(vocab_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 8, 8]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", TOWERS)
def test_one_picture_in_the_tower(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A tower of the proportions of real ones."""
    config = TOWERS[family](dtype)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 256 * 256}}))
    shape = picture_shape(config, tmp_path)
    assert shape is not None
    if family == "llava_next":
        pixels = {"pixel_values": torch.randn(1, 5, 3, 64, 64, dtype=dtype), "image_sizes": torch.tensor([[128, 128]])}
    else:
        pixels = {"pixel_values": torch.randn(1024, 384, dtype=dtype), "image_grid_thw": torch.tensor([[1, 32, 32]])}
    with torch.no_grad():
        model.get_image_features(**pixels)
        measured = peak_bytes(lambda: model.get_image_features(**pixels)) + pixels["pixel_values"].nbytes
    planned = job().with_(
        shape=replace(job().shape, pictures=shape, D=config.get_text_config().hidden_size, dtype_bytes=dtype.itemsize)
    )
    (term,) = (t for t in memory(planned).phases["pictures"] if t.part == "workspace")
    assert term.value == pytest.approx(measured, rel=WITHIN)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    "family", [f if f == "llava_next" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_a_step_on_pictures(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = str(make_vision(tmp_path / "base", family, hidden=128, layers=4, dtype=dtype))
    model = {"base": base, "adapter": MLP, "micro_batch_tokens": 2048, "max_new_tokens": 24, "kl_coef": 0.1}
    model["dtype"] = str(dtype).removeprefix("torch.")
    pictures = str(draw_pictures(tmp_path / "pictures", sizes=[(64, 64)]))
    data = {"task": SEEN, "data_dir": pictures, "base": base, "batch_size": 16, "max_new_tokens": 24}
    module, planned = measured_and_planned(tmp_path, grouped(**model), data)
    assert planned.peak == pytest.approx(module.peak, rel=WITHIN)


@pytest.mark.parametrize("task", ["tiny_textvqa", "tiny_okvqa"])
def test_tasks_say_how_many_pictures_they_show(task: str) -> None:
    shown = tasks.get(task)
    assert max(len(example.images) for example in shown.examples("test")) == shown.pictures == 1


def test_a_text_base_is_refused_for_pictures_and_the_command_says_what_they_cost(capsys) -> None:
    with pytest.raises(ConfigError, match="shows pictures, and base 'tiny' takes none"):
        job(base="tiny")
    plan = ["plan", "--config", "conf/llama8b_gsm8k.yaml", "--model.base", LLAVA, "--data.task"]
    assert main([*plan, SEEN, "--explain"]) == 0
    out = capsys.readouterr().out
    assert "pictures a step: 2928 tokens each at most" in out and "one picture in the tower" in out
    assert main([*plan, "gsm8k"]) == 0
    assert "\na step: 256 rows of 256 + 512 tokens" in capsys.readouterr().out
