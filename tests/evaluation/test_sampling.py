from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vaezoo.errors import VaezooError
from vaezoo.evaluation import features as features_module
from vaezoo.evaluation.features import Features, make_features, pixel_features
from vaezoo.evaluation.report import Metric, Report, Results, Skipped
from vaezoo.evaluation.sampling import extract, measure_sampling, sampling_names

TOY = Features("toy", lambda x: x)


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, generator=generator)


def metric(results: Results, name: str) -> Metric:
    result = results[name]
    assert isinstance(result, Metric), result
    return result


def test_every_number_of_a_perfect_model_is_what_it_should_be() -> None:
    """Within 4 standard errors of the number itself, each of which comes with one."""
    real, fake, other = (normal(1200, 6, s, mean=0.2) for s in range(3))
    results = measure_sampling(TOY, fake, real, other)
    assert set(results) == {*sampling_names(TOY), "frechet_toy_real", "vendi_toy_real"}
    for name, expected in (
        ("frechet_toy_infinity", 0.0),
        ("kernel_distance_toy", 0.0),
        ("density_toy", 1.0),
        ("coverage_toy", 1 - 0.5**5),
        ("vendi_toy", metric(results, "vendi_toy_real").value),
    ):
        found = metric(results, name)
        assert found.se is not None
        assert found.n == 1200
        assert abs(found.value - expected) < 4 * found.se
    floor = metric(results, "frechet_toy_real")
    assert floor.better is None
    assert metric(results, "frechet_toy").value == pytest.approx(floor.value, rel=0.5)
    precision, recall = metric(results, "precision_toy"), metric(results, "recall_toy")
    assert precision.value == pytest.approx(recall.value, abs=0.05)


def test_what_is_wrong_with_a_model_shows_where_it_should() -> None:
    modes = torch.cat([normal(400, 4, 0), normal(400, 4, 1, mean=20)])
    other = torch.cat([normal(400, 4, 2), normal(400, 4, 3, mean=20)])
    sound = measure_sampling(TOY, modes, other, modes)
    half = measure_sampling(TOY, normal(800, 4, 4), modes, other)  # one of two modes
    assert metric(half, "precision_toy").value > 0.8
    assert metric(half, "recall_toy").value < 0.55
    assert metric(half, "kernel_distance_toy").value > 100 * metric(sound, "kernel_distance_toy").value
    one = measure_sampling(TOY, modes[:1].repeat(800, 1), modes, other)  # collapsed
    assert metric(one, "vendi_toy").value == pytest.approx(1, abs=1e-6)
    assert metric(one, "vendi_toy").value < metric(one, "vendi_toy_real").value
    assert metric(one, "recall_toy").value <= 2 / 800


def test_the_same_call_gives_the_same_numbers_and_leaves_the_random_state() -> None:
    sets = [normal(100, 5, s) for s in range(3)]
    state = torch.get_rng_state()
    first = measure_sampling(TOY, *sets, seed=3)
    assert measure_sampling(TOY, *sets, seed=3) == first
    assert measure_sampling(TOY, *sets, seed=4) != first
    assert torch.equal(state, torch.get_rng_state())


def test_features_that_are_not_finite_skip_what_they_touch() -> None:
    broken = normal(40, 3, 9)
    broken[2, 1] = float("inf")
    sets = [normal(40, 3, s) for s in range(3)]
    for position, (what, left) in enumerate(
        (
            ("generated", {"frechet_toy_real", "vendi_toy_real"}),
            ("real", set()),
            ("reference", {*sampling_names(TOY), "vendi_toy_real"}),
        )
    ):
        chosen = list(sets)
        chosen[position] = broken
        results = measure_sampling(TOY, *chosen)
        assert {name for name, result in results.items() if isinstance(result, Metric)} == left
        for result in results.values():
            assert isinstance(result, Metric) or f"features of the {what} images" in result.reason


def test_degenerate_features_give_a_number_or_the_reason() -> None:
    """Constant, of low rank, fewer rows than features, one row, all zero: nothing is silently not finite."""
    low_rank = [normal(30, 2, s) @ normal(2, 6, 9) for s in range(3)]
    cases = {
        "constant": [torch.full((30, 4), 0.3)] * 3,
        "zero": [torch.zeros(30, 4)] * 3,
        "low rank": low_rank,
        "few": [normal(8, 20, s) for s in range(3)],
        "two": [normal(2, 3, s) for s in range(3)],
        "one": [normal(1, 3, s) for s in range(3)],
        "half precision": [normal(30, 3, s).half() for s in range(3)],
        "integers": [(4 * normal(30, 3, s)).long() for s in range(3)],
    }
    for case, sets in cases.items():
        results = measure_sampling(TOY, *sets)
        report = Report.of({}, results)
        assert not [reason for reason in report.skipped.values() if "value is not finite" in reason], case
        for found in report.metrics.values():
            assert found.se is None or 0 <= found.se < float("inf"), case
    constant = measure_sampling(TOY, *cases["constant"])
    for name, expected in (
        ("frechet_toy", 0),
        ("kernel_distance_toy", 0),
        ("vendi_toy", 1),
        ("recall_toy", 1),
    ):
        assert metric(constant, name).value == pytest.approx(expected, abs=1e-6)
    zero = measure_sampling(TOY, *cases["zero"])["vendi_toy"]
    assert isinstance(zero, Skipped)
    assert "all 0" in zero.reason
    assert "singular" in metric(measure_sampling(TOY, *cases["few"]), "frechet_toy").note
    assert metric(measure_sampling(TOY, *cases["few"]), "recall_toy").se is None


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(VaezooError, match=r"'toy' must be \[N, d\] with one d"):
        measure_sampling(TOY, normal(9, 3, 0), normal(9, 4, 1), normal(9, 4, 2))
    with pytest.raises(VaezooError, match="with one d"):
        measure_sampling(TOY, *[torch.zeros(9)] * 3)


def test_only_inception_has_an_fid_and_a_kid() -> None:
    inception = Features("inception", lambda x: x, is_inception=True)
    assert {"fid", "fid_infinity", "kid", "vendi_inception"} <= set(sampling_names(inception))
    assert not {"fid", "kid"} & set(sampling_names(TOY))


def test_features_are_of_images_as_they_would_be_saved() -> None:
    pixels = Features("pixels", lambda x: x.flatten(1))
    images = torch.tensor([-0.5, 0.5, 1.5, 0.0]).view(2, 1, 1, 2)
    assert extract(pixels, images.split(1)).tolist() == [[0, 0.5], [1, 0]]


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
