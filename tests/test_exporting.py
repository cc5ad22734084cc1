"""Exported programs give what the model gives, for batches of other sizes than the traced one."""

import importlib.util

import pytest
import torch
from torch import nn

import vaezoo
import vaezoo.testing
from vaezoo import exporting
from vaezoo.errors import VaezooError
from vaezoo.random import seeded

MODELS = pytest.mark.parametrize("name", vaezoo.list_models())

#: The last is more than one block of vectors to a codebook, at 49 positions an image.
BATCHES = (1, 5, 200)


def make(name, **options):
    with seeded(0, "cpu"):
        return vaezoo.create(name, **options).eval()


def expected(model, x):
    """The encoder's outputs, level by level, and the decoder's at them."""
    with torch.no_grad():
        q = model.encode(x)
        z = q.mean if model.latent.codes is None else q.draw()
        return vaezoo.testing.levels(z), model.decode(z).mean


@MODELS
def test_torch_programs_give_what_the_model_gives(name, tmp_path):
    model = make(name)
    files = vaezoo.export(model, tmp_path, "torch")
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
    encoder, decoder = (torch.export.load(files[part]).module() for part in ("encoder", "decoder"))
    for batch in BATCHES:
        x = vaezoo.testing.images(model, batch)
        z, mean = expected(model, x)
        for got, wanted in zip(vaezoo.testing.levels(encoder(x)), z, strict=True):
            torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(decoder(*z), mean)


@MODELS
def test_onnx_programs_give_what_the_model_gives(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = make(name)
    files = vaezoo.export(model, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(files.values())  # no weights beside them
    encoder, decoder = (runtime.InferenceSession(files[part]) for part in ("encoder", "decoder"))
    inputs = [i.name for i in decoder.get_inputs()]
    assert [i.name for i in encoder.get_inputs()] == ["x"] == [o.name for o in decoder.get_outputs()]
    assert [o.name for o in encoder.get_outputs()] == inputs
    for batch in BATCHES:
        x = vaezoo.testing.images(model, batch)
        z, mean = expected(model, x)
        for got, wanted in zip(encoder.run(None, {"x": x.numpy()}), z, strict=True):
            if wanted.is_floating_point():
                torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)
            else:  # two codes may be as near as rounding goes
                assert (torch.from_numpy(got) == wanted).float().mean() > 0.99
        (got,) = decoder.run(None, dict(zip(inputs, (level.numpy() for level in z), strict=True)))
        torch.testing.assert_close(torch.from_numpy(got), mean, rtol=1e-4, atol=1e-5)


def test_a_program_holds_only_the_numbers_that_it_reads(tmp_path):
    model = make("vae", image_shape=(1, 8, 8), latent_dim=2, prior="vamp", components=9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = vaezoo.export(model, tmp_path, "torch")
    held = {
        part: {name for name, tensor in torch.export.load(file).state_dict.items() if tensor.numel()}
        for part, file in files.items()
    }
    assert held["encoder"].isdisjoint(held["decoder"])
    own = {f"model.{name}" for name in before}
    assert held["encoder"] | held["decoder"] == {name for name in own if not name.startswith("model.prior.")}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"export changed '{name}'"


def test_the_mode_of_the_model_stays(tmp_path):
    model = make("vae", image_shape=(1, 8, 8), network_options={"hidden": [8]}).train()
    vaezoo.export(model, tmp_path, "torch")
    assert all(part.training for part in model.modules())


class Branching(nn.Module):
    """A decoder that reads a value on its way, which no program can."""

    def forward(self, z):
        return z.new_zeros(len(z), 1, 8, 8) + (1 if z.sum() > 0 else 2)


def test_mistakes_have_names(tmp_path, monkeypatch):
    model = make("vae", image_shape=(1, 8, 8), latent_dim=2, network_options={"hidden": [8]})
    with pytest.raises(VaezooError, match="format='pt' is not valid, it must be one of torch, onnx"):
        vaezoo.export(model, tmp_path, "pt")
    with pytest.raises(VaezooError, match=r"takes a model, such as vaezoo.create\('vae'\), not 'vae'"):
        vaezoo.export("vae", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(VaezooError, match=r"pip install 'vaezoo\[export\]'"):
            vaezoo.export(model, tmp_path)
    model = make("vae", image_shape=(1, 8, 8), latent_dim=2, decoder=Branching())
    with pytest.raises(VaezooError, match=f"the decoder of {type(model).__name__} cannot be exported: "):
        vaezoo.export(model, tmp_path, "torch")
    assert not list(tmp_path.iterdir())
    assert set(exporting.SUFFIXES) == {"torch", "onnx"}
