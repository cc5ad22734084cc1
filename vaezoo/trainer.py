"""The training loop: one for every model and every prior. Read `fit` from top to bottom."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, cast

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from vaezoo.autoencoder import Autoencoder
from vaezoo.checkpoint import (
    REPORT,
    SCHEMA,
    WEIGHTS,
    model_header,
    prior_folder,
    read_header,
    read_tensors,
    remove_unfinished,
    save,
    save_prior,
    weights_file,
    write_tensors,
    write_text,
)
from vaezoo.config import BaseConfig, split_options
from vaezoo.data import ImageData, Loader, load_data
from vaezoo.errors import CheckpointError, DataError, Terminated, TrainingError, VaezooError
from vaezoo.inference import evaluation_mode
from vaezoo.latents import Latents, encode_data, labels_for
from vaezoo.objective import Loss, Progress
from vaezoo.priors import PRIORS
from vaezoo.random import derive, reseed, seeded
from vaezoo.registry import MODELS

STATE = "state.safetensors"
OLDER_STATE = "state-*.safetensors"
METRICS = "metrics.jsonl"
INITIALIZATION_IMAGES, INITIALIZATION_PIXELS = 1024, 2**22

#: Added to the norms that gradients are divided by, so that a gradient of zeros stays one (as in their code).
SMALLEST_NORM = 1e-7

#: Without it set to a fixed size, cuBLAS may add in another order from run to run.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

IF_NOT_FINITE = "; lower lr, or set clip=1"


Beta = Annotated[float, Field(ge=0, lt=1)]


class GroupConfig(BaseConfig):
    """Options of one parameter group, where they differ from the run's."""

    lr: float | None = Field(None, ge=0, description="learning rate")
    betas: tuple[Beta, Beta] | None = Field(None, description="Adam's decay rates")
    weight_decay: float | None = Field(None, ge=0, description="decoupled weight decay")


class TrainConfig(BaseConfig):
    """Options of a run. Defaults of a model on a data set come from its recipe."""

    epochs: int = Field(20, ge=1, description="passes over the training split")
    batch_size: int = Field(128, ge=1, description="images per step")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="constant, or a half cosine down to 0 at the end of the run"
    )
    lr_warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Adam's decay rates")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    groups: dict[str, GroupConfig] = Field(
        {}, description="lr, betas or weight_decay of single parameter groups, by the group's name"
    )
    clip: PositiveFloat | None = Field(
        None, description="largest norm of each group's gradient; none: no clipping"
    )
    normalize_gradients: bool = Field(
        False, description="divide the gradient of each tensor by its norm (Tomczak & Welling 2018)"
    )
    weight_ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights that are kept; none: off"
    )
    bf16: bool = Field(False, description="autocast the networks to bfloat16")
    compile: bool = Field(False, description="torch.compile the losses")
    deterministic: bool = Field(
        False, description="on a GPU, the same result every time: only operations for which torch promises it"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better validation loss"
    )
    patience_after: int = Field(
        0, ge=0, description="epochs that patience does not count, such as those of a KL warm-up"
    )
    log_steps: int = Field(50, ge=1, description="steps between two lines of the log")
    checkpoint_seconds: float = Field(30.0, ge=0, description="write the run's state at most this often")
    keep_last: int = Field(
        1, ge=1, description="states to keep; with more than 1, each also as state-STEP.safetensors"
    )
    workers: int = Field(0, ge=0, description="processes that read images, for data that is streamed")
    seed: int = Field(0, ge=0, description="seed of the order of the data and of all noise")

    @model_validator(mode="after")
    def _clip_or_normalize(self) -> TrainConfig:
        if self.normalize_gradients and self.clip is not None:
            raise ValueError("clip has no effect on gradients that normalize_gradients brings to norm 1")
        return self


class Trainable(Protocol):
    """What the loop trains: an `Autoencoder` on images, or a `Prior` on latents."""

    def losses(self, x: Any, progress: Progress) -> dict[str, Loss]: ...
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]: ...


class Callback:
    """What is told how a run goes, for loggers and pictures. A subclass overrides what it needs.

    It cannot end a run: one that raises is left out from then on, with a warning. Nor can its draws of random
    numbers change one. A run that is resumed tells its steps from where it goes on.
    """

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the log is written: `train/...` means every `log_steps` steps and at the end of an epoch,
        `validation/...` after each epoch."""

    def on_epoch(self, epoch: int, step: int, model: Any) -> None:
        """An epoch, counted from 1, is over and validated. The model is in eval mode, without gradients, and
        has its averaged weights if they are kept. It is to be looked at, not changed."""


@dataclass
class Run:
    """What a run leaves.

    Attributes:
        model: the trained module, with the weights of the best validation loss.
        history: the lines of metrics.jsonl; losses in nats per image, averaged over samples.
        steps: steps done.
        best_step: step of the best validation loss.
        best_loss: that loss.
        images_per_second: over this process's part of the run, validation excluded.
        folder: where the run was written, or None.
    """

    model: Any
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    images_per_second: float = 0.0
    folder: Path | None = None


def train(
    model: Autoencoder,
    data: Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Run:
    """Train a model.

    A prior that was fitted to the model's latents before is dropped, since the latents change; the model goes
    back to its own. On the CPU, denormal numbers are flushed to zero from then on, in the whole process.

    Args:
        model: any model of the zoo; trained in place.
        data: a name or path that `load_data` takes, a tensor of images, or an `ImageData`.
        out: run folder for the weights, the state to resume from and the log.
        resume: go on with the run in `out`, exactly as if it had not been interrupted.
        device: where to train; by default the GPU if there is one.
        progress: show a progress bar; by default on a terminal.
        callbacks: what is told how the run goes, such as `vaezoo.callbacks.TensorBoard`.
        **options: fields of `TrainConfig`; what is not given comes from the recipe, then from the defaults.

    Raises:
        VaezooError: an unknown option, images of another shape than the model's, or no callback.
        TrainingError: a loss that is not finite, or a device that is out of memory.
        CheckpointError: a run that cannot be resumed, or a file that cannot be written.
        KeyboardInterrupt, Terminated: Ctrl-C or SIGTERM, after the step is done and the state written.
    """
    device = resolve_device(device)
    images = load_data(data, device=device)
    check_shape(model, images)
    check_callbacks(callbacks)
    name = MODELS.name_of(type(model))
    config = TrainConfig.parse({**recipe(model, images.name), **options}, f"train {name}")
    loader = Loader(images.train, config.batch_size, seed=config.seed, workers=config.workers)
    folder = _open_folder(out, resume)
    if model.prior is not None and model.prior.fitted:
        model.prior = model.make_prior()
    model.to(device)
    header = model_header(model, {"data": images.header(), "train": config.model_dump(mode="json")})
    if folder is not None and not resume:
        described = {**header, "environment": environment(device)}
        write_text(folder / "run.json", json.dumps(described, indent=1) + "\n")

    def start() -> None:
        pixels = math.prod(images.image_shape)
        count = min(INITIALIZATION_IMAGES, len(images.train), max(1, INITIALIZATION_PIXELS // pixels))
        with seeded(derive(config.seed, "initialize"), device):
            model.initialize(next(Loader(images.train, count, seed=config.seed).epoch(0)))

    run = fit(
        model,
        loader,
        Loader(images.validation, config.batch_size, shuffle=False, drop_last=False, workers=config.workers),
        config,
        start=start,
        folder=folder,
        resume=resume,
        title=name,
        progress=progress,
        callbacks=callbacks,
        header=header,
        identity={
            "model": header["model"],
            "config": header["config"],
            "data": header["info"]["data"]["fingerprint"],
        },
        how_to_resume=f"train(..., resume=True), or `vaezoo train --resume {folder}`",
    )
    model.eval()
    return run


def fit_prior(
    model: Autoencoder,
    data: Any,
    prior: str | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """Fit a prior to the latents of the training images and make it the model's own.

    Args:
        model: a trained model.
        data: as in `train`.
        prior: name of the prior; by default the model's `default_prior`, else "gaussian_mixture".
        out: the model's run folder or file, where the weights are written anew with their prior. The prior is
            also kept alone, as priors/NAME.safetensors, for `vaezoo.load(out, prior=NAME)`, with the log and
            state of its training under priors/NAME/, in place of an earlier one of the same name; so is a
            prior that the model has of its own. Codes are kept, too, for the next prior.
        resume: go on with the prior's training in `out`.
        device: as in `train`.
        progress: as in `train`.
        **options: fields of the prior's config and of `TrainConfig`.

    Raises:
        VaezooError: an unknown prior or option, a prior that does not go with the model's latents, or one
            with classes where the data have no labels, or others.
    """
    device = resolve_device(device)
    images = load_data(data, device=device)
    check_shape(model, images)
    model.to(device).eval()
    prior_name = prior or model.default_prior or "gaussian_mixture"
    prior_class = PRIORS.get(prior_name)
    of_prior, of_fit = split_options(
        options,
        (f"prior '{prior_name}'", prior_class.Config.model_fields),
        ("training", TrainConfig.model_fields),
    )
    prior_config = prior_class.Config.parse(of_prior, f"prior '{prior_name}'")
    config = TrainConfig.parse({**recipe(prior_class, images.name), **of_fit}, f"fit-prior {prior_name}")
    with seeded(derive(config.seed, "prior"), device):
        module = prior_class(prior_config, model.latent).to(device)
    labels = labels_for(module, prior_name, images)
    info = {"data": images.header(), "prior_train": config.model_dump(mode="json")}
    encoded = encode_data(model, images, config.seed, config.workers, out)
    latents = {split: Latents(z, labels[split]) for split, z in encoded.items()}
    folder = _open_folder(prior_folder(out, prior_name) if out is not None else None, resume, replace=True)

    if not any(True for _ in module.parameters()):
        assert isinstance(encoded["train"], Tensor)
        module.fit(encoded["train"], config.seed)
        run = Run(module, folder=folder)
    else:
        run = fit(
            module,
            Loader(latents["train"], config.batch_size, seed=config.seed),
            Loader(latents["validation"], config.batch_size, shuffle=False, drop_last=False),
            config,
            start=lambda: module.initialize(encoded["train"]),
            folder=folder,
            resume=resume,
            title=prior_name,
            progress=progress,
            identity={
                "prior": prior_name,
                "config": prior_config.model_dump(mode="json"),
                **latents["train"].fingerprint(),
            },
            how_to_resume=(
                f"fit_prior(..., resume=True), or `vaezoo fit-prior {out} --prior {prior_name} --resume`"
            ),
        )
    if out is not None and model.prior is not None and not model.prior.fitted:
        save_prior(model, out)  # the model's own one, which the weights' file will not hold any longer
    module.fitted = True
    model.prior = module.eval()
    if out is not None:
        file = weights_file(out)
        previous = read_header(file)["info"] if file.exists() else {}
        save_prior(model, out, info)
        save(model, out, {**previous, **info})
    return run


def fit(
    module: Any,
    loader: Loader,
    validation: Loader,
    config: TrainConfig,
    *,
    start: Callable[[], None] = lambda: None,
    folder: Path | None = None,
    resume: bool = False,
    title: str = "",
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    header: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    how_to_resume: str = "",
) -> Run:
    """The loop. All randomness of a step comes from (seed, step), so that a run can go on from any step.

    Args:
        module: an `Autoencoder` or a `Prior`.
        loader: batches of the training split.
        validation: batches of the validation split.
        config: the options.
        start: called before the first step of a run that is not resumed.
        folder: where the state and the log are written.
        resume: go on from the state in `folder`.
        title: name of the progress bar.
        progress: show it; None: on a terminal.
        callbacks: as in `train`.
        header: of the file of the best weights; None: do not write one.
        identity: what a resumed run must have in common with its state.
        how_to_resume: for the message of an interrupted run.
    """
    device = next(module.parameters()).device
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # as activations die, denormals make steps up to 45% slower
    optimizers = make_optimizers(module, config)
    total_steps = config.epochs * loader.steps_per_epoch
    step_tensor = torch.zeros((), device=device)
    autocast = _autocast(device, config.bf16)

    def objective(batch: Any, step: Tensor) -> tuple[Tensor, dict[str, Tensor], tuple[str, ...]]:
        with autocast:
            losses = module.losses(batch, Progress(step, total_steps, len(loader.split)))
        total = torch.stack([loss.total for loss in losses.values()]).sum()
        terms = {name: value.detach() for loss in losses.values() for name, value in loss.terms.items()}
        return total, {"loss": total.detach(), **terms}, tuple(losses)

    training_objective = objective
    if config.compile:
        torch.compiler.reset()  # the limit of recompilations counts all runs of a process together
        training_objective = torch.compile(objective)

    run = Run(module, folder=folder)
    listeners = Listeners(callbacks)
    log = Log(folder, run, config.log_steps, listeners)
    state = State(module, optimizers, {}, {}, run, log)
    if resume and folder is not None:
        state.restore(folder, config, identity)
    else:
        with _deterministic(config.deterministic):
            start()
        if config.weight_ema is not None:
            state.average = {n: p.detach().clone() for n, p in module.named_parameters()}
    stop = out_of_patience(run, config, loader.steps_per_epoch)
    last_checkpoint = time.monotonic()
    first_step, seconds = run.steps, 0.0
    module.train()

    bar = tqdm(
        total=total_steps * loader.batch_size,  # in images, so that it shows their rate beside the time left
        initial=run.steps * loader.batch_size,
        desc=title,
        unit=" images",
        unit_scale=True,
        disable=not progress if progress is not None else None,
    )
    with (
        seeded(0, device),
        _deterministic(config.deterministic),
        deferred_interrupt() as interruption,
        bar,
        _explained(state, folder, header, config),
    ):
        batches: Iterator[Any] = iter(())
        for step in range(run.steps, total_steps if not stop else run.steps):
            began = time.monotonic()
            epoch, position = divmod(step, loader.steps_per_epoch)
            if position == 0 or step == first_step:
                batches = loader.epoch(epoch, start=position)
            reseed(derive(config.seed, "step", step), device)
            batch = next(batches)
            step_tensor.fill_(step)

            total, terms, active = training_objective(batch, step_tensor)
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            total.backward()
            for name in active:
                optimizer = optimizers[name]
                if config.normalize_gradients:
                    normalize_gradients(optimizer.param_groups[0]["params"])
                if config.clip is not None:
                    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], config.clip)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * lr_factor(step, total_steps, config)
                optimizer.step()
            if config.weight_ema is not None:
                # The decay rises with the steps, so that a short run is not left with its starting weights.
                decay = min(config.weight_ema, (1 + step) / (10 + step))
                parameters = [p.detach() for p in module.parameters()]
                torch._foreach_lerp_(list(state.average.values()), parameters, 1 - decay)

            run.steps = step + 1
            end_of_epoch = position == loader.steps_per_epoch - 1
            log.add(terms, epoch, end_of_epoch)
            seconds += time.monotonic() - began  # after the log, whose reading back waits for the device
            bar.update(loader.batch_size)
            bar.set_postfix_str(log.summary, refresh=False)

            if end_of_epoch:
                with _swapped(module, state.average):
                    losses = validate(module, validation, objective, total_steps, config.seed)
                    if not math.isfinite(losses["loss"]):
                        raise TrainingError(
                            f"the validation loss became {losses['loss']} after step {run.steps} "
                            f"(epoch {epoch + 1}){_last_good(folder, run)}{IF_NOT_FINITE}"
                        )
                    log.line(
                        {
                            "step": run.steps,
                            "epoch": epoch + 1,
                            **{f"validation/{k}": v for k, v in losses.items()},
                        }
                    )
                    if losses["loss"] < run.best_loss:
                        run.best_loss, run.best_step = losses["loss"], run.steps
                        state.best = {n: t.detach().clone() for n, t in module.state_dict().items()}
                    with evaluation_mode(module):
                        listeners.tell("on_epoch", epoch + 1, run.steps, module)
            stop = out_of_patience(run, config, loader.steps_per_epoch)
            due = time.monotonic() - last_checkpoint >= config.checkpoint_seconds
            stopped_by = interruption.by  # read once, or a signal between the two uses would cost the state
            if folder is not None and (due or stop or stopped_by or run.steps == total_steps):
                # In this order: whenever the process dies, the state is not ahead of the best weights.
                state.write_best(folder, header)
                state.write(folder, config, identity)
                last_checkpoint = time.monotonic()
            if stopped_by:
                where = f"; go on with {how_to_resume}" if folder else ""
                raise stopped_by(f"stopped after step {run.steps} of {total_steps}{where}")
            if stop:
                break

    run.images_per_second = (run.steps - first_step) * loader.batch_size / seconds if seconds else 0.0
    if state.best:
        module.load_state_dict(state.best)
    return run


# --- The parts of the loop ------------------------------------------------------------------------------


def make_optimizers(module: Trainable, config: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """One AdamW per parameter group, after checking that the groups are disjoint and complete."""
    groups = module.parameter_groups()
    listed = [id(p) for parameters in groups.values() for p in parameters]
    own = {id(p): name for name, p in cast(nn.Module, module).named_parameters()}
    if len(set(listed)) != len(listed) or set(listed) != set(own):
        missing = [name for key, name in own.items() if key not in set(listed)]
        problem = f"leave out {', '.join(missing[:3])}" if missing else "share or add parameters"
        raise VaezooError(
            f"{type(module).__name__}.parameter_groups must split the parameters, but the groups {problem}"
        )
    for name in config.groups:
        if name not in groups:
            raise VaezooError(f"groups names '{name}', but the parameter groups are {', '.join(groups)}")
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, parameters in groups.items():
        common = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
        own_options = config.groups[name].model_dump(exclude_none=True) if name in config.groups else {}
        options = {**common, **own_options}
        optimizers[name] = torch.optim.AdamW(parameters, fused=True, **options)
        for group in optimizers[name].param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate at a step over its full value: a function of the step, without state to save."""
    warmup = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * step / total_steps)) if config.lr_schedule == "cosine" else 1.0
    return warmup * cosine


@torch.no_grad()
def normalize_gradients(parameters: list[nn.Parameter]) -> None:
    """Divide the gradient of each tensor by its L2 norm, in place, without waiting for the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_add_(norms, SMALLEST_NORM)
    torch._foreach_div_(gradients, norms)


def out_of_patience(run: Run, config: TrainConfig, steps_per_epoch: int) -> bool:
    """Whether the run ends here: a function of counts that are saved, so that resuming does not change it."""
    counted_from = max(run.best_step, config.patience_after * steps_per_epoch)
    return config.patience is not None and run.steps - counted_from >= config.patience * steps_per_epoch


def validate(
    module: nn.Module, loader: Loader, objective: Callable[..., Any], total_steps: int, seed: int
) -> dict[str, float]:
    """Losses on the validation split with all schedules at their end, averaged over samples.

    The schedules' end, so that the losses of all epochs measure the same objective.
    """
    device = next(module.parameters()).device
    step = torch.tensor(float(total_steps), device=device)
    sums: dict[str, Tensor] = {}
    with evaluation_mode(module), seeded(derive(seed, "validate"), device):
        for index, batch in enumerate(loader.epoch(0)):
            size = min(loader.batch_size, len(loader.split) - index * loader.batch_size)
            for name, value in objective(batch, step)[1].items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.double() * size
    return {name: float(value) / len(loader.split) for name, value in sums.items()}


class Log:
    """Collects the terms on the device and reads them back once per interval, where it also looks for NaN."""

    def __init__(self, folder: Path | None, run: Run, interval: int, listeners: Listeners) -> None:
        self.folder, self.run, self.interval, self.listeners = folder, run, interval, listeners
        # By term, since a group that sits out a step has no terms there.
        self.values: dict[str, list[Tensor]] = {}
        self.steps: dict[str, list[int]] = {}
        self.epoch = 0
        self.summary = ""

    def add(self, terms: dict[str, Tensor], epoch: int, end_of_epoch: bool) -> None:
        """Take the terms of one step; at the end of an interval write their means."""
        self.epoch = epoch
        for name, value in terms.items():
            self.values.setdefault(name, []).append(value)
            self.steps.setdefault(name, []).append(self.run.steps - 1)
        if end_of_epoch or self.run.steps % self.interval == 0:
            means = {name: float(values.mean()) for name, values in self.pending().items()}
            self.values, self.steps = {}, {}
            logged = {f"train/{name}": value for name, value in means.items()}
            self.line({"step": self.run.steps, "epoch": epoch + 1, **logged})
            self.summary = " ".join(f"{name} {value:.4g}" for name, value in means.items())

    def pending(self) -> dict[str, Tensor]:
        """The terms since the last line, float64 on the CPU; raises at the first that is not finite."""
        if not self.values:
            return {}
        flat = torch.cat([torch.stack(values).double() for values in self.values.values()]).cpu()
        found = dict(zip(self.values, flat.split([len(values) for values in self.values.values()])))
        wrong = [
            (self.steps[name][int(row)], name == "loss", name, float(values[row]))
            for name, values in found.items()
            for row in (~values.isfinite()).nonzero()[:1]
        ]
        if wrong:
            # The total follows its terms into NaN: of one step's, it is named last.
            step, _, name, value = min(wrong)
            raise TrainingError(
                f"loss term '{name}' became {value} at step {step} (epoch {self.epoch + 1})"
                f"{_last_good(self.folder, self.run)}{IF_NOT_FINITE}"
            )
        return found

    def line(self, entry: dict[str, Any]) -> None:
        self.run.history.append(entry)
        if self.folder is not None:
            path = self.folder / METRICS
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise CheckpointError(
                    f"could not write {path}: {error}; the last state, if any, is intact"
                ) from error
        values = {name: value for name, value in entry.items() if name not in ("step", "epoch")}
        self.listeners.tell("on_log", entry["step"], values)


class Listeners:
    """The callbacks of a run. What they draw is no matter to it: every step starts the generators anew."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def tell(self, event: str, *about: Any) -> None:
        """Call a method of each; one that fails would cost the run, so it is left out from then on."""
        for callback in list(self.callbacks):
            try:
                getattr(callback, event)(*about)
            except Exception as error:
                self.callbacks.remove(callback)
                warnings.warn(
                    f"{type(callback).__name__}.{event} failed with {type(error).__name__}: {error}; the "
                    "training goes on without this callback",
                    stacklevel=2,
                )


@contextmanager
def deferred_interrupt() -> Iterator[Interruption]:
    """Ctrl-C and SIGTERM inside wait for the end of the step; a second one does not wait."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    previous = {number: signal.signal(number, interruption.receive) for number in Interruption.SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Interruption:
    """By which exception the run was asked to end; None as long as it was not."""

    #: What Ctrl-C sends, and what schedulers and container engines send some seconds before they kill.
    SIGNALS: Mapping[int, type[KeyboardInterrupt] | type[Terminated]] = {
        signal.SIGINT: KeyboardInterrupt,
        signal.SIGTERM: Terminated,
    }

    def __init__(self) -> None:
        self.by: type[KeyboardInterrupt] | type[Terminated] | None = None

    def receive(self, number: int, frame: Any) -> None:
        if self.by:
            raise self.SIGNALS[number]("stopped within a step")
        self.by = self.SIGNALS[number]


@contextmanager
def _explained(
    state: State, folder: Path | None, header: Mapping[str, Any] | None, config: TrainConfig
) -> Iterator[None]:
    """A run that fails inside leaves the best weights so far in its folder, and says what to do."""
    try:
        yield
    except (TrainingError, DataError, torch.cuda.OutOfMemoryError) as error:
        if folder is not None:
            state.write_best(folder, header)
        if isinstance(error, VaezooError):
            raise
        raise TrainingError(
            f"the device ran out of memory at step {state.run.steps}, with batch_size={config.batch_size}; "
            f"lower batch_size or the size of the networks or images, or set bf16=True"
            f"{_last_good(folder, state.run)} ({str(error).splitlines()[0]})"
        ) from error


@contextmanager
def _swapped(module: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters hold the averaged weights."""
    if not average:
        yield
        return
    own = {name: p.detach().clone() for name, p in module.named_parameters()}
    _copy(module, average)
    try:
        yield
    finally:
        _copy(module, own)


@torch.no_grad()
def _copy(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(values[name])


@contextmanager
def _deterministic(enabled: bool) -> Iterator[None]:
    """Inside, torch refuses operations that may give another result the next time. On the CPU there are none
    in the zoo, so this is about GPUs."""
    if not enabled:
        yield
        return
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.backends.cudnn.benchmark = False  # it chooses algorithms by their time, which varies
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[CUBLAS_WORKSPACE]


def _autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


# --- State ----------------------------------------------------------------------------------------------


#: Options that a resumed run may change, because no step depends on them.
_FREE_TO_CHANGE = (
    "epochs",
    "patience",
    "patience_after",
    "checkpoint_seconds",
    "keep_last",
    "workers",
    "log_steps",
    "compile",
)


@dataclass
class State:
    """All that the next step depends on, so that it fits into one file.

    Attributes:
        module: what is trained.
        optimizers: by parameter group.
        average: averaged weights, if they are kept.
        best: state dict of the best validation loss so far.
        run: counts.
        log: terms that are not written yet.
    """

    module: nn.Module
    optimizers: Mapping[str, torch.optim.Optimizer]
    average: dict[str, Tensor]
    best: dict[str, Tensor]
    run: Run
    log: Log

    def write(self, folder: Path, config: TrainConfig, identity: Mapping[str, Any] | None) -> None:
        run = self.run
        tensors = {f"model.{name}": t for name, t in self.module.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in self.average.items()}
        tensors |= {f"best.{name}": t for name, t in self.best.items()}
        tensors |= {f"log.{name}": t for name, t in self.log.pending().items()}
        for group, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{group}.{index}.{name}": t for name, t in values.items()}
        header = {
            "schema": SCHEMA,
            "step": run.steps,
            "best_step": run.best_step,
            "best_loss": run.best_loss if math.isfinite(run.best_loss) else None,
            "log": self.log.steps,
            "train": config.model_dump(mode="json"),
            "identity": identity,
        }
        write_tensors(folder / STATE, tensors, header)
        if config.keep_last > 1:
            _keep(folder / STATE, folder / OLDER_STATE.replace("*", f"{run.steps:09}"), config.keep_last)

    def write_best(self, folder: Path, header: Mapping[str, Any] | None) -> None:
        if self.best and header is not None:
            write_tensors(folder / WEIGHTS, self.best, header)

    def restore(self, folder: Path, config: TrainConfig, identity: Mapping[str, Any] | None) -> None:
        """Put everything back as it was written, or say why it cannot be."""
        path = folder / STATE
        if not path.exists():
            raise CheckpointError(f"nothing to resume: {path} does not exist")
        header = read_header(path)
        if not isinstance(header.get("train"), dict) or not isinstance(header.get("identity") or {}, dict):
            raise CheckpointError(f"{path} has a damaged header")
        _refuse_changes(folder, header, config, identity)
        tensors = read_tensors(path, next(self.module.parameters()).device)
        run = self.run
        try:
            self.module.load_state_dict(_with_prefix(tensors, "model."))
            if config.weight_ema is not None:  # in the order of the parameters, which a file does not keep
                self.average = {n: tensors[f"average.{n}"] for n, _ in self.module.named_parameters()}
                _check_shapes(self.average, dict(self.module.named_parameters()))
            self.best = _with_prefix(tensors, "best.")
            if self.best:
                _check_shapes(self.best, self.module.state_dict())
            for group, optimizer in self.optimizers.items():
                values: dict[int, dict[str, Tensor]] = {}
                for key, tensor in _with_prefix(tensors, f"optimizer.{group}.").items():
                    index, _, name = key.partition(".")
                    values.setdefault(int(index), {})[name] = tensor
                parameters = optimizer.param_groups[0]["params"]
                for number, moments in values.items():  # the fused step does not check them
                    p = parameters[number]
                    _check_shapes(moments, {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p})
                optimizer.load_state_dict(
                    {"state": values, "param_groups": optimizer.state_dict()["param_groups"]}
                )
            run.steps, run.best_step = int(header["step"]), int(header["best_step"])
            if not 0 <= run.best_step <= run.steps:
                raise ValueError(f"step {run.steps}, and the best one is {run.best_step}")
            run.best_loss = math.inf if header["best_loss"] is None else float(header["best_loss"])
            self.log.steps = {name: list(map(int, steps)) for name, steps in header["log"].items()}
            self.log.values = {name: list(tensors[f"log.{name}"]) for name in header["log"]}
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            said = str(error).splitlines()[0] if str(error) else repr(error)
            raise CheckpointError(f"{path} does not belong to this model: {said}") from None
        run.history = _read_log(folder / METRICS, run.steps)
        write_text(folder / METRICS, "".join(json.dumps(entry) + "\n" for entry in run.history))


def _read_log(path: Path, steps: int) -> list[dict[str, Any]]:
    """The lines up to a step. What comes after was logged after the state was written, and by a process that
    was killed, perhaps in the middle of a line."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            if entry["step"] > steps:
                break
        except (ValueError, TypeError, KeyError):
            break
        entries.append(entry)
    return entries


def _keep(state: Path, name: Path, count: int) -> None:
    """Keep a state under a name of its own, too, and of all that are kept so only the `count` newest."""
    try:
        name.unlink(missing_ok=True)
        try:
            os.link(state, name)  # costs nothing; the next state does not touch it
        except OSError:  # not on every file system
            shutil.copy2(state, name)
        # By the time of writing: after going back to an older state, steps that are higher may be older.
        kept = sorted(name.parent.glob(OLDER_STATE), key=lambda path: path.stat().st_mtime_ns)
        for old in kept[:-count]:
            old.unlink()
    except OSError as error:
        raise CheckpointError(f"could not keep {name}: {error}; {state} is intact") from error


def _refuse_changes(
    folder: Path, header: Mapping[str, Any], config: TrainConfig, identity: Mapping[str, Any] | None
) -> None:
    """A run that goes on with another model, other data or other options is not the same run."""
    options = json.loads(config.model_dump_json())
    # An option that is newer than the state was not set, so it had its default.
    was = {**TrainConfig().model_dump(mode="json"), **header["train"]}
    changed = [name for name in options if name not in _FREE_TO_CHANGE and options[name] != was.get(name)]
    now = json.loads(json.dumps(identity or {}))
    changed += [name for name in now if now[name] != (header.get("identity") or {}).get(name)]
    if changed:
        raise CheckpointError(
            f"{folder} was begun with other options ({', '.join(changed)}), so it cannot be resumed with "
            "these; resume with the same ones, or start anew"
        )


def _check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected or found[name].shape != expected[name].shape:
            raise ValueError(f"tensor '{name}' is missing, too many or of another shape")


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _open_folder(out: str | Path | None, resume: bool, replace: bool = False) -> Path | None:
    """The run folder; one that holds a run is refused unless that is resumed or replaced."""
    if out is None:
        if resume:
            raise VaezooError("resume=True needs the run folder: train(..., out=folder, resume=True)")
        return None
    folder = Path(out)
    if not resume and not replace and (folder / STATE).exists():
        raise VaezooError(
            f"{folder} already holds a run; go on with resume=True (on the command line: --resume), "
            "or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    if not resume:
        for name in (STATE, METRICS, *([REPORT] if replace else [])):  # a report is of what is replaced
            (folder / name).unlink(missing_ok=True)
        for older in folder.glob(OLDER_STATE):
            older.unlink()
    return folder


def environment(device: torch.device) -> dict[str, Any]:
    """What a run's numbers depend on besides its options: versions, device, threads, and the git commit of
    the working directory, with "-dirty" where tracked files were changed; None where there is no git."""
    # No monitor of the file system, which is a program that the directory's own settings name.
    command = "git -c core.fsmonitor=false describe --always --dirty --abbrev=40 --exclude=*"
    try:
        git = subprocess.run(command.split(), capture_output=True, text=True, timeout=10, check=True)
        commit = git.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "git_commit": commit,
    }


def _last_good(folder: Path | None, run: Run) -> str:
    if run.best_step and folder is not None:
        return f"; the best weights so far, of step {run.best_step}, are in {folder}"
    return ""


# --- Data -----------------------------------------------------------------------------------------------


def recipe(owner: Any, data: str) -> dict[str, Any]:
    """Options that go with a model or prior on a data set."""
    return {**owner.recipes.get("*", {}), **owner.recipes.get(data, {})}


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; by default the GPU if there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise VaezooError(
            f"device {str(device)!r} is not to be had here: {str(error).splitlines()[0]}"
        ) from None


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse what is not a list of callbacks before anything is trained."""
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise VaezooError(
                f"{callback!r} is no callback: that is an object of a subclass of vaezoo.callbacks.Callback"
            )


def check_shape(model: Autoencoder, data: ImageData) -> None:
    """Refuse what is not a model, and images that the model is not made for."""
    if not isinstance(model, Autoencoder):
        raise VaezooError(f"this takes a model, such as vaezoo.create('vae'), not {model!r}")
    if tuple(model.config.image_shape) != tuple(data.image_shape):
        raise VaezooError(
            f"{type(model).__name__} is made for images of shape {tuple(model.config.image_shape)}, but "
            f"{data.name} has {tuple(data.image_shape)}; create it with image_shape={tuple(data.image_shape)}"
        )
