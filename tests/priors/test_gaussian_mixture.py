import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Estimator

import vaezoo
from vaezoo.errors import VaezooError
from vaezoo.priors import PRIORS, LatentShape
from vaezoo.priors.gaussian_mixture import FLOOR, expectation_maximization, hard_assignment


def make(dim=3, **options):
    prior = PRIORS.get("gaussian_mixture")
    return prior(prior.Config(**options), LatentShape(((dim,),))).double()


@pytest.fixture(scope="module")
def latents():
    rng = np.random.default_rng(0)
    parts = [rng.normal(centre, 0.5, (300, 3)) @ rng.normal(0, 1, (3, 3)) for centre in (-2, 0, 3)]
    return torch.from_numpy(np.concatenate(parts))


@pytest.mark.parametrize(("kind", "theirs"), [("full", "full"), ("diagonal", "diag")])
def test_em_from_the_same_start_is_scikit_learns(latents, kind, theirs):
    start = hard_assignment(latents, 4, seed=0)
    ours = expectation_maximization(latents, start, kind)
    counts = start.sum(0)
    means = start.T @ latents / counts[:, None]
    covariances = torch.stack([latents[r > 0].T.cov(correction=0) for r in start.T])
    floor = FLOOR * float(latents.var(0, correction=0).mean()) + 1e-12
    covariances += floor * torch.eye(3)
    precisions = torch.linalg.inv(covariances if kind == "full" else covariances * torch.eye(3))
    reference = Estimator(
        4,
        covariance_type=theirs,
        reg_covar=floor,
        tol=0,
        max_iter=len(ours.log_likelihoods) - 1,
        weights_init=(counts / len(latents)).numpy(),
        means_init=means.numpy(),
        precisions_init=(
            precisions if kind == "full" else precisions.diagonal(dim1=1, dim2=2).contiguous()
        ).numpy(),
    )
    with pytest.warns(UserWarning, match="did not converge"):
        reference.fit(latents.numpy())
    np.testing.assert_allclose(ours.weights, reference.weights_, rtol=1e-6)
    np.testing.assert_allclose(ours.means, reference.means_, rtol=1e-6, atol=1e-6)
    covariance = (ours.cholesky @ ours.cholesky.mT).numpy()
    if kind == "diagonal":
        covariance = np.diagonal(covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(covariance, reference.covariances_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_the_likelihood_rises_in_every_iteration(latents, kind):
    noise = torch.rand(len(latents), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    fitted = expectation_maximization(latents, noise / noise.sum(1, keepdim=True), kind, rank=1)
    steps = torch.tensor(fitted.log_likelihoods).diff()
    assert len(steps) > 10
    assert (steps > -1e-9).all()


def test_one_component_of_low_rank_is_probabilistic_pca(latents):
    prior = make(components=1, covariance="low_rank", rank=2)
    prior.fit(latents)
    values = torch.linalg.eigvalsh(latents.T.cov(correction=0))
    fitted = torch.linalg.eigvalsh((prior.cholesky @ prior.cholesky.mT)[0])
    torch.testing.assert_close(fitted, values, rtol=1e-4, atol=0)
    prior = make(components=1, covariance="low_rank", rank=1)
    prior.fit(latents)
    fitted = torch.linalg.eigvalsh((prior.cholesky @ prior.cholesky.mT)[0])
    expected = torch.stack([values[:2].mean(), values[:2].mean(), values[2]])
    torch.testing.assert_close(fitted, expected, rtol=1e-4, atol=0)


def test_bic_finds_the_number_of_clusters():
    draws = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    z = centres[torch.randint(3, (900,), generator=draws)] + torch.randn(900, 2, generator=draws)
    prior = make(dim=2, components=None)
    prior.fit(z)
    assert prior.config.components == 3
    assert prior.means.shape == (3, 2)
    assert prior.sample(4).shape == (4, 2)


def test_no_component_collapses():
    """Points that coincide, and components that no point is left for."""
    z = torch.cat([torch.zeros(200, 3), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))])
    prior = make(components=5)
    prior.fit(z)
    for tensor in (prior.logits, prior.means, prior.cholesky):
        assert tensor.isfinite().all()
    assert (prior.logits.softmax(0) > 0.5 / len(z)).all()
    start = torch.nn.functional.one_hot(torch.zeros(250, dtype=torch.long), 2).double()
    fitted = expectation_maximization(z.double(), start)
    assert (fitted.weights > 0.01).all()
    make(dim=2, components=3).fit(torch.ones(10, 2))


def test_a_prior_with_chosen_components_is_saved_and_loaded(tmp_path):
    data = vaezoo.load_data("digits")
    model = vaezoo.create("ae", image_shape=data.image_shape, latent_dim=2)
    vaezoo.fit_prior(model, data, "gaussian_mixture", components=None)
    vaezoo.save(model, tmp_path / "ae.safetensors")
    again = vaezoo.load(tmp_path / "ae.safetensors")
    assert again.prior.config.components == model.prior.config.components == len(model.prior.means)
    assert torch.equal(again.prior.means, model.prior.means)


def test_log_prob_is_scikit_learns(latents):
    prior = make(components=3)
    prior.fit(latents, seed=0)
    reference = Estimator(3)
    reference.weights_ = prior.logits.softmax(0).numpy()
    reference.means_ = prior.means.numpy()
    reference.precisions_cholesky_ = torch.linalg.inv(prior.cholesky).mT.numpy()
    torch.testing.assert_close(
        prior.log_prob(latents), torch.from_numpy(reference.score_samples(latents.numpy()))
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
