from __future__ import annotations

import numpy as np
import pytest
import torch
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


def test_reconstructions_stand_below_their_inputs(model, data):
    x = data.test.batch(torch.arange(25))
    pixels = plots.reconstructions(model, x, 10).permute(1, 2, 0)
    assert pixels.shape[:2] == (2 + 4 * 50, 2 + 10 * 50)  # the last five would not fill a row
    output = model.reconstruct(x)
    for row, source in ((0, x[:10]), (1, output[:10]), (2, x[10:20]), (3, output[10:20])):
        for column in (0, 9):
            expected = source[column, 0].repeat_interleave(6, 0).repeat_interleave(6, 1)
            torch.testing.assert_close(tile(pixels, row, column)[..., 0], expected)
    assert plots.reconstructions(model, x[:4], 10).shape == (3, 2 + 2 * 50, 2 + 4 * 50)


def test_traversals_show_the_dimensions_that_vary_most(data):
    """An encoder whose means are pixels of known spread: rows are in the order of that spread."""

    class Encoder(torch.nn.Module):
        def forward(self, x):
            means = x.flatten(1)[:, [0, 28, 21]] * torch.tensor([1.0, 2.0, 0.5])
            return torch.cat([means, torch.zeros_like(means)], 1)

    class Decoder(torch.nn.Module):
        def forward(self, z):
            image = torch.full((len(z), 1, 8, 8), -50.0)
            image[:, 0, 0, 0:3] = z
            return image

    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3, encoder=Encoder(), decoder=Decoder())
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = plots.traversals(model, x, rows=2, steps=5).permute(1, 2, 0)
    assert pixels.shape[:2] == (2 + 2 * 50, 2 + 5 * 50)

    def at(row, column, dimension):
        return tile(pixels, row, column)[0, 6 * dimension, 0].logit()

    z = model.represent(x)
    for row, dimension in enumerate((1, 0)):  # spreads 2, 1 and 0.5: the third is not shown
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
    written = plots.save_pictures(model, data.test, tmp_path)
    assert list(written) == ["reconstructions", "samples", "traversals", "interpolations"]
    sizes = {name: Image.open(path).size for name, path in written.items()}
    assert sizes == {
        "reconstructions": (502, 302),
        "samples": (502, 502),
        "traversals": (552, 152),
        "interpolations": (552, 402),
    }
    unfitted = vaezoo.create("ae", image_shape=(1, 8, 8), network_options={"hidden": [8]})
    assert "samples" not in plots.save_pictures(unfitted, data.test, tmp_path / "ae")
    width, height = Image.open(
        plots.overview({"a": model, "b": model}, data.test, tmp_path / "overview.png")
    ).size
    assert width == int(2 * 2.6 * 110)
    assert height > 500


def test_places_and_formats_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.png", tmp_path / "x.nothing", tmp_path):
        with pytest.raises(VaezooError, match="could not write"):
            plots.save_grid(torch.zeros(3, 8, 8), path)
    assert plots.save_grid(torch.zeros(3, 8, 8), tmp_path / "new" / "x.png").exists()
