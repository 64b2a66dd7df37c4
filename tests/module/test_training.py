"""The training step on a real small model: it learns, it samples from the current policy, it survives faults."""

import math
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from step_log import StopAt
from toy_task import Broken

from transformer2.callbacks.expert_checkpoint import ExpertCheckpoint
from transformer2.errors import ConfigError, UserError
from transformer2.module import predicting_states, training
from transformer2.module import step as step_module
from transformer2.module.scores import score
from transformer2.policy import hidden_states, lm_head, load_base, reference
from transformer2.rl.loss import sum_by_row
from transformer2.types import Answer, Verdict

ALL = {"peft_type": "SVF", "target_modules": "all-linear"}


def rewards(trainer):
    return [m["train/reward"] for m in trainer.callbacks[0].steps]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kl": "k1", "kl_coef": 0.05, "baseline": "rloo", "num_completions": 2},
        {"kl": "k3", "kl_coef": 0.05, "baseline": "group_norm", "num_completions": 4},
        {"kl": "full", "kl_coef": 0.05, "micro_batch_tokens": 512},
        {"adapter": {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "down_proj"]}, "lr": 0.02},
        {"adapter": {"peft_type": "TINYLORA", "r": 8, "u": 64, "target_modules": "all-linear"}, "lr": 0.02},
        {"adapter": {**ALL, "parametrization": "sigmoid_renorm"}, "lr": 0.2, "kl": "full_reverse", "kl_coef": 0.05},
        {"adapter": {**ALL, "form": "factored"}, "kl": "k2", "kl_coef": 0.05, "baseline": "none"},
    ],
    ids=str,
)
def test_it_learns(make, options):
    trainer, module, data = make(max_steps=16, **options)
    trainer.fit(module, data)
    curve = rewards(trainer)
    assert sum(curve[-4:]) / 4 > sum(curve[:4]) / 4 + 0.15, curve


def test_the_base_is_untouched_and_the_reference_exact(make, llama):
    trainer, module, data = make(max_steps=3)
    trainer.fit(module, data)
    ids = torch.tensor([[5, 9, 30, 31]])
    fresh = load_base(str(llama), "float32")
    with torch.no_grad(), reference(module.policy):
        assert torch.equal(module.policy(ids).logits, fresh(ids).logits)
    with torch.no_grad():
        assert not torch.equal(module.policy(ids).logits, fresh(ids).logits)


def test_micro_batches_give_the_gradient_of_the_batch(make):
    curves = []
    for tokens in (10**6, 300):
        trainer, module, data = make(max_steps=2, micro_batch_tokens=tokens, kl_coef=0.1, max_grad_norm=1.0)
        trainer.fit(module, data)
        curves.append(
            [
                (m["train/reward"], round(m["train/loss"], 4), round(m["train/kl"], 5))
                for m in trainer.callbacks[0].steps
            ]
        )
    assert curves[0] == curves[1]


def test_every_rollout_was_sampled_after_the_last_optimizer_step(make):
    """The z that a micro-batch is scored under is the z that sampled it, and every step samples again."""

    trainer, module, data = make(max_steps=3)
    seen = []
    original = module.rollout

    def rollout(prompts):
        rollouts = original(prompts)
        z = [p.detach().clone() for p in module.trained()]
        seen.append((rollouts, z))
        return rollouts

    module.rollout = rollout
    losses = module.forward_backward

    def scored(part, *args):
        assert all(torch.equal(a, b) for a, b in zip(seen[-1][1], module.trained(), strict=True))
        assert all(any(e is s for s in seen[-1][0].examples) for e in part.examples)
        return losses(part, *args)

    module.forward_backward = scored
    trainer.fit(module, data)
    assert len(seen) == 3
    assert not torch.equal(seen[0][1][0], seen[1][1][0]), "z must have moved between rollouts"


def test_logprobs_are_those_of_the_whole_model(make):
    trainer, module, data = make(max_steps=1)
    trainer.fit(module, data)
    rollouts = module.answerer().sample(next(iter(data.train_dataloader())), 1.0, seed=5)
    sampled_BC = rollouts.completion_mask_BC.bool()
    with torch.no_grad():
        ids_BT = torch.cat([rollouts.prompt_ids_BP, rollouts.completion_ids_BC], 1)
        mask_BT = torch.cat([rollouts.prompt_mask_BP, rollouts.completion_mask_BC], 1)
        positions = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        logits = module.policy(ids_BT, attention_mask=mask_BT, position_ids=positions).logits.log_softmax(-1)
        whole_BC = logits[:, rollouts.prompt_ids_BP.shape[1] - 1 : -1].gather(
            -1, rollouts.completion_ids_BC[..., None]
        )[..., 0]
        mine_B = sum_by_row(score(module.policy, module.head, rollouts).logprobs_N, sampled_BC)
        hidden_ND = predicting_states(module.policy, rollouts)
    assert len(hidden_ND) == int(sampled_BC.sum())
    assert torch.allclose(mine_B, (whole_BC * sampled_BC).sum(-1), atol=1e-4)
    assert torch.allclose(mine_B, sum_by_row(whole_BC[sampled_BC], sampled_BC), atol=1e-4)


def test_halves_give_the_whole(make, llama):
    _, module, _ = make(max_steps=1)
    module.configure_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        halves = lm_head(module.policy)(hidden_states(module.policy, ids, torch.ones_like(ids)))
        assert torch.allclose(halves, module.policy(ids).logits, atol=1e-5)


def test_a_nan_loss_skips_the_step_and_three_stop_the_run(make, monkeypatch):
    trainer, module, data = make(max_steps=8)
    original, poisoned = step_module.reinforce_loss, {2, 4, 5, 6}
    step = iter(range(100))

    def loss(*args, **kwargs):
        return original(*args, **kwargs) * (math.nan if next(step) in poisoned else 1.0)

    monkeypatch.setattr(step_module, "reinforce_loss", loss)
    with pytest.warns(UserWarning, match="step skipped"), pytest.raises(UserError, match="3 steps in a row"):
        trainer.fit(module, data)
    assert [m["train/skipped"] for m in trainer.callbacks[0].steps] == [0, 0, 1, 0, 1, 1]
    assert all(torch.isfinite(p).all() for p in module.trained())


def test_a_failing_verifier_is_left_out_and_counted(make, monkeypatch):
    monkeypatch.setattr(Broken, "broken", 1)
    trainer, module, data = make("toy_task.Broken", max_steps=2)
    trainer.fit(module, data)
    assert sum(m["reward/infra_errors"] for m in trainer.callbacks[0].steps) == 1  # one epoch: row 0 was met once
    monkeypatch.setattr(Broken, "broken", 60)
    trainer, module, data = make("toy_task.Broken", max_steps=2)
    with pytest.raises(UserError, match=r"could not be verified .*no answer key"):
        trainer.fit(module, data)
    monkeypatch.setattr(Broken, "broken", 96)  # the test split too: a score of what was not judged means nothing
    trainer, module, data = make("toy_task.Broken")
    with pytest.raises(UserError, match=r"could not be verified .*no answer key"):
        trainer.test(module, data, verbose=False)


def test_what_could_not_be_verified_is_no_wrong_answer_in_validation(make):
    _, module, _ = make()
    verdicts = [Verdict.of(True, "a", ""), Verdict.of(False, "z", ""), Verdict(None, False, None, "infra")]
    module.answerer = lambda: SimpleNamespace(answer=lambda prompts: [Answer("", True, v) for v in verdicts])
    module.validation_step(SimpleNamespace(examples=[None] * 3), 0)
    assert module.val_score.compute()["n"] == 2


def test_equal_rewards_change_nothing_and_are_reported(make):
    trainer, module, data = make("toy_task.Never", max_steps=2)
    trainer.fit(module, data)
    assert [m["reward/zero_std"] for m in trainer.callbacks[0].steps] == [1.0, 1.0]
    assert all(p.eq(0).all() for p in module.trained())


def test_the_best_expert_comes_back(make, tmp_path):
    keeper = ExpertCheckpoint()
    trainer, module, data = make(max_steps=6, val_check_interval=2, callbacks=[keeper])
    trainer.fit(module, data)
    assert keeper.best_step in (2, 4, 6)
    saved = trainer.callbacks[0]
    assert saved.steps[-1]["val/accuracy"] <= keeper.best_score
    trainer.validate(module, data, verbose=False)
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(keeper.best_score)


def test_a_resumed_run_equals_the_uncut_one(make, tmp_path):
    uncut, module, data = make(max_steps=6, val_check_interval=2)
    uncut.fit(module, data)
    expected = [p.detach().clone() for p in module.trained()]
    for cut in (3, 4):  # between two validations, at one
        first, module, data = make(max_steps=6, val_check_interval=2, callbacks=[StopAt(cut)])
        first.fit(module, data)
        first.save_checkpoint(tmp_path / f"{cut}.ckpt")
        second, module, data = make(max_steps=6, val_check_interval=2)
        second.fit(module, data, ckpt_path=tmp_path / f"{cut}.ckpt")
        assert rewards(first) + rewards(second) == rewards(uncut), cut
        assert all(torch.equal(a, b) for a, b in zip(expected, module.trained(), strict=True)), cut


class LimitedUpdates(L.Callback):
    """Memory for so many rows of an update: above it the model's own pass raises what CUDA's allocator would.

    In the backward pass it does so in layer 0, where the gradient of the layers above has been added already.
    """

    def __init__(self, rows, where):
        self.rows, self.where, self.refused = rows, where, 0

    def on_train_start(self, trainer, module):
        layer = module.policy.get_base_model().model.layers[0]
        if self.where == "forward":
            layer.register_forward_pre_hook(
                lambda layer, args: self.check(args[0]) if torch.is_grad_enabled() else None
            )
        else:
            layer.mlp.register_full_backward_hook(lambda layer, grads_in, grads_out: self.check(grads_out[0]))

    def check(self, tensor):
        if len(tensor) > self.rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("where", "rows"), [("forward", 32), ("backward", 32), ("backward", 20)])
def test_out_of_memory_halves_the_micro_batch_and_gives_the_same_step(make, where, rows):
    trainer, module, data = make(max_steps=2, kl_coef=0.1, num_completions=2)
    trainer.fit(module, data)
    limited = LimitedUpdates(rows, where)
    trainer2, module2, data2 = make(max_steps=2, kl_coef=0.1, num_completions=2, callbacks=[limited])
    with pytest.warns(UserWarning, match=r"model\.memory\.micro_batch_tokens"):
        trainer2.fit(module2, data2)
    assert limited.refused and module2.micro_batch_tokens < module.micro_batch_tokens
    for a, b in zip(module.trained(), module2.trained(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)  # AdamW's first steps divide rounding noise by itself
    for a, b in zip(trainer.callbacks[0].steps, trainer2.callbacks[0].steps, strict=True):
        for name in ("train/reward", "train/loss", "train/kl", "train/entropy", "train/completion_length"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5)


def test_out_of_memory_with_one_row_is_an_error_that_names_the_remedy(make):
    trainer, module, data = make(max_steps=1, callbacks=[LimitedUpdates(0, "forward")])
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"lower model\.memory\.micro_batch_tokens"):
        trainer.fit(module, data)
    assert all(p.grad is None for p in module.trained())


def test_checkpointed_activations_give_the_same_gradient_and_no_dropout(make, monkeypatch):
    monkeypatch.setattr(training, "can_share", lambda *_: False)  # which adds up in another order, and keeps a cache
    runs = {}
    for wanted in (False, True):
        trainer, module, data = make(max_steps=2, kl_coef=0.1, activation_checkpointing=wanted)
        trainer.fit(module, data)
        assert not any(m.training for m in module.policy.modules())
        runs[wanted] = [p.detach().clone() for p in module.trained()], rewards(trainer)
    assert runs[True][1] == runs[False][1]
    assert all(torch.equal(a, b) for a, b in zip(runs[True][0], runs[False][0], strict=True))


def test_continuous_batching_trains_as_batches_do(make):
    """Another sampler of the same policy: it says log-probabilities, and they are the policy's."""
    trainer, module, data = make(max_steps=3, rollout="paged", importance_cap=2.0)
    trainer.fit(module, data)
    for step in trainer.callbacks[0].steps:
        assert step["rollout/mismatch"] < 1e-4 and step["rollout/capped"] == 0
        assert step["time/rollout"] > 0 and step["train/grad_norm"] > 0
    assert rewards(trainer)[0] != rewards(trainer)[-1]


def test_tokens_weigh_what_the_policy_says_over_what_the_sampler_said(make):
    """A sampler that says half the probability: weights 2 double the gradient, a cap of 1 leaves it as it is."""
    gradients = {}
    for cap in (None, 4.0, 1.0):
        trainer, module, data = make(max_steps=1, importance_cap=cap)
        rollout = module.rollout

        def says_half(prompts, rollout=rollout, module=module):
            drawn = rollout(prompts)
            mask_BC = drawn.completion_mask_BC.bool()
            hidden_ND = predicting_states(module.policy, drawn)
            logprobs_NV = module.head(hidden_ND).log_softmax(-1)
            said_BC = torch.zeros(mask_BC.shape)
            said_BC[mask_BC] = logprobs_NV.gather(-1, drawn.completion_ids_BC[mask_BC][:, None])[:, 0] - math.log(2)
            return replace(drawn, logprobs_BC=said_BC.detach())

        module.rollout = says_half
        trainer.fit(module, data)
        (step,) = trainer.callbacks[0].steps
        gradients[cap] = step["train/grad_norm"]
    assert gradients[4.0] == pytest.approx(2 * gradients[None], rel=1e-4)
    assert gradients[1.0] == pytest.approx(gradients[None], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
def test_a_trainer_that_casts_is_refused_in_one_line(make, precision):
    _, module, data = make()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, precision=precision, **quiet)
    with pytest.raises(ConfigError, match=f"^trainer.precision {precision} .* set model.dtype$"):
        trainer.validate(module, data)


@pytest.mark.parametrize(
    "places",
    [
        {"": "disk"},
        {
            "model.layers": "disk",
            **dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu"),
        },
    ],
)
def test_a_base_that_is_off_loaded_is_refused_in_one_line(places, tmp_path):
    with pytest.raises(ConfigError, match=r"device_map puts base 'tiny' in several places .*disk") as refusal:
        load_base("tiny", device_map=places, offload_folder=str(tmp_path))
    assert "\n" not in str(refusal.value)
