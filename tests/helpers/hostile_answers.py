r"""Answers that attack the mathematical verifier: none may be accepted, none may hold it up.

Each is (what it tries, gold, completion). They are text; what may be costly about them is costly for a parser or for a
computer algebra system, which run in worker processes that are killed.
"""

from __future__ import annotations

import random


def boxed(answer: str) -> str:
    return rf"Therefore, the answer is $\boxed{{{answer}}}$."


def nested(opening: str, closing: str, depth: int, core: str = "2") -> str:
    return opening * depth + core + closing * depth


HEDGES = [
    ("two answers", "5", boxed("5, 6")),
    ("alternatives", "5", boxed(r"5 \text{ or } 6")),
    ("alternatives in words", "5", boxed("5 or 6")),
    ("a letter or another", r"\text{A}", boxed(r"A \text{ or } B")),
    ("all letters", r"\text{A}", boxed("A, B, C, D, E")),
    ("all letters without commas", r"\text{A}", boxed("A B C D E")),
    ("all digits", "5", boxed("1 2 3 4 5 6 7 8 9")),
    ("all small numbers", "5", boxed(", ".join(map(str, range(100))))),
    ("two boxes", "5", r"\boxed{5} or \boxed{6}"),
    ("boxes in a row", "5", "".join(rf"\boxed{{{i}}}" for i in range(10))),
    ("more behind the box", "5", r"$\boxed{5}$ or $6$"),
    ("a range around it", "5", boxed("(4, 6)")),
    ("an interval with everything", "5", boxed(r"(-\infty, \infty)")),
    ("a set with everything", "5", boxed(r"\{4, 5, 6\}")),
    ("plus or minus", "5", boxed(r"5.5 \pm 0.5")),
    ("a false equation", "5", boxed("4 = 5")),
    ("an inequality", "5", boxed(r"x \ge 5")),
    ("a variable", "5", boxed("x")),
    ("a text with the answer in it", "5", boxed(r"\text{one of } 4, 5, 6")),
    ("rows", "5", boxed(r"4 \\ 5")),
    ("columns", "5", boxed(r"\begin{matrix} 4 & 5 \end{matrix}")),
    ("the unit exchanged", r"5\text{ inches}", boxed(r"5\text{ miles}")),
    ("only in the reasoning", "5", "The value is $5$, which is what we wanted."),
    ("a box that never ends", "5", r"\boxed{5"),
    ("an approximation", r"\frac{\pi^2}{6}", boxed("1.64493406684822643647241516664602518921894990120680")),
]

TOWERS = [
    ("a tower", "5", boxed("9^{9^{9^{9}}}")),
    ("a tower without braces", "5", boxed("9^9^9^9")),
    ("a tower of brackets", "5", boxed("(((9^{9})^{9})^{9})^{9}")),
    ("a tower of stars", "5", boxed("9**9**9**9")),
    ("a tower in a fraction", r"\frac{1}{2}", boxed(r"\frac{1}{2^{10^{10^{10}}}}")),
    ("a tower of e", "5", boxed(r"e^{e^{e^{e^{e^{79}}}}}")),
    ("a huge exponent", "5", boxed("2^{99999999999}")),
    ("a huge exponent beside a gold that has one", "2^{2005}", boxed("3^{99999999999}")),
    ("a huge exponent of a root", "5", boxed(r"\sqrt{2}^{99999999}")),
    ("a huge factorial", "5", boxed("99999999!")),
    ("factorials of factorials", "5", boxed("((9!)!)!")),
    ("a factorial beside a gold that has one", r"\frac{1}{2004!}", boxed(r"\frac{1}{99999999!}")),
    ("a huge binomial", "5", boxed(r"\binom{99999999}{44444444}")),
    ("a million digits", "5", boxed("9" * 1_000_000)),
    ("4000 digits", "5", boxed("7" * 4000)),
    ("a huge root", "5", boxed(r"\sqrt[99999999]{2}")),
    ("a power of a sum", "x", boxed("(x + x^2 + x^3 + 1)^{99}")),
    ("powers in brackets", "5", boxed("(((((9)^{12})^{12})^{12})^{12})^{12}")),
    ("a product in the exponent", "5", boxed(r"\pi^{" + "(9)" * 60 + "}")),
    ("exponentials", "5", boxed(r"\tan(\exp(\exp(100)))")),
    ("a power of powers of sums", "x", boxed("((x+1)^{12}+(x+2)^{12})^{12}")),
]

DEEP = [
    ("nested braces", "5", boxed(nested("{", "}", 100_000))),
    ("nested fractions", "5", boxed(nested(r"\frac{1}{1+", "}", 60))),
    ("nested fractions, fifteen", "5", boxed(nested(r"\frac{1}{1+", "}", 15))),
    ("nested radicals", "5", boxed(nested(r"\sqrt{2+", "}", 200))),
    ("nested radicals, eight", "5", boxed(nested(r"\sqrt{2+", "}", 8))),
    ("nested brackets", "5", boxed(nested("(", ")", 5_000))),
    ("open braces", "5", r"\boxed{" + "{" * 100_000),
    ("boxes in boxes", "5", nested(r"\boxed{", "}", 20_000, "")),
    ("open boxes", "5", r"\boxed{" * 50_000),
    ("nested sines", "5", boxed(nested(r"\sin(", ")", 15))),
    ("nested logarithms", "5", boxed(nested(r"\ln(3+", ")", 15))),
]

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
SQUARE = r" \\ ".join([" & ".join("1" * 200)] * 200)
ROW = r"\begin{pmatrix} 1 & 2 \end{pmatrix}"
ODD_ANGLES = "+".join(rf"\sin\frac{{\pi}}{{{p}}}\cos\frac{{{p}\pi}}{{17}}" for p in (7, 11, 13))

UNFINISHED = [
    ("a sum", "5", boxed(r"\sum_{i=1}^{10^{9}} \frac{1}{i}")),
    ("a product", "5", boxed(r"\prod_{i=1}^{99999999} i")),
    ("an integral", "5", boxed(r"\int_0^1 \frac{\sin(x^x)}{\ln(1+x^5)} dx")),
    ("a limit", "5", boxed(r"\lim_{x \to 0} \frac{\sin(\tan x) - \tan(\sin x)}{x^7}")),
    ("a derivative", "5", boxed(r"\frac{d}{dx} x^{x^{x}}")),
    ("a determinant", "5", boxed(r"\det\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}")),
    ("a matrix of great size", "5", boxed(rf"\begin{{pmatrix}}{SQUARE}\end{{pmatrix}}")),
    ("an inverse of a matrix", ROW, boxed(ROW + "^{-1}")),
    ("a long sum of roots", "5", boxed("+".join(rf"\sqrt{{{p}}}" for p in PRIMES))),
    ("a long product of sums", "x", boxed("".join(f"(x+{i})" for i in range(60)))),
    ("an equation of high degree", "x = 5", boxed("x^{97} + x^{89} - x^{3} = 7")),
    ("a monstrous ratio", "5", boxed(r"\frac{(\sqrt{2}+\sqrt{3}+\sqrt{5})^{12}}{(\sqrt{7}-\sqrt{11}+\sqrt{13})^{12}}")),
    ("trigonometry of odd angles", "5", boxed(ODD_ANGLES)),
    ("an absolute value of a mess", "x", boxed(r"|x^{11}-|x^{7}-|x^{5}-|x^{3}-x||||")),
]

TEXTS = [
    ("an import", "5", boxed("__import__('os').system('touch /tmp/owned')")),
    ("an eval", "5", boxed(r"\text{eval('5')}")),
    ("a class walk", "5", boxed("().__class__.__bases__[0].__subclasses__()")),
    ("a lambda", "5", boxed("(lambda: 5)()")),
    ("a name of sympy", "5", boxed("Symbol('5')")),
    ("a LaTeX definition", "5", boxed(r"\def\a{\a}\a")),
    ("a LaTeX input", "5", boxed(r"\input{/etc/passwd}")),
    ("full-width digits", "5", boxed("\uff15")),
    ("digits of another script", "5", boxed("\u0665")),
    ("a right-to-left override", "5", boxed("\u202e5")),
    ("a zero-width space", "15", boxed("1\u200b5")),
    ("combining marks", "5", boxed("5" + "\u0301" * 400)),
    ("null bytes", "5", boxed("5\x00")),
    ("a lone surrogate", "5", boxed("5\ud800")),
    ("ten megabytes", "5", "x" * 10_000_000),
    ("ten megabytes in the box", "5", boxed("+1" * 5_000_000)),
    ("many answers are", "5", "the answer is " * 100_000),
    ("many commas", "5", boxed("," * 500)),
    ("backslashes", "5", boxed("\\" * 501)),
    ("spaces", "5", boxed(" " * 500 + "6")),
    ("carets", "5", boxed("^" * 500)),
    ("texts", "5", boxed(r"\text{" * 15 + "}" * 15)),
    ("a catastrophic number", "5", boxed("1" + "{,}000" * 80 + "x")),
    ("a catastrophic list", "5", boxed("1 and " * 80)),
    ("a catastrophic name", "5", boxed("a=" * 250)),
    ("many dollars", "5", boxed(r"\$" * 250)),
    ("a catastrophic unit", "5", boxed("5" + "a" * 480 + "!")),
    ("a catastrophic unit in braces", "5", boxed("5" + r"\text{a^{2}b^{2}}" * 25 + "x")),
    ("powers of units", "5", boxed("5" + r"\text{a}^{2}" * 40 + "x")),
    ("fonts of fonts", "5", boxed(r"\bm" * 165)),
    ("bars", "5", boxed("|" * 500)),
    ("minuses", "5", boxed("-" * 500 + "6")),
    ("members of members", "5", boxed(r"x\in" * 120 + "5")),
    ("inequalities", "5", boxed(r"x<5\text{or}" * 40)),
    ("doubts", "5", r"\boxed{5}" + " wait" + " it's $" * 12_000),
    ("headings", "5", "\n" * 100_000 + "final answer"),
    ("infinity", "5", boxed(r"\infty")),
    ("not a number", "5", boxed(r"\frac{0}{0}")),
    ("a division by zero", "5", boxed(r"\frac{5}{0}")),
]

HOSTILE = HEDGES + TOWERS + DEEP + UNFINISHED + TEXTS


def batch(size: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """That many hostile answers, drawn from all of them."""
    return random.Random(seed).choices(HOSTILE, k=size)
