"""What is pushed is all that another needs to load it, and no more."""

import json
import shutil
import sys

import pytest
import torch

import vaezoo
from vaezoo.checkpoint import REPORT, WEIGHTS, weights_file
from vaezoo.errors import VaezooError

ADDRESS = "hf://someone/some-vae"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two priors and a report, on random images."""
    noise = torch.Generator().manual_seed(0)
    data = vaezoo.load_data(torch.randint(0, 256, (150, 1, 8, 8), generator=noise, dtype=torch.uint8))
    folder = tmp_path_factory.mktemp("runs") / "vae"
    model = vaezoo.create("vae", latent_dim=2, network_options={"hidden": [8]}, image_shape=(1, 8, 8))
    quiet = {"device": "cpu", "progress": False}
    vaezoo.train(model, data, epochs=1, batch_size=32, out=folder, **quiet)
    vaezoo.fit_prior(model, data, "gaussian_mixture", components=2, out=folder, **quiet)
    metric = {"value": 12.3456, "n": 30, "unit": "nats|image", "se": 0.012, "better": None, "note": ""}
    report = {"header": {"split": "test"}, "metrics": {"likelihood/elbo": metric}}
    (folder / REPORT).write_text(json.dumps(report))
    return folder


class Hub:
    """A hub in a folder, which says what it was asked."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def create_repo(self, repository, **options):
        self.asked.append((repository, options))

    def upload_folder(self, repo_id, folder_path, revision):
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repository, revision, allow_patterns):
        self.asked.append((repository, revision, allow_patterns))
        if not (self.folder / repository).exists():
            raise OSError(f"404 Client Error.\n\nRepository {repository} not found")
        return str(self.folder / repository)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`huggingface_hub` without a network."""
    package = pytest.importorskip("huggingface_hub")
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(package, "HfApi", lambda: hub)
    monkeypatch.setattr(package, "snapshot_download", hub.snapshot_download)
    return hub


def assert_same_model(a, b):
    assert a.config == b.config
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), f"'{name}' differs"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_gets_what_others_need_and_no_more(run, tmp_path):
    to = tmp_path / "shared"
    assert vaezoo.push(run, to) == str(to)
    priors = ["priors/gaussian_mixture.safetensors", "priors/standard_normal.safetensors"]
    assert files(to) == ["README.md", WEIGHTS, *priors, REPORT]
    for name in (WEIGHTS, REPORT, *priors):
        assert (to / name).read_bytes() == (run / name).read_bytes()
    assert_same_model(vaezoo.load(to), vaezoo.load(run))
    assert_same_model(vaezoo.load(to, prior="standard_normal"), vaezoo.load(run, prior="standard_normal"))


def test_the_card_says_what_the_model_is(run, tmp_path):
    vaezoo.push(run, tmp_path / "shared")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vaezoo\ntags:\n- vae\n---\n")
    assert f'model = vaezoo.load("{tmp_path / "shared"}")' in card
    for line in ("| latent_dim | 2 |", "| components | 2 |", "| batch_size | 32 |"):
        assert line in card
    assert "| likelihood/elbo | 12.346 | 0.012 | nats\\|image | 30 |" in card


def test_there_and_back_through_the_hub(run, hub):
    assert vaezoo.push(run, ADDRESS, private=True) == ADDRESS
    assert hub.asked == [("someone/some-vae", {"private": True, "exist_ok": True})]
    assert_same_model(vaezoo.load(ADDRESS), vaezoo.load(run))
    assert hub.asked[-1] == ("someone/some-vae", None, [WEIGHTS])
    assert_same_model(
        vaezoo.load(f"{ADDRESS}@v1", prior="standard_normal"), vaezoo.load(run, prior="standard_normal")
    )
    assert hub.asked[-1] == ("someone/some-vae", "v1", [WEIGHTS, "priors/*.safetensors"])
    assert f'vaezoo.load("{ADDRESS}")' in (hub.folder / "someone" / "some-vae" / "README.md").read_text()


def test_a_model_without_a_run(hub):
    model = vaezoo.create("ae", latent_dim=2, network_options={"hidden": [8]}, image_shape=(1, 8, 8))
    vaezoo.push(model, ADDRESS)
    assert_same_model(vaezoo.load(ADDRESS), model)
    card = (hub.folder / "someone" / "some-vae" / "README.md").read_text()
    assert "model.sample" not in card  # it has no prior
    assert "## Scores" not in card


def test_mistakes_have_names_and_cost_no_file(run, hub, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "README.md").write_text("mine")
    with pytest.raises(VaezooError, match=r"full is there already and not empty"):
        vaezoo.push(run, full)
    assert (full / "README.md").read_text() == "mine"
    with pytest.raises(VaezooError, match="no checkpoint at "):
        vaezoo.push(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(VaezooError, match=r"'hf://only-a-name' is not an address .* write hf://user/name"):
        vaezoo.load("hf://only-a-name")
    with pytest.raises(
        VaezooError, match=r"could not get hf://no/body: 404 Client Error. Repository no/body not"
    ):
        vaezoo.load("hf://no/body")
    with pytest.raises(VaezooError, match="is on the hub; get it into a folder first"):
        weights_file(ADDRESS)


def test_a_damaged_report_is_named(run, tmp_path):
    source = tmp_path / "run"
    vaezoo.push(run, source)
    (source / REPORT).write_text('{"metrics": {"elbo": 3}}')
    with pytest.raises(VaezooError, match=r"report.json is damaged; make it anew"):
        vaezoo.push(source, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_without_the_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: vaezoo.push(run, ADDRESS), lambda: vaezoo.load(ADDRESS)):
        with pytest.raises(VaezooError, match=r"pip install 'vaezoo\[hub\]'"):
            call()
