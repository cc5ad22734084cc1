"""Small frozen classifiers that come with the package: what images of their data sets are compared in.

`benchmarks/train_features.py` trained them; `benchmarks/results/features.json` has their test accuracies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
CLASSIFIERS = ("mnist", "fashion_mnist", "sprites")
HEADER = "classifier"  # the key of the header among a file's metadata
FEATURES = 64
CHANNELS = 128  # where images are 4x4; half as many for each doubling of their side


class Classifier(nn.Module):
    """Convolutions that halve images down to 4x4, then 64 features, then a linear head for each label.

    Args:
        size: side of the images that it was made for; others are resized.
        heads: number of values of each label, by name.
    """

    def __init__(self, size: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.size = size
        sides = [size]
        while sides[-1] > 4:
            sides.append((sides[-1] + 1) // 2)
        channels = [1, *(CHANNELS >> i for i in reversed(range(len(sides) - 1)))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        flat = channels[-1] * sides[-1] ** 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, FEATURES), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, values) for name, values in heads.items()})

    def features(self, x: Tensor) -> Tensor:
        """What the heads see. Every channel is looked at by itself, so that colours count.

        x [B, C, H, W] in [0, 1] -> [B, 64 C]."""
        x = x.float()
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return self.body(x.flatten(0, 1).unsqueeze(1)).view(len(x), -1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of every head for images of one channel, x [B, 1, H, W] in [0, 1] -> [B, values]."""
        features = self.features(x)
        return {name: head(features) for name, head in self.heads.items()}


def load_classifier(name: str) -> Classifier:
    """One of `CLASSIFIERS`, frozen, on the CPU."""
    with safe_open(WEIGHTS / f"{name}.safetensors", "pt") as file:
        header = json.loads(file.metadata()[HEADER])
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    with torch.device("meta"):
        classifier = Classifier(header["size"], header["heads"])
    classifier.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return classifier.requires_grad_(False).eval()


def save_classifier(classifier: Classifier, path: Path, about: Mapping[str, Any]) -> None:
    """Weights in half precision, with a header: the arguments of `Classifier`, and what `about` says."""
    weights = {key: value.half().contiguous() for key, value in classifier.state_dict().items()}
    heads = {name: head.out_features for name, head in classifier.heads.items()}
    header = {"size": classifier.size, "heads": heads, **about}
    save_file(weights, path, {HEADER: json.dumps(header)})
