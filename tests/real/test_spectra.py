"""The spectra of a pretrained LLM (paper, Figures 10 and 11), by the study files of the embedded model's."""

import pytest

from transformer2.cli import main
from transformer2.study.claims import CLAIMS, verdict
from transformer2.study.results import read_study

pytestmark = pytest.mark.real


def test_spectra_of_smollm2(tmp_path):
    files = ["conf/paper/figure10.yaml", "conf/paper/figure11.yaml"]
    assert main(["study", *files, "--base", "smollm2", "--run_dir", str(tmp_path), "--quiet"]) == 0
    assert len(list((tmp_path / "runs").glob("*/report.json"))) == 1  # both figures are of one run
    study = read_study(tmp_path / "figure10-smollm2")
    (report,) = study.groups["spectrum"].reports.values()
    assert len(report["spectrum"]) == 7 * 30  # matrices of a layer, layers
    for matrix in report["spectrum"]:
        squares = matrix["sum_of_squares"]
        shares = [squares[rank] for rank in sorted(squares, key=int)]
        assert shares[0] > 0 and shares == sorted(shares) and shares[-1] == pytest.approx(1)
    for figure in ("figure10", "figure11"):
        assert (tmp_path / f"{figure}-smollm2" / f"{figure}.png").stat().st_size > 10_000
    last = CLAIMS[-1]
    print(last.title, "|", verdict(last.effects({"figure10": study})))
