import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Estimator

from vaezoo.errors import VaezooError
from vaezoo.priors import PRIORS, LatentShape


def make(dim=3, **options):
    prior = PRIORS.get("gaussian_mixture")
    return prior(prior.Config(**options), LatentShape(((dim,),))).double()


@pytest.fixture(scope="module")
def latents():
    rng = np.random.default_rng(0)
    parts = [rng.normal(centre, 0.5, (300, 3)) @ rng.normal(0, 1, (3, 3)) for centre in (-2, 0, 3)]
    return torch.from_numpy(np.concatenate(parts))


def test_log_prob_is_scikit_learns(latents):
    prior = make(components=3)
    prior.fit(latents, seed=0)
    reference = Estimator(
        3, reg_covar=1e-6 * latents.numpy().var(0).mean() + 1e-12, max_iter=200, random_state=0
    ).fit(latents.numpy())
    torch.testing.assert_close(
        prior.log_prob(latents),
        torch.from_numpy(reference.score_samples(latents.numpy())),
        rtol=1e-5,
        atol=1e-5,
    )


def test_samples_have_the_moments_of_the_latents(latents):
    """EM reproduces mean and covariance of the data exactly at its fixed points; samples must too."""
    prior = make(components=4)
    prior.fit(latents, seed=0)
    n = 100_000
    z = prior.sample(n, torch.Generator().manual_seed(0))
    deviation = latents.std(0)
    assert ((z.mean(0) - latents.mean(0)).abs() < 5 * deviation / math.sqrt(n)).all()
    torch.testing.assert_close(z.T.cov(), latents.T.cov(), rtol=0.03, atol=0.03)


def test_the_latents_to_fit_on_are_drawn_not_the_first():
    """Data that come sorted by class would otherwise be fitted on their first classes alone."""
    z = torch.cat([torch.zeros(500, 2), torch.full((500, 2), 100.0)]).double()
    z += torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    prior = make(dim=2, components=2, max_latents=500)
    prior.fit(z, seed=0)
    assert (prior.log_prob(z[500:]) > -20).all()


def test_density_integrates_to_one():
    prior = make(dim=1, components=2)
    prior.means.copy_(torch.tensor([[-1.0], [2.0]]))
    prior.cholesky.copy_(torch.tensor([[[0.5]], [[1.5]]]))
    prior.logits.copy_(torch.tensor([0.3, 1.0]))
    x = torch.linspace(-20, 20, 200_001).double().unsqueeze(1)
    assert (prior.log_prob(x).exp().sum() * (40 / 200_000)).item() == pytest.approx(1, abs=1e-6)


def test_refuses_codes_and_too_few_latents():
    prior = PRIORS.get("gaussian_mixture")
    with pytest.raises(VaezooError, match="prior over one real vector"):
        prior(prior.Config(), LatentShape(((7, 7),), codes=512))
    with pytest.raises(VaezooError, match="10 components cannot be fitted to 5 latents"):
        make(components=10).fit(torch.randn(5, 3).double())
