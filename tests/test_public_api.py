from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import vaezoo


@pytest.mark.parametrize("name", vaezoo.__all__)
def test_names_resolve_and_stay(name):
    module = importlib.import_module(vaezoo._NAMES[name])
    # Twice, since importing a submodule puts it into the package under its own name.
    assert getattr(vaezoo, name) is getattr(module, name)
    assert getattr(vaezoo, name) is getattr(module, name)
    assert getattr(vaezoo, name).__doc__


def test_no_submodule_hides_a_function():
    import pkgutil

    submodules = {module.name for module in pkgutil.iter_modules(vaezoo.__path__)}
    assert not submodules & set(vaezoo.__all__)


def test_what_is_public():
    assert len(vaezoo.__all__) <= 20
    assert set(vaezoo.__all__) <= set(dir(vaezoo))
    assert {"create", "train", "evaluate", "load", "save", "list_models", "describe", "register"} <= set(
        dir(vaezoo)
    )
    with pytest.raises(AttributeError, match="no attribute 'creat'"):
        vaezoo.creat  # noqa: B018


@pytest.mark.parametrize(
    "code", ["import vaezoo", "import vaezoo; vaezoo.list_models()", "import vaezoo.cli"]
)
def test_importing_does_not_import_torch(code):
    heavy = "{'torch', 'numpy', 'pydantic', 'matplotlib', 'sklearn'}"
    code = f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
