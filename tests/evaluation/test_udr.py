from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sampled import noise
from scipy.stats import spearmanr
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

import vaezoo
from vaezoo.autoencoder import Autoencoder, AutoencoderConfig, Latent, LatentShape
from vaezoo.data import ImageData, load_data
from vaezoo.distributions import DiagonalGaussian
from vaezoo.errors import VaezooError
from vaezoo.evaluation import unsupervised_disentanglement_ranking
from vaezoo.evaluation.udr import lasso_weights, relative_strength, spearman_correlations

SHAPE = (1, 1, 3)


class Linear(Autoencoder):
    """Codes: a matrix times the three pixels, with standard deviation 0.1; zero columns are the prior."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(AutoencoderConfig(image_shape=SHAPE))
        self.matrix = torch.nn.Parameter(matrix)

    @property
    def latent(self) -> LatentShape:
        return LatentShape(((self.matrix.shape[1],),))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        used = (self.matrix != 0).any(0)
        mean = 4 * (x.flatten(1) - 0.5) @ self.matrix
        return DiagonalGaussian(mean, torch.where(used, math.log(0.01), 0.0).expand_as(mean))

    def decode(self, z: Latent) -> Distribution:
        assert isinstance(z, Tensor)
        return Independent(Bernoulli(logits=torch.zeros(len(z), *SHAPE)), 3)


@pytest.fixture(scope="module")
def pixels() -> ImageData:
    """Independent, uniform pixels."""
    levels = torch.randint(256, (1000, *SHAPE), generator=torch.Generator().manual_seed(0))
    return load_data(levels.byte(), layout="NCHW")


def rotation(seed: int) -> Tensor:
    return torch.linalg.qr(noise(3, 3, seed)).Q.float()


def permutation(order: list[int], signs: list[float]) -> Tensor:
    return torch.eye(3)[:, order] * torch.tensor(signs)


ALIGNED = [
    permutation([0, 1, 2], [1, 1, 1]),
    permutation([2, 0, 1], [1, -1, 2]),
    permutation([1, 0, 2], [-1, 0.5, 1]),
]


@pytest.mark.parametrize("similarity", ["lasso", "spearman"])
def test_models_that_differ_in_order_sign_and_scale_agree(pixels: ImageData, similarity: Any) -> None:
    """Aligned codes about 1, rotated ones far below."""
    aligned = unsupervised_disentanglement_ranking(
        [Linear(matrix) for matrix in ALIGNED], pixels, split="train", similarity=similarity
    )
    # The Lasso shrinks a coefficient of 1 to 1 - alpha; correlations of independent pixels are not quite 0.
    assert min(score.value for score in aligned.scores) > 0.85
    rotated = unsupervised_disentanglement_ranking(
        [Linear(rotation(seed)) for seed in range(3)], pixels, split="train", similarity=similarity
    )
    assert max(score.value for score in rotated.scores) < 0.7
    mixed = unsupervised_disentanglement_ranking(
        [Linear(rotation(0)), *(Linear(matrix) for matrix in ALIGNED)],
        pixels,
        split="train",
        similarity=similarity,
    )
    assert mixed.best != 0
    assert mixed.scores[0].value < min(score.value for score in mixed.scores[1:])


def test_scores_are_medians_of_pairs_and_dimensions_of_the_prior_are_left_out(pixels: ImageData) -> None:
    matrices = [torch.cat([matrix, torch.zeros(3, k)], 1) for k, matrix in enumerate(ALIGNED)]
    models = [Linear(matrix) for matrix in [*matrices, rotation(1)]]
    ranking = unsupervised_disentanglement_ranking(models, pixels, split="train")
    assert ranking.informative == (3, 3, 3, 3)
    pairs = np.array(ranking.pairs.values)
    for i, score in enumerate(ranking.scores):
        assert score.value == np.median(np.delete(pairs[i], i))
        assert score.n == 3
        assert score.se is not None
        assert 0 <= score.se <= np.ptp(np.delete(pairs[i], i))
    bare = unsupervised_disentanglement_ranking(
        [Linear(matrix) for matrix in [*ALIGNED, rotation(1)]], pixels, split="train"
    )
    np.testing.assert_allclose(pairs, bare.pairs.values, atol=1e-6)


def test_a_collapsed_model_agrees_with_none(pixels: ImageData) -> None:
    """A model whose every dimension is that of the prior, or constant."""
    models = [Linear(torch.zeros(3, 3)), Linear(ALIGNED[0]), Linear(ALIGNED[1])]
    for similarity in ("lasso", "spearman"):
        ranking = unsupervised_disentanglement_ranking(models, pixels, split="train", similarity=similarity)
        assert ranking.informative[0] == 0
        assert ranking.scores[0].value == 0
        assert ranking.pairs.values[1][0] == 0


def test_relative_strength_by_hand() -> None:
    assert relative_strength(np.eye(3)) == 1
    assert relative_strength(np.full((2, 2), 0.5)) == pytest.approx(0.25)
    assert relative_strength(np.zeros((2, 3))) == 0
    # Rows: .8² / .8 and .6² / 1; columns: .8² / 1.2 and .6² / .6.
    matrix = np.array([[0.8, 0.0], [0.4, 0.6]])
    assert relative_strength(matrix) == pytest.approx((0.8 + 0.36 + 0.64 / 1.2 + 0.6) / 4)


def test_spearman_correlations_are_scipys() -> None:
    a, b = noise(60, 3).numpy(), np.round(noise(60, 2, seed=2).numpy(), 1)
    b[:, 1] += a[:, 0]
    theirs = np.abs(spearmanr(a, b).statistic[:3, 3:])
    np.testing.assert_allclose(spearman_correlations(a, b), theirs, atol=1e-12)
    assert (spearman_correlations(np.ones((60, 1)), b) == 0).all()


def test_lasso_of_orthonormal_codes_is_soft_thresholding() -> None:
    codes = np.linalg.qr(noise(50, 3).numpy() - noise(50, 3).numpy().mean(0))[0] * np.sqrt(50)
    weights = np.array([[1.0, 0.05], [0.0, -0.5], [-0.3, 0.2]])
    expected = np.maximum(np.abs(weights) - 0.1, 0)
    np.testing.assert_allclose(lasso_weights(codes, codes @ weights), expected, atol=1e-6)
    assert lasso_weights(codes, codes[:, :1]).shape == (3, 1)


def test_the_same_call_gives_the_same_numbers_and_leaves_the_random_state(pixels: ImageData) -> None:
    models = [Linear(rotation(seed)) for seed in range(3)]
    torch.manual_seed(0)
    first = unsupervised_disentanglement_ranking(models, pixels, split="train", n=200)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    assert unsupervised_disentanglement_ranking(models, pixels, split="train", n=200) == first
    assert unsupervised_disentanglement_ranking(models, pixels, split="train", n=200, seed=1) != first


def test_two_models_have_one_pair_and_no_standard_error(pixels: ImageData) -> None:
    ranking = unsupervised_disentanglement_ranking([Linear(m) for m in ALIGNED[:2]], pixels, split="train")
    assert [score.se for score in ranking.scores] == [None, None]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([Linear(ALIGNED[0])], {}, "at least 2"),
        ([Linear(m) for m in ALIGNED], {"similarity": "laso"}, "did you mean 'lasso'"),
        ([Linear(m) for m in ALIGNED], {"split": "trian"}, "did you mean 'train'"),
        ([Linear(m) for m in ALIGNED], {"n": 1}, "n=1"),
        ([Linear(ALIGNED[0]), Linear(math.nan * ALIGNED[1])], {}, "model 1 .Linear. are not finite"),
        ([Linear(ALIGNED[0]), vaezoo.create("vae", image_shape=(1, 4, 4))], {}, r"model 1 .*\(1, 4, 4\)"),
        ([vaezoo.create("ae", image_shape=SHAPE)] * 2, {}, "diagonal Gaussian posteriors; model 0 .* Delta"),
    ],
)
def test_mistakes_are_named(pixels: ImageData, models: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(VaezooError, match=message):
        unsupervised_disentanglement_ranking(models, pixels, **options)
