"""A model's encoder and decoder as programs that run without vaezoo, in PyTorch or in any runtime of ONNX."""

from __future__ import annotations

import copy
import importlib.util
import io
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vaezoo.autoencoder import Autoencoder, Latent
from vaezoo.checkpoint import write_bytes
from vaezoo.errors import VaezooError
from vaezoo.inference import evaluation_mode

#: What files of each format end in.
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}

#: Images in the batch that the programs are traced with: more than 1, which would be fixed, and a prime, so
#: that it is no other size of the model.
TRACED_IMAGES = 7


class Encoder(nn.Module):
    """Images x [B, C, H, W] in [0, 1] -> the mean of q(z|x), [B, D], or the codes [B, h, w]; a tuple of those
    for hierarchies, coarsest first."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Latent:
        q = self.model.encode(x)
        return q.mean if self.model.latent.codes is None else q.draw()


class Decoder(nn.Module):
    """What `Encoder` gives, one argument for each level -> the mean of p(x|z), [B, C, H, W]."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, *z: Tensor) -> Tensor:
        mean: Tensor = self.model.decode(z if len(z) > 1 else z[0]).mean
        return mean


def export(
    model: Autoencoder, folder: str | Path, format: Literal["torch", "onnx"] = "onnx"
) -> dict[str, Path]:
    """Write the encoder and the decoder as programs of their own, for batches of any size.

    The encoder takes images [B, C, H, W] in [0, 1] and gives the mean of q(z|x), or the codes; the decoder
    takes those and gives the mean of p(x|z). A hierarchy has one output, or input, for each level, coarsest
    first: x and z, or z0, z1, ... by name.

    Args:
        model: any model of the zoo; the programs are for the device that it is on.
        folder: where encoder.onnx and decoder.onnx go, or encoder.pt2 and decoder.pt2.
        format: "onnx", which needs `pip install 'vaezoo[export]'`, or "torch", for `torch.export.load`.

    Returns:
        The files, by "encoder" and "decoder".

    Raises:
        VaezooError: an unknown format, packages that are missing, or a model that cannot be exported.
    """
    if not isinstance(model, Autoencoder):
        raise VaezooError(f"this takes a model, such as vaezoo.create('vae'), not {model!r}")
    if format not in SUFFIXES:
        raise VaezooError(f"export: format={format!r} is not valid, it must be one of {', '.join(SUFFIXES)}")
    if format == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise VaezooError(
            "export to ONNX needs two more packages: pip install 'vaezoo[export]'; format='torch' does not"
        )
    parameter = next(model.parameters())
    x = parameter.new_full((TRACED_IMAGES, *model.config.image_shape), 0.5)
    with evaluation_mode(model):
        latent = Encoder(model)(x)
        z = latent if isinstance(latent, tuple) else (latent,)
        names = [f"z{level}" for level in range(len(z))] if len(z) > 1 else ["z"]
        programs = {
            "encoder": _program(Encoder(model), (x,), format, ["x"], names),
            "decoder": _program(Decoder(model), z, format, names, ["x"]),
        }
    files = {name: Path(folder) / f"{name}{SUFFIXES[format]}" for name in programs}
    for name, content in programs.items():
        write_bytes(files[name], content)
    return files


def _program(
    module: nn.Module, inputs: tuple[Tensor, ...], format: str, names: list[str], outputs: list[str]
) -> bytes:
    """The file of one program, whose inputs and outputs have the batch as their first dimension."""
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs)
    dynamic = (shapes,) if isinstance(module, Decoder) else shapes  # `*z` is one argument, a tuple
    try:
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)
        program = torch.export.export(
            _stripped(module, program), inputs, dynamic_shapes=dynamic, strict=False
        )
        if format == "torch":
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            return buffer.getvalue()
        converted = torch.onnx.export(
            program, input_names=names, output_names=outputs, dynamo=True, verbose=False
        )
        assert converted is not None
        return converted.model_proto.SerializeToString()
    except Exception as error:  # whatever torch and the model's own code raise while it is traced
        model, part = type(module.model).__name__, type(module).__name__.lower()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VaezooError(f"the {part} of {model} cannot be exported: {reason}") from error


def _stripped(module: nn.Module, program: torch.export.ExportedProgram) -> nn.Module:
    """The module without the numbers that its program does not read, such as the prior's, which would go into
    the file all the same."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    read = {spec.target for spec in program.graph_signature.input_specs if nodes[spec.arg.name].users}
    stripped = copy.deepcopy(module)
    for name, tensor in [*stripped.named_parameters(), *stripped.named_buffers()]:
        if name not in read:
            tensor.data = tensor.new_empty(0)
    return stripped
