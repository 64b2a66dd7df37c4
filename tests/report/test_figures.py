"""Figures say what they show: axes, units, steps."""

from matplotlib.figure import Figure

from transformer2.cli import main
from transformer2.report import curve
from transformer2.report.adaptation import alpha_figure, confusion_figure
from transformer2.report.curve import draw_curve
from transformer2.report.figures import pixels, save_figure


def test_a_confusion_names_its_axes_and_its_numbers():
    (axes,) = confusion_figure({"math": {"math": 3, "other": 1}}, ["math", "other"], "dispatch by prompt").axes
    assert (axes.get_ylabel(), axes.get_xlabel().partition(" ")[0]) == ("true category", "predicted")
    assert "%" in axes.get_xlabel() and "requests" in axes.get_xlabel()
    assert [text.get_text() for text in axes.texts] == ["75 %\n3", "25 %\n1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["math", "other"]


def test_weights_of_a_search_are_named():
    trace = [{"mean": [0.1, 0.2], "std": [0.1, 0.1], "score": 0.5}]
    left, right = alpha_figure(["math", "code"], ["all"], trace).axes
    assert left.get_xlabel() == "generation" and "weight of an expert" in left.get_ylabel()
    assert {text.get_text() for text in left.get_legend().get_texts()} == {"math", "code"} and right.get_title()


def test_the_learning_curve_has_whole_steps_and_percent(tmp_path, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            for tag in ("train/accuracy", "val/accuracy", "val/accuracy_se", "train/kl"):
                writer.add_scalar(tag, 0.1 * step, step)
    drawn, save = [], curve.save_figure
    monkeypatch.setattr(curve, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    assert draw_curve(tmp_path, tmp_path / "figures" / "curve.png").stat().st_size > 1000
    left, right = drawn[0].axes
    assert left.get_xlabel() == right.get_xlabel() == "optimizer steps done" and left.get_ylabel() == "right answers"
    assert {text.get_text() for text in left.get_yticklabels()} >= {"0 %", "100 %"}
    assert all(float(tick).is_integer() for axes in (left, right) for tick in axes.get_xticks())
    assert right.get_ylabel() == "nats per token"
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "c.svg")]) == 0  # of validate, which has no report
    assert "last validation, step 2: 20.0 ± 20.0 %" in capsys.readouterr().out and (tmp_path / "c.svg").exists()


def test_a_figure_of_a_user_s_own_needs_no_canvas(tmp_path):
    assert pixels(Figure(figsize=(1, 1), dpi=50)).shape == (50, 50, 3)
    assert save_figure(Figure(figsize=(1, 1)), tmp_path / "figures" / "own.png").stat().st_size > 100
