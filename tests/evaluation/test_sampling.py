from __future__ import annotations

import math
from pathlib import Path

import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from vaezoo.errors import VaezooError
from vaezoo.evaluation import features as features_module
from vaezoo.evaluation.features import make_features, pixel_features
from vaezoo.evaluation.sampling import (
    density_coverage,
    frechet_distance,
    frechet_variance,
    moments,
    neighbour_radius,
    precision_recall,
)


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, dtype=torch.float64, generator=generator)


def test_moments_are_the_mean_and_the_covariance() -> None:
    x = normal(5000, 6, 0, mean=100)  # more than one block
    mean, covariance = moments(x.float())
    torch.testing.assert_close(mean, x.float().double().mean(0))
    torch.testing.assert_close(covariance, torch.cov(x.float().double().T), rtol=1e-9, atol=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    eye, mean = torch.eye(16).double(), torch.full((16,), 0.3, dtype=torch.float64)
    zero = torch.zeros(16).double()
    assert frechet_distance(zero, eye, mean, 1.44 * eye).item() == pytest.approx(1.44 + 16 * 0.04, abs=1e-9)
    assert frechet_distance(mean, eye, mean, eye).item() == pytest.approx(0, abs=1e-9)
    a, b = normal(40, 5, 1), normal(40, 5, 2, scale=2)
    there, back = frechet_distance(*moments(a), *moments(b)), frechet_distance(*moments(b), *moments(a))
    assert there.item() == pytest.approx(back.item(), abs=1e-9)
    (m1, c1), (m2, c2) = moments(a), moments(b)
    cross = scipy.linalg.sqrtm((c1 @ c2).numpy()).real.trace()
    expected = (m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross
    assert there.item() == pytest.approx(expected.item(), abs=1e-8)


def test_frechet_distance_of_singular_covariances() -> None:
    """Two lines at an angle: tr (C1 C2)^1/2 = |cos|; two that are orthogonal do not meet."""
    zero = torch.zeros(3).double()
    for angle in (0.0, 0.7, math.pi / 2):
        u, v = (
            torch.tensor([1.0, 0, 0]).double(),
            torch.tensor([math.cos(angle), math.sin(angle), 0]).double(),
        )
        distance = frechet_distance(zero, torch.outer(u, u), zero, torch.outer(v, v))
        assert distance.item() == pytest.approx(2 - 2 * abs(math.cos(angle)), abs=1e-7)
    few = normal(5, 20, 0)  # rank 4
    assert frechet_distance(*moments(few), *moments(few)).item() == pytest.approx(0, abs=1e-6)
    assert frechet_variance(few, normal(5, 20, 1)).isfinite()


def test_frechet_distance_is_biased_by_the_number_of_samples_as_expected() -> None:
    """REFERENCES A.18: exact 2.08 at d = 16 reads 2.43, 2.19 and 2.11 at n = 500, 2000 and 8000."""
    readings = []
    for n, expected in ((500, 2.43), (2000, 2.19), (8000, 2.11)):
        runs = [
            frechet_distance(
                *moments(normal(n, 16, s)), *moments(normal(n, 16, 1000 + s, mean=0.3, scale=1.2))
            )
            for s in range(40)
        ]
        values = torch.stack(runs)
        se = values.std().item() / math.sqrt(len(runs))
        assert abs(values.mean().item() - expected) < 4 * se + 0.005
        readings.append(values.mean().item())
    # The bias goes with 1 / n, so extrapolating removes it.
    assert (4 * readings[1] - readings[0]) / 3 == pytest.approx(2.08, abs=0.05)


def test_standard_error_of_the_frechet_distance_is_that_of_repeated_sampling() -> None:
    distances, variances = [], []
    for s in range(300):
        a, b = normal(400, 6, s), normal(300, 6, 1000 + s, mean=0.3, scale=1.2)
        distances.append(frechet_distance(*moments(a), *moments(b)))
        variances.append(frechet_variance(a, b))
    predicted, seen = torch.stack(variances).mean().sqrt().item(), torch.stack(distances).std().item()
    assert predicted == pytest.approx(seen, rel=0.15)  # 300 runs give the deviation within 4%


def brute(real: Tensor, fake: Tensor, k: int) -> list[float]:
    """Precision, recall, density and coverage from their definitions, point by point."""

    def radius(points: Tensor, i: int) -> float:
        others = sorted((points[i] - p).norm().item() for j, p in enumerate(points) if j != i)
        return others[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, i) for i in range(len(fake))]
    inside = [[(f - r).norm().item() <= rho for r, rho in zip(real, real_radii)] for f in fake]
    precision = sum(any(row) for row in inside) / len(fake)
    recall = sum(any((r - f).norm() <= rho for f, rho in zip(fake, fake_radii)) for r in real) / len(real)
    density = sum(sum(row) for row in inside) / (k * len(fake))
    coverage = sum(any(row[i] for row in inside) for i in range(len(real))) / len(real)
    return [precision, recall, density, coverage]


def means(real: Tensor, fake: Tensor, k: int) -> list[float]:
    return [v.mean().item() for v in (*precision_recall(real, fake, k), *density_coverage(real, fake, k))]


def test_neighbourhood_metrics_equal_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(40, 3, 0), normal(30, 3, 1, mean=0.7)
    expected = brute(real, fake, 3)
    assert means(real, fake, 3) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("vaezoo.evaluation.sampling.DISTANCES", 100)  # blocks of 2 or 3 rows
    assert means(real, fake, 3) == pytest.approx(expected, abs=1e-6)
    assert neighbour_radius(torch.tensor([[0.0], [1.0], [3.0]]), 1).tolist() == [1, 1, 2]


def test_density_and_coverage_of_one_distribution() -> None:
    """REFERENCES A.20: density 1, coverage 1 - prod_{i=1..k} (N - i) / (N + M - i)."""
    n, m, k = 300, 200, 5
    runs = torch.tensor([means(normal(n, 8, s), normal(m, 8, 500 + s), k)[2:] for s in range(40)])
    expected = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    error = runs.std(0) / math.sqrt(len(runs))
    assert abs(runs[:, 0].mean() - 1) < 4 * error[0]
    assert abs(runs[:, 1].mean() - expected) < 4 * error[1]


def test_disjoint_supports_and_missing_modes() -> None:
    real = torch.cat([normal(200, 2, 0), normal(200, 2, 1, mean=50)])
    assert means(real, normal(400, 2, 2, mean=-50), 3) == [0, 0, 0, 0]
    precision, recall, _, coverage = means(real, normal(400, 2, 3), 3)
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.06)
    assert coverage == pytest.approx(0.5, abs=0.06)


def test_pixels_are_pooled_to_at_most_256_features() -> None:
    x = torch.arange(28 * 28.0).view(1, 1, 28, 28)
    features = pixel_features((1, 28, 28))
    assert features.name == "pixels14x14"
    blocks = x.view(1, 14, 2, 14, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(features.extract(x), blocks)
    for shape in ((1, 8, 8), (3, 32, 32), (1, 17, 30), (3, 64, 64), (300, 4, 4)):
        features = pixel_features(shape)
        vector = features.extract(torch.ones(2, *shape))
        assert vector.shape[1] <= max(256, shape[0])
        rows, columns = map(int, features.name.removeprefix("pixels").split("x"))
        assert vector.shape[1] == shape[0] * rows * columns
        assert torch.equal(vector, torch.ones_like(vector)), (
            "partial squares are averaged over what they hold"
        )


def test_own_features_are_used_in_eval_mode_and_named() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return x.flatten(1)[:, :3]

    module = Net().train()
    features = make_features(module, (1, 8, 8), torch.device("cpu"))
    assert features.name == "net"
    assert features.extract(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert module.training

    def corners(x: Tensor) -> Tensor:
        return x[:, 0, ::7, ::7].flatten(1)

    assert make_features(corners, (1, 8, 8), torch.device("cpu")).name == "corners"
    with pytest.raises(VaezooError, match="did you mean 'pixels'"):
        make_features("pixel", (1, 8, 8), torch.device("cpu"))


def test_inception_needs_its_weights_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(VaezooError, match="fetch them once"):
        make_features("inception", (1, 8, 8), torch.device("cpu"))
    with pytest.raises(VaezooError, match="1 or 3 channels"):
        make_features("inception", (4, 8, 8), torch.device("cpu"))


def test_inception_features_are_the_2048_of_the_pooling_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights in the place of the real ones: same names, same shapes."""
    from torchvision.models import inception_v3

    (tmp_path / "checkpoints").mkdir()
    torch.save(
        inception_v3(weights=None, init_weights=False).state_dict(),
        tmp_path / "checkpoints" / features_module.INCEPTION_WEIGHTS,
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    features = make_features("inception", (1, 8, 8), torch.device("cpu"))
    assert features.is_inception
    assert features.extract(torch.rand(2, 1, 8, 8)).shape == (2, 2048)
