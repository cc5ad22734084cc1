"""Train the small classifiers in whose features images are compared, and write them into the package.

    python benchmarks/train_features.py mnist fashion_mnist sprites

A few minutes each on one core. After every epoch the state is kept in runs/features, from where an
interrupted run goes on. Batch normalisation helps to train; it is folded into the weights that are saved.
Test accuracies go to results/features.json, together with the SHA-256 of the files."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import vaezoo
from vaezoo.data import ImageData, load_data
from vaezoo.data.sprites import render
from vaezoo.evaluation.classifiers import CLASSIFIERS, WEIGHTS, Classifier, save_classifier
from vaezoo.evaluation.frechet import frechet_distance, moments
from vaezoo.random import derive, generator, seeded

RESULTS = Path(__file__).parent / "results" / "features.json"
BATCH = 128
PEAK_RATE, WARM_UP = 3e-3, 0.2  # the learning rate, and the share of the steps that it rises for
WEIGHT_DECAY = 0.01
SHIFT = 2  # pixels
EPOCHS = {"mnist": 8, "fashion_mnist": 10, "sprites": 6}
SPRITES_PER_EPOCH = 100_000
#: Sprites are also rendered small, smooth and dark, so that the features know them: sizes and how often.
SIZES = {64: 0.7, 32: 0.2, 16: 0.1}
#: Orientations after which a square, an ellipse and a heart look the same again.
PERIODS = (10, 20, 40)

Batch = tuple[Tensor, Tensor]  # images [B, 1, H, W], labels [B, heads]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="+", choices=CLASSIFIERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="default: what the data set needs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in args.names:
        build(name, args.seed, args.epochs or EPOCHS[name])


def build(name: str, seed: int, epochs: int) -> None:
    """Train, save and test one classifier."""
    data = load_data(name)
    heads = {factor.name: factor.size for factor in data.factors} or {"class": len(data.classes)}
    with seeded(derive(seed, "create"), "cpu"):
        classifier = Classifier(data.image_shape[-1], heads)
    train(classifier, name, data, seed, epochs)
    features = collect(classifier.features, data.train, 10_000)
    rescale(classifier, features)
    classifier.half().float()  # the files hold half precision; what is tested is what is shipped
    about = {"data": name, "fingerprint": data.fingerprint(), "seed": seed, "epochs": epochs}
    tested = test(classifier, data)
    path = WEIGHTS / f"{name}.safetensors"
    save_classifier(classifier, path, {**about, "accuracy": tested["accuracy"]})
    result = {
        **about,
        "versions": {"vaezoo": vaezoo.__version__, "torch": torch.__version__},
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **tested,
    }
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**content, name: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def train(classifier: Classifier, name: str, data: ImageData, seed: int, epochs: int) -> None:
    """Adam on the sum of the heads' losses, with a learning rate that rises and falls linearly."""
    body = with_batch_norm(classifier.body).to(memory_format=torch.channels_last)
    parameters = [*body.parameters(), *classifier.heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=WEIGHT_DECAY, fused=True)
    epoch_of: Callable[[int], Any] = (
        (lambda e: sprite_batches(data, derive(seed, "epoch", e)))
        if name == "sprites"
        else (lambda e: image_batches(data, derive(seed, "epoch", e), mirror=name == "fashion_mnist"))
    )
    loss_of = sprites_loss if name == "sprites" else class_loss
    images = SPRITES_PER_EPOCH if name == "sprites" else len(data.train)
    steps = epochs * (images // BATCH)

    state = Path("runs/features") / f"{name}-{seed}-{epochs}.pt"
    done = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        done = saved["epoch"] + 1
        body.load_state_dict(saved["body"])
        classifier.heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
    step = done * (images // BATCH)
    for epoch in range(done, epochs):
        total = torch.zeros(())
        for x, labels in epoch_of(epoch):
            share = (step + 0.5) / steps
            rate = PEAK_RATE * min(share / WARM_UP, (1 - share) / (1 - WARM_UP))
            for group in optimizer.param_groups:
                group["lr"] = rate
            # On a CPU these two more than halve the time.
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features = body(x).float()
            loss = loss_of({key: head(features) for key, head in classifier.heads.items()}, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            step += 1
        print(f"{name}: epoch {epoch + 1} of {epochs}, loss {total.item() * BATCH / images:.4f}", flush=True)
        state.parent.mkdir(parents=True, exist_ok=True)
        content = {"body": body.state_dict(), "heads": classifier.heads.state_dict()}
        torch.save({"epoch": epoch, "optimizer": optimizer.state_dict(), **content}, state)
    fold(body)
    classifier.requires_grad_(False).eval()


def with_batch_norm(body: nn.Sequential) -> nn.Sequential:
    """The same layers, with batch normalisation after each that has weights."""
    layers: list[nn.Module] = []
    for layer in body:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
        if isinstance(layer, nn.Linear):
            layers.append(nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(*layers)


def fold(body: nn.Sequential) -> None:
    """Move what batch normalisation does in eval mode into the weights of the layers before it."""
    body.eval()
    for layer, norm in itertools.pairwise(body):
        if isinstance(norm, nn.BatchNorm2d):
            layer.load_state_dict(fuse_conv_bn_eval(layer, norm).state_dict())
        if isinstance(norm, nn.BatchNorm1d):
            layer.load_state_dict(fuse_linear_bn_eval(layer, norm).state_dict())


@torch.no_grad()
def rescale(classifier: Classifier, features: Tensor) -> None:
    """Scale the features so that their variances average 1 over the training images; logits stay."""
    scale = features.var(0).mean().rsqrt()
    last = next(layer for layer in classifier.body if isinstance(layer, nn.Linear))
    last.weight.mul_(scale)
    last.bias.mul_(scale)
    for head in classifier.heads.values():
        head.weight.div_(scale)


# --- Batches and losses ----------------------------------------------------------------------------------


def image_batches(data: ImageData, seed: int, mirror: bool) -> Any:
    """Training images in random order, moved by up to SHIFT pixels, and half of them mirrored."""
    draws = generator(seed, "cpu")
    size = data.image_shape[-1]
    for rows in torch.randperm(len(data.train), generator=draws).split(BATCH):
        if len(rows) < BATCH:
            return
        x = F.pad(data.train.batch(rows), (SHIFT,) * 4)
        down, right = torch.randint(2 * SHIFT + 1, (2, BATCH, 1), generator=draws) + torch.arange(size)
        x = x[torch.arange(BATCH)[:, None, None], 0, down[:, :, None], right[:, None, :]].unsqueeze(1)
        if mirror:
            x = torch.where(torch.rand(BATCH, 1, 1, 1, generator=draws) < 0.5, x.flip(3), x)
        yield x, data.train.labels[rows].unsqueeze(1)


def class_loss(logits: dict[str, Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(logits["class"], labels[:, 0])


def sprite_batches(data: ImageData, seed: int) -> Any:
    """Sprites of training factors, each batch of one size, half of them smooth, a quarter of them dark."""
    draws = generator(seed, "cpu")
    sizes, shares = list(SIZES), torch.tensor(list(SIZES.values()))
    full = data.image_shape[-1]
    for _ in range(SPRITES_PER_EPOCH // BATCH):
        factors = data.train.factors[torch.randint(len(data.train), (BATCH,), generator=draws)]
        size = sizes[int(torch.multinomial(shares, 1, generator=draws))]
        smooth = bool(torch.rand((), generator=draws) < 0.5)
        x = render(factors, size, antialias=smooth)
        if size != full:
            x = F.interpolate(x, (full, full), mode="bilinear", antialias=True)
        light = torch.rand(BATCH, 1, 1, 1, generator=draws)
        dark = torch.rand(BATCH, 1, 1, 1, generator=draws) < 0.25
        yield torch.where(dark, (0.2 + 0.8 * light) * x, x), factors


def sprites_loss(logits: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropies; for the orientation that of the set of those that look the same."""
    losses = []
    for (name, values), label in zip(logits.items(), labels.unbind(1)):
        if name == "orientation":
            same = looks_the_same(labels)
            chosen = values.masked_fill(~same, -torch.inf).logsumexp(1)
            losses.append((values.logsumexp(1) - chosen).mean())
        else:
            losses.append(F.cross_entropy(values, label))
    return torch.stack(losses).sum()


def looks_the_same(factors: Tensor) -> Tensor:
    """Which orientations make the same image, for sprites of factors [B, 5]: bool [B, 40]."""
    period = torch.tensor(PERIODS)[factors[:, 0]].unsqueeze(1)
    return (torch.arange(40) - factors[:, 2:3]) % period == 0


# --- Tests -----------------------------------------------------------------------------------------------


@torch.no_grad()
def collect(function: Callable[[Tensor], Tensor], split: Any, n: int, start: int = 0) -> Tensor:
    rows = torch.arange(start, start + n).split(500)
    return torch.cat([function(split.batch(part)) for part in rows])


def test(classifier: Classifier, data: ImageData) -> dict[str, Any]:
    """Accuracies on the test split, and Frechet distances between 10,000 images each of the data itself.

    Those of two parts of the training images, and of training and test images, should be about the same:
    else the features know the training images."""
    train, other = (collect(classifier.features, data.train, 10_000, start) for start in (0, 10_000))
    features = collect(classifier.features, data.test, 10_000)
    result = {
        "test_images": len(features),
        "constant_features": int((features.std(0) == 0).sum()),
        "frechet_train_train": frechet(train, other),
        "frechet_train_test": frechet(train, features),
    }
    if not data.factors:
        right = classifier.heads["class"](features).argmax(1) == data.test.labels
        by_class = {
            label: round(right[data.test.labels == index].double().mean().item(), 4)
            for index, label in enumerate(data.classes)
        }
        return {**result, "accuracy": {"class": share(right)}, "accuracy_by_class": by_class}
    return {
        **result,
        "accuracy": sprites_accuracy(classifier, data),
        **{
            f"accuracy_at_{size}": sprites_accuracy(classifier, load_data("sprites", size=size))
            for size in SIZES
            if size != data.image_shape[-1]
        },
    }


def sprites_accuracy(classifier: Classifier, data: ImageData) -> dict[str, float]:
    """Of every factor; orientations that look the same count as right."""
    factors = data.test.factors
    features = collect(classifier.features, data.test, len(factors))
    accuracy = {}
    for (name, head), values in zip(classifier.heads.items(), factors.unbind(1)):
        guess = head(features).argmax(1)
        if name == "orientation":
            right = looks_the_same(factors).gather(1, guess.unsqueeze(1)).squeeze(1)
        else:
            right = guess == values
        accuracy[name] = share(right)
    return accuracy


def share(right: Tensor) -> float:
    return round(right.double().mean().item(), 4)


def frechet(a: Tensor, b: Tensor) -> float:
    return round(frechet_distance(*moments(a), *moments(b)).item(), 4)


if __name__ == "__main__":
    main()
