"""The training loop: one for every model and every prior. Read `fit` from top to bottom."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaezoo.autoencoder import Autoencoder
from vaezoo.checkpoint import (
    model_header,
    prior_folder,
    read_header,
    save,
    save_prior,
    weights_file,
    write_text,
)
from vaezoo.config import split_options
from vaezoo.data import ImageData, Loader, load_data
from vaezoo.distributed import (
    collect,
    join_group,
    largest,
    part_of_batch,
    processes,
    rank,
    replicate,
    wait,
)
from vaezoo.errors import DataError, Terminated, TrainingError, VaezooError
from vaezoo.inference import evaluation_mode
from vaezoo.latents import Latents, encode_data, labels_for
from vaezoo.objective import Loss, Progress
from vaezoo.priors import PRIORS
from vaezoo.random import derive, reseed, seeded
from vaezoo.registry import MODELS
from vaezoo.run import (
    IF_NOT_FINITE,
    Callback,
    Listeners,
    Log,
    Run,
    State,
    TrainConfig,
    environment,
    last_good,
    open_folder,
)

INITIALIZATION_IMAGES, INITIALIZATION_PIXELS = 1024, 2**22

#: Added to the norms that gradients are divided by, so that a gradient of zeros stays one (as in their code).
SMALLEST_NORM = 1e-7

#: Without it set to a fixed size, cuBLAS may add in another order from run to run.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


#: What ends a run between two steps.
Stop = type[KeyboardInterrupt] | type[Terminated]


class Trainable(Protocol):
    """What the loop trains: an `Autoencoder` on images, or a `Prior` on latents."""

    def losses(self, x: Any, progress: Progress) -> dict[str, Loss]: ...
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]: ...


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

    In processes that `torchrun` started, they train it together, and all of them get the trained model.

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
    join_group()
    device = resolve_device(device)
    images = load_data(data, device=device)
    check_shape(model, images)
    check_callbacks(callbacks)
    name = MODELS.name_of(type(model))
    config = TrainConfig.parse({**recipe(model, images.name), **options}, f"train {name}")
    _autocast(device, config.precision)  # refused before anything is written
    loader = Loader(
        images.train, config.batch_size, seed=config.seed, workers=config.workers, share=share(config)
    )
    folder = open_folder(out, resume)
    if model.prior is not None and model.prior.fitted:
        model.prior = model.make_prior()
    model.to(device)
    header = model_header(model, {"data": images.header(), "train": config.model_dump(mode="json")})
    if folder is not None and not resume and rank() == 0:
        described = {**header, "environment": environment(device)}
        write_text(folder / "run.json", json.dumps(described, indent=1) + "\n")

    def start() -> None:
        if model.initialized:
            return
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
    model.initialized = True
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
    join_group()
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
    own_share = share(config)
    _autocast(device, config.precision)  # refused before anything is written
    with seeded(derive(config.seed, "prior"), device):
        module = prior_class(prior_config, model.latent).to(device)
    labels = labels_for(module, prior_name, images)
    info = {"data": images.header(), "prior_train": config.model_dump(mode="json")}
    encoded = encode_data(model, images, config.seed, config.workers, out)
    latents = {split: Latents(z, labels[split]) for split, z in encoded.items()}
    folder = open_folder(prior_folder(out, prior_name) if out is not None else None, resume, replace=True)

    if not any(True for _ in module.parameters()):
        assert isinstance(encoded["train"], Tensor)
        module.fit(encoded["train"], config.seed)
        run = Run(module, folder=folder)
    else:
        run = fit(
            module,
            Loader(latents["train"], config.batch_size, seed=config.seed, share=own_share),
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
    written = out if rank() == 0 else None
    if written is not None and model.prior is not None and not model.prior.fitted:
        save_prior(model, written)  # the model's own one, which the weights' file will not hold any longer
    module.fitted = True
    model.prior = module.eval()
    if written is not None:
        file = weights_file(written)
        previous = read_header(file)["info"] if file.exists() else {}
        save_prior(model, written, info)
        save(model, written, {**previous, **info})
    wait()
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

    Several processes run it side by side, each on its share of every batch (see `vaezoo.distributed`). They
    have the same state after every step; process 0 alone writes it.

    Args:
        module: an `Autoencoder` or a `Prior`.
        loader: this process's `share` of the batches of the training split.
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
    whole = processes() * config.accumulate == 1  # batches come in one piece
    autocast = _autocast(device, config.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

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

    written = folder if rank() == 0 else None
    run = Run(module, folder=folder)
    listeners = Listeners(callbacks if rank() == 0 else ())
    log = Log(written, run, config.log_steps, listeners)
    state = State(module, optimizers, {}, {}, run, log, scaler)
    if resume and folder is not None:
        state.restore(folder, config, identity)
    else:
        with _deterministic(config.deterministic):
            start()
    replica: Any = None
    if processes() > 1:
        # Where there are several groups, one of them may sit out a step.
        replica = training_objective = replicate(module, training_objective, some_unused=len(optimizers) > 1)
    if config.weight_ema is not None and not state.average:
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
        disable=(None if progress is None else not progress) if rank() == 0 else True,
    )
    with (
        seeded(0, device),
        _deterministic(config.deterministic),
        _tf32(config.precision == "tf32"),
        deferred_interrupt() as interruption,
        bar,
        _explained(state, written, header, config),
    ):
        batches: Iterator[Any] = iter(())
        for step in range(run.steps, total_steps if not stop else run.steps):
            began = time.monotonic()
            epoch, position = divmod(step, loader.steps_per_epoch)
            if position == 0 or step == first_step:
                batches = loader.epoch(epoch, start=position)
            seed = derive(config.seed, "step", step)
            reseed(seed if whole else derive(seed, "process", rank()), device)
            step_tensor.fill_(step)

            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            parts = []
            for part in range(config.accumulate):
                last = part == config.accumulate - 1
                with (
                    part_of_batch(seed, loader.batch_size, part, config.accumulate),
                    nullcontext() if last or replica is None else replica.no_sync(),
                ):
                    total, terms, active = training_objective(next(batches), step_tensor)
                    if config.accumulate > 1:
                        total = total / config.accumulate
                    scaler.scale(total).backward()
                parts.append(terms)
            if replica is not None and step == first_step:
                check_all_used(module)
            for name in active:
                optimizer = optimizers[name]
                scaler.unscale_(optimizer)
                if config.normalize_gradients:
                    normalize_gradients(optimizer.param_groups[0]["params"])
                if config.clip is not None:
                    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], config.clip)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * lr_factor(step, total_steps, config)
                scaler.step(optimizer)  # does nothing, and waits for nothing, where a gradient has overflown
            scaler.update()
            if config.weight_ema is not None:
                # The decay rises with the steps, so that a short run is not left with its starting weights.
                decay = min(config.weight_ema, (1 + step) / (10 + step))
                parameters = [p.detach() for p in module.parameters()]
                torch._foreach_lerp_(list(state.average.values()), parameters, 1 - decay)

            run.steps = step + 1
            end_of_epoch = position == loader.steps_per_epoch - 1
            logged = log.add(_mean(parts), epoch, end_of_epoch)
            seconds += time.monotonic() - began  # after the log, whose reading back waits for the device
            bar.update(loader.batch_size)
            bar.set_postfix_str(log.summary, refresh=False)

            if end_of_epoch:
                with _swapped(module, state.average):
                    losses = validate(module, validation, objective, total_steps, config.seed)
                    if not math.isfinite(losses["loss"]):
                        raise TrainingError(
                            f"the validation loss became {losses['loss']} after step {run.steps} "
                            f"(epoch {epoch + 1}){last_good(folder, run)}{IF_NOT_FINITE}"
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
                        if not state.best:
                            state.best = {n: torch.empty_like(t) for n, t in module.state_dict().items()}
                        for name, tensor in module.state_dict().items():
                            state.best[name].copy_(tensor)  # in place: there is no room for two of them
                    with evaluation_mode(module):
                        listeners.tell("on_epoch", epoch + 1, run.steps, module)
            stop = out_of_patience(run, config, loader.steps_per_epoch)
            due = time.monotonic() - last_checkpoint >= config.checkpoint_seconds
            stopped_by = interruption.by  # read once, or a signal between the two uses would cost the state
            if processes() > 1:
                # All stop at the same step, one where they wait for each other anyway.
                due, stopped_by = agree(due, stopped_by, device) if logged else (False, None)
            if due or stop or stopped_by or run.steps == total_steps:
                if written is not None:
                    # In this order: whenever the process dies, the state is not ahead of the best weights.
                    state.write_best(written, header)
                    state.write(written, config, identity)
                last_checkpoint = time.monotonic()
            if stopped_by:
                where = f"; go on with {how_to_resume}" if folder else ""
                raise stopped_by(f"stopped after step {run.steps} of {total_steps}{where}")
            if stop:
                break

    run.images_per_second = (run.steps - first_step) * loader.batch_size / seconds if seconds else 0.0
    if state.best:
        module.load_state_dict(state.best)
    wait()
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


def check_all_used(module: Trainable) -> None:
    """Refuse parameters that a loss does not reach, for which other processes would wait."""
    if len(module.parameter_groups()) > 1:
        return
    for name, parameter in cast(nn.Module, module).named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise VaezooError(
                f"{type(module).__name__}: the loss does not use '{name}', so it cannot train in several "
                "processes; freeze it with requires_grad_(False) or leave it out"
            )


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
    measured: dict[int, dict[str, Tensor]] = {}
    batches = loader.epoch(0, start=rank(), every=processes())
    with evaluation_mode(module), seeded(0, device):
        for index in range(rank(), loader.steps_per_epoch, processes()):
            # The noise is the batch's own: it does not depend on the process that measures it.
            reseed(derive(seed, "validate", index), device)
            measured[index] = objective(next(batches), step)[1]
    values = {index: terms for part in collect(_floats(measured)) for index, terms in part.items()}
    sums: dict[str, float] = {}
    for index in range(loader.steps_per_epoch):  # in this order, so that not even rounding depends on it
        size = min(loader.batch_size, len(loader.split) - index * loader.batch_size)
        for name, value in values[index].items():
            sums[name] = sums.get(name, 0.0) + value * size
    return {name: value / len(loader.split) for name, value in sums.items()}


def _floats(measured: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, float]]:
    """The same numbers on the host, read back at once."""
    flat = [value.double() for terms in measured.values() for value in terms.values()]
    numbers = iter(torch.stack(flat).tolist() if flat else ())
    return {index: {name: next(numbers) for name in terms} for index, terms in measured.items()}


def share(config: TrainConfig) -> tuple[int, int, int]:
    """What a `Loader` gives this process of each batch: its share, in `accumulate` parts."""
    parts = processes() * config.accumulate
    if config.batch_size % parts:
        raise VaezooError(
            f"batch_size={config.batch_size} is shared by {processes()} processes with "
            f"accumulate={config.accumulate}, so it must be a multiple of {parts}"
        )
    return rank(), processes(), config.accumulate


def _mean(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The terms of a step, averaged over its parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([terms[name] for terms in parts]).mean() for name in parts[0]}


def agree(due: bool, stopped_by: Stop | None, device: torch.device) -> tuple[bool, Stop | None]:
    """Whether any process finds the state due, and by what any process was asked to stop."""
    kinds = [None, *Interruption.SIGNALS.values()]
    any_due, kind = largest([int(due), kinds.index(stopped_by)], device)
    return bool(any_due), kinds[kind]


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
    SIGNALS: Mapping[int, Stop] = {
        signal.SIGINT: KeyboardInterrupt,
        signal.SIGTERM: Terminated,
    }

    def __init__(self) -> None:
        self.by: Stop | None = None

    def receive(self, number: int, frame: Any) -> None:
        # A process of several gets a scheduler's signal twice, also from torchrun, which kills those that are
        # still there after half a minute.
        if self.by and processes() == 1:
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
            f"lower batch_size or the size of the networks or images, or set precision='bf16'"
            f"{last_good(folder, state.run)} ({str(error).splitlines()[0]})"
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


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The networks in half precision inside, if that is asked for; refused where the device has none."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if half is None:
        return nullcontext()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # torch would go on in single precision
            return torch.autocast(device.type, half)
    except (RuntimeError, UserWarning) as error:
        raise VaezooError(
            f"precision='{precision}' is not to be had on {device}; choose another precision "
            f"({str(error).splitlines()[0]})"
        ) from None


@contextmanager
def _tf32(enabled: bool) -> Iterator[None]:
    """Inside, matrix products of single precision may round their factors to 10 bits of mantissa."""
    if not enabled:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
