"""The training loop: one for every model and every prior. Read `fit` from top to bottom."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
    save,
    save_prior,
    weights_file,
    write_tensors,
    write_text,
)
from vaezoo.config import BaseConfig, split_options
from vaezoo.data import ImageData, Loader, load_data
from vaezoo.errors import CheckpointError, TrainingError, VaezooError
from vaezoo.inference import evaluation_mode
from vaezoo.latents import Latents, encode_data, labels_for
from vaezoo.objective import Loss, Progress
from vaezoo.priors import PRIORS
from vaezoo.random import derive, reseed, seeded
from vaezoo.registry import MODELS

STATE = "state.safetensors"
METRICS = "metrics.jsonl"
INITIALIZATION_IMAGES, INITIALIZATION_PIXELS = 1024, 2**22

#: Added to the norms that gradients are divided by, so that a gradient of zeros stays one (as in their code).
SMALLEST_NORM = 1e-7


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
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better validation loss"
    )
    patience_after: int = Field(
        0, ge=0, description="epochs that patience does not count, such as those of a KL warm-up"
    )
    log_steps: int = Field(50, ge=1, description="steps between two lines of the log")
    checkpoint_seconds: float = Field(30.0, ge=0, description="write the run's state at most this often")
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
        **options: fields of `TrainConfig`; what is not given comes from the recipe, then from the defaults.

    Raises:
        VaezooError: an unknown option, or images of another shape than the model's.
        TrainingError: a loss that is not finite.
    """
    device = resolve_device(device)
    images = load_data(data, device=device)
    check_shape(model, images)
    name = MODELS.name_of(type(model))
    config = TrainConfig.parse({**recipe(model, images.name), **options}, f"train {name}")
    loader = Loader(images.train, config.batch_size, seed=config.seed, workers=config.workers)
    folder = _open_folder(out, resume)
    if model.prior is not None and model.prior.fitted:
        model.prior = model.make_prior()
    model.to(device)
    header = model_header(model, {"data": images.header(), "train": config.model_dump(mode="json")})
    if folder is not None and not resume:
        write_text(folder / "run.json", json.dumps(header, indent=1) + "\n")

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
    log = Log(folder, run, config.log_steps)
    state = State(module, optimizers, {}, {}, run, log)
    if resume and folder is not None:
        state.restore(folder, config, identity)
    else:
        start()
        if config.weight_ema is not None:
            state.average = {n: p.detach().clone() for n, p in module.named_parameters()}
    stop = out_of_patience(run, config, loader.steps_per_epoch)
    last_checkpoint = time.monotonic()
    first_step, seconds = run.steps, 0.0
    module.train()

    bar = tqdm(
        total=total_steps,
        initial=run.steps,
        desc=title,
        unit="step",
        disable=not progress if progress is not None else None,
    )
    with seeded(0, device), deferred_interrupt() as interrupted, bar, _kept_on_failure(state, folder, header):
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
            bar.update()
            bar.set_postfix_str(log.summary, refresh=False)

            if end_of_epoch:
                with _swapped(module, state.average):
                    losses = validate(module, validation, objective, total_steps, config.seed)
                    if not math.isfinite(losses["loss"]):
                        raise TrainingError(
                            f"the validation loss became {losses['loss']} after step {run.steps} "
                            f"(epoch {epoch + 1}){_last_good(folder, run)}"
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
            stop = out_of_patience(run, config, loader.steps_per_epoch)
            due = time.monotonic() - last_checkpoint >= config.checkpoint_seconds
            if folder is not None and (due or stop or interrupted() or run.steps == total_steps):
                state.write(folder, config, identity)
                state.write_best(folder, header)
                last_checkpoint = time.monotonic()
            if interrupted():
                where = f"; go on with {how_to_resume}" if folder else ""
                raise KeyboardInterrupt(f"stopped after step {run.steps} of {total_steps}{where}")
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

    def __init__(self, folder: Path | None, run: Run, interval: int) -> None:
        self.folder, self.run, self.interval = folder, run, interval
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
                f"{_last_good(self.folder, self.run)}"
            )
        return found

    def line(self, entry: dict[str, Any]) -> None:
        self.run.history.append(entry)
        if self.folder is not None:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside waits for the end of the step; a second one does not wait."""
    hit = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield hit.is_set
        return

    def handler(signum: int, frame: Any) -> None:
        if hit.is_set():
            raise KeyboardInterrupt
        hit.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield hit.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _kept_on_failure(state: State, folder: Path | None, header: Mapping[str, Any] | None) -> Iterator[None]:
    """A run that fails inside leaves the best weights so far in its folder."""
    try:
        yield
    except TrainingError:
        if folder is not None:
            state.write_best(folder, header)
        raise


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


def _autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


# --- State ----------------------------------------------------------------------------------------------


#: Options that a resumed run may change, because no step depends on them.
_FREE_TO_CHANGE = (
    "epochs",
    "patience",
    "patience_after",
    "checkpoint_seconds",
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

    def write_best(self, folder: Path, header: Mapping[str, Any] | None) -> None:
        if self.best and header is not None:
            write_tensors(folder / WEIGHTS, self.best, header)

    def restore(self, folder: Path, config: TrainConfig, identity: Mapping[str, Any] | None) -> None:
        """Put everything back as it was written, or say why it cannot be."""
        path = folder / STATE
        if not path.exists():
            raise CheckpointError(f"nothing to resume: {path} does not exist")
        header = read_header(path)
        _refuse_changes(folder, header, config, identity)
        tensors = read_tensors(path, next(self.module.parameters()).device)
        run = self.run
        try:
            self.module.load_state_dict(_with_prefix(tensors, "model."))
            if config.weight_ema is not None:  # in the order of the parameters, which a file does not keep
                self.average = {n: tensors[f"average.{n}"] for n, _ in self.module.named_parameters()}
            self.best = _with_prefix(tensors, "best.")
            for group, optimizer in self.optimizers.items():
                values: dict[int, dict[str, Tensor]] = {}
                for key, tensor in _with_prefix(tensors, f"optimizer.{group}.").items():
                    index, _, name = key.partition(".")
                    values.setdefault(int(index), {})[name] = tensor
                optimizer.load_state_dict(
                    {"state": values, "param_groups": optimizer.state_dict()["param_groups"]}
                )
            run.steps, run.best_step = int(header["step"]), int(header["best_step"])
            run.best_loss = math.inf if header["best_loss"] is None else float(header["best_loss"])
            self.log.steps = header["log"]
            self.log.values = {name: list(tensors[f"log.{name}"]) for name in header["log"]}
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} does not belong to this model: {error}") from None
        lines = (folder / METRICS).read_text().splitlines() if (folder / METRICS).exists() else []
        run.history = [entry for entry in map(json.loads, lines) if entry["step"] <= run.steps]
        write_text(folder / METRICS, "".join(json.dumps(entry) + "\n" for entry in run.history))


def _refuse_changes(
    folder: Path, header: Mapping[str, Any], config: TrainConfig, identity: Mapping[str, Any] | None
) -> None:
    """A run that goes on with another model, other data or other options is not the same run."""
    options = json.loads(config.model_dump_json())
    was: dict[str, Any] = header.get("train") or {}
    changed = [name for name in options if name not in _FREE_TO_CHANGE and options[name] != was.get(name)]
    now = json.loads(json.dumps(identity or {}))
    changed += [name for name in now if now[name] != (header.get("identity") or {}).get(name)]
    if changed:
        raise CheckpointError(
            f"{folder} was begun with other options ({', '.join(changed)}), so it cannot be resumed with "
            "these; resume with the same ones, or start anew"
        )


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
    if not resume:
        for name in (STATE, METRICS, *([REPORT] if replace else [])):  # a report is of what is replaced
            (folder / name).unlink(missing_ok=True)
    return folder


def _last_good(folder: Path | None, run: Run) -> str:
    advice = "; lower lr, or set clip=1"
    if run.best_step and folder is not None:
        return f"; the best weights so far, of step {run.best_step}, are in {folder}{advice}"
    return advice


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


def check_shape(model: Autoencoder, data: ImageData) -> None:
    """Refuse what is not a model, and images that the model is not made for."""
    if not isinstance(model, Autoencoder):
        raise VaezooError(f"this takes a model, such as vaezoo.create('vae'), not {model!r}")
    if tuple(model.config.image_shape) != tuple(data.image_shape):
        raise VaezooError(
            f"{type(model).__name__} is made for images of shape {tuple(model.config.image_shape)}, but "
            f"{data.name} has {tuple(data.image_shape)}; create it with image_shape={tuple(data.image_shape)}"
        )
