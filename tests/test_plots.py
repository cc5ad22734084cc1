from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import vaezoo
from vaezoo import plots
from vaezoo.errors import VaezooError


@pytest.fixture(scope="module")
def model():
    return vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3, network_options={"hidden": [8]})


@pytest.fixture(scope="module")
def data():
    return vaezoo.load_data("digits")


def read(path):
    return np.asarray(Image.open(path))


def tile(pixels, row, column, size=48):
    """One tile of a grid's pixels [H, W, 3]: they are `size` wide and 2 pixels apart."""
    top, left = 2 + row * (size + 2), 2 + column * (size + 2)
    return pixels[top : top + size, left : left + size]


def test_values_out_of_range_are_clamped_before_the_cast(tmp_path):
    """Trap 12: 1.2 * 255 = 306 is 50 as a byte, and -0.3 wraps to nearly white."""
    images = torch.stack([torch.full((1, 48, 48), v) for v in (1.2, -0.3, 0.5, 1.0)])
    for name, tiles in (("grid", plots.grid(images, 4)), ("raw", torch.cat([*images], -1).expand(3, -1, -1))):
        pixels = read(plots.save_grid(tiles, tmp_path / f"{name}.png"))
        assert {255, 0, 128} <= set(pixels.flatten().tolist()) <= {255, 0, 127, 128}
        if name == "grid":
            assert [int(tile(pixels, 0, i)[5, 5, 0]) for i in range(4)] == [255, 0, 128, 255]


@pytest.mark.parametrize(
    ("size", "shown"), [(8, 48), (28, 56), (32, 64), (40, 80), (48, 48), (64, 64), (100, 100)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged_by_a_whole_factor(size, shown, channels):
    tiles = plots.grid(torch.rand(5, channels, size, size), 3)
    assert tiles.shape == (3, 2 + 2 * (shown + 2), 2 + 3 * (shown + 2))


def test_a_grid_keeps_order_and_pixels():
    images = torch.arange(6).view(6, 1, 1, 1) / 10 * torch.ones(1, 1, 48, 48)
    pixels = plots.grid(images, 3).permute(1, 2, 0)
    for i in range(6):
        assert torch.all(tile(pixels, i // 3, i % 3) == i / 10)


@pytest.mark.parametrize("errors", [True, False])
def test_reconstructions_and_their_errors_stand_below_their_inputs(model, data, errors):
    x = data.test.batch(torch.arange(25))
    output = model.reconstruct(x)
    sources = [x, output, (x - output).abs()][: 3 if errors else 2]
    pixels = plots.reconstructions(model, x, 10, errors).permute(1, 2, 0)
    assert pixels.shape[:2] == (2 + 2 * len(sources) * 50, 2 + 10 * 50)  # the last five would not fill a row
    for group, images in enumerate((slice(0, 10), slice(10, 20))):
        for i, source in enumerate(sources):
            for column in (0, 9):
                expected = source[images][column, 0].repeat_interleave(6, 0).repeat_interleave(6, 1)
                shown = tile(pixels, group * len(sources) + i, column)[..., 0]
                torch.testing.assert_close(shown, expected)
    assert plots.reconstructions(model, x[:4], 10).shape == (3, 2 + 3 * 50, 2 + 4 * 50)


def test_errors_of_values_out_of_range_are_those_of_what_is_shown(model, data, monkeypatch):
    x = data.test.batch(torch.arange(4))
    monkeypatch.setattr(model, "reconstruct", lambda images: torch.full_like(images, 1.5))
    pixels = plots.reconstructions(model, x, 4).permute(1, 2, 0)
    expected = (1 - x[0, 0]).repeat_interleave(6, 0).repeat_interleave(6, 1)
    torch.testing.assert_close(tile(pixels, 2, 0)[..., 0], expected)


LOG_VARIANCES = (0.0, -0.1, -5.0)


class Encoder(torch.nn.Module):
    """Means are pixels times 1, 2 and 0.5. The last varies least, but its variance is so small that its rate
    is the greatest; the rates of the others are in the order of their spread."""

    def forward(self, x):
        means = x.flatten(1)[:, [0, 28, 21]] * torch.tensor([1.0, 2.0, 0.5])
        return torch.cat([means, torch.tensor(LOG_VARIANCES).expand_as(means)], 1)


class Decoder(torch.nn.Module):
    def forward(self, z):
        image = torch.full((len(z), 1, 8, 8), -50.0)
        image[:, 0, 0, 0:3] = z
        return image


class MeansAlone(Encoder):
    def forward(self, x):
        return super().forward(x)[:, :3]


def known(name="vae", encoder=Encoder):
    return vaezoo.create(name, image_shape=(1, 8, 8), latent_dim=3, encoder=encoder(), decoder=Decoder())


def test_dimensions_are_ranked_by_their_rate():
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ranking = plots.rank_dimensions(known(), x)
    assert ranking.by_rate
    assert ranking.order.tolist() == [2, 1, 0]
    means = x.flatten(1)[:, [0, 28, 21]].double() * torch.tensor([1.0, 2.0, 0.5])
    logs = torch.tensor(LOG_VARIANCES, dtype=torch.float64)
    q = torch.distributions.Normal(means, (logs / 2).exp())
    rates = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(ranking.scores, rates, rtol=1e-5, atol=0)
    # Without variances there is no rate, and the means' own spread is left.
    ranking = plots.rank_dimensions(known("ae", MeansAlone), x)
    assert not ranking.by_rate
    assert ranking.order.tolist() == [1, 0, 2]
    torch.testing.assert_close(ranking.scores, means.var(0, correction=0), rtol=1e-5, atol=0)


def test_traversals_show_the_dimensions_of_the_greatest_rate():
    model = known()
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = plots.traversals(model, x, rows=2, steps=5).permute(1, 2, 0)
    assert pixels.shape[:2] == (2 + 2 * 50, 2 + 5 * 50)

    def at(row, column, dimension):
        return tile(pixels, row, column)[0, 6 * dimension, 0].logit()

    z = model.represent(x)
    for row, dimension in enumerate((2, 1)):  # the third in the order of rates is not shown
        span = 3 * z[:, dimension].std(correction=0)
        for column, step in enumerate((-1, -0.5, 0, 0.5, 1)):
            torch.testing.assert_close(
                at(row, column, dimension), z[0, dimension] + step * span, atol=1e-3, rtol=1e-3
            )
    assert plots.traversals(model, x, rows=9, steps=2).shape[1] == 2 + 3 * 50  # there are three dimensions
    assert plots.traversals(model, x[:1], rows=2, steps=2).isfinite().all()


def test_interpolations_run_from_image_to_partner(model, data):
    x = data.test.batch(torch.arange(7))  # an odd one is left out
    pixels = plots.interpolations(model, x, steps=4).permute(1, 2, 0)
    assert pixels.shape[:2] == (2 + 3 * 50, 2 + 4 * 50)
    output = model.reconstruct(x)[:, 0].repeat_interleave(6, 1).repeat_interleave(6, 2)
    for row in range(3):
        torch.testing.assert_close(tile(pixels, row, 0)[..., 0], output[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(tile(pixels, row, 3)[..., 0], output[row + 3], atol=1e-5, rtol=0)
    with pytest.raises(VaezooError, match="at least 2 images, not 1"):
        plots.interpolations(model, x[:1])


def test_samples_depend_on_the_seed_alone(model):
    first, again, other = (plots.samples(model, 6, seed, columns=3) for seed in (1, 1, 2))
    assert first.shape == (3, 2 + 2 * 50, 2 + 3 * 50)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_save_pictures_and_overview(model, data, tmp_path):
    torch.manual_seed(3)
    written = plots.save_pictures(model, data, tmp_path)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert list(written) == list(plots.PICTURES)
    sizes = {name: Image.open(path).size for name, path in written.items()}
    assert sizes == {
        "reconstructions": (502, 452),
        "samples": (502, 502),
        "nearest": (402, 502),
        "traversals": (552, 152),
        "interpolations": (552, 402),
        "latent_map": (650, 598),
    }
    assert [title.partition(":")[0] for title in plots.captioned(written)] == list(written)
    unfitted = vaezoo.create("ae", image_shape=(1, 8, 8), network_options={"hidden": [8]})
    names = set(plots.PICTURES) - {"samples", "nearest"}
    assert set(plots.save_pictures(unfitted, data, tmp_path / "ae", "validation")) == names
    codes = vaezoo.create("vq_vae", image_shape=(1, 8, 8), codes=8, code_dim=4, channels=8)
    names.remove("latent_map")
    assert set(plots.save_pictures(codes, data, tmp_path / "vq", "train")) == names
    width, height = Image.open(
        plots.overview({"a": model, "b": model}, data.test, tmp_path / "overview.png")
    ).size
    assert width == int(2 * 2.6 * 110)
    assert height > 500


# --- Nearest training images ------------------------------------------------------------------------------


def test_the_nearest_training_image_of_a_training_image_is_itself(data, monkeypatch):
    monkeypatch.setattr(plots, "BLOCK", 100)  # several blocks
    rows = torch.tensor([3, 777, len(data.train) - 1])
    found = plots.nearest_images(data.train.batch(rows), data.train, k=4)
    assert found.indices[:, 0].tolist() == rows.tolist()
    assert found.distances[:, 0].tolist() == [0, 0, 0]  # to the last bit
    assert torch.equal(found.images, torch.stack([data.train.batch(indices) for indices in found.indices]))


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("extract", [plots.pixels, lambda x: x.mean(3)])
def test_neighbours_are_those_of_all_distances_whatever_the_block(data, monkeypatch, block, extract):
    monkeypatch.setattr(plots, "BLOCK", block)
    split, queries = data.train.subset(200, 0), data.test.batch(torch.arange(5))
    found = plots.nearest_images(queries, split, 3, extract)
    a, b = (extract(x).flatten(1).double() for x in (queries, split.batch(torch.arange(200))))
    expected = (a.unsqueeze(1) - b).square().sum(2).sqrt().topk(3, largest=False)
    torch.testing.assert_close(found.distances.double(), expected.values, rtol=1e-5, atol=0)
    assert torch.equal(found.indices, expected.indices)


def test_a_split_of_fewer_images_than_neighbours(data):
    found = plots.nearest_images(data.test.batch(torch.arange(2)), data.train.first(3), k=5)
    assert found.indices.sort(1).values.tolist() == [[0, 1, 2]] * 2


def test_samples_stand_beside_their_nearest_training_images(model, data):
    pixels = plots.nearest(model, data.train, n=3, seed=5, k=2).permute(1, 2, 0)
    assert pixels.shape[:2] == (2 + 3 * 50, 2 + 3 * 50)
    drawn = model.sample(3, torch.Generator().manual_seed(5))
    found = plots.nearest_images(drawn, data.train, 2)
    for row in range(3):
        for column, image in enumerate([drawn[row], *found.images[row]]):
            expected = image[0].repeat_interleave(6, 0).repeat_interleave(6, 1)
            torch.testing.assert_close(tile(pixels, row, column)[..., 0], expected)


# --- Map of the latents -----------------------------------------------------------------------------------


def test_the_plane_is_of_the_two_dimensions_of_the_greatest_rate():
    x = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plane = plots.latent_plane(known(), x.split(40))  # the last batch is smaller
    expected = x.flatten(1)[:, [21, 28]].double() * torch.tensor([0.5, 2.0])
    torch.testing.assert_close(plane.points, expected)
    rates = plots.rank_dimensions(known(), x).scores.tolist()
    assert plane.titles == (f"E[z_2 | x], rate {rates[2]:.2f} nats", f"E[z_1 | x], rate {rates[1]:.2f} nats")


def test_the_plane_of_a_point_posterior_is_of_principal_components():
    from sklearn.decomposition import PCA

    x = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = known("ae", MeansAlone)
    plane = plots.latent_plane(model, [x])
    pca = PCA(2).fit(model.represent(x).double().numpy())
    expected = torch.from_numpy(pca.transform(model.represent(x).double().numpy()))
    torch.testing.assert_close(plane.points.abs(), expected.abs(), rtol=1e-5, atol=1e-6)
    assert plane.titles[0].endswith(f"{pca.explained_variance_ratio_[0]:.0%} of the variance")


@pytest.mark.parametrize("different", [1, 3, 10, 11])
def test_the_map_colours_by_value(different):
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plane = plots.latent_plane(known(), [x])
    names = ("$a", *"bcdefghij") if different <= 10 else ()
    figure = plots.latent_map(plane, torch.arange(60) % different, "class", names)
    axes = figure.axes[0]
    assert axes.get_xlabel() == plane.titles[0]
    shown = np.concatenate([points.get_offsets() for points in axes.collections])
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, plane.points.tolist()))
    if different <= 10:
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(names[:different])
        assert len({tuple(points.get_facecolor()[0]) for points in axes.collections}) == different
    figure.savefig(os.devnull, format="png")


def test_what_has_no_plane(data):
    codes = vaezoo.create("vq_vae", image_shape=(1, 8, 8), codes=8, code_dim=4, channels=8)
    with pytest.raises(VaezooError, match="at least 2 dimensions, not"):
        plots.latent_plane(codes, [torch.rand(4, 1, 8, 8)])
    with pytest.raises(VaezooError, match="at least 2 images"):
        plots.latent_plane(known(), [torch.rand(1, 1, 8, 8)])


def test_what_a_map_is_coloured_by(data):
    assert plots.colouring(data, data.test)[1:] == ("class", data.classes)
    sprites = vaezoo.load_data("sprites", size=16, train_size=50, test_size=20)
    values, name, names = plots.colouring(sprites, sprites.test)
    assert name in ("class", "shape")
    assert values is not None
    assert len(values) == 20
    assert len(names) in (0, 3)
    plain = vaezoo.load_data(torch.rand(30, 1, 8, 8))
    assert plots.colouring(plain, plain.test) == (None, "", ())


def test_places_and_formats_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.png", tmp_path / "x.nothing", tmp_path):
        with pytest.raises(VaezooError, match="could not write"):
            plots.save_grid(torch.zeros(3, 8, 8), path)
        with pytest.raises(VaezooError, match="could not write"):
            plots.save_figure(Figure(), path)
    assert plots.save_grid(torch.zeros(3, 8, 8), tmp_path / "new" / "x.png").exists()
