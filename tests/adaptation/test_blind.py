"""The blind control: what the same model scores on the same questions without their pictures, in test and adapt."""

from __future__ import annotations

import json
from dataclasses import replace

import lightning as L
import pytest
import torch
from fake_experts import ALL, make_experts
from soft_pictures import SoftPictures
from vision_bases import make_vision

from transformer2.adaptation.blind import without_pictures
from transformer2.adaptation.evaluate import evaluate
from transformer2.adaptation.strategy import ActiveExpert, AdaptedPolicy, Choice, Strategy
from transformer2.data import ExpertDataModule, UnseenTaskDataModule
from transformer2.data.prompts import collate, render
from transformer2.module import SVFReinforceModule
from transformer2.pictures import PictureFile
from transformer2.report.adaptation import adaptation_table
from transformer2.report.blind import against_blind
from transformer2.report.table import text_table
from transformer2.types import Answer, Example, Record, Verdict

TASK = "soft_pictures.SoftPictures"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A small random LLaVA-NeXT with a z of its own, and experts for it."""
    folder = tmp_path_factory.mktemp("seeing")
    base = str(make_vision(folder / "base"))
    module = SVFReinforceModule(base, adapter=ALL, dtype="float32", test={"samples": 2}, seed=5)
    module.configure_model()
    with torch.no_grad():
        for parameter in module.trained():
            parameter.uniform_(-0.4, 0.4, generator=torch.Generator().manual_seed(0))
    return base, module, make_experts(folder, base, ("math", "code"))


def alone(module, data, example):
    """The credit of the answer to one question without its picture, asked by itself."""
    blind = replace(example, images=())
    batch = collate([blind], [render(data.tokenizer, blind)], data.tokenizer.pad_token_id)
    (answer,) = module.answerer(data.task).answer(batch)
    return answer.credit


def test_a_test_says_what_the_same_expert_scores_without_the_pictures(seeing):
    base, module, _ = seeing
    data = ExpertDataModule(TASK, base, eval_batch_size=6)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    L.Trainer(accelerator="cpu", devices=1, logger=False, **quiet).test(module, data, verbose=False)
    data.setup("test")
    examples = data.task.examples("test")
    assert [r.controls["without the picture"] for r in module.records] == [alone(module, data, e) for e in examples]
    assert all(
        r.controls["without the picture"] == r.result.credit for r in module.records if not examples[r.row].images
    )
    assert any(r.controls["without the picture"] != r.result.credit for r in module.records)
    found = evaluate(module.answerer(data.task), data, ActiveExpert(2, module.test.temperature, seed=5))
    assert found.records == module.records
    controls = found.report.controls
    assert list(controls) == ["without the picture", "most frequent answer"] and controls["without the picture"].n == 16
    # Most training rows are answered with "a", to either question, and ord("a") % 11 is 9.
    assert (
        controls["most frequent answer"].accuracy == pytest.approx(0.9) and controls["most frequent answer"].se < 1e-6
    )
    assert set(found.report.details["blind"]) == set(controls)
    assert any("is not above the most frequent training answer" in note for note in found.report.details["notes"])
    table = text_table(found.report)
    assert "without the picture" in table and len({line.index("±") for line in table.splitlines()[1:5]}) == 1
    json.dumps(found.report.to_json())


class Halves(Strategy):
    name = "half"

    def adapt_to_task(self, context):
        return _Halves(context, self.name)


class _Halves(AdaptedPolicy):
    """Every second row is the first expert's, the others are the base's."""

    def adapt_to_batch(self, batch):
        return Choice(torch.eye(3)[[row % 2 * 2 for row in batch.positions]])


def test_an_adaptation_says_it_of_what_each_row_was_answered_under(seeing):
    base, module, experts = seeing
    data = UnseenTaskDataModule(TASK, base, few_shot=2, test_limit=10, eval_batch_size=5)
    data.setup("test")
    answerer, cache = module.answerer(data.task), {}
    found = evaluate(answerer, data, Halves(experts=experts, controls=False), cache)
    single = evaluate(answerer, data, Strategy(experts=experts, controls=False), cache)
    blind, of_base = ([r.controls["without the picture"] for r in f.records] for f in (found, single))
    odd, even = slice(1, None, 2), slice(0, None, 2)
    assert blind[odd] == of_base[odd] and blind[even] != of_base[even]
    assert "controls_score" in found.records[0].to_json()
    table = adaptation_table({"half": found.report, "base": single.report})
    assert "half: " in table and table.count(": without the picture") == 2
    assert "  most frequent answer" in table and "\n  without the picture" not in table


def test_a_mixture_is_worth_the_mean_score_of_its_answers_to_the_shots(seeing):
    base, module, experts = seeing
    data = UnseenTaskDataModule(TASK, base, few_shot=8, test_limit=2)
    data.setup("test")
    with Strategy(experts=experts, controls=False).prepared(
        module.answerer(data.task), data, {}, None, None
    ) as context:
        scores, _ = context.scores(torch.eye(3))
        answers = [context.answers(context.few_shot, weights_1K) for weights_1K in torch.eye(3).split(1)]
    assert scores == pytest.approx([sum(a.credit for a in of) / 8 for of in answers]) and len(set(scores)) > 1


def test_a_text_task_has_no_blind_control(seeing):
    base, module, _ = seeing
    data = ExpertDataModule("toy_task.FirstLetter", base, test_limit=4)
    data.setup("test")
    found = evaluate(module.answerer(data.task), data, ActiveExpert())
    assert found.report.controls == {} and "blind" not in found.report.details


class Untrained(SoftPictures):
    splits = ("test",)
    name = "untrained"


def test_without_training_rows_a_note_says_so(seeing):
    base, module, _ = seeing
    data = ExpertDataModule(f"{__name__}.Untrained", base, test_limit=4)
    data.setup("test")
    report = evaluate(module.answerer(data.task), data, ActiveExpert()).report
    assert list(report.controls) == ["without the picture"]
    assert any("no training rows could be read" in note for note in report.details["notes"])


def test_a_question_without_its_picture_keeps_its_text_alone():
    parts = ({"type": "image"}, {"type": "text", "text": "What?"})
    messages = ({"role": "system", "content": "Look."}, {"role": "user", "content": parts})
    example = Example("e", messages, "", images=(PictureFile("x.png"),))
    blind = without_pictures(example)
    assert blind.images == () and blind.question == example.question
    assert blind.messages == (messages[0], {"role": "user", "content": parts[1:]})


def record(row, blind, result):
    def answer(score):
        return Answer("a", True, Verdict(score, score >= 0.5, "a", "score", score=score))

    return Record(row, f"t/{row}", "q", "a", answer(0.0), answer(result), controls={"without the picture": blind})


def test_a_result_that_is_clearly_above_its_blind_control_has_no_note():
    details, notes = against_blind([record(i, 0.3 * (i % 2), 0.9) for i in range(20)], "expert")
    assert details["blind"]["without the picture"]["points"] == pytest.approx(75)
    assert details["blind"]["without the picture"]["p"] < 1e-4 and len(notes) == 1 and "no training rows" in notes[0]
    _, notes = against_blind([record(i, 0.3, 0.6 if i == 3 else 0.3) for i in range(20)], "expert")
    assert notes[0] == "expert is not clearly above what it scores without the picture: 31.5 % to 30.0 %, p = 1"
    _, notes = against_blind([record(i, 0.6, 0.3) for i in range(20)], "expert")
    assert notes[0].startswith("expert is not above what it scores without the picture: 30.0 % to 60.0 %, p = ")
