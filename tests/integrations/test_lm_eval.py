"""lm-eval reads a merged export and finds what the unmerged policy says: log-likelihoods, accuracy, greedy answers."""

import json

import pytest
import torch
from fakes import make_llama

from transformer2.export import export_merged
from transformer2.policy import build_policy, load_base, load_tokenizer

pytestmark = pytest.mark.integration

LETTERS = ["apple", "bread", "cloud", "zebra"]
ROWS = [{"question": f"say {i}", "choices": LETTERS, "gold": i % 4} for i in range(12)]
CHOICE = {
    "task": "toy_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GREEDY = {
    "task": "toy_greedy",
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{choices[gold]}}",
    "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 8, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def policy_and_tokenizer(tmp_path_factory):
    folder = make_llama(tmp_path_factory.mktemp("llama"), init=0.25)
    policy = build_policy(load_base(str(folder), "float32"), {"target_modules": "all-linear"})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return policy, load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def results(policy_and_tokenizer, tmp_path_factory):
    """Both tasks, scored by lm-eval on the exported folder."""
    lm_eval = pytest.importorskip("lm_eval")
    scratch = tmp_path_factory.mktemp("lm_eval")
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    local = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test"}
    folder = export_merged(*policy_and_tokenizer, scratch / "merged")
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=[{**CHOICE, **local}, {**GREEDY, **local}],
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )


def context(row):
    return f"Question: {row['question']}\nAnswer:"


@torch.no_grad()
def loglikelihood(policy, tokenizer, row, choice):
    """log pi(choice | question) by the unmerged policy, one row at a time."""
    prompt = tokenizer(context(row), add_special_tokens=False)["input_ids"]
    answer = tokenizer(" " + choice, add_special_tokens=False)["input_ids"]
    logits_TV = policy(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits_TV.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum())


def in_order(results, task):
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def test_loglikelihoods_and_accuracy_are_the_policys(results, policy_and_tokenizer):
    ours = [[loglikelihood(*policy_and_tokenizer, row, choice) for choice in LETTERS] for row in ROWS]
    theirs = [[float(loglik) for loglik, _ in sample["filtered_resps"]] for sample in in_order(results, CHOICE["task"])]
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-4, atol=1e-3)
    accuracy = sum(row["gold"] == max(range(4), key=lls.__getitem__) for row, lls in zip(ROWS, ours, strict=True)) / 12
    assert results["results"][CHOICE["task"]]["acc,none"] == pytest.approx(accuracy)


def test_greedy_answers_are_the_policys(results, policy_and_tokenizer):
    policy, tokenizer = policy_and_tokenizer
    for row, sample in zip(ROWS, in_order(results, GREEDY["task"]), strict=True):
        prompt = tokenizer(context(row), add_special_tokens=False, return_tensors="pt")
        tokens = policy.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=4)
        answer = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert sample["resps"][0][0] == answer != ""
