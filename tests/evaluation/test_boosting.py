from __future__ import annotations

import numpy as np
import pytest
from sampled import drawn, noise
from sklearn.ensemble import GradientBoostingClassifier

from vaezoo.evaluation.boosting import boost


def test_boosted_trees_are_those_of_scikit_learn() -> None:
    factors = drawn(700)
    x = (factors.double() @ noise(3, 4) + 0.5 * noise(700, 4)).numpy().astype(np.float32)
    x = np.concatenate([x[:, :3], np.round(x[:, 3:], 1), np.full((700, 1), 3, np.float32)], 1)
    for y in (*factors.numpy().T, factors.numpy()[:, 0] > 0):
        theirs = GradientBoostingClassifier(n_estimators=12, random_state=0).fit(x[:500], y[:500])
        ours = boost(x[:500], y[:500], x[500:], stages=12)
        np.testing.assert_allclose(ours.importances, theirs.feature_importances_, atol=0.01)
        assert (ours.predicted == theirs.predict(x[500:])).mean() > 0.97
        assert ours.importances[4] == 0


def test_boosted_trees_without_ties_are_exactly_those_of_scikit_learn() -> None:
    x = noise(600, 3).numpy().astype(np.float32)
    y = (x[:, 0] + 0.3 * x[:, 1] ** 2 > 0.2).astype(int) + (x[:, 2] > 1)
    theirs = GradientBoostingClassifier(n_estimators=4, random_state=0).fit(x[:400], y[:400])
    ours = boost(x[:400], y[:400], x[400:], stages=4, seed=1)
    np.testing.assert_allclose(ours.importances, theirs.feature_importances_, atol=1e-9)
    assert (ours.predicted == theirs.predict(x[400:])).all()


def test_boosted_trees_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaezoo.evaluation.boosting.MANY", 1)
    factors = drawn(300)
    x, y = noise(300, 3).numpy(), factors[:, 2].numpy()
    one, two = (boost(x, y, x, stages=5, threads=threads) for threads in (1, 2))
    assert (one.importances == two.importances).all()
    assert (one.predicted == two.predicted).all()
