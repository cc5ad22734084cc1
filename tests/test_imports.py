"""Dependencies point one way, and nothing outside vaezoo/models knows a model by its name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vaezoo
from vaezoo.registry import MODELS

ROOT = Path(vaezoo.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

#: What a part of the package may import from vaezoo. A part that is not listed sees no other part.
BASE = {"errors", "config", "registry", "random", "distributed", "objective", "inference", "clustering"}
ALLOWED = {
    "errors": set(),
    "objective": set(),
    "random": set(),
    "inference": set(),
    "distributed": {"errors", "random"},
    "clustering": set(),
    "config": {"errors"},
    "registry": {"errors", "autoencoder", "data", "priors"},
    "distributions": {"distributed"},
    "likelihoods": {"distributions", *BASE},
    "networks": {"distributions", *BASE},
    "priors": {"distributions", "networks", *BASE},
    "data": BASE,
    "autoencoder": {"distributions", "priors", *BASE},
    "models": {"autoencoder", "distributions", "likelihoods", "networks", "priors", *BASE},
    "hub": {"errors"},
    "checkpoint": {"autoencoder", "hub", "priors", "", *BASE},
    "run": {"checkpoint", *BASE},
    "callbacks": {"data", "plots", "run", *BASE},
    "exporting": {"autoencoder", "checkpoint", *BASE},
    "sharing": {"autoencoder", "checkpoint", "hub", "zoo", *BASE},
    "pretrained": {"autoencoder", "checkpoint", "hub", *BASE},
    "zoo": {"autoencoder", "pretrained", *BASE},
    "latents": {"autoencoder", "checkpoint", "data", "distributions", "priors", *BASE},
    "trainer": {"autoencoder", "checkpoint", "data", "latents", "priors", "run", *BASE},
    "evaluation": {"autoencoder", "data", "distributions", "priors", "", *BASE},
    "plots": {"autoencoder", "data", "distributions", *BASE},
    "testing": {"autoencoder", "checkpoint", "distributions", "priors", *BASE},
    "comparison": {
        "autoencoder",
        "checkpoint",
        "data",
        "evaluation",
        "plots",
        "priors",
        "run",
        "trainer",
        "zoo",
        *BASE,
    },
    "cli": {
        "autoencoder",
        "callbacks",
        "checkpoint",
        "comparison",
        "data",
        "evaluation",
        "exporting",
        "hub",
        "plots",
        "pretrained",
        "priors",
        "run",
        "sharing",
        "trainer",
        "zoo",
        "",
        *BASE,
    },
    "__main__": {"cli"},
}


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Full names of the modules that are imported, at the top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    if path == ROOT / "__init__.py":
        return  # it names everything, lazily; test_public_api covers it
    own = part(path)
    modules = {name for name in imports(ast.parse(path.read_text())) if name.split(".")[0] == "vaezoo"}
    seen = {name.partition(".")[2].split(".")[0] for name in modules} - {own}
    assert own in ALLOWED, f"vaezoo/{own} is new: say in ALLOWED what it may import"
    assert seen <= ALLOWED[own], f"vaezoo/{own} must not import {', '.join(sorted(seen - ALLOWED[own]))}"


def test_the_rules_are_acyclic():
    """But for the registry, which names what it holds in annotations and checks."""
    graph = {name: allowed - {""} for name, allowed in ALLOWED.items()}
    graph["registry"] = {"errors"}
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


def test_the_light_modules_import_nothing_heavy_at_the_top():
    for name in ("__init__", "errors", "registry", "cli", "__main__"):
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        heavy = {module.split(".")[0] for module in imports(top)} & {"torch", "numpy", "pydantic", "tabulate"}
        assert not heavy, f"vaezoo/{name}.py imports {heavy}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import vaezoo", {"torch", "numpy", "pydantic"}),
        (
            "import vaezoo; vaezoo.create('vae'); vaezoo.train",
            {"torchvision", "scipy", "sklearn", "matplotlib", "torchmetrics", "h5py", "PIL", "tabulate"},
        ),
    ],
)
def test_what_is_not_needed_is_not_imported(statement, heavy):
    program = f"{statement}; import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    found = {name.split(".")[0] for name in modules.stdout.split()}
    assert "vaezoo" in found
    assert not found & heavy


def words(path: Path) -> set[str]:
    """Identifiers and strings of a module's code; docstrings, comments and papers' titles do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "paper":
            node.value = ast.Constant("")
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                value.value = ""
    return set(re.findall(r"\w+", ast.unparse(tree)))


def test_nobody_asks_which_model_it_holds():
    builtin = [
        MODELS.get(name) for name in vaezoo.list_models() if MODELS.get(name).__module__.startswith("vaezoo.")
    ]
    names = {cls.__name__ for cls in builtin}
    assert {"VAE", "BetaVAE", "VQVAE2"} <= names
    for path in FILES:
        if part(path) not in ("models", "registry"):
            found = names & words(path)
            assert not found, f"{path.relative_to(ROOT)} mentions {found}"


def test_nobody_dispatches_on_a_registered_name():
    """No comparison with a model's name anywhere, but for the models' own files."""
    names = set(vaezoo.list_models())
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                compared = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                found = {value for value in compared if isinstance(value, str)} & names
                assert not found, f"{path.relative_to(ROOT)}:{node.lineno} compares with {found}"
