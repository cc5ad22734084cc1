"""Oracles 7 and 8: total correlation in closed form, and minibatch estimators by enumeration. Trap 1."""

import math
from itertools import permutations

import pytest
import torch

import vaezoo
from vaezoo import testing
from vaezoo.distributions import DiagonalGaussian, log_aggregate
from vaezoo.models.beta_tc_vae import stratified_weights, weighted_weights
from vaezoo.objective import Progress
from vaezoo.random import seeded


def losses(model, x, dataset_size=1000, seed=0, step=0.0):
    with seeded(seed, "cpu"):
        return model.losses(x, Progress(torch.tensor(step), 1000, dataset_size))["model"]


def posteriors(n, dims, seed=0):
    """n Gaussians with unequal means and scales, and a sample of each, in float64."""
    noise = torch.Generator().manual_seed(seed)
    mean, log_variance = (torch.randn(n, dims, generator=noise, dtype=torch.float64) for _ in range(2))
    q = DiagonalGaussian(mean, log_variance)
    return q, q.sample(generator=noise)


def exact(q, z):
    """log q(z) and log q(z_d) of an aggregate posterior that is the mean of all of q."""
    return log_aggregate(q, z, torch.full((len(z), len(z)), -math.log(len(z)), dtype=z.dtype))


# --- The weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (2, 9), (3, 6), (6, 6), (7, 50), (64, 60_000)])
def test_rows_of_stratified_weights_sum_to_one_with_the_own_weight_on_the_diagonal(batch, size):
    weights = stratified_weights(torch.zeros(batch, 1, dtype=torch.float64), size).exp()
    torch.testing.assert_close(weights.sum(1), torch.ones(batch, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.diagonal(), torch.full((batch,), 1 / size, dtype=torch.float64))
    others = batch - 1
    last = (size - others) / (size * others)
    for i, row in enumerate(weights):
        expected = sorted([last, *[1 / others] * (others - 1)])
        found = sorted(w for j, w in enumerate(row.tolist()) if j != i)
        assert found == pytest.approx(expected, rel=1e-12)
    # The image that counts less is another one in each row, so that none is left out of all of them.
    torch.testing.assert_close(weights.sum(0), weights.sum(1))


def column_filled(z, size):
    """Trap 1: the weights as several public libraries have them, 1/N down a column, not the diagonal."""
    others, batch = len(z) - 1, len(z)
    weights = z.new_full((batch, batch), 1 / others)
    weights.view(-1)[:: others + 1] = 1 / size
    weights.view(-1)[1 :: others + 1] = (size - others) / (size * others)
    weights[others - 1, 0] = (size - others) / (size * others)
    return weights.log()


def enumerated(weights, q, z, batch, aggregate=log_aggregate):
    """Mean estimates of q(z_n), [batch, N], and q(z_nd), [batch, N, D], over all ordered minibatches in which
    image n is at a position, [0] of the result."""
    n, dims = z.shape
    joint, marginals, count = z.new_zeros(batch, n), z.new_zeros(batch, n, dims), z.new_zeros(batch, n)
    for order in permutations(range(n), batch):
        rows = list(order)
        log_joint, log_marginals = aggregate(
            DiagonalGaussian(q.loc[rows], q.log_variance[rows]), z[rows], weights(z[rows], n)
        )
        for position, row in enumerate(rows):
            joint[position, row] += log_joint[position].exp()
            marginals[position, row] += log_marginals[position].exp()
            count[position, row] += 1
    return joint / count, marginals / count.unsqueeze(2)


def relative_error(found, expected):
    return ((found - expected) / expected).abs().max().item()


def test_stratified_sampling_is_unbiased_over_all_ordered_minibatches():
    """Oracle 8, at every position of the minibatch and for every image."""
    q, z = posteriors(6, 2)
    joint, marginals = (value.exp() for value in exact(q, z))
    found, found_marginals = enumerated(stratified_weights, q, z, 3)
    assert relative_error(found, joint) < 1e-12
    assert relative_error(found_marginals, marginals) < 1e-12


def test_the_enumeration_finds_the_mistakes_of_public_code():
    """Trap 1: weights down a column; weights added once for each dimension."""
    q, z = posteriors(6, 2)
    joint, marginals = (value.exp() for value in exact(q, z))
    wrong, wrong_marginals = enumerated(column_filled, q, z, 3)
    assert relative_error(wrong, joint) > 0.1
    assert relative_error(wrong_marginals, marginals) > 0.1

    def weighed_in_each_dimension(q, z, log_weights):
        single = DiagonalGaussian(q.loc.unsqueeze(-1), q.log_variance.unsqueeze(-1))
        log_density = single.log_prob(z[:, None, :, None]) + log_weights.unsqueeze(2)
        return torch.logsumexp(log_density.sum(2), 1), torch.logsumexp(log_density, 1)

    wrong, _ = enumerated(stratified_weights, q, z, 3, weighed_in_each_dimension)
    assert relative_error(wrong, joint) > 0.1


def test_estimates_written_out():
    """Every sum and product of the definition, by loops."""
    q, z = posteriors(4, 3)
    log_weights = stratified_weights(z, 10)
    joint, marginals = log_aggregate(q, z, log_weights)
    sigma = q.variance.sqrt()

    def density(i, j, d):
        return torch.exp(-0.5 * ((z[i, d] - q.loc[j, d]) / sigma[j, d]) ** 2) / (
            sigma[j, d] * math.sqrt(2 * math.pi)
        )

    for i in range(4):
        w = log_weights[i].exp()
        p = sum(w[j] * math.prod(density(i, j, d) for d in range(3)) for j in range(4))
        torch.testing.assert_close(joint[i], p.log())
        for d in range(3):
            p = sum(w[j] * density(i, j, d) for j in range(4))
            torch.testing.assert_close(marginals[i, d], p.log())


def test_weighted_sampling_with_the_whole_data_set_is_log_n_below():
    """Its stated offset: weights 1 / N^2 where the aggregate posterior has 1 / N."""
    q, z = posteriors(6, 3)
    joint, marginals = log_aggregate(q, z, weighted_weights(z, 6))
    expected_joint, expected_marginals = exact(q, z)
    torch.testing.assert_close(joint, expected_joint - math.log(6))
    torch.testing.assert_close(marginals, expected_marginals - math.log(6))


# --- The decomposition ------------------------------------------------------------------------------------

MIXING = torch.tensor(
    [[1.0, 0.3, 0.0, -0.2], [0.8, -0.5, 0.4, 0.0], [0.1, 0.9, -0.6, 0.5]], dtype=torch.float64
)
NOISE = torch.tensor([0.6, 0.8, 0.5], dtype=torch.float64)


def linear_model(**options):
    """z|x ~ N(A x, diag s^2) for images of 4 pixels."""
    model = vaezoo.create(
        "beta_tc_vae",
        image_shape=(1, 2, 2),
        latent_dim=3,
        network_options={"hidden": []},
        likelihood="gaussian",
        **options,
    ).double()
    encoder = model.encoder[1]
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([MIXING, torch.zeros(3, 4)]))
        encoder.bias.copy_(torch.cat([torch.zeros(3), 2 * NOISE.log()]))
    return model


def analytic():
    """Mutual information, total correlation and dimension-wise KL for x ~ N(0, I)."""
    covariance = MIXING @ MIXING.T + NOISE.square().diag()
    variances, log_det = covariance.diagonal(), torch.logdet(covariance)
    return {
        "mutual_information": (log_det - NOISE.square().log().sum()).item() / 2,
        "total_correlation": (variances.log().sum() - log_det).item() / 2,
        "dimension_wise_kl": (variances - 1 - variances.log()).sum().item() / 2,
    }


def estimates(size, repeats, **options):
    """Means and standard errors of the three terms, with each data set of `size` images as the minibatch."""
    model, rows = linear_model(**options), []
    for seed in range(repeats):
        noise = torch.Generator().manual_seed(seed)
        x = torch.randn(size, 1, 2, 2, generator=noise, dtype=torch.float64)
        with torch.no_grad():
            terms = losses(model, x, dataset_size=size, seed=seed).terms
        rows.append(torch.stack([terms[name] for name in analytic()]))
    values = torch.stack(rows)
    return values.mean(0), values.std(0) / math.sqrt(repeats)


#: Bound on the bias of each term, in nats times N: some 8 for the mutual information, 5 for the rest.
BIAS = 12


def test_the_terms_converge_to_those_of_a_linear_gaussian_model():
    """Oracle 7. With the N images of the data set as the minibatch, each term is within four standard errors
    and a bias of O(1/N) of its closed form; q(z) looks too large, so that MI is low and TC high."""
    known = analytic()
    assert known["total_correlation"] > 0.2, "a case without correlation would show nothing"
    truth = torch.tensor(list(known.values()), dtype=torch.float64)
    few, few_error = estimates(75, 100)
    many, many_error = estimates(500, 30)
    for size, mean, error in ((75, few, few_error), (500, many, many_error)):
        assert ((mean - truth).abs() < 4 * error + BIAS / size).all(), (size, mean, truth, error)
    # The bias of a small data set is seen beyond doubt, and that of the large one is a fraction of it.
    assert (truth - few)[0] > 8 * few_error[0]
    assert (few - truth)[1] > 5 * few_error[1]
    assert ((many - truth).abs() < 0.3 * (few - truth).abs() + 2 * many_error)[:2].all()


def test_weighted_sampling_converges_up_to_its_offset():
    truth = torch.tensor(list(analytic().values()), dtype=torch.float64)
    offset = math.log(500) * torch.tensor([1.0, 2.0, -3.0])  # of D = 3 dimensions
    many, error = estimates(500, 20, sampling="mws")
    assert ((many - offset - truth).abs() < 4 * error + BIAS / 500).all(), (many, truth, error)


def test_the_three_terms_sum_to_the_rate_in_expectation():
    """True of any weights, so it says nothing of them; it says that no term is left out or counted twice."""
    model = linear_model()
    x = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    differences = []
    for seed in range(200):
        with torch.no_grad():
            terms = losses(model, x, seed=seed).terms
        differences.append(sum(terms[name] for name in analytic()) - terms["rate"])
    differences = torch.stack(differences)
    assert differences.mean().abs() < 4 * differences.std() / math.sqrt(len(differences))


# --- The loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["mss", "mws"])
def test_all_weights_one_is_the_vae(sampling):
    torch.manual_seed(0)
    vae, model = vaezoo.create("vae"), vaezoo.create("beta_tc_vae", beta=1, sampling=sampling)
    model.load_state_dict(vae.state_dict())
    x = testing.images(vae)
    a, b = losses(vae, x), losses(model, x)
    assert torch.equal(a.total, b.total)
    for theirs, ours in zip(
        torch.autograd.grad(a.total, list(vae.parameters())),
        torch.autograd.grad(b.total, list(model.parameters())),
    ):
        assert torch.equal(theirs, ours)


def test_weights_weigh_their_terms():
    model = linear_model(alpha=0.5, beta=4, gamma=2, kl_warmup_steps=100)
    x = torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step, ramp in ((0.0, 0.0), (50.0, 0.5), (500.0, 1.0)):
        loss = losses(model, x, step=step)
        t = loss.terms
        extra = -0.5 * t["mutual_information"] + 3 * t["total_correlation"] + t["dimension_wise_kl"]
        torch.testing.assert_close(loss.total, t["distortion"] + ramp * (t["rate"] + extra))


def test_the_data_set_size_matters_and_minibatches_of_any_size_do():
    model = linear_model()
    x = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    correlations = [losses(model, x, dataset_size=n).terms["total_correlation"].item() for n in (8, 10_000)]
    assert abs(correlations[0] - correlations[1]) > 0.1
    for batch, size in ((1, 1), (1, 1000), (2, 2), (8, 3)):
        loss = losses(model, x[:batch], dataset_size=size)
        assert loss.total.isfinite(), (batch, size)
    single = losses(model, x[:1]).terms  # of one image, q(z) is all that is known: q(z|x) itself
    assert single["mutual_information"].item() == pytest.approx(0, abs=1e-12)


def test_the_penalty_lowers_the_total_correlation():
    """Trained on correlated data, against the VAE, by the exact aggregate posterior of the data."""
    noise = torch.Generator().manual_seed(0)
    factors = torch.randn(512, 2, generator=noise)
    basis = torch.tensor([[1.0, 1.0, 0.5, 0.0], [0.0, 0.5, 1.0, 1.0]])
    x = (factors @ basis + 0.1 * torch.randn(512, 4, generator=noise)).view(-1, 1, 2, 2)
    found = {}
    for beta in (1, 20):
        torch.manual_seed(0)
        model = vaezoo.create(
            "beta_tc_vae",
            image_shape=(1, 2, 2),
            latent_dim=2,
            network_options={"hidden": []},
            likelihood="gaussian",
            likelihood_scale=0.3,
            beta=beta,
        )
        with torch.no_grad():  # a start with codes that are nearly copies
            model.encoder[1].weight[:2] = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.4, 0.5, 0.6, 0.6]])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(300):
            rows = torch.randperm(512, generator=noise)[:128]
            optimizer.zero_grad()
            losses(model, x[rows], dataset_size=512, seed=step).total.backward()
            optimizer.step()
        with torch.no_grad():
            q = model.encode(x)
            z = q.sample(generator=noise)
            joint, marginals = exact(q, z)
        found[beta] = (joint - marginals.sum(1)).mean().item()
    assert found[20] < found[1]
    assert found[20] < 0.1
