from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import vaezoo
from vaezoo.errors import VaezooError, unknown
from vaezoo.networks import NETWORKS, Network
from vaezoo.registry import MODELS, Registry
from vaezoo.trainer import recipe

PLUGIN = Path(__file__).parent / "plugin"


# --- Names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "guess"),
    [("beta_va", "beta_vae"), ("VQ-VAE", "vq_vae"), ("conv_vea", "conv_vae"), ("zzz", None)],
)
def test_unknown_model_names_the_closest_and_all(name, guess):
    with pytest.raises(VaezooError, match=f"unknown model '{name}'") as error:
        vaezoo.create(name)
    text = str(error.value)
    assert ("did you mean" in text) == (guess is not None)
    if guess:
        assert f"did you mean '{guess}'?" in text
    assert "Available: " + ", ".join(vaezoo.list_models()) in text


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("beta_vae", {"bta": 4}, "unknown option of beta_vae 'bta'; did you mean 'beta'?"),
        ("vae", {"beta": 4}, "unknown option of vae 'beta'"),
        ("vae", {"network": "resnt"}, "unknown network 'resnt'; did you mean 'resnet'?"),
        ("vae", {"likelihood": "gausian"}, "unknown likelihood 'gausian'; did you mean 'gaussian'?"),
        ("vq_vae", {"likelihood": "normal"}, "unknown likelihood 'normal'"),
        (
            "vae",
            {"network_options": {"hiden": [3]}},
            "unknown option of network 'mlp' 'hiden'; did you mean 'hidden'?",
        ),
        ("vae", {"network_options": {"hidden": [0]}}, "network 'mlp': hidden[0]=0 is not valid"),
        ("vae", {"network_options": {"hidden": "x"}}, "network 'mlp': hidden='x' is not valid"),
        ("conv_vae", {"network_options": {"channels": []}}, "network 'conv': channels=() is not valid"),
        (
            "beta_vae",
            {"beta": -1},
            "beta_vae: beta=-1 is not valid: Input should be greater than or equal to 0",
        ),
        ("beta_vae", {"beta": float("nan")}, "beta_vae: beta=nan is not valid"),
        ("beta_vae", {"beta": float("inf")}, "beta_vae: beta=inf is not valid"),
        ("vae", {"latent_dim": 0}, "vae: latent_dim=0 is not valid"),
        ("vae", {"latent_dim": "x"}, "vae: latent_dim='x' is not valid"),
        ("vae", {"latent_dim": 2.5}, "vae: latent_dim=2.5 is not valid"),
        ("vae", {"latent_dim": None}, "vae: latent_dim=None is not valid"),
        ("vae", {"image_shape": (28, 28)}, "vae: image_shape[2] is missing"),
        ("vae", {"image_shape": (1, 0, 28)}, "vae: image_shape[1]=0 is not valid"),
        ("vq_vae", {"decay": 1.0}, "vq_vae: decay=1.0 is not valid"),
    ],
)
def test_wrong_options_are_refused_at_create(name, options, says):
    with pytest.raises(VaezooError) as error:
        vaezoo.create(name, **options)
    text = str(error.value)
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("conv_vae", {"image_shape": (1, 30, 32)}, "multiples of 4, not 30x32"),
        ("vae", {"network": "resnet", "image_shape": (1, 30, 30)}, "multiples of 4, not 30x30"),
        (
            "vae",
            {"network": "resnet", "image_shape": (1, 28, 28), "network_options": {"channels": [8] * 4}},
            "multiples of 8, not 28x28",
        ),
        ("vq_vae", {"image_shape": (3, 32, 30)}, "multiples of 4, not 32x30"),
        ("vq_vae", {"downsample": 8}, "multiples of 8, not 28x28"),
        ("vq_vae", {"downsample": 3, "image_shape": (1, 27, 27)}, "it must be a power of 2"),
        ("vq_vae2", {"image_shape": (1, 30, 30)}, "multiples of 4, not 30x30"),
        ("vq_vae2", {"levels": 4}, "multiples of 16, not 28x28"),
    ],
)
def test_image_sizes_that_cannot_be_halved(name, options, says):
    with pytest.raises(VaezooError, match=re.escape(says)):
        vaezoo.create(name, **options)


def test_priors_and_data_sets_are_guessed_too():
    model = vaezoo.create("vae", image_shape=(1, 8, 8))
    with pytest.raises(VaezooError, match="did you mean 'gaussian_mixture'"):
        vaezoo.fit_prior(model, torch.zeros(20, 1, 8, 8), "gausian_mixture")
    with pytest.raises(VaezooError, match="did you mean 'fashion_mnist'"):
        vaezoo.load_data("fashionmnist")


def test_unknown_without_anything_known():
    assert unknown("thing", "x", []) == "unknown thing 'x'. Available: none"


def test_list_models_by_pattern():
    assert vaezoo.list_models("*vq*") == ["vq_vae", "vq_vae2"]
    assert vaezoo.list_models("?ae") == ["vae"]
    assert vaezoo.list_models("nothing*") == []
    builtin = {"ae", "beta_tc_vae", "beta_vae", "conv_vae", "factor_vae", "vae", "vq_vae", "vq_vae2"}
    assert builtin <= set(vaezoo.list_models())
    assert vaezoo.list_models() == sorted(vaezoo.list_models())


@pytest.mark.parametrize("name", vaezoo.list_models())
def test_describe(name):
    about = vaezoo.describe(name)
    assert about["name"] == name
    assert about["paper"]
    assert about["summary"].endswith(".")
    options = {row["name"]: row for row in about["options"]}
    assert set(options) == set(type(vaezoo.create(name).config).model_fields)
    assert all(row["meaning"] and row["type"] and row["default"] for row in options.values())


def test_describe_shows_types_limits_and_priors():
    options = {row["name"]: row for row in vaezoo.describe("beta_vae")["options"]}
    assert options["beta"]["type"] == "float"
    assert options["beta"]["default"] == "4.0"
    assert options["beta"]["limits"] == "≥ 0"
    assert options["image_shape"]["type"] == "tuple[int, int, int]"
    assert vaezoo.describe("vq_vae")["prior"] == "transformer"
    assert vaezoo.describe("vae")["prior"] == "its own"
    with pytest.raises(VaezooError, match="did you mean 'vae'"):
        vaezoo.describe("vaee")


# --- Registering ----------------------------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch):
    """Registrations of a test end with it."""
    for table in (MODELS._table, NETWORKS._table):
        for key in (before := dict(table)):
            monkeypatch.setitem(table, key, before[key])
    known = [(table, set(table)) for table in (MODELS._table, NETWORKS._table)]
    yield
    for table, keys in known:
        for key in set(table) - keys:
            del table[key]


def make_class():
    from vaezoo.models.vae import VAE

    class Mine(VAE):
        """Mine."""

    return Mine


@pytest.mark.usefixtures("clean")
def test_register(tmp_path):
    mine = make_class()
    with pytest.raises(VaezooError, match=r"Mine is not registered; call vaezoo.register\('a_name', Mine\)"):
        vaezoo.save(mine(mine.Config()), tmp_path)
    mine.recipes = {"*": {"lr": 0.1}, "digits": {"epochs": 3}}
    vaezoo.register("mine", mine)
    vaezoo.register("mine", mine)  # again the same: nothing happens
    assert type(vaezoo.create("mine", latent_dim=3)) is mine
    assert "mine" in vaezoo.list_models()
    assert recipe(mine, "digits") == {"lr": 0.1, "epochs": 3}
    assert vaezoo.describe("mine")["recipes"] == {"*": {"lr": 0.1}, "digits": {"epochs": 3}}
    assert type(vaezoo.load(vaezoo.save(mine(mine.Config()), tmp_path))) is mine


@pytest.mark.usefixtures("clean")
def test_register_refuses():
    with pytest.raises(VaezooError, match="model 'vae' is already registered; choose another name"):
        vaezoo.register("vae", make_class())
    vaezoo.register("mine", make_class())
    with pytest.raises(VaezooError, match="already registered"):
        vaezoo.register("mine", make_class())
    with pytest.raises(VaezooError, match="'my-vae' is not an identifier"):
        vaezoo.register("my-vae", make_class())
    with pytest.raises(
        VaezooError, match=r"'func' cannot be registered: .* is not a subclass of vaezoo.Autoenc"
    ):
        vaezoo.register("func", lambda: None)


@pytest.mark.usefixtures("clean")
def test_a_network_of_ones_own_by_name():
    class Flat(Network):
        def encoder(self, image_shape, out_features):
            return nn.Sequential(nn.Flatten(), nn.LazyLinear(out_features))

        def decoder(self, in_features, image_shape):
            size = image_shape[0] * image_shape[1] * image_shape[2]
            return nn.Sequential(nn.Linear(in_features, size), nn.Unflatten(1, image_shape))

    NETWORKS.register("flat", Flat)
    model = vaezoo.create("beta_vae", network="flat", image_shape=(3, 5, 7))
    assert model.reconstruct(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5, 7)


def test_strings_are_registered_by_value():
    registry: Registry[type] = Registry("thing", {"a": "torch:Tensor"})
    registry.register("a", ":".join(["torch", "Tensor"]))
    assert registry.get("a") is torch.Tensor


# --- Modules of one's own -------------------------------------------------------------------------------


def test_encoder_and_decoder_of_ones_own():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    decoder = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3, encoder=encoder, decoder=decoder)
    assert model.encoder is encoder
    x = torch.rand(2, 1, 8, 8)
    assert model.reconstruct(x).shape == x.shape
    # One of the two: the other is made by the network.
    assert (
        vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3, encoder=encoder).reconstruct(x).shape
        == x.shape
    )


def test_an_encoder_of_the_wrong_size_says_so():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3, encoder=encoder)
    with pytest.raises(VaezooError, match=r"the encoder gives \(2, 5\).*latent_dim=3 needs \(batch, 6\)"):
        model.encode(torch.rand(2, 1, 8, 8))


def test_a_decoder_of_the_wrong_size_says_so():
    decoder = nn.Sequential(nn.Linear(3, 49), nn.Unflatten(1, (1, 7, 7)))
    model = vaezoo.create("vae", image_shape=(1, 8, 8), latent_dim=3, decoder=decoder)
    with pytest.raises(VaezooError, match="the decoder gives"):
        model.reconstruct(torch.rand(2, 1, 8, 8))


def test_an_encoder_that_is_no_module():
    with pytest.raises(VaezooError, match=r"encoder=3 is not valid: .*nn\.Module"):
        vaezoo.create("vae", encoder=3)


# --- Plug-ins -------------------------------------------------------------------------------------------


def in_process(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code with `path` in front of everything that is installed."""
    start = f"import sys, torch; sys.path.insert(0, {str(path)!r}); torch.set_num_threads(1); import vaezoo\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)


def write_plugin(folder: Path, package: str, name: str, source: str) -> None:
    """An installed distribution with one module and one entry point, as pip would leave it."""
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vaezoo.models]\n{name} = {package}:Model\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder in which pip has installed the example plug-in."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the example plug-in, is not installed")
    folder = tmp_path_factory.mktemp("plugin")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--target", str(folder), str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_example_plugin(installed):
    code = """
from vaezoo.cli import main
from vaezoo import testing
assert "vaezoo_free_bits" not in sys.modules
assert "free_bits_vae" in vaezoo.list_models("*bits*")
assert "vaezoo_free_bits" not in sys.modules, "imported before it was created"
model = vaezoo.create("free_bits_vae", free_bits=0.5, latent_dim=4)
assert model.config.free_bits == 0.5
assert "Inverse Autoregressive" in vaezoo.describe("free_bits_vae")["paper"]
for check in testing.CHECKS:
    check(lambda: vaezoo.create("free_bits_vae"))
assert main(["list", "free*"]) == 0
"""
    done = in_process(code, installed)
    assert done.returncode == 0, done.stderr
    assert "vaezoo-free-bits" in done.stdout


def test_example_plugin_is_about_15_lines():
    source = (PLUGIN / "vaezoo_free_bits.py").read_text()
    body = [line for line in source[source.index("\nclass ") :].splitlines() if line.strip()]
    assert len(body) <= 15


def test_broken_plugin_is_shown_and_raises_on_create(tmp_path):
    write_plugin(tmp_path, "brittle", "brittle_vae", "import a_module_that_is_not_there\n")
    write_plugin(tmp_path, "quitter", "quitter_vae", "raise SystemExit(3)\n")
    write_plugin(tmp_path, "functional", "functional_vae", "def Model(): ...\n")
    code = """
from vaezoo.cli import main
assert main(["list"]) == 0
vaezoo.create("vae")
for name in ("brittle_vae", "quitter_vae", "functional_vae"):
    try:
        vaezoo.create(name)
    except vaezoo.VaezooError as error:
        print("raised:", error)
"""
    done = in_process(code, tmp_path)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert re.search(r"brittle_vae broken: .*ModuleNotFoundError", shown)
    assert (
        "raised: model 'brittle_vae' comes from plug-in brittle (brittle:Model), which does not import: "
        "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    ) in shown
    assert "plug-in quitter (quitter:Model), which does not import: SystemExit: 3" in shown
    assert "plug-in functional (functional:Model), which is broken: Model is not a subclass" in shown


def test_collisions_raise_and_name_both_parties(tmp_path):
    model = "from vaezoo.models.vae import VAE as Model\n"
    write_plugin(tmp_path, "usurper", "vae", model)
    write_plugin(tmp_path, "first", "twin_vae", model)
    write_plugin(tmp_path, "second", "twin_vae", model)
    code = """
for name in ("vae", "twin_vae"):
    try:
        vaezoo.create(name)
    except vaezoo.VaezooError as error:
        print(error)
vaezoo.create("ae")
"""
    done = in_process(code, tmp_path)
    assert done.returncode == 0, done.stderr
    usurped, twins = done.stdout.splitlines()
    assert usurped.startswith("model 'vae' is claimed by vaezoo and usurper (usurper:Model)")
    assert "first (first:Model)" in twins
    assert "second (second:Model)" in twins


def test_plugin_class_that_is_exported_from_elsewhere_can_be_saved(tmp_path):
    """The entry point names another module than the one that defines the class."""
    write_plugin(tmp_path, "facade", "facade_vae", "from inside import Model\n")
    (tmp_path / "inside.py").write_text(
        "from vaezoo.models.vae import VAE\nclass Model(VAE):\n    '''Model.'''\n"
    )
    code = f"""
folder = {str(tmp_path / "run")!r}
vaezoo.save(vaezoo.create("facade_vae"), folder)
print(type(vaezoo.load(folder)).__module__)
"""
    done = in_process(code, tmp_path)
    assert done.stdout == "inside\n", done.stderr
