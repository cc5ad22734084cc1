"""vaezoo: a model zoo of variational autoencoders.

```python
import vaezoo

model = vaezoo.create("beta_vae", beta=4)
run = vaezoo.train(model, "fashion_mnist", epochs=20)
report = vaezoo.evaluate(model, "fashion_mnist")
images = model.sample(64)
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names are imported on first use, so that `import vaezoo` and the command line's --help cost nothing. No
# submodule may have the name of a function here: importing it would put the module in the function's place.
_NAMES = {
    "create": "vaezoo.zoo",
    "describe": "vaezoo.zoo",
    "list_models": "vaezoo.zoo",
    "register": "vaezoo.registry",
    "VaezooError": "vaezoo.errors",
    "Autoencoder": "vaezoo.autoencoder",
    "AutoencoderConfig": "vaezoo.autoencoder",
    "Loss": "vaezoo.objective",
    "Progress": "vaezoo.objective",
    "train": "vaezoo.trainer",
    "fit_prior": "vaezoo.trainer",
    "load": "vaezoo.checkpoint",
    "save": "vaezoo.checkpoint",
    "load_data": "vaezoo.data",
    "evaluate": "vaezoo.evaluation",
    "compare": "vaezoo.comparison",
    "export": "vaezoo.exporting",
    "push": "vaezoo.sharing",
}

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Loss",
    "Progress",
    "VaezooError",
    "compare",
    "create",
    "describe",
    "evaluate",
    "export",
    "fit_prior",
    "list_models",
    "load",
    "load_data",
    "push",
    "register",
    "save",
    "train",
]

if TYPE_CHECKING:
    from vaezoo.autoencoder import Autoencoder, AutoencoderConfig
    from vaezoo.checkpoint import load, save
    from vaezoo.comparison import compare
    from vaezoo.data import load_data
    from vaezoo.errors import VaezooError
    from vaezoo.evaluation import evaluate
    from vaezoo.exporting import export
    from vaezoo.objective import Loss, Progress
    from vaezoo.registry import register
    from vaezoo.sharing import push
    from vaezoo.trainer import fit_prior, train
    from vaezoo.zoo import create, describe, list_models


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'vaezoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
