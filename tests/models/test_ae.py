"""Oracle 3: a linear autoencoder finds PCA's subspace."""

import pytest
import torch

import vaezoo


def test_linear_ae_reaches_the_error_of_pca():
    noise = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 36, generator=noise) * torch.tensor([[3.0], [2.0], [1.0]])
    x = torch.randn(500, 3, generator=noise) @ basis + 0.3 * torch.randn(500, 36, generator=noise)
    x = (x - x.min()) / (x.max() - x.min())
    centred = (x - x.mean(0)).double()
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / len(x))
    pca_error = eigenvalues[:-2].sum() / 36

    torch.manual_seed(0)
    model = vaezoo.create(
        "ae", image_shape=(1, 6, 6), latent_dim=2, network_options={"hidden": []}, likelihood="gaussian"
    ).double()  # in float32 the line search stops where the processor's rounding has it
    images = x.double().view(-1, 1, 6, 6)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = model.losses(images, None)["model"].total
        loss.backward()
        return loss

    optimizer.step(closure)
    error = (model.reconstruct(images) - images).square().mean()
    assert error.item() == pytest.approx(pca_error.item(), rel=0.01)
    assert error >= pca_error * (1 - 1e-4), "no linear map of rank 2 beats PCA"


def test_ae_has_no_rate_and_no_prior_of_its_own():
    model = vaezoo.create("ae")
    assert model.prior is None
    loss = model.losses(torch.rand(4, 1, 28, 28), None)["model"]
    assert set(loss.terms) == {"distortion"}
    assert torch.equal(loss.total, loss.terms["distortion"])


@pytest.mark.slow
def test_on_fashion_mnist_the_trainer_reaches_pca_and_a_nonlinear_ae_beats_it(real_data):
    """PCA with 16 components has a test MSE of .02045, from the eigenvectors of the training images."""
    data = real_data("fashion_mnist")
    train, x = (split.batch(torch.arange(len(split))) for split in (data.train, data.test))
    mean = train.flatten(1).double().mean(0)
    _, vectors = torch.linalg.eigh((train.flatten(1).double() - mean).T.cov())
    centred = x.flatten(1).double() - mean
    pca_error = (centred - centred @ vectors[:, -16:] @ vectors[:, -16:].T).square().mean().item()
    assert pca_error == pytest.approx(0.02045, abs=1e-4)

    errors = {}
    common = {"latent_dim": 16, "likelihood": "gaussian", "likelihood_scale": 0.15}
    for name, hidden, epochs, lr in (("linear", [], 12, 5e-3), ("deep", [512, 256], 2, 1e-3)):
        torch.manual_seed(0)
        model = vaezoo.create("ae", network_options={"hidden": hidden}, **common)
        vaezoo.train(model, data, progress=False, device="cpu", epochs=epochs, lr=lr)
        errors[name] = (model.reconstruct(x) - x).square().mean().item()
    assert errors["linear"] == pytest.approx(pca_error, rel=0.01)
    assert errors["deep"] < pca_error
