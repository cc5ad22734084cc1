import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vaezoo.data import load_data
from vaezoo.data.sprites import ELLIPSE, HEART, RADIUS, SQUARE, STEP, SUBROWS, render, sprites
from vaezoo.errors import DataError, VaezooError

MIDDLE = 15  # a position in the middle of x and y


def grid(**columns):
    """All combinations of the given factor values; the others are one value in the middle."""
    default = {"shape": [0], "scale": [5], "orientation": [0], "x": [MIDDLE], "y": [MIDDLE]}
    values = {**default, **{k: list(v) for k, v in columns.items()}}
    return torch.cartesian_prod(*(torch.tensor(v) for v in values.values()))


def centre_of_mass(images):
    """(x, y) in pixels, [B, 2]."""
    mass = images[:, 0].double()
    position = torch.arange(images.shape[-1]) + 0.5
    total = mass.sum((1, 2))
    return torch.stack(
        [(mass.sum(1) @ position.double()) / total, (mass.sum(2) @ position.double()) / total], 1
    )


AREAS = {
    0: 4 * SQUARE**2,
    1: math.pi * ELLIPSE[0] * ELLIPSE[1],
    2: (4 + math.pi) * HEART**2,  # a square and two half discs
}


@pytest.mark.parametrize("shape", AREAS)
def test_area_at_every_scale_and_orientation(shape):
    size = 64
    factors = grid(shape=[shape], scale=range(6), orientation=range(40))
    scale = 0.5 + 0.1 * factors[:, 1]
    exact = AREAS[shape] * (scale * size) ** 2
    # Anti-aliased: off by one line of a row, as long as the longest edge along the rows, or by a pixel.
    edge = {0: 2 * SQUARE, 1: 0, 2: HEART}[shape] * scale * size
    error = (render(factors, size, antialias=True).sum((1, 2, 3)) - exact).abs()
    assert (error <= (edge / SUBROWS).clamp(min=1)).all()
    # Binary: a side may gain or lose a pixel in both directions.
    outline = 2 * torch.sqrt(math.pi * exact)
    assert ((render(factors, size).sum((1, 2, 3)) - exact).abs() < 0.6 * outline).all()


@pytest.mark.parametrize("antialias", [False, True])
def test_every_shape_is_where_an_independent_membership_test_says(antialias):
    """Each point of a grid (for anti-aliasing, a finer one) against the definition of the shape."""
    size, fine = 32, 8
    factors = grid(shape=range(3), scale=[1, 5], orientation=range(0, 40, 3), x=[0, 13], y=[31])
    shape, scale, orientation, x, y = (c.double()[:, None, None] for c in factors.unbind(1))
    samples = fine if antialias else 1
    points = (torch.arange(size * samples, dtype=torch.float64) + 0.5) / (size * samples)
    u = points[None, None, :] - (0.5 + STEP * (x - 15.5))
    v = points[None, :, None] - (0.5 + STEP * (y - 15.5))
    angle, unit = orientation * 2 * math.pi / 40, 0.5 + 0.1 * scale
    p = (u * angle.cos() + v * angle.sin()) / unit
    q = (v * angle.cos() - u * angle.sin()) / unit
    square = (p.abs() <= SQUARE) & (q.abs() <= SQUARE)
    ellipse = (p / ELLIPSE[0]) ** 2 + (q / ELLIPSE[1]) ** 2 <= 1
    # The heart in units of half the side of its square: tip at the lowest s, which runs upwards.
    s, t = -q / HEART, p / HEART
    s = s + math.sqrt(2) * (math.pi / 2 + 2 / 3) / (4 + math.pi)
    heart = s.abs() + t.abs() <= math.sqrt(2)
    for side in (1, -1):
        heart |= (s - math.sqrt(0.5)) ** 2 + (t - side * math.sqrt(0.5)) ** 2 <= 1
    expected = torch.where(shape == 0, square, torch.where(shape == 1, ellipse, heart)).float()
    actual = render(factors, size, antialias=antialias)[:, 0]
    if antialias:
        expected = expected.unflatten(2, (size, fine)).mean(3).unflatten(1, (size, fine)).mean(2)
        assert (actual - expected).abs().max() < 0.26  # one of the four lines, at an edge along the rows
        assert (actual - expected).abs().mean() < 0.004
    else:
        assert (actual != expected).sum() <= 2  # rounding, on the outline


def test_a_square_is_the_same_after_a_quarter_turn_and_no_sooner():
    def turned(tenths):
        return render(grid(scale=range(6), orientation=[(k + tenths) % 40 for k in range(40)]), 64)

    assert torch.equal(turned(0), turned(10))
    assert not torch.equal(turned(0), turned(5))


def test_an_ellipse_is_the_same_after_half_a_turn_and_a_heart_is_not():
    for shape, same in ((1, True), (2, False)):
        there, back = (render(grid(shape=[shape], orientation=k), 64) for k in (range(20), range(20, 40)))
        assert torch.equal(there, back) == same
        assert not torch.equal(there[0], there[10])


@pytest.mark.parametrize("shape", AREAS)
def test_the_centre_of_mass_follows_x_and_y(shape):
    size = 64
    images = render(
        grid(shape=[shape], orientation=[0, 7, 26], x=range(32), y=range(0, 32, 3)), size, antialias=True
    )
    factors = grid(shape=[shape], orientation=[0, 7, 26], x=range(32), y=range(0, 32, 3))
    expected = (0.5 + STEP * (factors[:, 3:] - 15.5)) * size
    torch.testing.assert_close(centre_of_mass(images), expected.double(), atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [64, 50, 128])
@pytest.mark.parametrize("antialias", [False, True])
def test_every_sprite_is_inside_the_borders(size, antialias):
    # At the corners of the range of positions, whatever would be cut off is missing from the area.
    ends, middle = (
        render(grid(shape=range(3), orientation=range(40), x=x, y=x), size, antialias=antialias)
        for x in ([0, 31], [MIDDLE])
    )
    ends, middle = ends.sum((1, 2, 3)).view(-1, 4), middle.sum((1, 2, 3)).view(-1, 1)
    assert ((ends - middle).abs() / middle).max() < (0.02 if antialias else 0.15)
    if size == 64:  # positions are whole pixels apart, so that sprites are equal to the pixel
        torch.testing.assert_close(ends, middle.expand_as(ends), atol=1e-2 if antialias else 0, rtol=0)
    assert 15.5 * STEP + RADIUS < 0.5


def test_antialiased_and_binary_agree_on_average():
    factors = grid(shape=range(3), scale=range(6), orientation=range(40))
    binary, smooth = render(factors, 64), render(factors, 64, antialias=True)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert len(smooth.unique()) > 100
    difference = (binary - smooth).sum((1, 2, 3))
    assert difference.mean().abs() < 4 * difference.std() / math.sqrt(len(factors))
    # A pixel that is fully inside or outside is the same in both.
    assert ((binary == smooth) | ((smooth > 0) & (smooth < 1))).all()


def test_hue_colours_the_sprite_and_nothing_else():
    factors = grid(shape=[2], x=[3])
    plain = render(factors, 64)
    coloured = render(torch.cat([factors.expand(8, -1), torch.arange(8)[:, None]], 1), 64)
    colours = coloured.flatten(2).amax(2)
    assert torch.equal(coloured, plain * colours[:, :, None, None])
    # HSV to RGB, by the standard library.
    import colorsys

    expected = torch.tensor([colorsys.hsv_to_rgb(k / 8, 1, 1) for k in range(8)])
    torch.testing.assert_close(colours, expected, atol=1e-5, rtol=0)


def test_splits_are_disjoint_and_complete():
    data = sprites()
    sizes = [len(split) for split in data.splits.values()]
    assert sum(sizes) == 737_280
    assert sizes[2] == 10_000
    stride = torch.tensor([6 * 40 * 32 * 32, 40 * 32 * 32, 32 * 32, 32, 1])
    codes = torch.cat([(split.factors * stride).sum(1) for split in data.splits.values()])
    assert torch.equal(codes.sort().values, torch.arange(737_280))
    assert tuple(data.train.factors.amax(0) + 1) == tuple(factor.size for factor in data.factors)


def test_splits_depend_on_the_seed_only():
    a, b, c = (load_data("sprites", seed=s, train_size=500, test_size=50) for s in (0, 0, 1))
    assert torch.equal(a.train.factors, b.train.factors)
    assert not torch.equal(a.train.factors, c.train.factors)
    assert [len(s) for s in a.splits.values()] == [500, 50, 50]
    assert a.header() == b.header()
    assert a.header()["fingerprint"] != c.header()["fingerprint"]


def test_batches_are_what_render_makes_of_their_factors():
    data = load_data("sprites", train_size=300, test_size=50, color=True, size=32)
    indices = torch.randperm(300)[:100]  # more than one block
    batch = data.train.batch(indices)
    assert batch.dtype == torch.float32
    assert batch.shape == (100, *data.image_shape) == (100, 3, 32, 32)
    assert torch.equal(batch, data.train.render(data.train.factors[indices]))
    one_by_one = torch.cat([data.train.render(data.train.factors[i : i + 1]) for i in indices])
    assert torch.equal(batch, one_by_one)
    assert torch.equal(data.train.labels, data.train.factors[:, 0])


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("color", [False, True])
def test_renders_on_a_fake_cuda_device(antialias, color):
    with FakeTensorMode():
        factors = torch.zeros(100, 6 if color else 5, dtype=torch.long, device="cuda")
        images = render(factors, 64, antialias=antialias)
    assert images.device.type == "cuda"
    assert images.shape == (100, 3 if color else 1, 64, 64)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_what_the_cpu_draws():
    factors = grid(shape=range(3), scale=range(6), orientation=range(40), x=[0, 17], y=[31, 4])
    for antialias in (False, True):
        here, there = (render(factors.to(d), 64, antialias=antialias) for d in ("cpu", "cuda"))
        assert (here != there.cpu()).float().mean() < 1e-5 or torch.allclose(here, there.cpu(), atol=1e-3)


def test_no_images_give_no_images():
    assert render(torch.zeros(0, 5, dtype=torch.long), 64).shape == (0, 1, 64, 64)


def test_too_many_images_are_refused_with_the_numbers():
    with pytest.raises(
        DataError, match=r"737280 images: not enough for 10000 test, 10 validation and 737000 train"
    ):
        load_data("sprites", train_size=737_000, validation=10)
    with pytest.raises(VaezooError, match="size=4"):
        load_data("sprites", size=4)


def test_binarisation_leaves_binary_sprites_alone_and_refuses_smooth_ones():
    options = {"train_size": 100, "test_size": 10}
    plain, static = (load_data("sprites", binarize=b, **options) for b in ("none", "static"))
    indices = torch.arange(50)
    assert torch.equal(plain.train.batch(indices), static.train.batch(indices))
    with pytest.raises(DataError, match="antialias=False"):
        load_data("sprites", binarize="static", antialias=True, **options)
