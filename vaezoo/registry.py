"""Names for things: a table from name to class, imported only when the thing is made.

Importing this module imports neither torch nor any model, so the command line completes names at once.
"""

from __future__ import annotations

import fnmatch
import importlib
import operator
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from vaezoo.errors import VaezooError, unknown

if TYPE_CHECKING:
    from vaezoo.autoencoder import Autoencoder
    from vaezoo.data import ImageData
    from vaezoo.priors import Prior

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from name to class (or to "module:attribute", imported on first use).

    Args:
        kind: what the names stand for, in error messages ("model", "network", ...).
        builtin: the names that ship with vaezoo.
        group: entry-point group through which installed packages add names.
        fault: says what is wrong with a class that is to be registered, or None.
        how: the function that registers, in error messages.
    """

    def __init__(
        self,
        kind: str,
        builtin: dict[str, str],
        group: str | None = None,
        fault: Callable[[Any], str | None] = lambda target: None,
        how: str = "",
    ) -> None:
        self.kind = kind
        self.group = group
        self.fault = fault
        self.how = how
        self._table: dict[str, str | T] = dict(builtin)
        self._plugins: dict[str, list[EntryPoint]] | None = None

    def register(self, name: str, target: T | str) -> None:
        """Add a name. A name that is taken by something else is refused."""
        if not name.isidentifier():
            raise VaezooError(
                f"{self.kind} name {name!r} is not an identifier (letters, digits, underscores)"
            )
        if name in self._entry_points() or self._table.get(name, target) != target:
            raise VaezooError(f"{self.kind} '{name}' is already registered; choose another name")
        if not isinstance(target, str) and (fault := self.fault(target)):
            raise VaezooError(f"{self.kind} '{name}' cannot be registered: {fault}")
        self._table[name] = target

    def names(self, pattern: str = "*") -> list[str]:
        """All names that match a shell-style pattern, sorted."""
        return sorted(fnmatch.filter({*self._table, *self._entry_points()}, pattern))

    def get(self, name: str) -> T:
        """The class behind a name, imported if need be."""
        plugins = self._entry_points().get(name, [])
        if name not in self._table and not plugins:
            raise VaezooError(unknown(self.kind, name, self.names()))
        if len(plugins) + (name in self._table) > 1:
            owners = [*(["vaezoo"] if name in self._table else []), *map(_origin, plugins)]
            raise VaezooError(
                f"{self.kind} '{name}' is claimed by {' and '.join(owners)}; rename or uninstall one"
            )
        if plugins:
            return self._load(name, plugins[0])
        target = self._table[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = self._table[name] = getattr(importlib.import_module(module), attribute)
        return cast(T, target)

    def name_of(self, target: type) -> str:
        """The name under which a class is registered."""
        path = f"{target.__module__}:{target.__qualname__}"
        for name, known in self._table.items():
            if known is target or known == path:
                return name
        for name, plugins in self._entry_points().items():
            if any(_imported(entry) is target for entry in plugins):
                return name
        raise VaezooError(
            f"{target.__qualname__} is not registered; call {self.how}('a_name', {target.__name__}) first"
        )

    def status(self, pattern: str = "*") -> Iterator[tuple[str, str, str | None]]:
        """(name, where it comes from, error or None) of all that match; they are imported to find out."""
        for name in self.names(pattern):
            origin = " and ".join(map(_origin, self._entry_points().get(name, []))) or "vaezoo"
            try:
                self.get(name)
                yield name, origin, None
            except VaezooError as error:
                yield name, origin, str(error)

    def _load(self, name: str, entry: EntryPoint) -> T:
        source = f"{self.kind} '{name}' comes from plug-in {_origin(entry)}"
        try:
            target = entry.load()
        except (Exception, SystemExit) as error:  # a plug-in may fail in any way; say which one and how
            text = " ".join(str(error).split())
            raise VaezooError(f"{source}, which does not import: {type(error).__name__}: {text}") from error
        if fault := self.fault(target):
            raise VaezooError(f"{source}, which is broken: {fault}")
        return cast(T, target)

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        if self._plugins is None:
            self._plugins = {}
            for entry in entry_points(group=self.group) if self.group else ():
                self._plugins.setdefault(entry.name, []).append(entry)
        return self._plugins


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name if entry.dist else 'unknown package'} ({entry.value})"


def _imported(entry: EntryPoint) -> Any:
    """What an entry point stands for if its module is imported already, else None."""
    try:
        return operator.attrgetter(entry.attr)(sys.modules.get(entry.module))
    except (AttributeError, TypeError):
        return None


def _not_a_model(target: Any) -> str | None:
    from vaezoo.autoencoder import Autoencoder

    if isinstance(target, type) and issubclass(target, Autoencoder):
        return None
    return f"{getattr(target, '__qualname__', repr(target))} is not a subclass of vaezoo.Autoencoder"


MODELS: Registry[type[Autoencoder]] = Registry(
    "model",
    {
        "ae": "vaezoo.models.ae:AE",
        "vae": "vaezoo.models.vae:VAE",
        "beta_vae": "vaezoo.models.beta_vae:BetaVAE",
        "beta_tc_vae": "vaezoo.models.beta_tc_vae:BetaTCVAE",
        "factor_vae": "vaezoo.models.factor_vae:FactorVAE",
        "conv_vae": "vaezoo.models.conv_vae:ConvVAE",
        "vq_vae": "vaezoo.models.vq_vae:VQVAE",
        "vq_vae2": "vaezoo.models.vq_vae2:VQVAE2",
    },
    group="vaezoo.models",
    fault=_not_a_model,
    how="vaezoo.register",
)

#: Functions that make an `ImageData` on the CPU. Their parameters are the options of the data set, checked
#: against their type hints, except `root` and `seed`, which `load_data` passes to those that take them.
DATASETS: Registry[Callable[..., ImageData]] = Registry(
    "data set",
    {
        "sprites": "vaezoo.data.sprites:sprites",
        "mnist": "vaezoo.data.standard:mnist",
        "fashion_mnist": "vaezoo.data.standard:fashion_mnist",
        "cifar10": "vaezoo.data.standard:cifar10",
        "svhn": "vaezoo.data.standard:svhn",
        "celeba": "vaezoo.data.standard:celeba",
        "digits": "vaezoo.data.standard:digits",
        "dsprites": "vaezoo.data.published:dsprites",
        "shapes3d": "vaezoo.data.published:shapes3d",
        "mpi3d": "vaezoo.data.published:mpi3d",
        "cars3d": "vaezoo.data.published:cars3d",
        "smallnorb": "vaezoo.data.published:smallnorb",
        "image_folder": "vaezoo.data.folder:image_folder",
        "webdataset": "vaezoo.data.shards:webdataset",
        "image_file": "vaezoo.data.files:image_file",
    },
)

PRIORS: Registry[type[Prior]] = Registry(
    "prior",
    {
        "standard_normal": "vaezoo.priors.standard_normal:StandardNormal",
        "gaussian_mixture": "vaezoo.priors.gaussian_mixture:GaussianMixture",
        "flow": "vaezoo.priors.flow:FlowPrior",
        "two_stage": "vaezoo.priors.two_stage:TwoStagePrior",
        "vamp": "vaezoo.priors.vamp:VampPrior",
        "pixelcnn": "vaezoo.priors.pixelcnn:PixelCNNPrior",
        "pixelsnail": "vaezoo.priors.pixelsnail:PixelSNAILPrior",
        "transformer": "vaezoo.priors.transformer:TransformerPrior",
    },
    how="vaezoo.priors.PRIORS.register",
)


def register(name: str, model: type[Autoencoder]) -> None:
    """Add a model class. An installed package uses the entry-point group `vaezoo.models` instead and needs no
    call."""
    MODELS.register(name, model)
