"""Which of several models is disentangled, if no factors are known? The one that others agree with.

Unsupervised disentanglement ranking, UDR (Duan et al. 2020): disentangled models of different seeds find the
same dimensions up to order, sign and scale; entangled ones do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import Lasso
from torch import Tensor

from vaezoo.autoencoder import Autoencoder
from vaezoo.data import load_data
from vaezoo.distributions import DiagonalGaussian
from vaezoo.errors import VaezooError, unknown
from vaezoo.evaluation.report import Detail, Metric
from vaezoo.inference import evaluation_mode
from vaezoo.random import derive, generator, seeded

Array = NDArray[np.float64]
Similarity = Literal["lasso", "spearman"]

INFORMATIVE = 0.01  # nats of KL, below which a dimension is left out
ALPHA = 0.1  # of the Lasso
RESAMPLES = 1000


@dataclass(frozen=True)
class Ranking:
    """What `unsupervised_disentanglement_ranking` says of M models.

    Attributes:
        scores: UDR of each model, in [0, 1], the median over its pairs; standard errors by the bootstrap over
            the other models, None with one other.
        pairs: score of each pair, a row for each model, 0 with itself.
        informative: number of dimensions of each model that were compared.
    """

    scores: tuple[Metric, ...]
    pairs: Detail
    informative: tuple[int, ...]

    @property
    def best(self) -> int:
        """Index of the model of the highest score."""
        return int(np.argmax([score.value for score in self.scores]))


def unsupervised_disentanglement_ranking(
    models: Sequence[Autoencoder],
    data: Any,
    *,
    similarity: Similarity = "lasso",
    split: str = "test",
    n: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
) -> Ranking:
    """UDR of models that differ in their seed, and perhaps in their hyperparameters.

    Each model is compared with every other: the representations of the same images, means of q(z|x), by
    Lasso (UDR_L) or by Spearman's rank correlation (UDR_S). Dimensions with less than 0.01 nats of KL to
    N(0, I) are left out.

    Args:
        models: at least two, whose posteriors are diagonal Gaussians; five to ten seeds give a stable median.
        data: whatever `load_data` takes.
        similarity: "lasso" or "spearman".
        split: "test", "validation" or "train".
        n: images, drawn without replacement.
        seed: draws images.
        batch_size: images at a time.

    Raises:
        VaezooError: fewer than two models or images, an unknown split or similarity, images of another shape,
            posteriors that are not diagonal Gaussians, or codes that are not finite.
    """
    if len(models) < 2:
        raise VaezooError(f"UDR compares models, and there are {len(models)}; give at least 2")
    if similarity not in SIMILARITIES:
        raise VaezooError(unknown("similarity", similarity, SIMILARITIES))
    if n < 2 or batch_size < 1:
        raise VaezooError(f"UDR: n={n} must be at least 2, and batch_size={batch_size} at least 1")
    data = load_data(data)
    if split not in data.splits:
        raise VaezooError(unknown("split", split, data.splits))
    subset = data.splits[split].subset(n, derive(seed, "images"))
    with seeded(derive(seed, "udr"), subset.device):  # what dynamic binarisation draws from
        rows = torch.arange(len(subset), device=subset.device).split(batch_size)
        batches = [subset.batch(indices) for indices in rows]
    codes = [_representation(model, batches, f"model {i}") for i, model in enumerate(models)]

    pairs = np.zeros((len(models), len(models)))
    for i, j in np.ndindex(*pairs.shape):
        if i != j and codes[i].size and codes[j].size:
            pairs[i, j] = relative_strength(SIMILARITIES[similarity](codes[j], codes[i]))
    shape, draws = (RESAMPLES, len(models) - 1), generator(derive(seed, "bootstrap"), "cpu")
    picked = torch.randint(len(models) - 1, shape, generator=draws).numpy()
    note = f"{similarity}, {len(subset)} images of {data.name}; median over the other models"
    scores = []
    for i in range(len(models)):
        others = np.delete(pairs[i], i)
        se = float(np.median(others[picked], axis=1).std(ddof=1)) if len(others) > 1 else None
        scores.append(Metric(float(np.median(others)), len(others), "", se, "higher", note))
    detail = Detail(pairs.tolist(), ("model", "other"), note=note)
    return Ranking(tuple(scores), detail, tuple(part.shape[1] for part in codes))


def _representation(model: Autoencoder, batches: list[Tensor], name: str) -> Array:
    """Standardised means of q(z|x) in the informative dimensions, [N, d]."""
    name = f"{name} ({type(model).__name__})"
    weights = next(model.parameters())
    expected, given = tuple(model.config.image_shape), tuple(batches[0].shape[1:])
    if expected != given:
        raise VaezooError(f"{name} takes images {expected}, given are {given} (channels, height, width)")
    means, rates = [], []
    with evaluation_mode(model):
        for x in batches:
            q = model.encode(x.to(weights))
            if not isinstance(q, DiagonalGaussian):
                raise VaezooError(f"UDR needs diagonal Gaussian posteriors; {name} has {type(q).__name__}")
            means.append(q.mean.double())
            rates.append(q.kl_per_dimension().double())
    codes, rate = torch.cat(means).cpu().numpy(), torch.cat(rates).mean(0).cpu().numpy()
    if not (np.isfinite(codes).all() and np.isfinite(rate).all()):
        raise VaezooError(f"some codes of {name} are not finite")
    codes = codes[:, rate > INFORMATIVE]
    scale = codes.std(0)
    return (codes - codes.mean(0)) / np.where(scale > 0, scale, 1)


def lasso_weights(codes: Array, others: Array) -> Array:
    """Absolute coefficients of Lasso regression from standardised codes [N, D] to others [N, E]: [D, E]."""
    fitted = Lasso(alpha=ALPHA).fit(codes, others)
    return np.abs(fitted.coef_.reshape(others.shape[1], -1)).T


def spearman_correlations(codes: Array, others: Array) -> Array:
    """Absolute rank correlations of codes [N, D] and others [N, E]: [D, E]; 0 where one is constant."""
    ranks = []
    for columns in (codes, others):
        centred = rankdata(columns, axis=0) - (len(columns) + 1) / 2
        norm = np.sqrt(np.square(centred).sum(0))
        ranks.append(centred / np.where(norm > 0, norm, 1))
    return np.abs(ranks[0].T @ ranks[1])


SIMILARITIES = {"lasso": lasso_weights, "spearman": spearman_correlations}


def relative_strength(matrix: Array) -> float:
    """How nearly one to one the dimensions of two models match: in [0, 1] for similarities up to 1.

    Greatest squared over sum of each row, mean over rows; the same of the columns; the mean of both (Duan et
    al. 2020, as in their code). A dimension that nothing matches counts 0.

    Args:
        matrix: similarity of the dimensions, at least 0, [D, E].
    """
    means = []
    for axis in (0, 1):
        total = matrix.sum(axis)
        means.append((np.square(matrix.max(axis)) / np.where(total > 0, total, 1)).mean())
    return float(np.mean(means))
