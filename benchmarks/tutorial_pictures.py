"""Draw the pictures of docs/tutorial.md from the trained weights that come with the package, in a minute.

    python benchmarks/tutorial_pictures.py

Needs Fashion-MNIST, for test images to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import vaezoo
from vaezoo.autoencoder import Autoencoder
from vaezoo.data import ImageData
from vaezoo.plots import grid, interpolations, save_grid, traversals
from vaezoo.random import generator

PICTURES = Path(__file__).parents[1] / "docs" / "assets" / "tutorial"
COLUMNS = 12
BOOT, SNEAKER, SANDAL = 9, 7, 5


def trained(name: str) -> Autoencoder:
    return vaezoo.create(name, pretrained="fashion_mnist")


def ragged(data: ImageData) -> Tensor:
    """Images, their reconstructions by the autoencoder, and what it decodes from normal noise with the mean
    and the deviations of its latents."""
    ae, x = trained("ae"), images(data)
    z = ae.latents(data.test.batch(torch.arange(2000)))
    noise = torch.randn(COLUMNS, z.shape[1], generator=generator(0, "cpu"))
    return rows(x, ae.reconstruct(x), ae.decode(z.mean(0) + z.std(0) * noise).mean)


def cloud(data: ImageData) -> Tensor:
    """Images, and what the VAE decodes from the mean of each cloud and from three draws of it."""
    vae, x = trained("vae"), images(data)
    q, draws = vae.encode(x), generator(0, "cpu")
    return rows(x, vae.decode(q.mean).mean, *(vae.decode(q.sample((), draws)).mean for _ in range(3)))


def two_forces(data: ImageData) -> Tensor:
    """Images, their reconstructions at beta 1 and 4, and samples at beta 1 and 4."""
    x, pair = images(data), [trained("vae"), trained("beta_vae")]
    drawn = [model.sample(COLUMNS, generator(3, "cpu")) for model in pair]
    return rows(x, *(model.reconstruct(x) for model in pair), *drawn)


def walks(data: ImageData) -> Tensor:
    """From one test image to another through the latent space."""
    return interpolations(trained("vae"), data.test.subset(10, 4).batch(torch.arange(10)), COLUMNS)


def moves(data: ImageData) -> Tensor:
    """One latent dimension in each row, those of the highest rate first."""
    return traversals(trained("vae"), data.test.subset(500, 0).batch(torch.arange(500)), 7, COLUMNS)


def arithmetic(data: ImageData) -> Tensor:
    """Mean boot, mean sneaker, mean sandal, and boot - sneaker + sandal."""
    vae, labels = trained("vae"), data.test.labels
    assert labels is not None
    boot, sneaker, sandal = (
        vae.encode(data.test.batch((labels == kind).nonzero().flatten()[:500])).mean.mean(0, keepdim=True)
        for kind in (BOOT, SNEAKER, SANDAL)
    )
    return grid(vae.decode(torch.cat([boot, sneaker, sandal, boot - sneaker + sandal])).mean, 4)


def blur(data: ImageData) -> Tensor:
    """Images, and what is left of them through 20 numbers and through 49 codes."""
    x = images(data)
    return rows(x, trained("vae").reconstruct(x), trained("vq_vae").reconstruct(x))


def codes(data: ImageData) -> Tensor:
    """Images, their codes as levels of grey, and the reconstructions from the codes."""
    vq, x = trained("vq_vae"), images(data)
    k = vq.latents(x)
    assert isinstance(k, Tensor)
    grey = F.interpolate(k[:, None].float() / vq.latent.codes, x.shape[2:], mode="nearest")
    return rows(x, grey, vq.decode(k).mean)


def priors(data: ImageData) -> Tensor:
    """What the VQ-VAE decodes from codes that are drawn evenly, and from those of its prior."""
    vq = trained("vq_vae")
    even = torch.randint(vq.latent.codes, (COLUMNS, *vq.latent.shapes[0]), generator=generator(0, "cpu"))
    return rows(vq.decode(even).mean, vq.sample(COLUMNS, generator(0, "cpu")))


DRAWN: tuple[Callable[[ImageData], Tensor], ...] = (
    ragged,
    cloud,
    two_forces,
    walks,
    moves,
    arithmetic,
    blur,
    codes,
    priors,
)


def images(data: ImageData) -> Tensor:
    return data.test.subset(COLUMNS, 1).batch(torch.arange(COLUMNS))


def rows(*parts: Tensor) -> Tensor:
    return grid(torch.cat(parts), COLUMNS)


@torch.no_grad()
def main() -> None:
    data = vaezoo.load_data("fashion_mnist")
    for draw in DRAWN:
        print(save_grid(draw(data), PICTURES / f"{draw.__name__}.png"))


if __name__ == "__main__":
    main()
