"""Evaluation: one call, every question about a model that can be answered, and a reason where one cannot.

    report = evaluate(model, "fashion_mnist")
    print(report.table())
    report["reconstruction/mse"].value

`suite.py` reads as the whole; each question has a file of pure functions from arrays to numbers.
"""

from vaezoo.evaluation.report import Detail, Metric, Report, Skipped
from vaezoo.evaluation.side_by_side import SideBySide
from vaezoo.evaluation.suite import AXES, evaluate
from vaezoo.evaluation.udr import Ranking, unsupervised_disentanglement_ranking

__all__ = [
    "AXES",
    "Detail",
    "Metric",
    "Ranking",
    "Report",
    "SideBySide",
    "Skipped",
    "evaluate",
    "unsupervised_disentanglement_ranking",
]
