"""Speed of vaezoo beside what people use, on this machine: each section compares its ways in one run.

    python benchmarks/speed.py                         sections that have no result yet
    python benchmarks/speed.py --only vq mlp_vae       these, again
    python benchmarks/speed.py --quick                 a short try of all, which writes nothing

The ways of a section take turns: one round of each, then the next round, from another one on. What is
reported are ratios within a round, as their median and extremes, since a machine is not equally fast all the
time. The first round is not counted. Needs `pip install 'vaezoo[bench]'`.

`torch.set_flush_denormal`, which vaezoo calls and others do not, reaches only the thread that calls it and
those that it starts later. So every way runs in a thread of its own, with a fresh pool of threads for torch,
as it would in a process of its own. The main thread has no pool: with more threads than processors, OpenMP
puts them to sleep between operations, and all ways would take half as long again."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

import vaezoo
from vaezoo.data import ImageData, ResidentSplit, assemble, data_root
from vaezoo.evaluation import AXES
from vaezoo.networks.quantizer import Codebook
from vaezoo.objective import Progress
from vaezoo.random import generator, seeded

RESULTS = Path(__file__).parent / "results" / "speed.json"
THREADS = torch.get_num_threads()

Networks = tuple[nn.Module, nn.Module]  # images -> means and log-variances; z -> logits


# --- Taking turns -----------------------------------------------------------------------------------------


@dataclass
class Rows:
    """What each way took in each round.

    Attributes:
        wall: seconds by the clock, by way.
        cpu: seconds of processors, those of child processes that have ended included, by way. Other work on
            the machine disturbs them less.
        returned: what the ways returned, by way.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    returned: dict[str, list[Any]]

    def table(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "wall_seconds": round(statistics.median(self.wall[name]), 5),
                "cpu_seconds": round(statistics.median(self.cpu[name]), 5),
                "wall_each": [round(seconds, 5) for seconds in self.wall[name]],
                "cpu_each": [round(seconds, 5) for seconds in self.cpu[name]],
            }
            for name in self.wall
        }

    def ratio(
        self, one: str, other: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> dict[str, Any]:
        """Time of one way over that of another within a round, and whether the median meets the goal."""
        ratios = [a / b for a, b in zip(self.wall[one], self.wall[other])]
        cpu = [a / b for a, b in zip(self.cpu[one], self.cpu[other])]
        median = statistics.median(ratios)
        found: dict[str, Any] = {
            "of": one,
            "to": other,
            "median": round(median, 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
            "cpu_median": round(statistics.median(cpu), 3),
        }
        if at_least is not None:
            found |= {"at_least": at_least, "met": median >= at_least}
        if at_most is not None:
            found |= {"at_most": at_most, "met": median <= at_most}
        return found


def fresh_threads() -> ThreadPoolExecutor:
    """A thread with a pool of its own for torch."""
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,))


def take_turns(ways: dict[str, Callable[[int], Any]], rounds: int) -> Rows:
    """Run every way once a round; a way is told the number of the round, as a seed."""
    names = list(ways)
    rows = Rows(*({name: [] for name in names} for _ in range(3)))
    for r in range(rounds + 1):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            with (
                open(os.devnull, "w") as nowhere,
                redirect_stdout(nowhere),
                redirect_stderr(nowhere),
                fresh_threads() as thread,
            ):
                wall, cpu = time.perf_counter(), sum(os.times()[:4])
                returned = thread.submit(ways[name], r).result()
                wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
            if r > 0:  # the first pays for threads, memory and caches
                rows.wall[name].append(wall)
                rows.cpu[name].append(cpu)
                rows.returned[name].append(returned)
                print(f"  {name}: {wall:.4g} s, {cpu:.4g} s of processors", flush=True)
    return rows


# --- Loops that others write ------------------------------------------------------------------------------


def negative_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor, bf16: bool = False) -> Tensor:
    """Nats per image, averaged over images x [B, C, H, W] in [0, 1]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        mean, log_variance = encoder(x).float().chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        logits = decoder(z).float()
    distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    rate = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return (distortion + rate) / len(x)


def bare_loop(
    networks: Networks, train: Tensor, validation: Tensor, batch: int, epochs: int, bf16: bool = False
) -> Networks:
    """The fastest loop that we can write by hand: images resident as uint8, gathered by a permutation, fused
    AdamW, denormals flushed, nothing read back but one validation loss an epoch."""
    torch.set_flush_denormal(True)
    encoder, decoder = networks
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0, fused=True)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(batch):
            x = train.index_select(0, rows).float().div_(255)
            loss = negative_elbo(encoder, decoder, x, bf16)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            parts = [x.float().div_(255) for x in validation.split(batch)]
            torch.stack([negative_elbo(encoder, decoder, x, bf16) for x in parts]).mean().item()
    return networks


def bare_loop_of_a_model(model: Any, train: Tensor, validation: Tensor, batch: int, epochs: int) -> Networks:
    """The same loop around the losses of a model of the zoo: what is left of vaezoo without its trainer."""
    torch.set_flush_denormal(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0, fused=True)
    progress = Progress(torch.zeros(()), 1, len(train))
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(batch):
            x = train.index_select(0, rows).float().div_(255)
            loss = model.losses(x, progress)["model"].total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            parts = [x.float().div_(255) for x in validation.split(batch)]
            torch.stack([model.losses(x, progress)["model"].total for x in parts]).mean().item()
    return model.encoder, model.decoder


def data_loader_loop(
    networks: Networks,
    train: Dataset[Any],
    validation: Dataset[Any],
    batch: int,
    epochs: int,
    workers: int,
) -> Networks:
    """The loop of tutorials: a torchvision set with `ToTensor`, `DataLoader`, Adam, every loss read."""
    encoder, decoder = networks
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    training = DataLoader(train, batch, shuffle=True, num_workers=workers)
    validating = DataLoader(validation, batch, num_workers=workers)
    for _ in range(epochs):
        total = 0.0
        for x, _labels in training:
            loss = negative_elbo(encoder, decoder, x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        with torch.no_grad():
            total = sum(negative_elbo(encoder, decoder, x).item() for x, _labels in validating)
    return networks


def pythae_loop(
    networks: Networks, train: Any, validation: Any, batch: int, epochs: int, folder: str, seed: int
) -> Networks:
    """pythae's VAE and trainer around the given networks."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = networks[0]

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.network(x).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = networks[1]

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).sigmoid())

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    options = BaseTrainerConfig(
        output_dir=folder,
        num_epochs=epochs,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        learning_rate=1e-3,
        seed=seed,
        no_cuda=True,
    )
    BaseTrainer(VAE(config, Encoder(), Decoder()), train, validation, training_config=options).train()
    return networks


# --- Data and networks ------------------------------------------------------------------------------------


def mlp() -> Networks:
    """784-512-256-20, as `vaezoo.create("vae")` has it."""
    encoder = [nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    decoder = [nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 784)]
    return (
        nn.Sequential(*encoder, nn.Linear(256, 40)),
        nn.Sequential(*decoder, nn.Unflatten(1, (1, 28, 28))),
    )


def conv() -> Networks:
    """The published network for 64x64 images with ten latents, as `vaezoo.create("conv_vae")` has it."""
    encoder: list[nn.Module] = []
    for before, after in ((1, 32), (32, 32), (32, 64), (64, 64)):
        encoder += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
    encoder += [nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 20)]
    decoder: list[nn.Module] = [nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 1024)]
    decoder += [nn.ReLU(), nn.Unflatten(1, (64, 4, 4))]
    for before, after in ((64, 64), (64, 32), (32, 32)):
        decoder += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*encoder), nn.Sequential(*decoder, nn.ConvTranspose2d(32, 1, 4, 2, 1))


def as_data(name: str, train: Tensor, validation: Tensor) -> ImageData:
    held_out = ResidentSplit(validation)
    return replace(assemble(0, ResidentSplit(train), validation=held_out, test=held_out), name=name)


def started(networks: Callable[[], Networks], seed: int) -> Networks:
    with seeded(seed, "cpu"):
        return networks()


@torch.no_grad()
def scored(networks: list[Networks], images: Tensor) -> dict[str, Any]:
    """Validation loss of trained networks, nats per image, measured in the same way for all."""
    losses = []
    for encoder, decoder in networks:
        with seeded(0, "cpu"):
            parts = [negative_elbo(encoder, decoder, x.float() / 255) * len(x) for x in images.split(500)]
        losses.append(float(torch.stack(parts).sum()) / len(images))
    return {"loss": round(statistics.fmean(losses), 3), "loss_each": [round(loss, 3) for loss in losses]}


def with_losses(rows: Rows, images: Tensor) -> dict[str, dict[str, Any]]:
    """The table of ways that return trained networks, with what these are worth."""
    table = rows.table()
    for name, networks in rows.returned.items():
        table[name] |= scored(networks, images)
    return table


# --- Sections ---------------------------------------------------------------------------------------------


def mlp_vae(quick: bool) -> dict[str, Any]:
    """The VAE of tutorials, 784-512-256-20, on Fashion-MNIST."""
    from pythae.data.datasets import BaseDataset

    logging.disable(logging.INFO)
    batch, epochs, rounds = 128, 1 if quick else 2, 2 if quick else 5
    n, held_out = (40 * batch, 5 * batch) if quick else (420 * batch, 48 * batch)  # whole batches for all
    published = FashionMNIST(data_root(), transform=ToTensor())
    images = published.data.unsqueeze(1)
    train, validation = images[:n], images[n : n + held_out]
    data = as_data("fashion_mnist", train, validation)
    floats = [BaseDataset(x.float() / 255, torch.zeros(len(x))) for x in (train, validation)]
    subsets = [Subset(published, range(n)), Subset(published, range(n, n + held_out))]

    with tempfile.TemporaryDirectory() as folder:

        def ours(seed: int) -> Networks:
            with seeded(seed, "cpu"):
                model = vaezoo.create("vae")
            options = {"epochs": epochs, "batch_size": batch, "seed": seed, "device": "cpu"}
            vaezoo.train(model, data, out=f"{folder}/{seed}", progress=True, **options)
            return model.encoder, model.decoder

        def losses_only(seed: int) -> Networks:
            with seeded(seed, "cpu"):
                model = vaezoo.create("vae")
            return bare_loop_of_a_model(model, train, validation, batch, epochs)

        rows = take_turns(
            {
                "vaezoo": ours,
                "bare loop": lambda r: bare_loop(started(mlp, r), train, validation, batch, epochs),
                "bare loop, vaezoo's losses": losses_only,
                "pythae": lambda r: pythae_loop(started(mlp, r), *floats, batch, epochs, folder, r),
                "DataLoader": lambda r: data_loader_loop(started(mlp, r), *subsets, batch, epochs, 0),
                "DataLoader, 2 workers": lambda r: data_loader_loop(
                    started(mlp, r), *subsets, batch, epochs, 2
                ),
            },
            rounds,
        )
    return {
        "settings": {"images": n, "validation": held_out, "batch_size": batch, "epochs": epochs},
        "ways": with_losses(rows, validation),
        "ratios": [
            rows.ratio("pythae", "vaezoo", at_least=2.0),
            rows.ratio("DataLoader", "vaezoo", at_least=2.5),
            rows.ratio("DataLoader, 2 workers", "vaezoo"),
            rows.ratio("vaezoo", "bare loop", at_most=1.05),
            rows.ratio("vaezoo", "bare loop, vaezoo's losses"),
        ],
    }


def conv_vae(quick: bool) -> dict[str, Any]:
    """The convolutional VAE on sprites of 64x64 pixels, in float32 and with autocast to bfloat16."""
    batch, epochs, rounds = 64, 1, 1 if quick else 5
    n, held_out = (10 * batch, batch) if quick else (100 * batch, 10 * batch)
    sprites = vaezoo.load_data("sprites", train_size=n + held_out, validation=1, test_size=1).train
    images = sprites.batch(torch.arange(n + held_out)).mul(255).byte()
    train, validation = images[:n], images[n:]
    data = as_data("sprites", train, validation)

    def ours(bf16: bool) -> Callable[[int], Networks]:
        def run(seed: int) -> Networks:
            with seeded(seed, "cpu"):
                model = vaezoo.create("conv_vae", image_shape=(1, 64, 64), latent_dim=10)
            options = {"epochs": epochs, "batch_size": batch, "seed": seed, "device": "cpu"}
            vaezoo.train(model, data, precision="bf16" if bf16 else "float32", **options)
            return model.encoder, model.decoder

        return run

    def bare(bf16: bool) -> Callable[[int], Networks]:
        return lambda r: bare_loop(started(conv, r), train, validation, batch, epochs, bf16)

    rows = take_turns(
        {
            "vaezoo": ours(False),
            "bare loop": bare(False),
            "vaezoo, bf16": ours(True),
            "bare loop, bf16": bare(True),
        },
        rounds,
    )
    return {
        "settings": {"images": n, "validation": held_out, "batch_size": batch, "epochs": epochs},
        "ways": with_losses(rows, validation),
        "ratios": [
            rows.ratio("vaezoo", "bare loop", at_most=1.05),
            rows.ratio("vaezoo, bf16", "bare loop, bf16", at_most=1.05),
            rows.ratio("vaezoo", "vaezoo, bf16"),
        ],
    }


def vq(quick: bool) -> dict[str, Any]:
    """One training step of a quantiser on 8 x 32 x 32 vectors of 64 dimensions: nearest codes, averages,
    gradients straight through and of the commitment. The bare way is the distances and their argmin alone."""
    from vector_quantize_pytorch import VectorQuantize

    rounds = 2 if quick else 9
    ways: dict[str, Callable[[int], Any]] = {}
    z = torch.randn(8, 64, 32, 32, generator=generator(0, "cpu"))
    upstream = torch.randn(z.shape, generator=generator(1, "cpu"))
    flat = z.movedim(1, -1).reshape(-1, 64)

    def add(codes: int, repeats: int) -> None:
        with seeded(0, "cpu"):
            book = Codebook(codes, 64, decay=0.99, revive=0.0)
            layer = VectorQuantize(
                64, codes, decay=0.99, commitment_weight=0.25, rotation_trick=False, accept_image_fmap=True
            ).train()

        def ours(_: int) -> None:
            for _ in range(repeats):
                q = book(z.detach().requires_grad_())
                commitment = 0.25 * (q.encoded - q.vectors.detach()).square().mean()
                torch.autograd.backward([q.rsample(), commitment], [upstream, None])
                book.update(q)

        def theirs(_: int) -> None:
            for _ in range(repeats):
                quantized, _indices, commitment = layer(z.detach().requires_grad_())
                torch.autograd.backward([quantized, commitment.sum()], [upstream, None])

        def bare(_: int) -> None:
            for _ in range(repeats):
                norms = 0.5 * book.vectors.square().sum(1)
                torch.addmm(norms, flat, book.vectors.T, alpha=-1).argmin(1)

        ways[f"vaezoo, K = {codes}"] = ours
        ways[f"bare distances, K = {codes}"] = bare
        ways[f"vector-quantize-pytorch, K = {codes}"] = theirs

    repeats = {512: 5 if quick else 30, 8192: 1 if quick else 3}
    for codes, count in repeats.items():
        add(codes, count)
    rows = take_turns(ways, rounds)
    ratios = []
    for codes in repeats:
        ours = f"vaezoo, K = {codes}"
        ratios.append(rows.ratio(ours, f"bare distances, K = {codes}", at_most=2.0))
        ratios.append(rows.ratio(f"vector-quantize-pytorch, K = {codes}", ours, at_least=3.0))
    return {
        "settings": {"vectors": len(flat), "dimensions": 64, "steps_by_codes": repeats},
        "ways": rows.table(),
        "ratios": ratios,
    }


def evaluation(quick: bool) -> dict[str, Any]:
    """`vaezoo.evaluate` by axis, on 1000 test images of Fashion-MNIST; disentanglement, which takes as many
    images as its protocol "quick" says, on sprites.

    Sampling from priors over codes is in benchmarks/sampling_speed.py, the metrics of disentanglement one by
    one in benchmarks/disentanglement_speed.py."""
    rounds, n = (1, 100) if quick else (3, 1000)
    fashion = vaezoo.load_data("fashion_mnist")
    sprites = vaezoo.load_data("sprites", train_size=n, test_size=n, validation=1)
    with seeded(0, "cpu"):
        vae = vaezoo.create("vae")
        conv_vae = vaezoo.create("conv_vae", image_shape=(1, 64, 64))

    def measure(axis: str) -> Callable[[int], Any]:
        model, data = (conv_vae, sprites) if axis == "disentanglement" else (vae, fashion)
        return lambda r: vaezoo.evaluate(model, data, n=n, likelihood_n=n, axes=[axis], seed=r)

    axes = AXES[:-1] if quick else AXES  # disentanglement takes its time whatever n is
    rows = take_turns({axis: measure(axis) for axis in axes}, rounds)
    return {"settings": {"images": n, "importance_samples": 50}, "ways": rows.table(), "ratios": []}


def imports(quick: bool) -> dict[str, Any]:
    """A fresh interpreter that imports torch, and vaezoo beside it."""
    statements = {
        "torch": "import torch",
        "torch, vaezoo": "import torch, vaezoo",
        "torch, vaezoo, create and train": "import torch, vaezoo; vaezoo.create('vae'); vaezoo.train",
    }

    def start(statement: str) -> Callable[[int], Any]:
        return lambda r: subprocess.run([sys.executable, "-c", statement], check=True)

    rows = take_turns({name: start(text) for name, text in statements.items()}, 2 if quick else 15)
    added = [a - b for a, b in zip(rows.wall["torch, vaezoo"], rows.wall["torch"])]
    seconds, most = statistics.median(added), 0.15
    return {
        "settings": {},
        "ways": rows.table(),
        "ratios": [],
        "added_seconds": {"median": round(seconds, 4), "at_most": most, "met": seconds <= most},
    }


def scaling(quick: bool) -> dict[str, Any]:
    """One epoch of the VAE on random images, by number of images and by batch size."""
    rounds, unit = (1, 1000) if quick else (5, 10_000)
    pixels = torch.randint(256, (6 * unit, 1, 28, 28), generator=generator(0, "cpu")).byte()
    validation = pixels[:128]

    def epoch(images: int, batch: int) -> Callable[[int], Any]:
        def run(seed: int) -> None:
            with seeded(seed, "cpu"):
                model = vaezoo.create("vae")
            data = as_data("random", pixels[:images], validation)
            vaezoo.train(model, data, epochs=1, batch_size=batch, seed=seed, device="cpu")

        return run

    sizes = {f"{k * unit} images, batch 128": epoch(k * unit, 128) for k in (1, 3, 6)}
    batches = {f"{3 * unit} images, batch {b}": epoch(3 * unit, b) for b in (32, 64, 256, 512, 1024)}
    rows = take_turns(sizes | batches, rounds)
    table = rows.table()
    for name, row in table.items():
        images = int(name.split()[0])
        row |= {"images": images, "microseconds_per_image": round(1e6 * row["wall_seconds"] / images, 2)}
    return {"settings": {"epochs": 1}, "ways": table, "ratios": []}


def compiled(quick: bool) -> dict[str, Any]:
    """Losses and gradients of one batch, in eager execution and compiled by inductor; and the first call."""
    rounds, repeats = (2, 2) if quick else (9, 10)
    ways: dict[str, Callable[[int], Any]] = {}
    first_call, ratios = {}, []
    for name, batch, options in (
        ("vae", 128, {}),
        ("conv_vae", 64, {"image_shape": (1, 64, 64)}),
        ("vq_vae", 64, {"image_shape": (3, 32, 32)}),
    ):
        with seeded(0, "cpu"):
            model = vaezoo.create(name, **options).train()
            x = torch.rand(batch, *model.config.image_shape)
            model.initialize(x)

        def steps(
            losses: Callable[..., Any], model: Any = model, x: Tensor = x, count: int = repeats
        ) -> None:
            for step in range(count):
                model.zero_grad()
                losses(x, Progress(torch.tensor(float(step)), 1000, 1000))["model"].total.backward()

        in_one_graph = torch.compile(model.losses, fullgraph=True, dynamic=False)
        began = time.perf_counter()
        with fresh_threads() as thread:
            thread.submit(steps, in_one_graph, count=1).result()
        first_call[name] = round(time.perf_counter() - began, 1)
        ways[name] = lambda r, steps=steps, losses=model.losses: steps(losses)
        ways[f"{name}, compiled"] = lambda r, steps=steps, losses=in_one_graph: steps(losses)
    rows = take_turns(ways, rounds)
    ratios = [rows.ratio(name, f"{name}, compiled") for name in first_call]
    return {
        "settings": {"steps": repeats, "seconds_of_the_first_call": first_call},
        "ways": rows.table(),
        "ratios": ratios,
    }


SECTIONS = {
    "mlp_vae": mlp_vae,
    "conv_vae": conv_vae,
    "vq": vq,
    "evaluation": evaluation,
    "import": imports,
    "scaling": scaling,
    "compile": compiled,
}

#: What was tried, and what came of it.
NOTES = {
    "mlp_vae": [
        "Every way validates on the same images after each epoch; vaezoo and pythae show their progress bars "
        "and write their run folders.",
        "The hand-written loop takes torch's binary cross-entropy, whose log1p is slow on some processors; "
        "vaezoo's Bernoulli takes exp and log of numbers in [1/2, 1] instead.",
        "Deriving each step's seed and starting the generators from it, which makes a run resume to the bit, "
        "takes 4 microseconds.",
        "Not done: torch binds the arguments of an autograd.Function that has a setup_context with "
        "inspect.signature at every call, 10 microseconds a step; torch.func.vmap needs it.",
    ],
    "conv_vae": ["channels_last gave nothing on a CPU."],
    "vq": [
        "Distances are held 2^20 at a time, 4 MB. All of 8192 x 8192 at once, as before, took half as long "
        "again: they leave the cache between the matrix product and the argmin. From 2^19 to 2^22 makes no "
        "difference, 2^16 is slower.",
        "Tried without gain: torch.min for argmin, one buffer for the distances of all blocks, scatter_add_, "
        "index_put_ and bincount for the sums by code.",
        "vector-quantize-pytorch is given its straight-through estimator (rotation_trick=False), moving "
        "averages of the same decay, and the same grid of vectors; dead codes are revived by neither.",
    ],
    "compile": [
        "Compiling pays for itself on a CPU after minutes at best, so `compile` is an option of `train` that "
        "is off by default."
    ],
}


# --- The machine, and what is written ---------------------------------------------------------------------


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "processors": os.cpu_count(),
        "threads": THREADS,
        "load_average_at_the_end": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {
            "vaezoo": vaezoo.__version__,
            **{name: version(name) for name in ("torch", "pythae", "vector-quantize-pytorch")},
        },
    }


def main() -> None:
    global THREADS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--quick", action="store_true", help="few and small rounds; print, and write nothing")
    args = parser.parse_args()
    THREADS = args.threads
    torch.set_num_threads(1)

    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.only or [name for name in SECTIONS if args.quick or name not in done]:
        print(name, flush=True)
        section = SECTIONS[name]
        what = " ".join((section.__doc__ or "").split("\n\n")[0].split())
        result = {"what": what, **section(args.quick), "notes": NOTES.get(name, []), **machine()}
        print(json.dumps(result, indent=1), flush=True)
        if not args.quick:
            done[name] = result  # after each section, so that a run goes on where it was interrupted
            RESULTS.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
