"""What two sets of images are compared in: a map from images to vectors, with the name its numbers carry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaezoo.errors import VaezooError, unknown
from vaezoo.evaluation.classifiers import CLASSIFIERS, load_classifier

MAX_PIXEL_FEATURES = 256
INCEPTION_WEIGHTS = "inception_v3_google-0cc3c7bd.pth"
#: The sizes of DINOv2 that are read.
DINOV2 = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14")
#: Stein et al. 2023 compare in those of the large model.
DINOV2_DEFAULT = "dinov2_vitl14"
NAMES = ("auto", "pixels", *CLASSIFIERS, "inception", "dinov2", *DINOV2)


@dataclass(frozen=True)
class Features:
    """A map from images to vectors.

    Attributes:
        name: part of the name of every number measured in these features.
        extract: [B, C, H, W] in [0, 1] -> [B, d].
        hash: 16 hex digits of SHA-256 over the weights; None for a function, whose weights nobody can see.
        is_inception: the one case in which a Frechet distance is called FID.
        note: how they are computed.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    hash: str | None = None
    is_inception: bool = False
    note: str = ""

    def header(self) -> dict[str, Any]:
        """What identifies them in a report."""
        return {"name": self.name, "hash": self.hash}


def make_features(
    source: str | nn.Module | Callable[[Tensor], Tensor],
    image_shape: tuple[int, int, int],
    device: torch.device,
    data: str = "",
) -> Features:
    """Features by name (see `NAMES`), or a user's own module or function [B, C, H, W] -> [B, d].

    Args:
        source: "auto" is the classifier of the data set where there is one for such images, else "pixels".
        image_shape: (C, H, W) of the images.
        device: where they are.
        data: name of the data set, for "auto".

    Raises:
        VaezooError: an unknown name, weights that are not at hand, or images of a shape that does not fit.
    """
    if not isinstance(source, str):
        return own_features(source, device)
    if source == "auto":
        source = data if data in CLASSIFIERS and image_shape[0] in (1, 3) else "pixels"
    if source == "pixels":
        return pixel_features(image_shape)
    if source not in NAMES:
        raise VaezooError(unknown("features", source, NAMES))
    if image_shape[0] not in (1, 3):
        raise VaezooError(f"features='{source}' needs images of 1 or 3 channels, not {image_shape[0]}")
    if source in CLASSIFIERS:
        return classifier_features(source, device)
    if source == "inception":
        return inception_features(device)
    return dinov2_features(DINOV2_DEFAULT if source == "dinov2" else source, device)


def own_features(source: nn.Module | Callable[[Tensor], Tensor], device: torch.device) -> Features:
    """A user's module, in eval mode while it is used, or function."""
    name = getattr(source, "__name__", type(source).__name__).strip("<>").lower()
    if not isinstance(source, nn.Module):
        return Features(name, source)
    was_training = source.training
    source = source.to(device)

    def extract(x: Tensor, module: nn.Module = source) -> Tensor:
        module.eval()
        try:
            return module(x)
        finally:
            module.train(was_training)

    return Features(name, extract, weights_hash(source.state_dict()))


def weights_hash(weights: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over names, types, shapes and values of tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def pixel_features(image_shape: tuple[int, int, int]) -> Features:
    """Pixels, averaged over the smallest squares for which at most 256 numbers are left."""
    channels, height, width = image_shape
    side, rows, columns = 1, height, width
    while channels * rows * columns > MAX_PIXEL_FEATURES and rows * columns > 1:
        side += 1
        rows, columns = -(-height // side), -(-width // side)

    def extract(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, ceil_mode=True).flatten(1)

    name = f"pixels{rows}x{columns}"
    what = f"means of {side}x{side} pixels, {channels}x{height}x{width}"
    note = f"{name}: means of {side}x{side} pixels" if side > 1 else ""
    return Features(name, extract, hashlib.sha256(what.encode()).hexdigest()[:16], note=note)


def classifier_features(name: str, device: torch.device) -> Features:
    """The 64 features of a classifier that comes with the package, for each channel."""
    classifier = load_classifier(name).to(device)
    note = f"features of a classifier of {name}"
    return Features(name, classifier.features, weights_hash(classifier.state_dict()), note=note)


def inception_features(device: torch.device) -> Features:
    """The 2048 pooled features of torchvision's Inception v3 (Szegedy et al. 2016), which define FID.

    Raises:
        VaezooError: the weights are not in torch.hub's cache (they are not downloaded here), or not what they
            should be.
    """
    from torchvision.models import inception_v3

    fetch = "import torchvision; torchvision.models.inception_v3(weights='DEFAULT')"
    weights = cached_weights(INCEPTION_WEIGHTS, "features='inception'", fetch)
    network = inception_v3(weights=None, init_weights=False, transform_input=False)
    load_weights(network, weights, INCEPTION_WEIGHTS)
    network.fc = nn.Identity()
    network.requires_grad_(False).eval().to(device)

    def extract(x: Tensor) -> Tensor:
        x = F.interpolate(x.float(), (299, 299), mode="bilinear", antialias=True)
        # These weights expect pixels in [-1, 1].
        return network(2 * x.expand(-1, 3, -1, -1) - 1)

    note = "torchvision's weights: not comparable with FIDs from TensorFlow's of 2015"
    return Features("inception", extract, weights_hash(weights), is_inception=True, note=note)


def dinov2_features(name: str, device: torch.device) -> Features:
    """The class token of DINOv2 (Oquab et al. 2024): 384, 768 or 1024 features.

    Raises:
        VaezooError: as in `inception_features`.
    """
    from vaezoo.evaluation.dinov2 import SIZES, DINOv2

    file = f"{name}_pretrain.pth"
    url = f"https://dl.fbaipublicfiles.com/dinov2/{name}/{file}"
    fetch = f"import torch; torch.hub.load_state_dict_from_url('{url}', map_location='cpu')"
    weights = cached_weights(file, f"features='{name}'", fetch)
    network = DINOv2(*SIZES[name])
    load_weights(network, weights, file)
    network.requires_grad_(False).eval().to(device)
    return Features(name, network.features, weights_hash(weights))


def cached_weights(file: str, what: str, fetch: str) -> dict[str, Tensor]:
    """Weights from torch.hub's cache. Nothing is downloaded here, and nothing in the file is executed.

    Args:
        file: its name.
        what: needs it.
        fetch: Python that downloads the file to where it belongs.

    Raises:
        VaezooError: the file is not there, is damaged, or holds more than tensors.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        raise VaezooError(f'{what} needs weights at {path}; fetch them once with python -c "{fetch}"')
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make their reader fail in any way
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise VaezooError(f"{path} could not be read: {reason}") from error
    return weights


def load_weights(network: nn.Module, weights: dict[str, Tensor], file: str) -> None:
    """Raises VaezooError if the weights are those of another network."""
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise VaezooError(f"{file} holds weights of another network: {str(error).splitlines()[0]}") from error
