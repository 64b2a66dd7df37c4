"""Who runs under which z: threads, tasks, generators, and PEFT's adapter_names."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from svf_families import build, prompt, randomize

from transformer2 import SVFConfig, z_rows
from transformer2.errors import ConfigError, UserError
from transformer2.rollout.continuous import ContinuousBatch

GREEDY = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)


@pytest.fixture(scope="module")
def model():
    model = get_peft_model(build("llama"), SVFConfig(target_modules="all-linear"), adapter_name="math").eval()
    model.add_adapter("code", SVFConfig(target_modules="mlp"))
    randomize(model, "math", seed=3)
    randomize(model, "code", seed=4)
    return model


@torch.no_grad()
def logits_of(model, name):
    """Of one adapter alone, or of the base model."""
    if name == "__base__":
        with model.disable_adapter():
            return model(prompt()).logits
    model.set_adapter(name)
    try:
        return model(prompt()).logits
    finally:
        model.set_adapter("math")


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_two_threads_each_in_its_own_z_rows(model):
    expected = {name: logits_of(model, name) for name in ("math", "code")}
    meeting = threading.Barrier(2)

    def work(name):
        right = 0
        with torch.no_grad(), z_rows(model, [[1.0]] * 3, [name]):
            meeting.wait(30)
            for _ in range(30):
                right += close(model(prompt()).logits, expected[name])
            meeting.wait(30)
        return right

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, expected)) == [30, 30]


@torch.no_grad()
def test_a_thread_without_rows_runs_under_the_active_adapter_and_is_told(model):
    expected = logits_of(model, "math")

    def plain():
        with torch.no_grad():
            return model(prompt()).logits

    with z_rows(model, [[1.0]] * 3, ["code"]), ThreadPoolExecutor(1) as pool:
        with pytest.warns(UserWarning, match="open in another thread and not in this one"):
            assert close(pool.submit(plain).result(), expected)
        with pytest.raises(UserError, match="inside z_rows"):
            pool.submit(model.merge_adapter).result()
        assert close(model(prompt()).logits, logits_of(model, "code"))
    with ThreadPoolExecutor(1) as pool:
        assert close(pool.submit(plain).result(), expected)


@torch.no_grad()
def test_tasks_of_one_thread_take_turns(model):
    expected = {name: logits_of(model, name) for name in ("math", "code")}

    async def work(name):
        with z_rows(model, [[1.0]] * 3, [name]):
            for _ in range(4):
                await asyncio.sleep(0)
                assert close(model(prompt()).logits, expected[name])
            return await asyncio.to_thread(lambda: close(model(prompt()).logits, expected[name]))

    async def everyone():
        return await asyncio.gather(*map(work, expected))

    assert asyncio.run(everyone()) == [True, True]
    assert close(model(prompt()).logits, expected["math"])


@torch.no_grad()
def test_generators_that_are_suspended_inside_are_found_out(model):
    def stream(name):
        with z_rows(model, [[1.0]] * 3, [name]):
            yield model(prompt()).logits
            yield model(prompt()).logits

    assert [close(logits, logits_of(model, "code")) for logits in stream("code")] == [True, True]
    first, second = stream("math"), stream("code")
    next(first), next(second)
    with pytest.raises(UserError, match="another order"):
        list(first)
    assert close(next(second), logits_of(model, "code")), "the other one keeps its rows"
    list(second)
    assert close(model(prompt()).logits, logits_of(model, "math"))


# adapter_names

NAMES = ["code", "__base__", "math"]


@torch.no_grad()
@pytest.mark.parametrize("how", ["keyword", "embeds"])
def test_forward_takes_one_adapter_per_row(model, how):
    if how == "keyword":
        mixed = model(input_ids=prompt(), adapter_names=NAMES).logits
    else:
        mixed = model(inputs_embeds=model.get_input_embeddings()(prompt()), adapter_names=NAMES).logits
    for row, name in enumerate(NAMES):
        assert close(mixed[row], logits_of(model, name)[row]), name
    assert torch.equal(mixed[1], logits_of(model, "__base__")[1])
    assert close(model(prompt()).logits, logits_of(model, "math"))


@torch.no_grad()
@pytest.mark.parametrize("more", [{}, dict(num_beams=2), dict(num_beams=3, num_return_sequences=2)])
def test_generate_takes_one_adapter_per_row(model, more):
    mixed = model.generate(input_ids=prompt(), adapter_names=NAMES, **GREEDY, **more)
    each = len(mixed) // 3
    for row, name in enumerate(NAMES):
        alone = model.generate(input_ids=prompt()[row : row + 1], adapter_names=[name], **GREEDY, **more)
        assert torch.equal(alone, mixed[row * each : (row + 1) * each])
        if name != "__base__":
            model.set_adapter(name)
            theirs = model.generate(input_ids=prompt()[row : row + 1], **GREEDY, **more)
            model.set_adapter("math")
            assert torch.equal(theirs, alone)
    rows = model.generate(prompt(), adapter_names=["__base__"] * 3, **GREEDY)
    with model.disable_adapter():
        assert torch.equal(rows, model.generate(prompt(), **GREEDY))


@torch.no_grad()
def test_several_sequences_per_prompt_keep_their_prompt_s_adapter(model):
    torch.manual_seed(0)
    sampled = model.generate(
        input_ids=prompt(), adapter_names=NAMES, num_return_sequences=2, **{**GREEDY, "do_sample": True}, top_k=1
    )
    greedy = model.generate(input_ids=prompt(), adapter_names=NAMES, **GREEDY)
    assert torch.equal(sampled[::2], greedy) and torch.equal(sampled[1::2], greedy)


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["maths", "code", "math"], "non-existing adapter.*maths; loaded: math, code"),
        (["code"] * 2, "Length of `adapter_names`.* 2 and 3"),
        (["code"] * 6, "Length of `adapter_names`.* 6 and 3"),
        (["code"], "Length of `adapter_names`.* 1 and 3"),
        ("code", "must be a list"),
        ([1, 2, 3], "must be a list"),
        ([], "Length of `adapter_names`.* 0 and 3"),
    ],
)
def test_bad_names_are_refused_as_peft_does(model, call, names, message):
    run = model if call == "forward" else model.generate
    with pytest.raises(ValueError, match=message):
        run(input_ids=prompt(), adapter_names=names)
    assert not model.get_base_model()._forward_pre_hooks


def test_training_mode_and_merged_adapters_are_refused(model):
    model.train()
    with pytest.raises(ConfigError, match="training mode"):
        model(input_ids=prompt(), adapter_names=NAMES)
    model.eval()
    model.merge_adapter()
    with pytest.raises(UserError, match="unmerge_adapter"):
        model(input_ids=prompt(), adapter_names=NAMES)
    model.unmerge_adapter()


@torch.no_grad()
def test_modules_trained_whole_follow_the_row_as_lora_s_do():
    """The same mixed batch through LoRA's code for modules_to_save and through ours."""
    results = []
    for kind in (SVFConfig, LoraConfig):
        model = get_peft_model(
            build("llama"), kind(target_modules=["up_proj"], modules_to_save=["lm_head"]), adapter_name="a"
        ).eval()
        model.add_adapter("b", kind(target_modules=["up_proj"], modules_to_save=["lm_head"]))
        heads = model.base_model.model.lm_head.modules_to_save
        heads["b"].weight.mul_(2)
        results.append(model(input_ids=prompt(), adapter_names=["b", "__base__", "a"]).logits)
    torch.testing.assert_close(*results)


def test_modules_trained_whole_are_not_mixed():
    """All rows would run through those of the active adapter, and a mixture would lose them."""
    model = get_peft_model(build("llama"), SVFConfig(modules_to_save=["lm_head"]), adapter_name="whole")
    model.add_adapter("z", SVFConfig())
    model.add_weighted_adapter(["z"], [0.5], "mixed")
    for mix in (
        lambda: model.add_weighted_adapter(["z", "whole"], [0.5, 0.5], "x"),
        lambda: z_rows(model, [[0.0]], ["z"]).__enter__(),
        lambda: ContinuousBatch(model),
    ):
        with pytest.raises(UserError, match=r"'whole' has modules trained whole \(lm_head\)"):
            mix()
    model.set_adapter("z")
    with model.disable_adapter():
        base = model(prompt()).logits
    with z_rows(model, [[0.0]], ["z"]):
        assert torch.equal(model(prompt()).logits, base)
    with pytest.raises(UserError, match="'whole'"), z_rows(model, [[0.0]], ["whole"]):
        pass
