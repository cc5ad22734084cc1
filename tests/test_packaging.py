"""What is built holds the package and nothing more, and works where nothing of the repository is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import vaezoo

ROOT = Path(__file__).parents[1]
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("what a package is built from is not part of an installed package", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

NAME = f"vaezoo-{vaezoo.__version__}"
METADATA = {f"{NAME}.dist-info/{file}" for file in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
#: What a package is built from, besides the package. hatchling adds .gitignore and PKG-INFO.
BESIDE = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", "PKG-INFO"}


def run(*command: object, cwd: Path) -> str:
    """What a command prints, run in a folder and without the paths that tests run with."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VAEZOO"))
    }
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, kind: str, out: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", out, cwd=source)
    (built,) = out.iterdir()
    return built


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder to which the archive unpacks."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder / "built")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    assert unpacked.name == NAME
    return unpacked


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of an environment with the wheel, and of what is installed here with all but vaezoo."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run(
        *[sys.executable, "-m", "pip", "--python", scripts / "python", "install", *options, wheel], cwd=folder
    )
    # After its own packages come those from here. Their .pth files, which point to checkouts, are not read.
    own = Path(
        run(
            scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        ).strip()
    )
    here = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (own / "installed_here.pth").write_text("\n".join(here) + "\n")
    return scripts


def package_files() -> set[str]:
    """The files of the package here."""
    files = (path for path in (ROOT / "vaezoo").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_package_is_what_it_should_be() -> None:
    files = package_files()
    assert {Path(file).suffix for file in files} == {".py", ".typed", ".json", ".safetensors"}
    assert {"vaezoo/py.typed", "vaezoo/weights/manifest.json", "vaezoo/models/vae.py"} <= files
    for folder in ("weights", "evaluation/weights"):
        assert any(re.fullmatch(f"vaezoo/{folder}/.*safetensors", file) for file in files), folder


def test_wheel_holds_the_package_and_nothing_more(wheel: Path) -> None:
    assert names(wheel) == package_files() | METADATA | {f"{NAME}.dist-info/licenses/LICENSE"}


def test_sdist_holds_the_package_and_what_it_is_built_from(sdist: Path) -> None:
    files = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert files == package_files() | BESIDE


def test_wheel_of_the_sdist_is_that_of_the_repository(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    assert not sdist.is_relative_to(ROOT)
    again = build(sdist, "wheel", tmp_path)
    assert names(again) == names(wheel)
    with zipfile.ZipFile(again) as a, zipfile.ZipFile(wheel) as b:
        assert all(a.read(name) == b.read(name) for name in names(wheel))


def test_installed_in_an_empty_environment(environment: Path, tmp_path: Path) -> None:
    python, command = environment / "python", environment / "vaezoo"
    where = Path(run(python, "-c", "import vaezoo; print(vaezoo.__file__)", cwd=tmp_path).strip())
    assert where.is_relative_to(environment.parent)
    listed = run(command, "list", cwd=tmp_path)
    assert all(name in listed for name in vaezoo.list_models())
    weights = where.parent / "weights" / "vae-fashion_mnist.safetensors"
    run(command, "sample", weights, "-n", 4, "--out", "trained.png", "--device", "cpu", cwd=tmp_path)
    assert (tmp_path / "trained.png").stat().st_size > 0


def test_the_lines_of_the_readme_in_an_empty_environment(environment: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = "".join(block for block in blocks if "download" not in block)
    assert "epochs=30" in code
    assert 'pretrained="fashion_mnist"' in code
    run(environment / "python", "-c", code.replace("epochs=30", "epochs=1"), cwd=tmp_path)
    assert {"samples.png", "digits.safetensors", "trained.png"} <= {path.name for path in tmp_path.iterdir()}
