"""A Gaussian mixture fitted to the latents after training (ex-post density estimation)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vaezoo.config import BaseConfig
from vaezoo.distributions import LOG_2PI, Latent
from vaezoo.errors import VaezooError
from vaezoo.priors.base import LatentShape, Prior
from vaezoo.random import generator as make_generator


class GaussianMixture(Prior):
    """Mixture of Gaussians with full covariances, fitted by EM to the latents of the training images."""

    paper = "Ghosh et al., From Variational to Deterministic Autoencoders, ICLR 2020"

    class Config(BaseConfig):
        components: int = Field(10, ge=1, description="number of Gaussians (10 in the paper)")
        max_latents: int = Field(20_000, ge=2, description="fit on at most this many latents")

    config: Config
    logits: Tensor
    means: Tensor
    cholesky: Tensor

    def __init__(self, config: Config, latent: LatentShape) -> None:
        super().__init__(config, latent)
        dim = latent.vector_dim("gaussian_mixture")
        self.register_buffer("logits", torch.zeros(config.components))
        self.register_buffer("means", torch.zeros(config.components, dim))
        self.register_buffer("cholesky", torch.eye(dim).repeat(config.components, 1, 1))

    def fit(self, z: Tensor, seed: int = 0) -> None:
        """EM from a k-means start drawn from `seed`. z [N, D]; N must exceed the number of components."""
        from sklearn.mixture import GaussianMixture as Estimator

        if len(z) <= self.config.components:
            raise VaezooError(
                f"gaussian_mixture: {self.config.components} components cannot be fitted to {len(z)} latents"
            )
        chosen = torch.randperm(len(z), generator=make_generator(seed, "cpu"))[: self.config.max_latents]
        latents = z[chosen.to(z.device)].double().cpu().numpy()
        # The regulariser is relative to the latents' own scale, which for an AE is anybody's guess.
        estimator = Estimator(
            self.config.components,
            covariance_type="full",
            reg_covar=1e-6 * float(latents.var(0).mean()) + 1e-12,
            max_iter=200,
            random_state=seed,
        ).fit(latents)
        self.logits.copy_(torch.from_numpy(estimator.weights_).log())
        self.means.copy_(torch.from_numpy(estimator.means_))
        self.cholesky.copy_(torch.linalg.cholesky(torch.from_numpy(estimator.covariances_)))

    def log_prob(self, z: Latent) -> Tensor:
        assert isinstance(z, Tensor)
        centred = (z.unsqueeze(-2) - self.means).transpose(0, 1)  # [K, B, D]
        whitened = torch.linalg.solve_triangular(self.cholesky, centred.mT, upper=False)  # [K, D, B]
        log_det = self.cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        log_component = -0.5 * (whitened.square().sum(1) + z.shape[-1] * LOG_2PI) - log_det
        return torch.logsumexp(self.logits.log_softmax(0).unsqueeze(-1) + log_component, dim=0)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        component = torch.multinomial(self.logits.softmax(0), n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.means.shape[1], 1, device=self.means.device, dtype=self.means.dtype, generator=generator
        )
        return self.means[component] + (self.cholesky[component] @ noise).squeeze(-1)
