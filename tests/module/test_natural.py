"""A step of natural-gradient descent on z: the rows' own gradients, the update, and what is refused."""

import pytest
import torch

from transformer2.cli import main
from transformer2.errors import ConfigError
from transformer2.module import SVFReinforceModule
from transformer2.module.natural import NaturalGradient
from transformer2.module.scores import score
from transformer2.rl.gradient import gradient_of
from transformer2.rl.loss import sum_by_row

ALL = {"peft_type": "SVF", "target_modules": "all-linear"}
LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}


def natural(params):
    return NaturalGradient(params, lr=0.5)


def test_one_step_is_the_one_computed_row_by_row(make):
    """Rows one at a time, the whole Fisher matrix, a step; in micro-batches of several rows as a run takes it."""
    trainer, module, data = make(max_steps=1, optimizer=natural, micro_batch_tokens=400)
    seen = []
    kept = module.kept
    module.kept = lambda rollouts, rewards_B: seen.append((kept(rollouts, rewards_B), rewards_B)) or seen[0][0]
    trainer.fit(module, data)
    (rollouts, rewards_B), after_Z = seen[0], torch.cat([p.detach() for p in module.trained()])
    for parameter in module.trained():
        parameter.data.zero_()  # where the step began
    rows = []
    for b in range(len(rollouts)):
        row = rollouts.rows([b])
        logprobs_N = score(module.policy, module.head, row).logprobs_N
        rows.append(gradient_of(sum_by_row(logprobs_N, row.completion_mask_BC.bool()).sum(), module.trained()))
    scores_BZ = torch.stack(rows).double()
    fisher_ZZ = scores_BZ.T @ scores_BZ / len(rows)
    damped_ZZ = fisher_ZZ + 0.3 * fisher_ZZ.trace() / len(rows) * torch.eye(len(fisher_ZZ))
    gradient_Z = (rewards_B - rewards_B.mean()).double() @ scores_BZ / len(rows)
    expected_Z = 0.5 * torch.linalg.solve(damped_ZZ, gradient_Z)
    assert expected_Z.abs().max() > 1e-3
    assert torch.allclose(after_Z.double(), expected_Z, atol=1e-3 * float(expected_Z.abs().max()))


def test_a_resumed_run_ends_where_an_uncut_one_does(make, tmp_path):
    ends = []
    for cut in (False, True):
        checkpoint = None
        if cut:
            trainer, module, data = make(max_steps=1, optimizer=natural)
            trainer.fit(module, data)
            checkpoint = tmp_path / "cut.ckpt"
            trainer.save_checkpoint(checkpoint)
        trainer, module, data = make(max_steps=3, optimizer=natural)
        trainer.fit(module, data, ckpt_path=checkpoint)
        ends.append(torch.cat([p.detach() for p in module.trained()]))
    assert torch.equal(*ends) and ends[0].any()


def test_with_a_penalty_the_gradient_is_the_losses_own(make):
    gradients = []
    for optimizer in ({"optimizer": natural}, {}):
        trainer, module, data = make(max_steps=1, kl_coef=0.3, **optimizer)
        module.update = lambda step, *_, module=module: (
            gradients.append(step.gradient_Z) or type(module).update(module, step, *_)
        )
        module.configure_model()
        with torch.no_grad():
            for parameter in module.trained():
                parameter.fill_(0.1)  # away from the base, where the KL has a gradient
        trainer.fit(module, data)
    assert torch.allclose(*gradients, atol=1e-5) and gradients[0].norm() > 0


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ({"adapter": LORA}, "NaturalGradient trains the z of SVF alone, not LORA; choose another optimizer"),
        ({"adapter": {**ALL, "parametrization": "sigmoid_renorm"}}, "z itself and nothing beside it"),
        ({"max_grad_norm": 1e-3}, "max_grad_norm 0.001 would only shorten the steps"),
        ({"memory": {"activation_checkpointing": True}}, "does not go with memory.activation_checkpointing"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(module, said):
    with pytest.raises(ConfigError, match=said):
        SVFReinforceModule(optimizer=natural, **{"adapter": ALL, **module})


def test_an_expert_of_another_method_is_not_gone_on_with(make, tmp_path):
    """Nothing but its folder says that it is LoRA; its gradient would be no natural one."""
    _, module, _ = make(adapter=LORA)
    module.configure_model()
    module.policy.save_pretrained(tmp_path / "lora")
    trainer, module, data = make(adapter={}, optimizer=natural)
    module.expert = tmp_path / "lora"
    with pytest.raises(ConfigError, match="trains the z of SVF alone, not LORA"):
        trainer.fit(module, data)


def test_lora_on_an_embedded_config_is_refused_in_one_line(tmp_path, capsys):
    flags = ["--model.adapter", "{peft_type: LORA, r: 4, target_modules: all-linear}", "--run_dir", str(tmp_path / "r")]
    assert main(["fit", "--config", "conf/tiny_math.yaml", *flags]) == 2
    error = capsys.readouterr().err
    assert "--optimizer AdamW --optimizer.lr 3e-3" in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()
