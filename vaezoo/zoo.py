"""The models of the zoo by name: made anew or with trained weights, listed and described.

Importing this module imports neither torch nor any model.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from vaezoo.registry import MODELS

if TYPE_CHECKING:
    from vaezoo.autoencoder import Autoencoder


def create(name: str, *, pretrained: str | None = None, **options: Any) -> Autoencoder:
    """Make a model by its registered name.

    Args:
        name: see `list_models()`.
        pretrained: name of the data set of trained weights, see `describe(name)["pretrained"]`; the model has
            the config that these were trained with, and is in eval mode. None: random weights.
        **options: fields of the model's config (see `describe(name)`), and the modules that its class takes,
            such as `encoder=` and `decoder=`.

    Raises:
        VaezooError: unknown name or option, a value out of range, a shape that the network cannot process;
            trained weights that are unknown, not at hand, or trained with other options.
    """
    if pretrained is not None:
        from vaezoo.pretrained import restore

        return restore(name, pretrained, options)
    return MODELS.get(name).from_options(options, where=name)


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names of all models, plug-ins included, that match a shell-style pattern: `list_models("*vq*")`.

    With `pretrained`, only those of which there are trained weights."""
    names = MODELS.names(pattern)
    if pretrained:
        from vaezoo.pretrained import data_of

        names = [name for name in names if data_of(name)]
    return names


def describe(name: str) -> dict[str, Any]:
    """What a model is: paper, summary, the prior that is fitted after training, options (name, type, default,
    limits, meaning), recipes, and the data sets of its trained weights."""
    from vaezoo.config import describe_fields
    from vaezoo.pretrained import data_of

    model = MODELS.get(name)
    summary, _, rest = (inspect.getdoc(model) or "").partition("\n")
    return {
        "name": name,
        "class": f"{model.__module__}.{model.__qualname__}",
        "summary": summary,
        "details": rest.strip(),
        "paper": model.paper,
        "prior": model.default_prior or "its own",
        "options": describe_fields(model.Config),
        "recipes": model.recipes,
        "pretrained": data_of(name),
    }
