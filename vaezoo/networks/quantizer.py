"""Vector quantisation: a codebook, its nearest-neighbour search and its updates."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vaezoo.clustering import lloyd, nearest, totals
from vaezoo.distributed import alike, sharers, take, total
from vaezoo.distributions import Quantized


class Codebook(nn.Module):
    """K vectors of D dimensions; `forward` replaces each vector of a grid by its nearest (van den Oord et
    al. 2017, eq. 1).

    With `ema`, the codebook is a buffer that `update` moves to the running mean of the vectors assigned to
    each code (appendix A.1); otherwise it is a parameter that the codebook loss moves.

    Args:
        codes: K.
        dim: D.
        ema: learn by moving averages instead of by gradient.
        decay: of the moving averages.
        revive: a code whose running usage falls below this fraction of the mean usage is moved onto a
            random vector of the batch; 0 never does.
    """

    vectors: Tensor
    usage: Tensor

    def __init__(
        self, codes: int, dim: int, ema: bool = True, decay: float = 0.99, revive: float = 0.01
    ) -> None:
        super().__init__()
        self.decay = decay
        self.revive = revive
        self.ema = ema
        start = torch.randn(codes, dim) / dim**0.5
        if ema:
            self.register_buffer("vectors", start)
        else:
            self.vectors = nn.Parameter(start)
        # Running share of the vectors that each code gets, in units of 1 / K, so that it is 1 at even usage
        # whatever the batch size. It is also the weight of a code's past, so a fresh code starts low: it
        # follows the first vectors it gets, and if it gets none it is soon revived (again).
        self.fresh = 2 * revive if revive else 1.0
        self.register_buffer("usage", torch.full((codes,), self.fresh))

    def forward(self, z: Tensor) -> Quantized:
        """z [B, D, *grid] -> Quantized with codes [B, *grid]."""
        # Vectors in one piece, as they are looked up: for the search, the update and the losses alike.
        z = z.movedim(1, -1).contiguous().movedim(-1, 1)
        codes = self.nearest(z)
        return Quantized(z, codes, self.lookup(codes))

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [B, *grid] -> vectors [B, D, *grid]."""
        return nn.functional.embedding(codes.long(), self.vectors).movedim(-1, 1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest codebook vector of each vector of z [B, D, *grid]: [B, *grid]."""
        grid = z.movedim(1, -1)
        flat = grid.reshape(-1, grid.shape[-1]).to(self.vectors.dtype)
        return nearest(flat, self.vectors).view(grid.shape[:-1])

    @torch.no_grad()
    def update(self, q: Quantized) -> None:
        """Move the codebook towards the vectors that were assigned to it, and revive dead codes.

        The moving averages of counts N and sums m (van den Oord et al. 2017, eq. 6 to 8) are kept in the form

            N_k <- decay N_k + (1 - decay) n_k,    e_k <- e_k + (1 - decay) (s_k - n_k e_k) / N_k,

        n_k vectors of sum s_k, which equals e = m / N at every step but needs no m, and leaves a code without
        vectors (n_k = 0) where it is, to the bit.
        """
        z = q.encoded.detach().movedim(1, -1).flatten(0, -2).to(self.vectors.dtype)
        n, sums = map(total, totals(z, q.codes.flatten(), len(self.usage)))
        assigned = len(z) * sharers()
        even = assigned / len(n)
        self.usage.lerp_(n / even, 1 - self.decay)
        if self.ema:
            running = even * self.usage.clamp_min(torch.finfo(n.dtype).tiny)
            self.vectors.addcdiv_(
                sums - n.unsqueeze(1) * self.vectors, running.unsqueeze(1), value=1 - self.decay
            )
        if self.revive:
            dead = self.usage < self.revive
            candidates = take(z, alike(partial(torch.randint, assigned), n.shape, z.device))
            self.vectors.copy_(torch.where(dead.unsqueeze(1), candidates, self.vectors))
            self.usage.masked_fill_(dead, self.fresh)

    @torch.no_grad()
    def initialize(self, z: Tensor, iterations: int = 10) -> None:
        """Start from k-means on z [N, D, *grid], from randomly chosen vectors."""
        flat = z.movedim(1, -1).flatten(0, -2).to(self.vectors.dtype)
        order = torch.randperm(len(flat), device=flat.device)
        # k-means++ would take a pass over all vectors for each of what may be thousands of codes.
        start = flat[order.repeat(-(-len(self.usage) // len(flat)))[: len(self.usage)]]
        self.vectors.copy_(lloyd(flat, start, iterations))
