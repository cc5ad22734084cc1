from __future__ import annotations

import functools
import json

import pytest
from PIL import Image

import vaezoo
from vaezoo.checkpoint import WEIGHTS, read_header
from vaezoo.comparison import table
from vaezoo.config import split_options
from vaezoo.errors import CheckpointError, VaezooError

OPTIONS = {
    "epochs": 2,
    "batch_size": 256,
    "progress": False,
    "device": "cpu",
    "evaluation": {"n": 40, "samples": 2, "likelihood_n": 20},
    "model_options": {
        "vae": {"latent_dim": 3, "epochs": 1},
        "vq_vae": {
            "codes": 8,
            "code_dim": 4,
            "channels": 8,
            "residual_channels": 4,
            "prior_epochs": 1,
            "prior_width": 8,
            "prior_heads": 2,
            "prior_depth": 1,
        },
    },
}


@pytest.fixture(scope="module")
def data():
    return vaezoo.load_data("digits")


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    return out, vaezoo.compare(["vae", "vq_vae"], data, out, **OPTIONS)


def times(out):
    names = [WEIGHTS, "state.safetensors", "report.json", "compare.json", "samples.png"]
    return {(m, n): (out / m / n).stat().st_mtime_ns for m in ("vae", "vq_vae") for n in names}


def test_what_it_writes(compared):
    out, reports = compared
    assert list(reports) == ["vae", "vq_vae"]
    for name in reports:
        for picture in ("reconstructions", "samples", "traversals", "interpolations"):
            assert Image.open(out / name / f"{picture}.png").size[0] > 100
    summary = json.loads((out / "report.json").read_text())
    assert summary["vae"]["metrics"].keys() == reports["vae"].metrics.keys()
    page = (out / "report.md").read_text()
    assert "# 2 models on digits" in page
    assert "![samples](vq_vae/samples.png)" in page
    for line in page.splitlines():  # every picture that the page shows is there
        if line.startswith("!["):
            assert (out / line.partition("(")[2].rstrip(")")).exists()
    assert Image.open(out / "overview.png").size[0] == int(2 * 2.6 * 110)


def test_options_reach_model_training_and_prior(compared):
    out, _ = compared
    vae, vq = (read_header(out / name / WEIGHTS) for name in ("vae", "vq_vae"))
    assert vae["config"]["latent_dim"] == 3
    assert vae["info"]["train"]["epochs"] == 1
    assert vq["config"]["codes"] == 8
    assert vq["info"]["train"]["epochs"] == 2
    assert vq["info"]["train"]["batch_size"] == 256
    assert vq["prior"]["config"]["width"] == 8
    assert vq["info"]["prior_train"]["epochs"] == 1
    assert vq["info"]["prior_train"]["batch_size"] != 256  # the prior's training has options of its own


def test_what_is_done_is_not_done_again(compared, data):
    out, reports = compared
    before = times(out)
    again = vaezoo.compare(["vae", "vq_vae"], data, out, **OPTIONS)
    assert times(out) == before
    assert {name: report.to_dict() for name, report in again.items()} == {
        name: report.to_dict() for name, report in reports.items()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
        {"seed": 1},
        {"model_options": {"vae": {"latent_dim": 4, "epochs": 1}}},
        {"evaluation": {"n": 30}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_options_in_the_same_folder_are_refused(compared, data, changes):
    out, _ = compared
    before = times(out)
    models = ["vq_vae"] if "epochs" in changes else ["vae"]
    options = {**OPTIONS, "model_options": {m: OPTIONS["model_options"][m] for m in models}, **changes}
    with pytest.raises(CheckpointError, match="holds a run with other options"):
        vaezoo.compare(models, data, out, **options)
    assert times(out) == before


def test_an_interrupted_comparison_is_finished(data, tmp_path, monkeypatch):
    """Stopped in the evaluation of the second model: the first is kept, the second is not trained again."""
    from vaezoo import comparison

    options = {**OPTIONS, "model_options": {}}
    calls = []

    @functools.wraps(vaezoo.evaluate)
    def stops(model, *args, **kwargs):
        calls.append(type(model).__name__)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return vaezoo.evaluate(model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "evaluate", stops)
        with pytest.raises(KeyboardInterrupt):
            vaezoo.compare(["vae", "ae"], data, tmp_path, **options)
    lines = (tmp_path / "ae" / "metrics.jsonl").read_text()
    first = (tmp_path / "vae" / WEIGHTS).stat().st_mtime_ns
    reports = vaezoo.compare(["vae", "ae"], data, tmp_path, **options)
    assert list(reports) == ["vae", "ae"]
    assert (tmp_path / "ae" / "metrics.jsonl").read_text() == lines
    assert (tmp_path / "vae" / WEIGHTS).stat().st_mtime_ns == first
    assert (tmp_path / "ae" / "samples.png").exists()


def test_a_run_of_somebody_else_is_not_touched(data, tmp_path):
    model = vaezoo.create("vae", image_shape=(1, 8, 8))
    vaezoo.save(model, tmp_path / "vae")
    with pytest.raises(CheckpointError, match="holds a run that compare did not make"):
        vaezoo.compare(["vae"], data, tmp_path, **{**OPTIONS, "model_options": {}})


@pytest.mark.parametrize(
    ("models", "changes", "says"),
    [
        (["vae", "vqvae"], {}, "unknown model 'vqvae'; did you mean 'vq_vae'?"),
        ([], {}, "at least one model"),
        (["vae"], {"epoch": 3}, "unknown option of model vae or of training 'epoch'; did you mean 'epochs'?"),
        (["vae"], {"epochs": 0}, "train vae: epochs=0 is not valid"),
        (["ae"], {"prior_components": 0}, "prior 'gaussian_mixture': components=0 is not valid"),
        (["ae"], {"prior_epochs": "x"}, "prior 'gaussian_mixture': epochs='x' is not valid"),
        (["vae"], {"model_options": {"ae": {}}}, "unknown model to compare 'ae'"),
        (["vae"], {"model_options": {"vae": {"latent_dim": 0}}}, "vae: latent_dim=0 is not valid"),
        (["ae", "vq_vae"], {"model_options": {"vq_vae": {"downsample": 16}}}, "multiples of 16, not 8x8"),
        (["vae"], {"evaluation": {"m": 3}}, "unknown option of evaluate 'm'"),
        (["vae"], {"evaluation": {"seed": 3}}, "unknown option of evaluate 'seed'"),
        (["vae"], {"evaluation": {"features": len}}, "features=<built-in function len>"),
    ],
)
def test_mistakes_show_before_anything_is_trained(data, tmp_path, models, changes, says):
    with pytest.raises(VaezooError) as error:
        vaezoo.compare(models, data, tmp_path, **{**OPTIONS, "model_options": {}, **changes})
    assert says in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_split_options():
    kinds = ("model", {"a": 1, "b": 1}), ("training", {"b": 1, "c": 1})
    assert split_options({"a": 1, "b": 2, "c": 3}, *kinds) == [{"a": 1, "b": 2}, {"c": 3}]
    with pytest.raises(VaezooError, match=r"unknown option of model or of training 'd'\. Available: a, b"):
        split_options({"d": 1}, *kinds)


def test_table_marks_what_does_not_apply(compared):
    _, reports = compared
    lines = table(reports).splitlines()
    active = next(line for line in lines if line.startswith("latents/active_units"))
    assert active.split()[-2] == "-" or " - " in active
    assert any("mse ↓" in line for line in lines)
