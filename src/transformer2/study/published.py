"""The paper's own figures (arXiv 2501.06252), in %, to stand beside ours: other models, other rows.

A skill or an unseen task of a study stands for one of the paper's by its label, or by the name of the task itself.
"""

from __future__ import annotations

from collections.abc import Mapping

MODEL = "Llama-3-8B-Instruct"

# What a label stands for.
SKILLS: Mapping[str, str] = {
    **dict.fromkeys(("math", "tiny_math", "gsm8k"), "GSM8K"),
    **dict.fromkeys(("code", "tiny_code", "mbpp_pro"), "MBPP-Pro"),
    **dict.fromkeys(("reasoning", "tiny_reasoning", "arc_easy"), "ARC-Easy"),
}
UNSEEN: Mapping[str, str] = {
    **dict.fromkeys(("math", "math_hard", "tiny_math_hard"), "MATH"),
    **dict.fromkeys(("code", "code_math", "tiny_code_math", "humaneval"), "HumanEval"),
    **dict.fromkeys(("reasoning", "reasoning_hard", "tiny_reasoning_hard", "arc_challenge"), "ARC-Challenge"),
}

# Model -> method -> task of a skill.
TABLE1: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    MODEL: {
        "base": {"GSM8K": 75.89, "MBPP-Pro": 64.65, "ARC-Easy": 88.59},
        "lora": {"GSM8K": 77.18, "MBPP-Pro": 67.68, "ARC-Easy": 88.97},
        "svf": {"GSM8K": 79.15, "MBPP-Pro": 66.67, "ARC-Easy": 89.56},
    },
    "Mistral-7B-Instruct-v0.3": {
        "base": {"GSM8K": 42.83, "MBPP-Pro": 49.50, "ARC-Easy": 81.65},
        "svf": {"GSM8K": 49.74, "MBPP-Pro": 51.52, "ARC-Easy": 85.14},
    },
    "Llama-3-70B-Instruct": {
        "base": {"GSM8K": 85.29, "MBPP-Pro": 80.81, "ARC-Easy": 89.10},
        "svf": {"GSM8K": 88.32, "MBPP-Pro": 80.81, "ARC-Easy": 88.47},
    },
}

# Strategy -> unseen task.
TABLE2: Mapping[str, Mapping[str, float]] = {
    "base": {"MATH": 24.54, "HumanEval": 60.98, "ARC-Challenge": 80.63},
    "lora": {"MATH": 24.12, "HumanEval": 52.44, "ARC-Challenge": 81.06},
    "prompt": {"MATH": 25.22, "HumanEval": 61.59, "ARC-Challenge": 81.74},
    "cls": {"MATH": 25.18, "HumanEval": 62.80, "ARC-Challenge": 81.37},
    "cem": {"MATH": 25.47, "HumanEval": 62.99, "ARC-Challenge": 82.61},
}

# Unseen task -> seconds of the first and of the second pass, under prompt dispatch.
TABLE3: Mapping[str, tuple[float, float]] = {
    "MATH": (42.64, 321.19),
    "HumanEval": (2.76, 14.28),
    "ARC-Challenge": (13.40, 28.51),
}

# Method, objective, modules -> GSM8K.
TABLE4: Mapping[tuple[str, ...], float] = {
    ("base", "", ""): 75.89,
    ("svf", "policy gradient", "mlp"): 78.62,
    ("svf", "policy gradient", "attention"): 76.19,
    ("svf", "policy gradient", "both"): 79.23,
    ("svf", "next token", "attention"): 60.50,
    ("lora", "policy gradient", "attention"): 57.92,
    ("lora", "next token", "attention"): 77.18,
    ("lora", "next token", "both"): 75.66,
}

# How z of Llama-3-8B-Instruct is used on Mistral-7B-Instruct-v0.3 -> ARC-Challenge.
TABLE5: Mapping[str, float] = {"base": 71.76, "ordered": 72.01, "shuffled": 70.82, "cross_model": 75.64}

TABLE7: Mapping[str, float] = {"base": 75.89, "lora": 77.18, "ia3": 78.01, "dora": 78.09, "svf": 79.15}  # GSM8K

# Method -> shots -> ARC-Challenge.
TABLE8: Mapping[str, Mapping[str, float]] = {
    "cem": {"3": 82.18, "5": 82.38, "10": 82.61, "20": 82.61},
    "ia3_100": {"3": 81.83, "5": 80.89, "10": 82.00, "20": 81.40},
    "ia3_1000": {"3": 79.01, "5": 79.41, "10": 79.78, "20": 79.61},
}

# Budget -> ARC-Challenge: 10 shots, 3 shots (30 % of the prompts), light (3 %).
TABLE10: Mapping[str, float] = {"10_shots": 82.61, "3_shots": 82.18, "light": 82.08}


def named(label: str, task: str | None) -> str:
    """A label, and the paper's task that it stands for, if it stands for one."""
    return f"{label} ({task})" if task else label


def shown(value: float | None) -> str:
    """A figure of the paper for a cell; a dash where it has none."""
    return "–" if value is None else f"{value:.2f}"
