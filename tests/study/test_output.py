import csv

from transformer2.report.figures import COLOURS, bar_style, bare_figure, style
from transformer2.study.output import Figure, Table, with_links, write_outputs

TABLE = Table("t", "A title", ["what", "a | b"], [["[1.0 ± 2](../run-s0)", "x, [0](a), 1\nfailed"]], ["a note"])


def test_markdown_has_as_many_cells_in_every_line() -> None:
    lines = [line for line in TABLE.markdown().splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [3, 3, 3]
    assert "[1.0 ± 2](../run-s0)" in lines[2] and "- a note" in TABLE.markdown()


def test_csv_has_texts_in_place_of_links(tmp_path) -> None:
    write_outputs([TABLE], tmp_path)
    with open(tmp_path / "t.csv", newline="") as file:
        assert list(csv.reader(file)) == [["what", "a | b"], ["1.0 ± 2", "x, 0, 1\nfailed"]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.md"]  # nothing half-written


def test_a_terminal_sees_columns_without_links_and_without_the_papers() -> None:
    table = Table(
        "t", "A title", ["what", "paper: Llama", "n"], [["[1.0 ± 2](../run-s0)", "75", "512"], ["x", "", "3"]]
    )
    assert table.text() == "A title\n  what     n\n  1.0 ± 2  512\n  x        3"


def test_links_move_and_dead_ones_become_text() -> None:
    assert with_links("[0](../a), [1](../b)", {"../a": "runs/a"}.get) == "[0](runs/a), 1"


def test_a_figure_is_the_same_bytes_each_time(tmp_path) -> None:
    def draw():
        figure = bare_figure((3, 2))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], **style(0))
        axes.bar([0, 1], [1, 2], **bar_style(1))
        axes.set(xlabel="step", ylabel="accuracy")
        return figure

    figure = Figure("f", "Curves", draw, ["a note"])
    write_outputs([Table("f", "Curves", ["run"], [["not run"]])], tmp_path)
    (file,) = write_outputs([figure], tmp_path)
    assert [*tmp_path.iterdir()] == [file]  # the table that stood in its place is gone
    assert file.read_bytes()[:4] == b"\x89PNG" and file.read_bytes() == figure.png()
    assert figure.markdown().startswith("![Curves](f.png)\n")


def test_series_differ_in_grey_too() -> None:
    styles = [style(i) for i in range(len(COLOURS))]
    for key in ("color", "marker", "linestyle"):
        assert len({str(s[key]) for s in styles}) == len(COLOURS)
    assert len({bar_style(i)["hatch"] for i in range(len(COLOURS))}) == len(COLOURS)
