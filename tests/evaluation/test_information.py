from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sampled import SIZES, assert_calibrated, drawn, noise
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics import mutual_info_score
from torch import Tensor

from vaezoo.evaluation.information import (
    Information,
    active_by_range,
    binned_information,
    discretize,
    info_compactness,
    info_modularity,
    modularity,
    mutual_information_gap,
    neighbour_information,
    pointwise_information,
    surprisal,
    without_ties,
)


def gaps_of(codes: Tensor, factors: Tensor, sizes: tuple[int, ...] = SIZES) -> Tensor:
    information = binned_information(codes, factors, sizes)
    return mutual_information_gap(information.matrix, information.entropies)


def reference_mig(codes: Tensor, factors: Tensor) -> float:
    """disentanglement_lib's, with numpy and scikit-learn."""
    binned = np.stack([np.digitize(c, np.histogram(c, 20)[1][:-1]) for c in codes.numpy().T])
    gaps = []
    for values in factors.numpy().T:
        information = sorted(mutual_info_score(values, c) for c in binned)
        gaps.append((information[-1] - information[-2]) / mutual_info_score(values, values))
    return float(np.mean(gaps))


def test_bins_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(2000, 4, dtype=torch.float64, generator=generator) * torch.tensor([1, 1e-3, 50, 0.0])
    for ours, column in zip(discretize(codes).T, codes.numpy().T):
        theirs = np.digitize(column, np.histogram(column, 20)[1][:-1])
        if np.ptp(column) > 0:
            np.testing.assert_array_equal(ours.numpy(), theirs - 1)
        else:
            assert len(set(ours.tolist())) == len(set(theirs)) == 1


def test_mutual_information_is_that_of_scikit_learn() -> None:
    a, b = drawn(500, (4, 7, 1)), drawn(500, (5,))[:, 0]
    a[:, 1] = (a[:, 1] + b) % 7 // 3
    ours = pointwise_information(a, 7, b, 5).mean(0)
    theirs = [mutual_info_score(column, b) for column in a.T.numpy()]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-10)


def test_mig_is_that_of_the_reference() -> None:
    factors = drawn()
    noise = torch.randn(len(factors), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    codes = (
        noise
        + factors.double() @ torch.tensor([[1.0, 0, 0.5, 0, 2], [0, 1, 1, 0, 0], [0.3, 0, 0, 0, 1]]).double()
    )
    gaps = gaps_of(codes, factors)
    assert gaps.mean().item() == pytest.approx(reference_mig(codes, factors), abs=1e-9)


def test_codes_that_are_the_factors_have_a_gap_of_one_and_copies_none() -> None:
    factors = drawn()
    codes = factors.double()
    assert gaps_of(codes, factors).mean() >= 0.9
    twice = torch.cat([codes, codes], 1)
    assert gaps_of(twice, factors).mean() <= 0.1


def test_a_rotation_by_45_degrees_closes_the_gap() -> None:
    factors = drawn(sizes=(10, 10))
    rotation = torch.tensor([[1.0, -1], [1, 1]], dtype=torch.float64) / math.sqrt(2)
    straight = gaps_of(factors.double(), factors, (10, 10)).mean()
    turned = gaps_of(factors.double() @ rotation, factors, (10, 10)).mean()
    assert straight > 0.9
    assert turned < 0.05


def test_modularity_by_hand() -> None:
    information = torch.tensor([[0.5, 0, 0], [0.3, 0.3, 0.3], [1, 0.5, 0], [0, 0, 0]], dtype=torch.float64)
    assert modularity(information).tolist() == pytest.approx([1, 0, 1 - 0.25 / 2, 0])


def test_information_matrix_is_that_of_scikit_learn() -> None:
    factors, codes = drawn(500), noise(500, 4) + drawn(500)[:, 1:2]
    ours = binned_information(codes, factors, SIZES).matrix
    bins = discretize(codes).T.numpy()
    theirs = [[mutual_info_score(bin_, column) for column in factors.T.numpy()] for bin_ in bins]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-10)


def test_surprisal_by_hand() -> None:
    values = torch.tensor([0, 0, 0, 2])
    assert surprisal(values, 3).exp().tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 4])


def test_scores_at_the_factors_at_copies_and_at_equal_shares_by_hand() -> None:
    """InfoM and InfoC."""
    entropies = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    identity = torch.diag(entropies)
    copies = torch.cat([identity, identity])
    equal = entropies.expand(4, 3)
    nothing = torch.cat([identity, torch.zeros(1, 3, dtype=torch.float64)])
    assert info_modularity(identity, entropies).item() == pytest.approx(1)
    assert info_compactness(identity, entropies).item() == pytest.approx(1)
    assert info_modularity(copies, entropies).item() == pytest.approx(1)
    assert info_compactness(copies, entropies).item() == pytest.approx((1 / 2 - 1 / 6) / (1 - 1 / 6))
    assert info_modularity(equal, entropies).item() == pytest.approx(0, abs=1e-12)
    assert info_compactness(equal, entropies).item() == pytest.approx(0, abs=1e-12)
    assert info_modularity(nothing, entropies).item() == pytest.approx(3 / 4)
    assert info_compactness(torch.zeros(4, 3), entropies).item() == 0


def test_active_dimensions_by_range() -> None:
    codes = torch.tensor([[0.0, 5, 1, 3], [40, 7.1, 3, 3]])
    assert active_by_range(codes).tolist() == [True, True, False, False]
    assert not active_by_range(torch.ones(5, 3)).any()


# Information without bins


def test_neighbour_information_is_that_of_scikit_learn() -> None:
    factors = drawn(700, (3, 25))
    codes = noise(700, 3) + factors[:, :1] * torch.tensor([0.0, 1, 3])
    matrix = neighbour_information(codes, factors, (3, 25)).pointwise.mean(1).clamp_min(0)
    for f, row in enumerate(matrix):
        theirs = mutual_info_classif(codes.numpy(), factors[:, f].numpy(), n_neighbors=10, random_state=0)
        # Its distances are rounded, so that a neighbour at the radius is within it now and then.
        assert row.tolist() == pytest.approx(theirs.tolist(), abs=3e-4)


def test_neighbour_information_is_its_definition() -> None:
    """Ross 2014, all pairs."""
    factors = drawn(300, (3, 25))
    codes = noise(300, 2) + factors[:, :1] * torch.tensor([0.0, 1])
    information = neighbour_information(codes, factors, (3, 25), neighbours=4)
    for d, f in np.ndindex(2, 2):
        distances = np.abs(codes[:, d].numpy()[:, None] - codes[:, d].numpy())
        alike = factors[:, f].numpy()[:, None] == factors[:, f].numpy()
        for i in range(300):
            count = alike[i].sum()
            k = min(4, count - 1)
            radius = np.sort(distances[i][alike[i]])[k]  # the nearest is the point itself
            within = (distances[i] < radius - 1e-14).sum()
            expected = digamma(300) + digamma(k) - digamma(count) - digamma(within)
            assert information.pointwise[f, i, d].item() == pytest.approx(expected, abs=1e-12)


def test_neighbour_information_of_overlapping_uniforms() -> None:
    """z uniform on [0, 1) for one value, on [0, 2) for the other: H(z) - H(z|f) in closed form."""
    factors = drawn(20_000, (2,))
    generator = torch.Generator().manual_seed(3)
    codes = torch.rand(20_000, 1, generator=generator, dtype=torch.float64) * (1 + factors)
    information = neighbour_information(codes, factors, (2,))
    truth = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) - 0.5 * math.log(2)
    error = information.matrix_error.item()
    assert 0 < error < 0.01
    assert abs(information.matrix.item() - truth) < 4 * error


def test_neighbour_information_of_a_gaussian_channel() -> None:
    """z = f + noise with f of two values: I = ln 2 - E ln(1 + exp(-2 f (f + s e) / s²)), by quadrature."""
    sigma, factors = 0.8, drawn(20_000, (2,))
    codes = 2 * factors - 1 + sigma * noise(20_000, 1)
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    conditional = np.log1p(np.exp(-2 * (1 + sigma * points) / sigma**2)) @ weights / weights.sum()
    information = neighbour_information(codes, factors, (2,))
    assert abs(information.matrix.item() - (math.log(2) - conditional)) < 4 * information.matrix_error.item()


def test_codes_with_ties_know_what_they_should() -> None:
    """The k nearest of codes that are the factors are all at distance 0, unless ties are broken."""
    factors = drawn(3000)
    codes = torch.cat([factors.double(), torch.full((3000, 1), 0.1, dtype=torch.float64)], 1)
    information = neighbour_information(without_ties(codes, noise(3000, 4)), factors, SIZES)
    matrix, entropies = information.matrix, information.entropies
    assert matrix[:3].diagonal().tolist() == pytest.approx(entropies.tolist(), abs=0.01)
    others = ~torch.eye(4, 3, dtype=torch.bool)
    assert matrix[others].max() < 0.05
    assert info_modularity(matrix[:3], entropies) > 0.9
    assert info_compactness(matrix[:3], entropies) > 0.9


def test_rare_values_have_fewer_neighbours() -> None:
    factors = torch.tensor([0] * 30 + [1] * 3 + [2]).unsqueeze(1)
    codes = noise(34, 2)
    information = neighbour_information(codes, factors, (4,))
    assert information.pointwise.isfinite().all()
    assert (information.pointwise[0, -1] == 0).all()  # alone with its value
    assert (information.pointwise[0, 30:33] != 0).all()


# Standard errors


def channel(seed: int, n: int = 600) -> tuple[Tensor, Tensor]:
    """Codes of clear gaps, each with noise of its own; the last but one mixes, and the last is noise."""
    factors = drawn(n, seed=seed)
    mixing = torch.tensor([[2.0, 0, 0, 0.5, 0], [0, 1, 0, 0.5, 0], [0, 0, 0.5, 0.5, 0]]).double()
    return factors.double() @ mixing + 0.7 * noise(n, 5, seed=seed + 1000), factors


def test_standard_errors_by_the_delta_method_are_those_of_repeated_sampling() -> None:
    def of(score: str, seed: int) -> tuple[float, float]:
        information = binned_information(*channel(seed), SIZES)
        if score == "mig":
            measured = information.measure(lambda i, h: mutual_information_gap(i, h).mean())
        elif score == "modularity":
            measured = information.measure(lambda i, h: modularity(i).mean())
        else:
            measured = information.measure(lambda i, h: mutual_information_gap(i, h)[1])
        return measured[0].item(), measured[1].item()

    for score in ("mig", "modularity", "gap"):
        assert_calibrated(lambda seed, score=score: of(score, seed), 100)


def test_standard_errors_of_information_are_those_of_repeated_sampling() -> None:
    for estimate in (binned_information, neighbour_information):

        def of(seed: int, estimate=estimate) -> tuple[float, float]:
            information = estimate(*channel(seed), SIZES)
            return information.matrix[1, 1].item(), information.matrix_error[1, 1].item()

        assert_calibrated(of, 100)


def test_standard_errors_by_the_bootstrap_are_those_of_repeated_sampling() -> None:
    """Of ratios too whose terms are near 0: the last code is noise."""

    def of(score, seed: int) -> tuple[float, float]:
        codes, factors = channel(seed)
        information = neighbour_information(codes, factors, SIZES)
        measured = information.bootstrap(score, noise(100, len(codes), seed=seed + 7000))
        return measured[0].item(), measured[1].item()

    for score in (info_modularity, info_compactness):
        assert_calibrated(lambda seed, score=score: of(score, seed), 60, slack=0.25)


def test_the_gap_of_copies_has_an_error_of_zero() -> None:
    factors = drawn(500, (4,))
    value, error = binned_information(factors.double().repeat(1, 2), factors, (4,)).measure(
        mutual_information_gap
    )
    assert value.item() == error.item() == 0


def test_a_score_of_entropies_alone_has_the_error_of_the_plug_in_entropy() -> None:
    values = torch.tensor([0, 0, 0, 1]).repeat(100)
    information = Information(torch.zeros(1, 400, 1, dtype=torch.float64), surprisal(values, 2).unsqueeze(0))
    value, error = information.measure(lambda i, h: h[0])
    p = 0.25
    assert value.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    expected = math.sqrt(p * (1 - p) / 399) * abs(math.log(p / (1 - p)))
    assert error.item() == pytest.approx(expected)
