"""Randomness from one seed: a seed of its own for every use, and blocks that leave the global state alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *keys: int | str) -> int:
    """A seed of its own for each use: `derive(seed, "epoch", 3)`.

    It is the first 63 bits of BLAKE2b over the seed and the keys, so neighbouring seeds and keys give
    unrelated streams, and the same ones the same stream in every process and on every machine.
    """
    text = json.dumps([seed, *keys])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, device: torch.device | str) -> torch.Generator:
    """A generator on `device` that starts from `seed`."""
    return torch.Generator(device=device).manual_seed(seed)


def reseed(seed: int, device: torch.device) -> None:
    """Start torch's default generators of the CPU and of `device` from `seed`, without waiting."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device | str) -> Iterator[None]:
    """Inside, torch's default generators of the CPU and of `device` start from `seed`; after, they go on from
    where they were. Those of other devices are not touched (`torch.manual_seed` would seed them all)."""
    device = torch.device(device)
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    cpu_state = torch.get_rng_state()
    state = accelerator.get_rng_state(device) if accelerator else None
    try:
        torch.set_rng_state(generator(seed, "cpu").get_state())
        if accelerator:
            accelerator.set_rng_state(generator(seed, device).get_state(), device)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if accelerator:
            accelerator.set_rng_state(state, device)
