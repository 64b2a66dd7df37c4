"""Training on a task's own solutions: transformers' loss on the same ids, however it is cut, for every method."""

import json

import pytest
import torch
from fakes import SPECIAL, TEMPLATE, byte_tokenizer
from step_log import StopAt
from toy_task import Spelt

from transformer2.cli import main
from transformer2.data.prompts import render, turn_end
from transformer2.errors import CheckpointError, ConfigError, DataError
from transformer2.module import SVFReinforceModule

TARGETS = ["q_proj", "v_proj", "down_proj"]
METHODS = {
    "SVF": {"peft_type": "SVF", "target_modules": "all-linear"},
    "LoRA": {"peft_type": "LORA", "r": 4, "target_modules": TARGETS},
    "DoRA": {"peft_type": "LORA", "r": 4, "use_dora": True, "target_modules": TARGETS},
    "IA3": {"peft_type": "IA3", "target_modules": TARGETS, "feedforward_modules": ["down_proj"]},
}


@pytest.fixture
def fit(make):
    def fit(task="toy_task.Spelt", ckpt_path=None, **options):
        trainer, module, data = make(task, objective="next_token", **options)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return trainer, module, data

    return fit


def losses(trainer):
    return [step["train/loss"] for step in trainer.callbacks[0].steps]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_and_its_gradient_are_transformers_own_on_the_same_ids(make, method):
    """The ids are the chat template's for question and answer; the labels, all behind the prompt, EOS included."""
    trainer, module, data = make("toy_task.Spelt", objective="next_token", adapter=METHODS[method], max_steps=1)
    module.configure_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.trained():
            p.add_(0.1 * torch.randn_like(p))
    start = [p.detach().clone() for p in module.trained()]
    trainer.fit(module, data)
    (step,) = trainer.callbacks[0].steps
    with torch.no_grad():
        for p, value in zip(module.trained(), start, strict=True):
            p.copy_(value)
    examples, tokenizer = next(iter(data.train_dataloader())).examples, data.tokenizer
    rows = []
    for e in examples:
        whole = [*e.messages, {"role": "assistant", "content": data.task.solution(e)}]
        text = tokenizer.apply_chat_template(whole, tokenize=False)
        ids, prompt = tokenizer(text, add_special_tokens=False)["input_ids"], render(tokenizer, e)
        assert ids[: len(prompt)] == prompt and ids[-1] == tokenizer.eos_token_id
        rows.append((ids, [*[-100] * len(prompt), *ids[len(prompt) :]]))
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in rows])
    mask_BT = torch.tensor([[int(i < len(ids)) for i in range(longest)] for ids, _ in rows])
    labels_BT = torch.tensor([[*labels, *[-100] * (longest - len(labels))] for _, labels in rows])
    loss = module.policy(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
    gradients = torch.autograd.grad(loss, module.trained())
    assert step["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    assert step["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert step["train/completion_length"] == pytest.approx(float((labels_BT >= 0).sum()) / len(rows))
    assert not {name for name in step if name.startswith("reward/")} and "train/reward" not in step


def test_it_learns_without_a_single_sample(make):
    trainer, module, data = make("toy_task.Spelt", objective="next_token", max_steps=8, lr=0.1)
    module.rollout = None
    trainer.fit(module, data)
    assert losses(trainer)[-1] < losses(trainer)[0] - 1, losses(trainer)
    assert module.facts()["objective"] == "next_token" and module.facts()["steps"] == 8
    assert module.alarms.notes() == []


def test_micro_batches_give_the_loss_and_gradient_of_the_batch(fit):
    """Of 32 rows in one part, and of parts whose rows and lengths differ: a mean of means would be another loss."""
    runs = [fit(max_steps=2, micro_batch_tokens=tokens, kl_coef=0.1, max_grad_norm=1.0) for tokens in (10**6, 250)]
    assert losses(runs[0][0]) == pytest.approx(losses(runs[1][0]), rel=1e-5)
    for a, b in zip(runs[0][1].trained(), runs[1][1].trained(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_resumed_run_equals_the_uncut_one(fit, tmp_path):
    uncut, expected, _ = fit(max_steps=3)
    first, _, _ = fit(max_steps=3, callbacks=[StopAt(1)])
    first.save_checkpoint(tmp_path / "cut.ckpt")
    second, module, _ = fit(max_steps=3, ckpt_path=tmp_path / "cut.ckpt")
    assert losses(first) + losses(second) == losses(uncut)
    assert all(torch.equal(a, b) for a, b in zip(expected.trained(), module.trained(), strict=True))


def test_a_run_does_not_resume_under_another_objective(fit, make, tmp_path):
    """Its report would name the second alone."""
    first, _, _ = fit(max_steps=1)
    first.save_checkpoint(tmp_path / "cut.ckpt")
    trainer, module, data = make("toy_task.Spelt", max_steps=2)
    with pytest.raises(CheckpointError, match=r"trained with model\.objective next_token, not reinforce; .* --expert"):
        trainer.fit(module, data, ckpt_path=tmp_path / "cut.ckpt")


def test_a_solution_that_does_not_fit_is_refused_by_name_or_left_out(make, monkeypatch):
    monkeypatch.setattr(Spelt, "longest", 22)  # é has two bytes, and the turn's end is a token
    _, _, data = make("toy_task.Spelt", objective="next_token")
    with pytest.raises(DataError, match=r"1 solutions of spelt/train have more than 24 .*train/5.*drop_long_prompts"):
        data.setup("fit")
    _, _, data = make("toy_task.Spelt", objective="next_token")
    data.prompting["drop_long_prompts"] = True
    data.setup("fit")
    assert data.sizes["train"] == 63
    monkeypatch.setattr(Spelt, "longest", 21)
    _, _, data = make("toy_task.Spelt", objective="next_token")
    data.setup("fit")
    assert data.sizes["train"] == 64


@pytest.mark.parametrize(
    ("solution", "said"),
    [(None, "train/0 has no solution"), ("", "no solution"), ("a<|eot_id|>b", r"holds '<\|eot_id\|>'")],
)
def test_a_row_without_a_usable_solution_is_named(make, monkeypatch, solution, said):
    monkeypatch.setattr(Spelt, "solution", lambda self, example: solution)
    _, _, data = make("toy_task.Spelt", objective="next_token")
    with pytest.raises(DataError, match=said):
        data.setup("fit")


def test_what_is_not_there_to_train_on_is_refused_with_the_remedy(make):
    _, _, data = make("toy_task.FirstLetter", objective="next_token")
    with pytest.raises(DataError, match=r"task first_letter says no solutions.*solution\(example\)"):
        data.setup("fit")
    trainer, module, data = make("toy_task.Spelt", objective="next_token")
    data.objective = "reinforce"
    with pytest.raises(ConfigError, match="give the datamodule objective next_token"):
        trainer.fit(module, data)


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": {"num_completions": 4}},
        {"sampling": {"temperature": 0.7}},
        {"loss": {"baseline": "rloo"}},
        {"loss": {"kl": "k3"}},
        {"loss": {"mask_truncated": True}},
        {"loss": {"importance_cap": 2.0}},
    ],
    ids=str,
)
def test_settings_of_samples_are_refused(options):
    (group,) = options
    (name,) = options[group]
    with pytest.raises(ConfigError, match=rf"model\.{group}\.{name} .* is for sampled completions"):
        SVFReinforceModule(objective="next_token", **options)


def test_a_solution_ends_as_the_template_ends_a_turn_where_that_ends_answers():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("{{ m['content'] }}<|eot_id|>", "{{ m['content'] }}<|end_of_text|>")
    end_of_text, eot = tokenizer.convert_tokens_to_ids([SPECIAL[1], SPECIAL[4]])
    assert turn_end(tokenizer, [end_of_text, eot]) == end_of_text
    assert turn_end(tokenizer, [eot]) == eot, "an end that ends no answer is not learned as one"
    assert turn_end(tokenizer, [end_of_text, eot], bare=True) == eot
    tokenizer.chat_template = None
    assert turn_end(tokenizer, [end_of_text, eot]) == eot


@pytest.mark.slow
def test_forty_steps_improve_tiny_math(tmp_path):
    command = ["fit", "--config", "conf/tiny_math.yaml", "--model.objective", "next_token", "--quiet"]
    command += ["--optimizer", "AdamW", "--optimizer.lr", "1.5e-2"]
    assert main([*command, "--trainer.max_steps", "40", "--run_dir", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["result"]["accuracy"] > report["base"]["accuracy"] + 0.1 and report["paired_p"] < 0.01
    assert report["details"]["training"]["objective"] == "next_token"
