from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import vaezoo
from vaezoo.checkpoint import WEIGHTS, read_header, read_tensors
from vaezoo.cli import main, parse, parse_options, parse_value

COMMANDS = [
    "list",
    "info",
    "train",
    "fit-prior",
    "evaluate",
    "sample",
    "traverse",
    "interpolate",
    "export",
    "push",
    "compare",
]
SMALL = ["latent_dim=2", 'network_options={"hidden": [8]}']


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vaezoo", *map(str, arguments)]


def run(*arguments: object) -> int:
    """The exit code, whether the parser or the command gives it."""
    try:
        return main([str(word) for word in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def words(line: str) -> argparse.Namespace:
    return parse(line.split())


def refused(capsys, *arguments: object) -> str:
    """The one line that a wrong command line gets."""
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("vaezoo")
    return err


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """120 images of 8x8 in an npz file."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (120, 8, 8), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def ae(images, tmp_path_factory):
    """A trained autoencoder, without a prior."""
    out = tmp_path_factory.mktemp("runs") / "ae"
    assert run("train", "ae", *SMALL, "--data", images, "--epochs", 1, "--batch-size", 32, "--out", out) == 0
    return out


# --- Help -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_instant_and_imports_no_torch(arguments):
    code = (
        "import sys, time\nfrom vaezoo.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "print('CPU', time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text, _, seconds = done.stdout.rpartition("CPU ")
    assert float(seconds) < 0.5
    assert "usage: vaezoo" in text or "--version" in arguments
    if arguments == ["--help"]:
        assert all(name in text for name in COMMANDS)


def test_list_and_info(capsys):
    assert run("list", "*vq*") == 0
    out = capsys.readouterr().out
    assert "vq_vae2" in out
    assert "beta_vae" not in out
    assert run("info", "beta_vae") == 0
    out = capsys.readouterr().out
    for part in ("Higgins", "beta", "4.0", "≥ 0", "weight of the rate", "its own", "--init fashion_mnist"):
        assert part in out


def test_info_of_a_run(ae, capsys, monkeypatch):
    assert run("info", ae) == 0
    header = json.loads(capsys.readouterr().out)
    assert header["model"] == "ae"
    assert header["config"]["latent_dim"] == 2
    assert header["info"]["train"]["epochs"] == 1
    assert header["info"]["data"]["sizes"]["train"] > 0
    # A folder does not hide the model of its name.
    monkeypatch.chdir(ae.parent)
    assert run("info", "ae") == 0
    assert "Deterministic autoencoder" in capsys.readouterr().out
    assert run("info", "./ae") == 0
    assert json.loads(capsys.readouterr().out) == header


# --- Values and words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("resnet", "resnet"),
        ("1,28,28", [1, 28, 28]),
        ("a,b", ["a", "b"]),
        ("[1, 2]", [1, 2]),
        ('{"hidden": [3]}', {"hidden": [3]}),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_parse_value(text, value):
    assert parse_value(text) == value
    assert parse_options([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize(
    "line",
    [
        "train beta_vae beta=4 clip=1 --data digits --epochs 3",
        "train --data digits --epochs 3 beta_vae beta=4 clip=1",
        "train --data digits beta_vae beta=4 --epochs 3 clip=1",
        "train beta=4 beta_vae clip=1 --epochs 3 --data digits",
    ],
)
def test_words_stand_anywhere_among_the_flags(line):
    args = words(line)
    assert (args.model, args.options, args.data, args.epochs) == (
        "beta_vae",
        ["beta=4", "clip=1"],
        "digits",
        3,
    )


def test_words_of_the_other_commands():
    args = words("compare --data digits ae beta=3 vae --epochs 2 clip=1")
    assert (args.models, args.options) == (["ae", "vae"], ["beta=3", "clip=1"])
    args = words("compare ae --data digits vae")
    assert (args.models, args.options) == (["ae", "vae"], [])
    args = words("evaluate runs/a=b -n 5 data.size=3")
    assert (args.run, args.options) == ("runs/a=b", ["data.size=3"])


# --- Wrong input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "required: command"),
        ("trian vae", "invalid choice: 'trian'"),
        ("list nothing*", "no model matches 'nothing*'. Available: "),
        ("list a b", "list does not know b"),
        ("info vaee", "unknown model 'vaee'; did you mean 'vae'?"),
        ("info runs/nope", "no checkpoint at runs/nope/model.safetensors"),
        ("train", "train needs a model and --data"),
        ("train vae", "train needs a model and --data, or --resume RUN: vaezoo train vae --data digits"),
        ("train vaee --data digits", "unknown model 'vaee'; did you mean 'vae'?"),
        ("train vae bta=4 --data digits", "unknown option of model vae or of training 'bta'"),
        ("train vae beta --data digits", "'beta' is not an option: write key=value"),
        ("train vae =4 --data digits", "'=4' is not an option"),
        ("train vae latent_dim=0 --data digits", "latent_dim=0 is not valid"),
        ("train vae lr=fast --data digits", "lr='fast' is not valid"),
        ("train vae --lr nan --data digits", "lr=nan is not valid"),
        ("train vae --data digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("train vae --data no/such/file.npz", "no/such/file.npz"),
        ("train vae --data digits data.sice=3", "'sice'"),
        ("train vae --data digits data.device=cpu", "'data.device' is not an option of the data"),
        ("train vae --data digits --binarize sometimes", "invalid choice: 'sometimes'"),
        ("train vae --data digits --device cuda:99", "device 'cuda:99' is not to be had here"),
        ("train vae --data digits --device potato", "device 'potato'"),
        ("train vae --data digits --epochs 0", "--epochs: '0' is not a whole number of at least 1"),
        ("train vae --data digits --epochs 1.5", "--epochs: '1.5' is not a whole number of at least 1"),
        ("train vae --data digits --batch-size 0", "--batch-size: '0' is not"),
        ("train vae --data digits --seed -1", "--seed"),
        ("train vae --data digits --epoch 3 --wrong", "does not know --wrong"),
        ("train vae --data digits --beta 4", "written key=value, such as beta=4 (see vaezoo train --help)"),
        ("train --resume no/such/run", "no run in no/such/run"),
        ("train --resume x --lr 3", "'lr' cannot be given"),
        ("train --resume x beta=3", "'beta=3' cannot be given"),
        ("conv_vae", "invalid choice"),
        ("evaluate no/such/run", "no checkpoint at no/such/run/model.safetensors; vaezoo train writes one"),
        ("sample no/such/run", "no checkpoint at no/such/run/model.safetensors"),
        ("sample", "required: run"),
        ("compare ae", "required: --data"),
        ("compare a=3 --data digits", "at least one model"),
        ("compare vae vaee --data digits", "unknown model 'vaee'"),
        ("compare vae --data digits --seeds 0,x", "--seeds: 'x' is not a whole number of at least 0"),
        ("compare vae --data digits --seeds 1,1", "seeds=[1, 1] is not valid"),
        ("compare vae --data digits --baseline ae", "unknown model to compare 'ae'"),
        ("compare vae runs/a", "names of models or folders of runs, not both: 'vae'"),
        ("compare runs/a runs/b --data digits", "'data' cannot be given"),
        ("compare runs/a runs/b beta=3", "'beta=3' cannot be given"),
        ("compare runs/a runs/b", "no checkpoint at runs/a/model.safetensors"),
        ("compare vae out=3 --data digits", "'out' is not a key=value option of compare"),
        ("compare vae ae.latent_dim=3 --data digits", "'ae.latent_dim'"),
        ("compare vae evaluate.m=3 --data digits", "unknown option of evaluate 'm'"),
    ],
)
def test_wrong_input_gets_one_line(line, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *line.split())
    assert list(tmp_path.iterdir()) == [], "a wrong command line left something behind"


def test_a_run_that_is_not_there_is_answered_with_those_that_are(ae, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ae.parent)
    assert "no checkpoint at vae/model.safetensors; runs near it: ae" in refused(capsys, "sample", "vae")
    monkeypatch.chdir(tmp_path)
    assert f"runs near it: {ae}" in refused(capsys, "evaluate", ae.parent / "nothing")
    (tmp_path / "runs").symlink_to(ae.parent)  # where train writes to unless it is told otherwise
    assert "runs near it: runs/ae" in refused(capsys, "export", "ae")


def test_training_says_what_to_do_next(images, tmp_path, capsys):
    for model, then in (("vae", "vaezoo evaluate"), ("ae", "vaezoo fit-prior")):
        out = tmp_path / model
        assert (
            run("train", model, *SMALL, "--data", images, "--epochs", 1, "--batch-size", 32, "--out", out)
            == 0
        )
        assert f"{then} {out}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_data_that_are_not_there_say_how_to_get_them(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VAEZOO_DATA", str(tmp_path))
    said = refused(capsys, "train", "vae", "--data", name)
    assert "pass download=True (on the command line: data.download=true)" in said
    assert said.lower().count("download=true") == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sample RUN", "AE has no prior yet"),
        ("sample RUN -n 0", "-n: '0' is not a whole number of at least 1"),
        ("sample RUN -n -3", "-n: "),
        ("sample RUN a=3", "sample does not know a=3"),
        ("sample RUN --prior flow", "unknown prior of RUN 'flow'. Available: none"),
        ("sample RUN --prior", "--prior: expected one argument"),
        ("sample RUN --top-k 0", "--top-k: '0' is not a whole number of at least 1"),
        ("sample RUN --temperature hot", "--temperature: invalid float value: 'hot'"),
        ("evaluate RUN --prior flow", "fit-prior RUN --prior NAME"),
        ("traverse RUN --prior flow", "traverse does not know --prior"),
        ("evaluate RUN -n 0", "-n: '0' is not"),
        ("evaluate RUN --samples 0", "--samples: '0' is not"),
        ("evaluate RUN beta=3", "'beta' is not an option here: only data.key=value are"),
        ("evaluate RUN data.seed=x", "seed"),
        ("evaluate RUN --data sprites", "AE is made for images of shape (1, 8, 8)"),
        ("evaluate RUN --split tset", "invalid choice: 'tset'"),
        ("evaluate RUN --features pixel", "did you mean 'pixels'"),
        ("traverse RUN --rows 0", "--rows: '0' is not"),
        ("traverse RUN --steps 1", "--steps: '1' is not a whole number of at least 2"),
        ("traverse RUN --data sprites", "AE is made for images of shape (1, 8, 8)"),
        ("interpolate RUN --steps 1", "--steps: '1' is not"),
        ("interpolate RUN --out RUN/model.safetensors/x.png", "could not write"),
        ("interpolate RUN --out x.nothing", "could not write"),
        ("fit-prior RUN --prior nothing", "unknown prior 'nothing'"),
        ("fit-prior RUN --prior transformer", "TransformerPrior is a prior over code grids"),
        ("fit-prior RUN components=0", "components=0 is not valid"),
        ("fit-prior RUN componnts=3", "unknown option of prior gaussian_mixture or of training 'componnts'"),
        ("fit-prior RUN out=3", "'out'"),
        ("fit-prior RUN --data sprites", "AE is made for images of shape (1, 8, 8)"),
        ("train vae --data digits --out RUN/model.safetensors/x", "model.safetensors"),
        ("train vae --data digits --out RUN", "already holds a run"),
        ("train vae --data digits --batch-size 100000 --out x", "batch_size=100000 is more than"),
    ],
)
def test_wrong_input_about_a_run(ae, line, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(ae))
    said = refused(capsys, *(word.replace("RUN", str(ae)) for word in line.split()))
    assert says.replace("RUN", str(ae)) in said
    assert sorted(os.listdir(ae)) == before


def test_damaged_runs(ae, tmp_path, capsys):
    broken = tmp_path / "run"
    broken.mkdir()
    (broken / WEIGHTS).write_bytes((ae / WEIGHTS).read_bytes()[:200])
    assert "damaged" in refused(capsys, "sample", broken)
    assert "damaged" in refused(capsys, "info", broken)
    for text in ("", "{}", "[1]", '{"info": {"data": 3, "train": 3}, "model": "vae", "config": {}}'):
        (broken / "run.json").write_text(text)
        assert "run.json is damaged" in refused(capsys, "train", "--resume", broken)


def test_no_traceback_from_the_installed_command(tmp_path):
    done = subprocess.run(
        command("train", "vea", "--data", "digits"), capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vaezoo train: unknown model 'vea'; did you mean 'vae'?")


# --- The pipeline ---------------------------------------------------------------------------------------


def test_pipeline(images, tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        run(
            "train",
            "ae",
            *SMALL,
            "lr=0.01",
            "--data",
            images,
            "--epochs",
            2,
            "--batch-size",
            32,
            "--out",
            out,
        )
        == 0
    )
    said = capsys.readouterr().out
    assert f"written to {out}" in said
    assert f"vaezoo fit-prior {out}" in said
    assert read_header(out / WEIGHTS)["info"]["train"]["lr"] == 0.01

    assert run("fit-prior", out, "components=2") == 0
    header = read_header(out / WEIGHTS)
    assert header["prior"]["config"]["components"] == 2
    assert header["info"]["train"]["epochs"] == 2  # what was known before is kept

    capsys.readouterr()
    assert run("evaluate", out, "-n", 10, "--samples", 2, "--features", "mnist") == 0
    assert "reconstruction/mse" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["header"]["split"] == "test"
    assert report["header"]["features"]["name"] == "mnist"
    assert (out / "report.md").read_text().startswith("# ae on")
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(out.glob("*.png"))) == 6

    for line, size in (
        (["sample", out, "-n", 15], (502, 102)),
        (["traverse", out, "--rows", 2, "--steps", 5], (252, 102)),
        (["interpolate", out, "--rows", 3, "--steps", 4, "--spherical"], (202, 152)),
    ):
        capsys.readouterr()
        assert run(*line) == 0
        path = capsys.readouterr().out.strip()
        assert path.startswith(str(out))
        assert Image.open(path).size == size
    assert run("sample", out / WEIGHTS, "-n", 1, "--out", tmp_path / "one.png") == 0
    assert Image.open(tmp_path / "one.png").format == "PNG"


def test_priors_of_one_model(images, tmp_path, capsys):
    """Fit two, evaluate all three, compare; the model's own prior is one of them."""
    out = tmp_path / "run"
    line = ["train", "vae", *SMALL, "--data", images, "--epochs", 1, "--batch-size", 32, "--out", out]
    assert run(*line) == 0
    assert run("fit-prior", out, "components=2") == 0
    assert "it is still there as --prior gaussian_mixture" in capsys.readouterr().out
    flow = ["layers=1", "hidden=4", "--epochs", 1, "--batch-size", 32]
    assert run("fit-prior", out, "--prior", "flow", *flow) == 0
    assert read_header(out / WEIGHTS)["prior"]["name"] == "flow"

    capsys.readouterr()
    assert run("info", out) == 0
    names = ["flow", "gaussian_mixture", "standard_normal"]
    assert json.loads(capsys.readouterr().out)["priors"] == dict.fromkeys(names, "ready")

    for name in names:
        quick = ["-n", 10, "--samples", 2, "--features", "pixels"]
        assert run("evaluate", out, "--prior", name, *quick) == 0
        assert f"{out}/priors/{name}/report.html" in capsys.readouterr().out
        report = json.loads((out / "priors" / name / "report.json").read_text())
        assert report["header"]["model"]["prior"]["name"] == name
        title = (out / "priors" / name / "report.md").read_text().splitlines()[0]
        assert title.endswith(f"(test), prior {name}")
        assert (out / "priors" / name / "samples.png").exists()
    assert not (out / "report.json").exists()

    folders = [out / "priors" / name for name in names]
    assert run("compare", *folders, "--out", tmp_path / "compared") == 0
    said = capsys.readouterr().out
    head = next(line for line in said.splitlines() if line.startswith("metric"))
    assert head.split() == ["metric", *(f"{w}" for n in names for w in ("vae", f"prior={n}")), "unit"]
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    rows = {row["metric"]: row["cells"] for row in found["rows"]}
    assert len({cell["mean"] for cell in rows["reconstruction/mse"].values()}) == 1
    assert len({cell["mean"] for cell in rows["likelihood/rate"].values()}) == 3

    pictures = []
    for options in ([], ["--prior", "standard_normal"], ["--prior", "standard_normal", "--temperature", 0.1]):
        assert run("sample", out, "-n", 4, *options) == 0
        path = capsys.readouterr().out.strip()
        assert path.startswith(str(out / "priors" / "standard_normal") if options else str(out))
        pictures.append(Image.open(path).tobytes())
    assert len(set(pictures)) == 3
    assert "unknown option of sampling from FlowPrior 'top_k'" in refused(capsys, "sample", out, "--top-k", 3)
    assert "'labels'" in refused(capsys, "sample", out, "--label", 3)
    assert "temperature=0.0 is not valid" in refused(capsys, "sample", out, "--temperature", 0)
    assert "did you mean 'flow'?" in refused(capsys, "sample", out, "--prior", "flwo")

    # Trained further, the model has lost them, and says so.
    assert run("train", "--resume", out, "--epochs", 3) == 0
    assert "belongs to other weights" in refused(capsys, "evaluate", out, "--prior", "flow")
    assert "belongs to other weights" in refused(capsys, "compare", *folders)
    assert run("info", out) == 0
    said = json.loads(capsys.readouterr().out)["priors"]
    assert "belongs to other weights" in said["flow"]
    assert said["standard_normal"] == "ready"


def test_a_prior_with_classes(tmp_path, capsys):
    out = tmp_path / "run"
    codes = ["codes=8", "code_dim=4", "channels=4", "residual_channels=2", "--epochs", 1]
    assert run("train", "vq_vae", *codes, "--data", "digits", "--out", out) == 0
    fit = ["fit-prior", out, "--prior", "pixelcnn", "width=8", "layers=1", "epochs=1"]
    assert "labels are 0 to 8, but those of digits go from 0 to 9" in refused(capsys, *fit, "classes=9")
    assert run(*fit, "classes=10") == 0
    header = read_header(out / "priors" / "pixelcnn.safetensors")
    assert header["prior"]["config"]["classes"] == 10
    assert header["info"]["prior_train"]["epochs"] == 1
    assert run("sample", out, "-n", 2, "--label", 3, "--guidance", 2, "--top-k", 4, "--top-p", 0.9) == 0
    assert "label 10 is not one of the 10 classes" in refused(capsys, "sample", out, "--label", 10)


def test_sampling_flags_reach_the_prior(ae, monkeypatch, capsys, tmp_path):
    import torch

    from vaezoo.priors.gaussian_mixture import GaussianMixture

    seen = {}

    def sample(self, n, generator, temperature=1.0, labels=None, guidance=1.0, top_k=None, top_p=None):
        seen.update(temperature=temperature, labels=labels, guidance=guidance, top_k=top_k, top_p=top_p)
        return torch.zeros(n, 2)

    model = vaezoo.load(ae)
    vaezoo.fit_prior(model, torch.rand(60, 1, 8, 8), components=2, device="cpu")
    vaezoo.save(model, tmp_path)
    monkeypatch.setattr(GaussianMixture, "sample", sample)
    flags = "--label 3 --temperature 0.5 --guidance 2 --top-k 7 --top-p 0.9"
    assert run("sample", tmp_path, "-n", 2, *flags.split()) == 0
    assert seen == {"labels": 3, "temperature": 0.5, "guidance": 2.0, "top_k": 7, "top_p": 0.9}
    assert run("sample", tmp_path, "-n", 2) == 0
    assert seen == {"labels": None, "temperature": 1.0, "guidance": 1.0, "top_k": None, "top_p": None}


def test_the_same_command_gives_the_same_weights(ae, images, tmp_path):
    arguments = ["train", "ae", *SMALL, "--data", images, "--epochs", 1, "--batch-size", 32]
    assert run(*arguments, "--out", tmp_path / "a") == 0
    assert run(*arguments, "--out", tmp_path / "b", "--seed", 1) == 0
    first, same, other = (read_tensors(path / WEIGHTS) for path in (ae, tmp_path / "a", tmp_path / "b"))
    assert all(first[name].equal(same[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


def test_the_default_folder_has_the_name_of_the_file(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "ae", *SMALL, "--data", images, "--epochs", 1, "--batch-size", 32) == 0
    assert (tmp_path / "runs" / "ae-tiny" / WEIGHTS).exists()


def test_data_options_and_binarisation(tmp_path):
    out = tmp_path / "run"
    arguments = [
        "train",
        "vae",
        *SMALL,
        "--data",
        "digits",
        "--binarize",
        "static",
        "--epochs",
        1,
        "data.seed=3",
    ]
    assert run(*arguments, "--out", out) == 0
    data = read_header(out / WEIGHTS)["info"]["data"]
    assert (data["binarize"], data["seed"]) == ("static", 3)
    assert run("evaluate", out, "-n", 20, "--samples", 1) == 0
    again = json.loads((out / "report.json").read_text())["header"]["data"]
    assert (again["binarize"], again["seed"], again["fingerprint"]) == ("static", 3, data["fingerprint"])


def test_a_run_on_images_in_memory_needs_data(tmp_path, capsys):
    import torch

    x = torch.rand(60, 1, 8, 8)
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=2)
    vaezoo.train(model, x, out=tmp_path / "run", epochs=1, batch_size=8, device="cpu", progress=False)
    assert "name the data with --data" in refused(capsys, "evaluate", tmp_path / "run")


def test_compare(images, tmp_path, capsys):
    out = tmp_path / "compare"
    line = ["compare", "ae", "vae", "latent_dim=2", "vae.kl_warmup_steps=2", "batch_size=32", "evaluate.n=10"]
    line += ["evaluate.samples=2", "--data", images, "--epochs", 1, "--out", out]
    assert run(*line) == 0
    said = capsys.readouterr().out
    assert "reconstruction/mse" in said
    assert f"{out}/report.md" in said
    assert read_header(out / "vae" / WEIGHTS)["config"]["kl_warmup_steps"] == 2
    assert set(json.loads((out / "report.json").read_text())) == {"ae", "vae"}
    # The same once more, from what is there.
    again = tmp_path / "again"
    assert run("compare", out / "vae", out / "ae", "--baseline", "ae", "--out", again) == 0
    said = capsys.readouterr().out
    assert "Beside the baseline, ae" in said
    assert f"{again}/report.html" in said
    assert json.loads((again / "comparison.json").read_text())["baseline"] == "ae"


def test_compare_over_seeds(images, tmp_path, capsys):
    out = tmp_path / "compare"
    line = ["compare", "vae", *SMALL, "batch_size=32", "evaluate.n=10", "evaluate.samples=2"]
    assert run(*line, "--data", images, "--epochs", 1, "--seeds", "0,3", "--out", out) == 0
    assert "vae (2 seeds)" in capsys.readouterr().out
    assert read_header(out / "vae-seed3" / WEIGHTS)["info"]["train"]["seed"] == 3


# --- Ctrl-C ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_is_resumed_to_the_same_weights(number, code, images, tmp_path):
    arguments = [
        "train",
        "vae",
        *SMALL,
        "--data",
        images,
        "--epochs",
        "300",
        "--batch-size",
        "32",
        "--device",
        "cpu",
    ]
    arguments = list(map(str, arguments))
    process = subprocess.Popen(
        command(*arguments, "log_steps=5", "--out", tmp_path / "stopped"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size > 1000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    message = err.strip().splitlines()[-1]
    assert "stopped after step" in message
    assert f"vaezoo train --resume {tmp_path / 'stopped'}" in message
    assert "Traceback" not in err
    step = read_header(tmp_path / "stopped" / "state.safetensors")["step"]
    assert 0 < step < 900

    assert run("train", "--resume", tmp_path / "stopped", "--device", "cpu") == 0
    assert run(*arguments, "log_steps=5", "--out", tmp_path / "whole") == 0
    for name in (WEIGHTS, "state.safetensors"):
        stopped, whole = (read_tensors(tmp_path / folder / name) for folder in ("stopped", "whole"))
        assert stopped.keys() == whole.keys()
        assert all(stopped[key].equal(whole[key]) for key in whole), name
    lines = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("stopped", "whole")]
    assert lines[0] == lines[1]


def test_watched_training_writes_pictures_and_the_same_weights(ae, images, tmp_path):
    """As the fixture `ae`, with callbacks, and then on."""
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    options = [*SMALL, "--data", images, "--batch-size", 32, "--out", out]
    watch = ["--tensorboard", "--pictures", 2]
    assert run("train", "ae", *options, "--epochs", 1, *watch) == 0
    a, b = (read_tensors(folder / WEIGHTS) for folder in (ae, out))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert not (out / "pictures").exists()
    assert run("train", "--resume", out, "--epochs", 2, *watch) == 0
    assert [path.name for path in (out / "pictures").iterdir()] == ["reconstructions_0002.png"]
    assert len(list((out / "tensorboard").iterdir())) == 2


def test_export_and_push(ae, tmp_path, capsys):
    assert run("export", ae, "--format", "torch", "--out", tmp_path / "programs") == 0
    files = capsys.readouterr().out.split()
    assert files == [str(tmp_path / "programs" / f"{part}.pt2") for part in ("encoder", "decoder")]
    x = torch.rand(3, 1, 8, 8)
    encoder, decoder = (torch.export.load(file).module() for file in files)
    torch.testing.assert_close(decoder(encoder(x)), vaezoo.load(ae).reconstruct(x))
    assert run("push", ae, tmp_path / "shared") == 0
    assert capsys.readouterr().out == f"to load it: vaezoo.load('{tmp_path / 'shared'}')\n"
    assert vaezoo.load(tmp_path / "shared").config == vaezoo.load(ae).config
    assert "is there already and not empty" in refused(capsys, "push", ae, tmp_path / "shared")
    assert "is not an address on the Hugging Face hub" in refused(capsys, "push", ae, "hf://name")
    assert "get it into a folder first" in refused(capsys, "evaluate", "hf://user/name")
