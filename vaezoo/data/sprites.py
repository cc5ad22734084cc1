"""Sprites: the factors of dSprites, rendered on the device when a batch is asked for. No file, no download.

Factors and their values follow dSprites (Matthey et al. 2017, github.com/google-deepmind/dsprites-dataset),
except that the 40 orientations lie in [0, 2 pi), where dSprites has both ends and so one turn twice. As
there, a square looks the same after a quarter of a turn and an ellipse after half of one.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vaezoo.data.splits import Factor, ImageData, Share, Split, share_of
from vaezoo.errors import DataError
from vaezoo.random import derive, generator

SHAPES = ("square", "ellipse", "heart")
FACTORS = (
    Factor("shape", len(SHAPES), "categorical"),
    Factor("scale", 6, "ordinal"),
    Factor("orientation", 40, "circular"),
    Factor("x", 32, "ordinal"),
    Factor("y", 32, "ordinal"),
)
HUE = Factor("hue", 8, "circular")

# Geometry at scale 1, in units of the image's side. Every shape fits into a disc of RADIUS around its centre
# of mass, and centres stay in 0.5 +- 15.5 STEP, so no sprite touches the border: 15.5 STEP + RADIUS < 0.5.
STEP = 1 / 64  # distance of neighbouring positions
SQUARE = 0.175  # half the side
ELLIPSE = (0.246, 0.123)  # semi-axes
HEART = 0.133  # half the side of the square in its middle; a half disc sits on each of two neighbouring sides
HEART_CENTRE = (math.pi / 2 + 2 / 3) / (
    4 + math.pi
)  # centre of mass from the square's centre, per axis, in half sides
RADIUS = 0.2475
SUBROWS = 4  # anti-aliasing: coverage is exact along a row, and averaged over this many lines across it


def sprites(
    seed: int = 0,
    *,
    size: Annotated[int, Field(ge=8)] = 64,
    train_size: Annotated[int, Field(ge=1)] | None = None,
    test_size: Annotated[int, Field(ge=1)] = 10_000,
    validation: Share = 0.1,
    color: bool = False,
    antialias: bool = False,
) -> ImageData:
    """Sprites of three shapes at 737,280 combinations of scale, orientation and position (times 8 hues).

    Args:
        seed: draws which combinations belong to which split.
        size: height and width in pixels.
        train_size: number of training images; None: all that validation and test leave.
        test_size: number of test images.
        validation: number of validation images, or their fraction of the training images.
        color: three channels, and hue as a sixth factor.
        antialias: smooth edges; otherwise pixels are 0 or 1.

    Raises:
        DataError: more images asked for than there are combinations.
    """
    factors = (*FACTORS, HUE) if color else FACTORS
    total = math.prod(factor.size for factor in factors)
    validation_size = share_of(total - test_size if train_size is None else train_size, validation)
    if train_size is None:
        train_size = total - test_size - validation_size
    if train_size < 1 or train_size + validation_size + test_size > total:
        raise DataError(
            f"sprites has {total} images: not enough for {test_size} test, {validation_size} validation and "
            f"{max(train_size, 1)} train images"
        )
    combinations = torch.randperm(total, generator=generator(derive(seed, "sprites"), "cpu"))
    combinations = combinations[: test_size + validation_size + train_size]
    columns, stride = [], total
    for factor in factors:
        stride //= factor.size
        columns.append((combinations // stride % factor.size).byte())
    indices = torch.stack(columns, 1)
    test, held, train = (
        SpritesSplit(part, size, antialias)
        for part in indices.split([test_size, validation_size, train_size])
    )
    return ImageData("sprites", train, held, test, train.image_shape, factors, SHAPES, seed=seed)


class SpritesSplit(Split):
    """Sprites given by their factors; labels are the shapes.

    Args:
        indices: value index of every factor, uint8 [N, 5], or [N, 6] with hue.
        size: height and width in pixels.
        antialias: smooth edges; otherwise pixels are 0 or 1.
    """

    def __init__(self, indices: Tensor, size: int, antialias: bool) -> None:
        self._indices, self.size, self.antialias = indices, size, antialias
        self.image_shape = (3 if indices.shape[1] > len(FACTORS) else 1, size, size)
        self.device = indices.device

    @cached_property
    def labels(self) -> Tensor:
        return self._indices[:, 0].long()

    @cached_property
    def factors(self) -> Tensor:
        return self._indices.long()

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Tensor) -> Tensor:
        return self.render(self._indices.index_select(0, indices.to(self.device)))

    def render(self, factors: Tensor) -> Tensor:
        """Images of any factors, integer [B, F], in this split or not: float32 [B, C, H, W]."""
        return render(factors, self.size, antialias=self.antialias)

    def view(self, indices: Tensor) -> SpritesSplit:
        return SpritesSplit(self._indices[indices.to(self.device)], self.size, self.antialias)

    def to(self, device: torch.device | str) -> SpritesSplit:
        return SpritesSplit(self._indices.to(device), self.size, self.antialias)

    def binarized(self, noise: torch.Generator | None) -> SpritesSplit:
        if self.antialias:
            raise DataError(
                "anti-aliased sprites cannot be binarised; sprites with antialias=False are binary"
            )
        return self  # Bernoulli(0) and Bernoulli(1) draw what is there

    def content(self, indices: Tensor) -> bytes:
        return (
            f"{self.size} {self.antialias}".encode()
            + self._indices[indices.to(self.device)].cpu().numpy().tobytes()
        )


def render(factors: Tensor, size: int, antialias: bool = False) -> Tensor:
    """Draw sprites.

    x runs to the right, y down, orientation from x towards y. Every shape is the union of two convex ones, so
    a row of pixels meets it in at most two intervals: their ends are a few numbers per row, and filling them
    is a few comparisons per pixel.

    Args:
        factors: value indices of shape, scale, orientation, x, y and perhaps hue; integer [B, 5] or [B, 6].
        size: height and width in pixels.
        antialias: smooth edges; otherwise a pixel is 1 if its centre is inside, else 0.

    Returns:
        float32 [B, 1, size, size], or [B, 3, size, size] with hue; values in [0, 1].
    """
    images = torch.zeros(len(factors), size, size, device=factors.device)
    # On a CPU a few images at a time, so that what lies between stays in the cache.
    block = 64 if factors.device.type == "cpu" else max(1, len(factors))
    for part, canvas in zip(factors.split(block), images.split(block)):
        _draw(part, canvas, antialias)
    images = images.unsqueeze(1)
    return (
        images * _rgb(factors[:, 5] / HUE.size)[:, :, None, None]
        if factors.shape[1] > len(FACTORS)
        else images
    )


def _draw(factors: Tensor, canvas: Tensor, antialias: bool) -> None:
    """Draw the sprites of `factors`, [B, 5 or 6], into `canvas`, zeros [B, size, size]."""
    size, device = canvas.shape[1], canvas.device
    shape, scale, orientation, x, y = factors[:, :5].unsqueeze(2).unbind(1)  # [B, 1] each
    unit = size * (0.5 + 0.1 * scale)
    angle = orientation * (2 * math.pi / 40)
    centre_x, centre_y = ((0.5 + STEP * (position - 15.5)) * size for position in (x, y))

    # Only the rows that a sprite can reach are drawn: `height` of them, from `top` on.
    height = min(size, math.ceil(2 * RADIUS * size) + 1)
    top = (centre_y - RADIUS * size).floor().clamp(0, size - height)
    lines = SUBROWS if antialias else 1
    offsets = (torch.arange(height * lines, device=device) + 0.5) / lines
    bounds = _intervals(shape, unit, angle, top + offsets - centre_y)
    ends = [(bound + centre_x).unsqueeze(2) for bound in bounds]

    if antialias:
        edges = torch.arange(size, device=device, dtype=torch.float32)
        a, b, c, d = ((end - edges).clamp_(0, 1) for end in ends)  # part of each pixel left of the end
        rows = b.sub_(a).add_(d.sub_(c)).unflatten(1, (height, lines)).mean(2)
    else:
        # The pixels whose centres lie in [a, b) are ceil(a - 0.5), ..., ceil(b - 0.5) - 1.
        columns = torch.arange(size, device=device, dtype=torch.int16)
        a, b, c, d = (columns >= (end - 0.5).ceil_().to(torch.int16) for end in ends)
        rows = ((a ^ b) ^ (c ^ d)).float()

    first = top.long() + size * torch.arange(len(factors), device=device).unsqueeze(1)
    target = (first + torch.arange(height, device=device)).flatten()
    canvas.view(-1, size).index_copy_(0, target, rows.flatten(0, 1))


def _intervals(
    shape: Tensor, unit: Tensor, angle: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the lines at distance v below a sprite's centre meet it: [a, b) and [c, d), a <= b <= c <= d.

    shape, unit (pixels per unit) and angle (radians) are [B, 1]; v and the results are [B, R], in pixels.
    """
    heart = shape == 2
    half = torch.where(heart, HEART, SQUARE) * unit
    # The heart's tip is a corner of its square, and points down at orientation 0.
    turn = torch.where(heart, angle - 0.75 * math.pi, angle)
    cos, sin = (_nonzero(f(turn)) for f in (torch.cos, torch.sin))

    # The heart turns around its centre of mass, which is off its square's centre by `shift` along both axes.
    shift = torch.where(heart, -HEART_CENTRE, 0.0) * half
    square_x, square_y = shift * (cos - sin), shift * (cos + sin)

    # Square: |p| <= half and |q| <= half in the turned frame, p = u cos + w sin, q = w cos - u sin.
    w = v - square_y
    across, along = half / cos.abs(), half / sin.abs()
    low = torch.maximum(-w * sin / cos - across, w * cos / sin - along) + square_x
    high = torch.minimum(-w * sin / cos + across, w * cos / sin + along) + square_x
    empty = low > high
    low, high = low.masked_fill(empty, math.inf), high.masked_fill(empty, -math.inf)

    # Lobes: a disc around the middle of a side makes with the square one convex shape, hence one interval.
    lobes = []
    for step_x, step_y in ((cos, sin), (-sin, cos)):
        squared = half.square() - (w - half * step_y).square()
        inside = heart & (squared > 0)
        reach = squared.clamp(min=0).sqrt()
        disc_x = square_x + half * step_x
        lobe_low = torch.where(inside, torch.minimum(low, disc_x - reach), low)
        lobe_high = torch.where(inside, torch.maximum(high, disc_x + reach), high)
        lobes.append((lobe_low, lobe_high))
    (low1, high1), (low2, high2) = lobes

    # Ellipse: A u^2 + 2 B u v + C v^2 <= 1, solved for u.
    long, short = ELLIPSE[0] * unit, ELLIPSE[1] * unit
    cos, sin = angle.cos(), angle.sin()
    quadratic = (cos / long).square() + (sin / short).square()
    mixed = cos * sin * (long.pow(-2) - short.pow(-2))
    reach = (quadratic - (v / (long * short)).square()).clamp(min=0).sqrt() / quadratic
    ellipse = shape == 1
    low1, high1 = (
        torch.where(ellipse, bound, other)
        for bound, other in ((-mixed * v / quadratic - reach, low1), (-mixed * v / quadratic + reach, high1))
    )
    low2, high2 = torch.where(ellipse, low1, low2), torch.where(ellipse, high1, high2)

    # Two intervals in order and without overlap; the empty ones (low = inf) collapse to a point.
    a, c = torch.minimum(low1, low2), torch.maximum(low1, low2)
    swapped = low2 < low1
    b, d = torch.where(swapped, high2, high1), torch.where(swapped, high1, high2)
    far = 2 * unit
    a, b, c, d = (bound.clamp(-far, far) for bound in (a, b, c, d))
    b = torch.maximum(a, b)
    c = torch.maximum(b, c)
    return a, b, c, torch.maximum(c, d)


def _nonzero(x: Tensor) -> Tensor:
    """Keep away from 0, as divisor: a side parallel to the rows meets all of a row or nothing of it."""
    return torch.where(x.abs() < 1e-6, 1e-6, x)


def _rgb(hue: Tensor) -> Tensor:
    """Colours of full saturation and value; hue [B] in [0, 1) -> [B, 3] (HSV to RGB, red at 0)."""
    channel = 2 * torch.arange(3, device=hue.device)
    return 1 - ((6 * hue.unsqueeze(1) - channel + 3) % 6 - 3).abs().sub(1).clamp(0, 1)
