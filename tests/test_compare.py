from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import replace

import pytest
from PIL import Image

import vaezoo
from vaezoo.checkpoint import WEIGHTS, prior_folder, read_header
from vaezoo.comparison import compare_runs, table
from vaezoo.config import split_options
from vaezoo.errors import CheckpointError, VaezooError
from vaezoo.evaluation.side_by_side import side_by_side

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
        for picture in ("reconstructions", "samples", "nearest", "traversals", "interpolations"):
            assert Image.open(out / name / f"{picture}.png").size[0] > 100
        assert (out / name / "report.html").exists()
    summary = json.loads((out / "report.json").read_text())
    assert summary["vae"]["metrics"].keys() == reports["vae"][0].metrics.keys()
    rows = json.loads((out / "comparison.json").read_text())["rows"]
    assert [row["metric"] for row in rows] == [row.metric for row in side_by_side(reports).rows]
    assert 'href="vq_vae/report.html"' in (out / "report.html").read_text()
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
    assert again == reports


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
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
        (["vae"], {"baseline": "ae"}, "unknown model to compare 'ae'"),
        (["vae"], {"seeds": []}, "seeds=[] is not valid"),
        (["vae"], {"seeds": [1, 1]}, "seeds=[1, 1] is not valid"),
        (["vae"], {"seeds": [-1]}, "seeds=[-1] is not valid"),
        (["vae"], {"seed": 1}, "such as seeds=[0, 1]"),
        (["vae"], {"model_options": {"vae": {"seed": 1}}}, "such as seeds=[0, 1]"),
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
    assert lines[-1].startswith("Value ± standard error of one run. *: the best mean; ≈: within noise of it")


# --- Seeds and finished runs ----------------------------------------------------------------------------


SHORT = {**OPTIONS, "model_options": {}, "epochs": 1, "network_options": {"hidden": [8]}}


@pytest.fixture(scope="module")
def seeds(data, tmp_path_factory):
    """A VAE and a beta-VAE, two seeds each; the seed of the second call is added to that of the first."""
    out = tmp_path_factory.mktemp("seeds")
    names = ["vae", "beta_vae"]
    vaezoo.compare(names, data, out, **SHORT)
    before = (out / "vae" / WEIGHTS).stat().st_mtime_ns
    reports = vaezoo.compare(names, data, out, seeds=[0, 1], **SHORT)
    assert (out / "vae" / WEIGHTS).stat().st_mtime_ns == before
    return out, reports


def test_every_seed_is_a_run_of_its_own(seeds):
    out, reports = seeds
    for name in ("vae", "beta_vae"):
        assert [report.header["seed"] for report in reports[name]] == [0, 1]
        trained = [read_header(out / folder / WEIGHTS)["info"] for folder in (name, f"{name}-seed1")]
        assert [info["train"]["seed"] for info in trained] == [0, 1]
        assert trained[0]["data"] == trained[1]["data"]
        values = [report["reconstruction/mse"].value for report in reports[name]]
        assert values[0] != values[1]
    text = table(reports)
    assert "vae (2 seeds)" in text
    mse = next(row for row in side_by_side(reports).rows if row.metric == "reconstruction/mse")
    assert str(mse.cells["vae"].sample) in text
    content = json.loads((out / "comparison.json").read_text())
    assert content["seeds"] == {"vae": 2, "beta_vae": 2}
    assert set(json.loads((out / "report.json").read_text())) == {
        "vae",
        "beta_vae",
        "vae-seed1",
        "beta_vae-seed1",
    }
    page = (out / "report.md").read_text()
    for line in page.splitlines():
        if line.startswith("!["):
            assert (out / line.partition("(")[2].rstrip(")")).exists()


def test_finished_runs_are_grouped_by_all_but_their_seed(seeds, tmp_path):
    out, reports = seeds
    runs = [out / name for name in ("vae-seed1", "beta_vae", "vae", "beta_vae-seed1")]
    found = compare_runs(runs, tmp_path)
    assert found == {"vae": reports["vae"][::-1], "beta_vae": reports["beta_vae"]}
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "comparison.json",
    }
    for target in re.findall(r'<a href="([^"]+)"', (tmp_path / "report.html").read_text()):
        assert (tmp_path / target).exists()


def test_models_of_one_name_are_told_apart_by_what_differs(data, seeds, tmp_path):
    out, _ = seeds
    vaezoo.compare(["vae"], data, tmp_path, latent_dim=3, **SHORT)
    found = compare_runs([out / "vae", tmp_path / "vae", out / "vae-seed1"])
    assert {name: len(group) for name, group in found.items()} == {
        "vae latent_dim=20": 2,
        "vae latent_dim=3": 1,
    }


def test_priors_of_one_model_are_told_apart_by_their_names(data, tmp_path):
    """And by their options only among those of one name; a report tells which prior it is about."""
    options = {"device": "cpu", "progress": False, "epochs": 1, "batch_size": 256}
    model = vaezoo.create("vae", image_shape=data.image_shape, latent_dim=2, network_options={"hidden": [8]})
    runs = []
    for run, seed in (("a", 0), ("b", 1)):
        vaezoo.train(model, data, out=tmp_path / run, seed=seed, **options)
        for prior, size in (("gaussian_mixture", {"components": 2 + seed}), ("flow", {"layers": 1})):
            fit = {**options, **size, "hidden": 4} if prior == "flow" else size
            vaezoo.fit_prior(model, data, prior, out=tmp_path / run, seed=seed, **{"device": "cpu", **fit})
            runs.append(prior_folder(tmp_path / run, prior))
            runs[-1].mkdir(exist_ok=True)
            report = vaezoo.evaluate(model, data, n=20, samples=2, axes=["likelihood"], features="pixels")
            report.save(runs[-1] / "report.json")
    found = compare_runs(runs)
    assert {name: len(group) for name, group in found.items()} == {
        "vae prior=gaussian_mixture prior_components=2": 1,
        "vae prior=gaussian_mixture prior_components=3": 1,
        "vae prior=flow": 2,
    }
    # The run itself has the flow; a report of the mixture is not one of it.
    shutil.copy(runs[0] / "report.json", tmp_path / "a")
    with pytest.raises(VaezooError, match=r"a/report\.json was measured with another prior than the run has"):
        compare_runs([tmp_path / "a", runs[2]])
    shutil.copy(runs[1] / "report.json", tmp_path / "a")
    with pytest.raises(VaezooError, match="are the same model with the same seed, 0"):
        compare_runs([tmp_path / "a", runs[1]])
    shutil.copy(runs[2] / "report.json", runs[0])
    with pytest.raises(VaezooError, match=r"another prior.*vaezoo evaluate .*/a --prior gaussian_mixture"):
        compare_runs(runs[:2])
    (runs[0] / "report.json").unlink()
    with pytest.raises(
        VaezooError, match=r"is not evaluated yet: vaezoo evaluate .*/a --prior gaussian_mixture"
    ):
        compare_runs(runs[:2])
    with pytest.raises(
        CheckpointError, match=r"unknown prior of .*'vamp'\. Available: flow, gaussian_mixture"
    ):
        compare_runs([tmp_path / "a" / "priors" / "vamp"])


def test_runs_that_cannot_be_compared(data, seeds, tmp_path):
    out, reports = seeds
    with pytest.raises(VaezooError, match="at least one run"):
        compare_runs([])
    with pytest.raises(VaezooError, match="the same model with the same seed, 0"):
        compare_runs([out / "vae", out / "vae"])
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        compare_runs([tmp_path / "nothing"])
    vaezoo.save(vaezoo.load(out / "vae"), tmp_path / "plain")
    with pytest.raises(VaezooError, match="is not evaluated yet: vaezoo evaluate"):
        compare_runs([tmp_path / "plain"])
    header = {**reports["vae"][0].header, "split": "validation"}
    replace(reports["vae"][0], header=header).save(tmp_path / "plain" / "report.json")
    with pytest.raises(VaezooError, match="cannot be compared: split is 'test' and 'validation'"):
        compare_runs([out / "beta_vae", tmp_path / "plain"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(VaezooError, match="unknown baseline 'ae'"):
        compare_runs([out / "beta_vae"], baseline="ae")
