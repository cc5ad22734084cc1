"""What a run is: its options, what it logs, and the state that it goes on from."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from vaezoo.checkpoint import (
    REPORT,
    SCHEMA,
    WEIGHTS,
    read_header,
    read_tensors,
    remove_unfinished,
    write_tensors,
    write_text,
)
from vaezoo.config import BaseConfig
from vaezoo.distributed import mean_of_processes, processes, rank
from vaezoo.errors import CheckpointError, TrainingError, VaezooError

STATE = "state.safetensors"
OLDER_STATE = "state-*.safetensors"
METRICS = "metrics.jsonl"

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
    batch_size: int = Field(128, ge=1, description="images per step, over all processes together")
    accumulate: int = Field(
        1, ge=1, description="parts that a step's batch is split into, one after the other, to save memory"
    )
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
    precision: Literal["float32", "tf32", "bf16", "fp16"] = Field(
        "float32", description="of the networks: fp16 scales the loss, tf32 is for matrix products on GPUs"
    )
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


def options_of_today(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a run has recorded, by their names of today: `precision` was `bf16`, true or false."""
    options = dict(options)
    if "bf16" in options:
        options["precision"] = "bf16" if options.pop("bf16") else "float32"
    return options


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


class Log:
    """Collects the terms on the device and reads them back once per interval, where it also looks for NaN."""

    def __init__(self, folder: Path | None, run: Run, interval: int, listeners: Listeners) -> None:
        self.folder, self.run, self.interval, self.listeners = folder, run, interval, listeners
        # By term, since a group that sits out a step has no terms there.
        self.values: dict[str, list[Tensor]] = {}
        self.steps: dict[str, list[int]] = {}
        self.epoch = 0
        self.summary = ""

    def add(self, terms: dict[str, Tensor], epoch: int, end_of_epoch: bool) -> bool:
        """Take the terms of one step; at the end of an interval write their means. Returns whether it did."""
        self.epoch = epoch
        for name, value in terms.items():
            self.values.setdefault(name, []).append(value)
            self.steps.setdefault(name, []).append(self.run.steps - 1)
        complete = end_of_epoch or self.run.steps % self.interval == 0
        if complete:
            means = {name: float(values.mean()) for name, values in self.pending().items()}
            self.values, self.steps = {}, {}
            logged = {f"train/{name}": value for name, value in means.items()}
            self.line({"step": self.run.steps, "epoch": epoch + 1, **logged})
            self.summary = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        return complete

    def pending(self) -> dict[str, Tensor]:
        """The terms since the last line, float64 on the CPU; raises at the first that is not finite, on all
        processes alike."""
        if not self.values:
            return {}
        flat = torch.cat([torch.stack(values).double() for values in self.values.values()])
        flat = mean_of_processes(flat).cpu()
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
                f"{last_good(self.folder, self.run)}{IF_NOT_FINITE}"
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


def last_good(folder: Path | None, run: Run) -> str:
    if run.best_step and folder is not None:
        return f"; the best weights so far, of step {run.best_step}, are in {folder}"
    return ""


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
        scaler: of the loss, with the factor that it has come to.
    """

    module: nn.Module
    optimizers: Mapping[str, torch.optim.Optimizer]
    average: dict[str, Tensor]
    best: dict[str, Tensor]
    run: Run
    log: Log
    scaler: torch.amp.GradScaler

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
            "scaler": self.scaler.state_dict(),
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
            if self.scaler.is_enabled():
                was = header["scaler"]
                scale, tracker = float(was["scale"]), int(was["_growth_tracker"])
                if not 0 < scale < math.inf or not 0 <= tracker < 2**31:
                    raise ValueError(f"the loss is scaled by {scale}, since {tracker} steps")
                self.scaler.load_state_dict(
                    {**self.scaler.state_dict(), "scale": scale, "_growth_tracker": tracker}
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
        if rank() == 0:
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
    was = {**TrainConfig().model_dump(mode="json"), **options_of_today(header["train"])}
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


def open_folder(out: str | Path | None, resume: bool, replace: bool = False) -> Path | None:
    """The run folder; one that holds a run is refused unless that is resumed or replaced."""
    if out is None:
        if resume:
            raise VaezooError("resume=True needs the run folder: train(..., out=folder, resume=True)")
        return None
    folder = Path(out)
    if not resume and not replace and (folder / STATE).exists():
        raise VaezooError(
            f"{folder} already holds a run; go on with resume=True (on the command line: --resume {folder}), "
            "or choose another folder"
        )
    if rank() > 0:
        return folder
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
        "processes": processes(),
        "git_commit": commit,
    }
