"""beta-TCVAE."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vaezoo.distributed import gather, own
from vaezoo.distributions import DiagonalGaussian, log_aggregate
from vaezoo.models.vae import VAE
from vaezoo.objective import Loss, Progress


class BetaTCVAE(VAE):
    """VAE that weighs the total correlation of its latents beta times as much, not the whole rate.

    The rate, averaged over the data, is a sum of three (eq. 2), each with its weight:

    - alpha: mutual information of image and latent, E[log q(z|x) - log q(z)],
    - beta: total correlation of the latent's dimensions, E[log q(z) - sum_d log q(z_d)],
    - gamma: dimension-wise KL, E[sum_d log q(z_d) - log p(z)],

    where q(z) is the aggregate posterior, the mean of q(z|x) over the data. It is estimated from the other
    images of the minibatch (appendix C), as if these were drawn from a data set of `Progress.dataset_size`
    images. Stratified sampling ("mss") is unbiased for q(z), though not for its logarithm. Weighted sampling
    ("mws") is biased: in a minibatch that is the whole data set of N images, q(z) and each q(z_d) come out
    too low by a factor of N exactly, which leaves gradients as they are, but adds (D - 1) log N nats to the
    total correlation.

    The loss is distortion + rate + (alpha - 1) MI + (beta - 1) TC + (gamma - 1) DWKL with the rate in closed
    form. Its expectation is that of the paper's eq. 4, where the three sum to a one-sample estimate of the
    rate; but with all weights 1 it is the VAE's, bit for bit.
    """

    paper = (
        "Chen, Li, Grosse & Duvenaud, Isolating Sources of Disentanglement in VAEs, NeurIPS 2018, "
        "arXiv:1802.04942"
    )

    equation = (
        r"-\mathbb{E}_{q(z \mid x)}\left[\log p(x \mid z)\right] + \alpha\, I(x; z) "
        r"+ \beta\, \mathrm{KL}\left(q(z) \,\middle\|\, \textstyle\prod_d q(z_d)\right) "
        r"+ \gamma \sum_d \mathrm{KL}\left(q(z_d) \,\|\, p(z_d)\right)"
    )

    class Config(VAE.Config):
        alpha: float = Field(1.0, ge=0, description="weight of the mutual information")
        beta: float = Field(6.0, ge=0, description="weight of the total correlation")
        gamma: float = Field(1.0, ge=0, description="weight of the dimension-wise KL")
        sampling: Literal["mss", "mws"] = Field(
            "mss", description="estimator of q(z): minibatch stratified or minibatch weighted sampling"
        )

    config: Config

    def losses(self, x: Tensor, progress: Progress) -> dict[str, Loss]:
        c = self.config
        q, z, rate, terms = self.elbo(x)
        assert isinstance(q, DiagonalGaussian)
        weights = stratified_weights if c.sampling == "mss" else weighted_weights
        whole = DiagonalGaussian(gather(q.loc), gather(q.log_variance))
        log_weights = own(weights(whole.loc, progress.dataset_size))
        joint, marginals = log_aggregate(whole, z, log_weights)
        information = q.log_prob(z) - joint
        correlation = joint - marginals.sum(1)
        dimension_wise = marginals.sum(1) - self.require_prior().log_prob(z)
        extra = (c.alpha - 1) * information + (c.beta - 1) * correlation + (c.gamma - 1) * dimension_wise
        terms |= {
            "mutual_information": information.mean(),
            "total_correlation": correlation.mean(),
            "dimension_wise_kl": dimension_wise.mean(),
        }
        return {"model": Loss(terms["distortion"] + self.penalty(rate + extra, progress), terms)}


def stratified_weights(z: Tensor, dataset_size: int) -> Tensor:
    """log w of minibatch stratified sampling (appendix C) for latents z [B, D], [B, B].

    For B = M + 1 images of N, drawn without replacement, the row of image n* says

    q(z) ~ 1/N q(z|n*) + 1/M sum_{m=1}^{M-1} q(z|n_m) + (N - M)/(N M) q(z|n_M).

    n_M is the next image of the minibatch, after the last one the first. Rows sum to 1. A minibatch of one
    image has only that to go by, and a data set counts as no smaller than its minibatch.
    """
    batch = len(z)
    if batch == 1:
        return z.new_zeros(1, 1)
    others, size = batch - 1, max(batch, dataset_size)
    own = torch.eye(batch, dtype=z.dtype, device=z.device)
    last = own.roll(1, dims=1)
    weights = own / size + last * ((size - others) / (size * others)) + (1 - own - last) / others
    return weights.log()


def weighted_weights(z: Tensor, dataset_size: int) -> Tensor:
    """log w of minibatch weighted sampling (appendix C) for latents z [B, D], [B, B]: 1/(N B)."""
    batch = len(z)
    return z.new_full((batch, batch), -math.log(max(batch, dataset_size) * batch))
