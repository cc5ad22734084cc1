"""Images that tiny models learn something from."""

import torch


def bars() -> torch.Tensor:
    """300 images of 8x8: a bright bar on a dark ground, at random rows and widths."""
    noise = torch.Generator().manual_seed(0)
    x = 30 * torch.ones(300, 1, 8, 8)
    rows, widths = torch.randint(0, 7, (300,), generator=noise), torch.randint(2, 8, (300,), generator=noise)
    for image, row, width in zip(x, rows, widths):
        image[:, row : row + 2, :width] = 220
    return x.byte()
