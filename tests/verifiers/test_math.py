"""The mathematical verifier: forms that are equal, changes that are not, attacks from a thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hostile_answers import HOSTILE, boxed
from math_answers import ANSWERS, ENDS, SYMMETRIC

from transformer2.verifiers.math import verify_math, verify_math_many
from transformer2.verifiers.math.final import final_expression
from transformer2.verifiers.math.latex import normal

HUNG = 20.0  # seconds; an answer may take 2


@pytest.fixture(scope="module", autouse=True)
def warm():
    verify_math_many(["x + 1"] * 8, [boxed("1 + x")] * 8)


EQUAL = [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"),
    (r"\frac{1}{3}", "1/3"),
    ("0.5", r"\frac12"),
    (".35625", r"\dfrac{57}{160}"),
    (r"11 \frac{2}{3}", r"\frac{35}{3}"),
    ("2", r"\sqrt{4}"),
    ("2", r"\log_2 4"),
    ("2", "2.0."),
    ("0", "-0"),
    (r"\sqrt[3]{5}", "5^{1/3}"),
    (r"2000 \sqrt{2} - 2000", r"2000(\sqrt2-1)"),
    ("2^{2005}", r"2 \cdot 2^{2004}"),
    (r"\frac{1}{5} + \frac{3}{5}i", r"\frac{1+3i}{5}"),
    ("x^2 + 10x + 25", "(x+5)^2"),
    ("3 - 2f(x)", "-2f(x)+3"),
    (r"\cos 13^\circ", r"\sin 77^\circ"),
    (r"4,\!000", "4000"),
    (r"4,\!000", "4,000"),
    ("10{,}000", r"10\,000"),
    ("−5", "-5"),
    (r"10\text{ inches}", "10"),
    (r"10\text{ inches}", "10 inches"),
    (r"10\text{ inches}", r"10\text{ in}"),
    (r"15\mbox{ cm}^2", r"15 \text{ square centimeters}"),
    (r"8\sqrt{3} \text { square inches}", r"8\sqrt3"),
    ("5", r"5\text{ apples}"),
    (r"20\%", "20"),
    (r"\$32,\!348", r"\$32,348"),
    (r"\$2.50", r"2.5 \text{ dollars}"),
    (r"45^\circ", "45"),
    ("45", "45°"),
    ("5", "x = 5"),
    ("5", "x + y = 5"),
    ("x=5", "5"),
    ("y = 2x + 3", "y = 3 + 2x"),
    ("10x - 4y - 5z - 20 = 0", "20x-8y-10z=40"),
    ("x^2 + y^2 = 13", "y^2+x^2-13=0"),
    (r"\left(3,\frac{1}{2}\right]", "(3, 0.5]"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"(-\infty, -4) \cup (-4, \infty)", r"(-4,\infty)\cup(-\infty,-4)"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2,1+\sqrt5,1-\sqrt5"),
    (r"7, -2, \text{ and } -5", "-5, 7, -2"),
    (r"12\text{ and }13", "12, 13"),
    (r"\frac{1}{2}", r"\frac12, 0.5"),
    (r"\begin{pmatrix} 1/3 \\ 2 \end{pmatrix}", r"\begin{bmatrix}\frac13\\2\end{bmatrix}"),
    (r"\text{Saturday}", "Saturday"),
    (r"(\text{E})", r"\text{E}"),
    ("C", r"\textbf{(C)}"),
    (r"\text{B, E, G}", "G, B, E"),
    (r"9\text{ a.m.}", "9 a.m."),
    ("-221_3", "-221_{3}"),
    ("3:1", "3 : 1"),
]

DIFFERENT = [
    (r"11 \frac{2}{3}", r"\frac{22}{3}"),
    (r"\frac{1}{3}", "0.3333333333"),
    ("2", r"\sqrt{2}"),
    ("x^2 + 10x + 25", "(x+4)^2"),
    ("3 - 2f(x)", "2f(x)+3"),
    (r"\cos 13^\circ", r"\cos 13"),
    ("12", "1 2"),
    (r"10\text{ inches}", r"10\text{ cm}"),
    (r"15\mbox{ cm}^2", r"15\text{ cm}"),
    (r"5.4 \text{ cents}", r"\$5.4"),
    (r"45^\circ", r"45\%"),
    (r"20\%", "0.2"),
    ("5", "5 thousand"),
    ("5", r"5\text{ million}"),
    ("5", "4 = 5"),
    ("10x - 4y - 5z - 20 = 0", "10x-4y-5z+20=0"),
    ("10x - 4y - 5z - 20 = 0", "0 = 0"),
    ("10x - 4y - 5z - 20 = 0", "0"),
    ("x^2 + y^2 = 13", "13"),
    ("y = 2x + 3", "x = 2x + 3"),
    ("(3,4]", "(3,4)"),
    ("(3,4]", "(4,3]"),
    ("(3,4)", "3,4"),
    (r"(-\infty,0]\cup[4,\infty)", r"(-\infty,0]"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"),
    ("2,3", "2"),
    ("2,3", "2,3,4"),
    ("2", "2,3"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 & 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    (r"\text{Saturday}", r"\text{Sunday}"),
    (r"\text{A}", "B"),
    ("-221_3", "-221"),
    ("-221_3", "-221_4"),
    ("3:1", "3"),
    ("3:1", "1:3"),
    ("x", "y"),
    ("y = x+3", "y = x+4"),
    ("y = x+3", "y = y+3"),
    ("2^{2005}", "2^{2005} + 1"),
    (r"10^{120} + \pi", r"10^{120} + \sqrt{2}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2005!}"),
    ("f(2) < f(1) < f(4)", "f(1) < f(2) < f(4)"),
]


def test_equal_answers_are_accepted_however_they_are_written():
    verdicts = verify_math_many([gold for gold, _ in EQUAL], [boxed(answer) for _, answer in EQUAL])
    assert [(e, v.reason) for e, v in zip(EQUAL, verdicts, strict=True) if v.reward != 1.0] == []


def test_different_answers_are_refused():
    verdicts = verify_math_many([gold for gold, _ in DIFFERENT], [boxed(answer) for _, answer in DIFFERENT])
    assert [(e, v.reason) for e, v in zip(DIFFERENT, verdicts, strict=True) if v.reward != -1.0] == []


def judged(pairs: list[tuple[str, str]]) -> list[bool]:
    verdicts = verify_math_many([gold for gold, _ in pairs], [boxed(answer) for _, answer in pairs])
    assert {v.reward for v in verdicts} <= {1.0, -1.0}  # no infra error
    return [v.correct for v in verdicts]


@pytest.mark.parametrize("kind", ANSWERS)
def test_kinds_of_answers(kind):
    right = [(gold, answer) for gold, answers, _ in ANSWERS[kind] for answer in answers]
    wrong = [(gold, answer) for gold, _, answers in ANSWERS[kind] for answer in answers]
    assert [pair for pair, correct in zip(right, judged(right), strict=True) if not correct] == []
    assert [pair for pair, correct in zip(wrong, judged(wrong), strict=True) if correct] == []
    if kind in SYMMETRIC:
        swapped = [(answer, gold) for gold, answer in right]
        assert [pair for pair, correct in zip(swapped, judged(swapped), strict=True) if not correct] == []


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (r"First \boxed{3}, no: \boxed{4}.", "4"),
        (r"\fbox{4}", "4"),
        (r"\boxed {\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"So $\boxed{-2}$ and $\boxed{1}$.", "-2, 1"),
        ("The answer is 3. No, the answer is $4$.", "$4$"),
        ("**Answer:** 4\nI hope this helps.", "4"),
        ("The answer is 3.5.", "3.5"),
        (r"The answer is 3, but \boxed{4}", "4"),
        (r"$N = \boxed{6}$, $30N + 7 = 187$", "6"),
        (r"\boxed{5}. Wait, that's wrong; the answer is 6.", "6"),
        (r"\boxed{5}. Actually, it's 6.", "6"),
        (r"\boxed{5}. No, it should be $6$.", "$6$"),
        (r"\boxed{5}. Correction: 6.", "6"),
        (r"\boxed{5}. However, that is incorrect. The correct answer is $7$.", "$7$"),
        (r"\boxed{5}. Wait, let me verify: 2 + 3 = 5. Yes.", "5"),
        (r"The final answer is $\boxed{5}$. I hope it is correct.", "5"),
        (r"\boxed{5} works, no other value, e.g. 6, does.", "5"),
        ("The answer is 5. Actually, it's 6.", "6"),
        ("The answer is (C). Actually, it's D.", "D"),
        ("The answer is 5 because 2 + 3 = 5.", "5"),
        ("The answer is $5$, since it is prime.", "$5$"),
        ("**Final Answer**\n\n$5$", "$5$"),
        ("The answer is $90\\text{ square\nunits}$.", "$90\\text{ square units}$"),
    ],
)
def test_the_last_box_counts_then_what_is_said(completion, text):
    found = final_expression(completion).value
    assert found is not None and found.text == text


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no final answer"),
        ("It is 4.", "no final answer"),
        (r"\boxed{}", "the box is empty"),
        (r"\boxed{4", "the box is not closed within 512 characters"),
        (r"\boxed{" + "1+" * 300 + "1}", "the box is not closed within 512 characters"),
        (r"$\boxed{4}$ or $5$", "several answers"),
        (r"\boxed{4}, 5", "several answers"),
        (r"\boxed{4}. That is wrong.", "taken back"),
        (r"\boxed{4}. Oops, I made a mistake.", "taken back"),
        ("The answer is 4. Wait, that was incorrect.", "taken back"),
    ],
)
def test_no_answer_is_wrong_and_says_why(completion, reason):
    verdict = verify_math("4", completion)
    assert (verdict.reward, verdict.extracted, verdict.reason) == (-1.0, None, reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("9^{9^9}", "a tower of exponents"),
        ("{" * 17 + "4" + "}" * 17, "nested deeper than 16"),
        ("4" * 65, "a number of more than 64 digits"),
        ("5!", "a factorial that is not worked out"),
        (r"\sum 4", r"\sum in a final answer"),
        ("2^{999}", "an exponent that is too large"),
        ("(1+1)^{99}", "a power that is too large to multiply out"),
        ("٤", "characters of no answer"),
    ],
)
def test_what_no_answer_needs_is_refused_unread(answer, reason):
    verdict = verify_math("4", boxed(answer))
    assert verdict.reward == -1.0 and verdict.reason == f"refused: {reason}"


def test_one_spelling():
    one = normal(r"\left( \dfrac12, \sqrt 2 \right)")
    assert one == r"(\frac{1}{2},\sqrt{2})" == normal(one)
    assert normal(r"\frac\pi4+x^2_1") == r"\frac{\pi}{4}+x^{2}_{1}"
    assert normal(r"\sqrt[3]2 \sin x") == r"\sqrt[3]{2}\sin x"


@pytest.mark.parametrize("gold", ["9" * 10_000, "{" * 20_000 + "5" + "}" * 20_000, "5+" * 300 + "5"])
def test_a_gold_answer_that_cannot_be_read_is_no_verdict_on_the_model(gold):
    verdict = verify_math(gold, boxed("5"))
    assert verdict.reward is None and "the gold answer" in verdict.reason


def test_a_lone_surrogate_is_read_like_any_other_character():
    assert [verify_math("5\ud800", boxed(a)).reward for a in ("5", "5\ud800", "6\ud800")] == [-1.0, 1.0, -1.0]


def test_there_are_enough_attacks():
    assert len(HOSTILE) >= 30 and len({name for name, _, _ in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize(("name", "gold", "completion"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_no_attack_passes_or_holds_it_up(name, gold, completion):
    """From a thread, where no alarm would ring; what hangs is killed after seconds."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(verify_math(gold, completion)), daemon=True)
    thread.start()
    thread.join(HUNG)
    assert found, "it hangs"
    assert found[0].reward == -1.0 and not found[0].correct, found[0]
    assert not Path("/tmp/owned").exists()


def test_an_attack_costs_its_neighbours_nothing():
    golds, texts = ["5", "x + 1", "7"], [boxed(r"\sqrt{2+" * 8 + "2" + "}" * 8), boxed("1 + x"), boxed("7")]
    assert [v.correct for v in verify_math_many(golds, texts)] == [False, True, True]


def test_its_workers_import_no_torch():
    code = (
        "import sys, runpy; sys.argv = ['w']; runpy.run_module('transformer2.verifiers.math.worker', run_name='w');"
        "sys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_the_last_statement_counts_and_what_stands_around_a_box():
    verdicts = verify_math_many([gold for _, gold, _ in ENDS], [text for text, _, _ in ENDS])
    assert [end for end, verdict in zip(ENDS, verdicts, strict=True) if verdict.correct != end[2]] == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "-x = 5"),
        ("5", r"\sqrt{x} = 5"),
        ("5", r"x^{-1} = 5"),
        ("5", r"\text{not }x = 5"),
        ("5", r"5\text{ twelfths}"),
        ("5", r"5\text{ sixteenths}"),
        ("5", r"5\text{ crore}"),
        ("0.3", r"0.3\text{ repeating}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{array}{|cc|}1&2\\3&4\end{array}"),
    ],
)
def test_words_and_signs_that_change_a_value(gold, answer):
    assert not verify_math(gold, rf"\boxed{{{answer}}}").correct
