"""The command line. torch is imported only by the commands that need it, so that --help is instant."""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vaezoo.errors import Terminated, VaezooError

if TYPE_CHECKING:
    from vaezoo.autoencoder import Autoencoder
    from vaezoo.callbacks import Callback
    from vaezoo.data import ImageData

OPTIONS_HELP = (
    "key=value options of the model, of the training and, as data.key=value, of the data: "
    "beta=4 latent_dim=10 clip=1 data.size=32; lists with commas or as JSON"
)

#: Names that --features takes: those of evaluation/features.py, which takes torch to import.
COMPLETED_FEATURES = (
    "auto",
    "pixels",
    "mnist",
    "fashion_mnist",
    "sprites",
    "inception",
    "dinov2",
    "dinov2_vits14",
    "dinov2_vitb14",
    "dinov2_vitl14",
)


class Parser(argparse.ArgumentParser):
    """One line for a mistake, exit code 2."""

    def error(self, message: str, command: str = "") -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {' '.join((self.prog, *command.split()))} --help)\n")


def parse_value(text: str) -> Any:
    """A value of a key=value option: JSON where it is JSON, a list where it has commas, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return [parse_value(part) for part in text.split(",")] if "," in text else text


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """["beta=4", "data.size=32"] -> {"beta": 4, "data.size": 32}."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise VaezooError(f"'{pair}' is not an option: write key=value, such as beta=4")
        options[key] = parse_value(value)
    return options


def below(options: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The options whose keys start with `prefix.`, without it; they are taken out of `options`."""
    found = [key for key in options if key.startswith(f"{prefix}.")]
    return {key[len(prefix) + 1 :]: options.pop(key) for key in found}


def load_images(
    name: str, options: dict[str, Any], device: str | None, binarize: str | None, **recorded: Any
) -> ImageData:
    """The data, with options given as data.key=value over those that a run has recorded."""
    from vaezoo.data import load_data
    from vaezoo.trainer import resolve_device

    for key in ("source", "device", "binarize"):
        if key in options:
            raise VaezooError(
                f"'data.{key}' is not an option of the data; see --help for what is set by flags"
            )
    settings: dict[str, Any] = {"binarize": binarize or "none", **recorded, **options}
    if not isinstance(settings.get("seed", 0), int):
        raise VaezooError(f"data.seed={settings['seed']!r} is not valid: it must be a whole number")
    return load_data(name, device=resolve_device(device), **settings)


def load_recorded(
    run: str, data: dict[str, Any], options: dict[str, Any], device: str | None, binarize: str | None
) -> ImageData:
    """The data that a run was trained on, from the header that it keeps."""
    if data.get("name") in (None, "tensor", "ndarray"):
        raise VaezooError(f"{run} does not name data that can be loaded; name the data with --data")
    recorded = {"seed": data.get("seed", 0), **data.get("options", {})}
    return load_images(data["name"], options, device, binarize or data.get("binarize"), **recorded)


def run_file(run: str) -> Path:
    """The weights of a run; where there are none, the error says which runs are near."""
    from vaezoo.checkpoint import WEIGHTS, weights_file
    from vaezoo.errors import CheckpointError

    path = weights_file(run)
    if not path.exists():
        folders = dict.fromkeys((Path(run), Path(run).parent, Path("runs")))
        runs = sorted({str(file.parent) for folder in folders for file in folder.glob(f"*/{WEIGHTS}")})
        hint = (
            f"runs near it: {', '.join(runs[:9])}"
            if runs
            else "vaezoo train writes one to the folder of --out"
        )
        raise CheckpointError(f"no checkpoint at {path}; {hint}")
    return path


def load_run(args: argparse.Namespace, prior: str | None = None) -> tuple[Autoencoder, ImageData]:
    """The model of a run, or with one of its priors, and its data: those it was trained on, or of --data."""
    from vaezoo.checkpoint import load, read_header
    from vaezoo.trainer import check_shape, resolve_device

    options = parse_options(args.options)
    data_options = below(options, "data")
    if options:
        raise VaezooError(f"'{next(iter(options))}' is not an option here: only data.key=value are")
    path = run_file(args.run)
    model = load(path, resolve_device(args.device), prior=prior)
    if args.data is not None:
        data = load_images(args.data, data_options, args.device, args.binarize)
    else:
        header = read_header(path).get("info", {}).get("data", {})
        data = load_recorded(args.run, header, data_options, args.device, args.binarize)
    check_shape(model, data)
    return model, data


def output_folder(args: argparse.Namespace) -> Path:
    """Where reports and pictures go: the run's folder, or that of the prior which --prior names."""
    from vaezoo.checkpoint import prior_folder, weights_file

    return prior_folder(args.run, args.prior) if args.prior else weights_file(args.run).parent


# --- Commands -------------------------------------------------------------------------------------------


def command_list(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from vaezoo.registry import MODELS
    from vaezoo.zoo import describe, list_models

    if args.pretrained:
        names = list_models(args.pattern, pretrained=True)
        if not names:
            raise VaezooError(f"there are no trained weights of a model that matches '{args.pattern}'")
        return print(tabulate(*pretrained_table(names)))
    rows = []
    for name, origin, error in MODELS.status(args.pattern):
        rows.append([name, f"broken: {error}" if error else describe(name)["summary"], origin])
    if not rows:
        raise VaezooError(f"no model matches '{args.pattern}'. Available: {', '.join(MODELS.names())}")
    print(tabulate(rows, ["model", "what it is", "from"], maxcolwidths=[None, 90, 40]))
    return None


def pretrained_table(names: Sequence[str]) -> tuple[list[list[Any]], list[str]]:
    """Rows and titles: the trained weights of some models, with the scores that most of them have."""
    from vaezoo.pretrained import manifest

    entries = [weights for weights in manifest().values() if weights.model in names]
    rows = []
    for entry in entries:
        frechet = entry.scores.get(f"sampling/frechet_{entry.data}", {}).get("value")
        mse = entry.scores["reconstruction/mse"]["value"]
        rows.append([entry.model, entry.data, f"{entry.bytes / 1e6:.1f} MB", f"{mse:.4f}", frechet])
    return rows, ["model", "data", "size", "MSE", "Frechet distance"]


def command_info(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from vaezoo.registry import MODELS
    from vaezoo.zoo import describe

    if args.name not in MODELS.names() and (Path(args.name).exists() or len(Path(args.name).parts) > 1):
        from vaezoo.checkpoint import describe_priors, read_header, weights_file

        header = read_header(weights_file(args.name))
        print(json.dumps({**header, "priors": describe_priors(args.name)}, indent=1))
        return
    about = describe(args.name)
    print(f"{about['name']}: {about['summary']}\n\n{about['details']}\n\nPaper: {about['paper']}")
    print(f"Prior: {about['prior']}\n")
    rows = [[o["name"], o["type"], o["default"], o["limits"], o["meaning"]] for o in about["options"]]
    print(
        tabulate(
            rows, ["option", "type", "default", "limits", "meaning"], maxcolwidths=[None, 24, 20, 12, 60]
        )
    )
    print(f"\nTrained weights: {', '.join(about['pretrained']) or 'none'}")
    for data in about["pretrained"][:1]:
        print(f'vaezoo.create("{args.name}", pretrained="{data}"); on the command line, train --init {data}')
    for data, recipe in about["recipes"].items():
        print(f"\nRecipe on {'any data' if data == '*' else data}: {recipe}")


def command_train(args: argparse.Namespace) -> None:
    from vaezoo.config import split_options
    from vaezoo.random import derive, seeded
    from vaezoo.registry import MODELS
    from vaezoo.run import TrainConfig
    from vaezoo.trainer import train
    from vaezoo.zoo import create

    if args.resume:
        return resume_training(args)
    if args.model is None or args.data is None:
        raise VaezooError(
            "train needs a model and --data, or --resume RUN: "
            f"vaezoo train {args.model or 'vae'} --data digits"
        )
    options = parse_options(args.options)
    data_options = below(options, "data")
    model_class = MODELS.get(args.model)
    kinds = (f"model {args.model}", model_class.Config.model_fields), ("training", TrainConfig.model_fields)
    model_options, training = split_options(options, *kinds)
    training |= training_flags(args)
    seed = TrainConfig.parse(training, f"train {args.model}").seed
    data = load_images(args.data, data_options, args.device, args.binarize)
    if args.init:
        model = initial_model(args.init, args.model, model_options)
    else:
        with seeded(derive(seed, "create"), "cpu"):
            model = create(args.model, **{"image_shape": data.image_shape, **model_options})
    out = Path(args.out or f"runs/{args.model}-{Path(data.name).stem}")
    callbacks = make_callbacks(args, data, out)
    run = train(model, data, out=out, device=args.device, callbacks=callbacks, **training)
    report_run(run, out, model.default_prior)
    return None


def initial_model(source: str, name: str, options: dict[str, Any]) -> Autoencoder:
    """Trained weights to go on from: those that create(pretrained=) knows by this name, else of a run."""
    from vaezoo.checkpoint import load
    from vaezoo.hub import is_address
    from vaezoo.pretrained import data_of
    from vaezoo.registry import MODELS
    from vaezoo.zoo import create

    if source in data_of(name) or not (is_address(source) or Path(source).exists()):
        return create(name, pretrained=source, **options)
    if options:
        raise VaezooError(f"{source} has its own options, so '{next(iter(options))}' cannot be given")
    model = load(source)
    if MODELS.name_of(type(model)) != name:
        raise VaezooError(f"{source} holds a {MODELS.name_of(type(model))}, not a {name}")
    return model


def make_callbacks(args: argparse.Namespace, data: ImageData, out: Path) -> list[Callback]:
    """What --tensorboard and --pictures ask for."""
    from vaezoo.callbacks import Pictures, TensorBoard

    tensorboard = TensorBoard(out / "tensorboard") if args.tensorboard else None
    callbacks: list[Callback] = [tensorboard] if tensorboard else []
    if args.pictures is not None:
        callbacks.append(Pictures(data, out / "pictures", args.pictures, tensorboard))
    return callbacks


def training_flags(args: argparse.Namespace) -> dict[str, Any]:
    flags = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr", "seed")}
    return {name: value for name, value in flags.items() if value is not None}


def resume_training(args: argparse.Namespace) -> None:
    from vaezoo.errors import CheckpointError
    from vaezoo.run import TrainConfig, options_of_today
    from vaezoo.trainer import train
    from vaezoo.zoo import create

    given = [
        k
        for k in ("model", "data", "out", "batch_size", "lr", "seed", "binarize", "init")
        if getattr(args, k) is not None
    ]
    if given or args.options:
        what = given[0] if given else args.options[0]
        raise VaezooError(
            f"--resume goes on with the run's own options, so '{what}' cannot be given (epochs can)"
        )
    try:
        header = json.loads((Path(args.resume) / "run.json").read_text())
        # An option that is newer than the run has its default, not what a recipe says.
        recorded = options_of_today(header["info"]["train"])
        training = TrainConfig.parse(recorded, f"{args.resume}/run.json").model_dump()
        model = create(header["model"], **header["config"])
        images = load_recorded(args.resume, dict(header["info"]["data"]), {}, args.device, None)
    except FileNotFoundError:
        raise CheckpointError(f"no run in {args.resume}: run.json is not there") from None
    except VaezooError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        said = (str(error).splitlines() or [repr(error)])[0]
        raise CheckpointError(
            f"{args.resume}/run.json is damaged, or what it says cannot be had here: {said}"
        ) from error
    if args.epochs is not None:
        training["epochs"] = args.epochs
    out = Path(args.resume)
    callbacks = make_callbacks(args, images, out)
    run = train(model, images, out=out, resume=True, device=args.device, callbacks=callbacks, **training)
    report_run(run, out, model.default_prior)


def report_run(run: Any, out: Path, needs_prior: str | None) -> None:
    print(
        f"{run.steps} steps, {run.images_per_second:.0f} images/s; "
        f"best validation loss {run.best_loss:.2f} nats per image at step {run.best_step}; written to {out}"
    )
    if needs_prior:
        print(f"To sample from it, fit its prior: vaezoo fit-prior {out}")
    else:
        print(f"Look at it: vaezoo sample {out}; measure it: vaezoo evaluate {out}")


def command_fit_prior(args: argparse.Namespace) -> None:
    from vaezoo.config import split_options
    from vaezoo.priors import PRIORS
    from vaezoo.run import TrainConfig
    from vaezoo.trainer import fit_prior

    options = parse_options(args.options)
    below(options, "data")
    args.options = [pair for pair in args.options if pair.startswith("data.")]
    model, data = load_run(args)
    name = args.prior or model.default_prior or "gaussian_mixture"
    kinds = (f"prior {name}", PRIORS.get(name).Config.model_fields), ("training", TrainConfig.model_fields)
    split_options(options, *kinds)
    options |= training_flags(args)
    fit_prior(model, data, args.prior, out=args.run, resume=args.resume, device=args.device, **options)
    print(
        f"{type(model.prior).__name__} fitted; the model with its prior is in {args.run}. When another is "
        f"fitted, it is still there as --prior {name}"
    )


def command_evaluate(args: argparse.Namespace) -> None:
    from vaezoo.evaluation import evaluate
    from vaezoo.plots import captioned, save_pictures

    model, data = load_run(args, args.prior)
    report = evaluate(
        model,
        data,
        split=args.split,
        n=args.n,
        samples=args.samples,
        likelihood_n=args.likelihood_n,
        annealing=args.annealing,
        features=args.features,
        protocol=args.protocol,
        seed=args.seed,
        progress=sys.stderr.isatty(),
    )
    folder = output_folder(args)
    report.save_pages(folder, captioned(save_pictures(model, data, folder, args.split, args.seed)))
    print(report.table())
    print(f"\nReport and pictures: {folder}/report.html")


def picture(name: str, draw: Callable[[argparse.Namespace], Any]) -> Callable[[argparse.Namespace], None]:
    """A command that writes one grid."""

    def command(args: argparse.Namespace) -> None:
        from vaezoo.plots import save_grid

        print(save_grid(draw(args), args.out or output_folder(args) / f"{name}.png"))

    return command


def draw_samples(args: argparse.Namespace) -> Any:
    from vaezoo.checkpoint import load
    from vaezoo.plots import samples
    from vaezoo.trainer import resolve_device

    given = {name: getattr(args, name) for name in ("labels", "temperature", "guidance", "top_k", "top_p")}
    options = {name: value for name, value in given.items() if value is not None}
    model = load(run_file(args.run), resolve_device(args.device), prior=args.prior)
    return samples(model, args.n, args.seed, **options)


def draw_traversals(args: argparse.Namespace) -> Any:
    from vaezoo.plots import traversals

    model, data = load_run(args)
    return traversals(model, first_images(data, 256, args.seed), args.rows, args.steps)


def draw_interpolations(args: argparse.Namespace) -> Any:
    from vaezoo.plots import interpolations

    model, data = load_run(args)
    return interpolations(model, first_images(data, 2 * args.rows, args.seed), args.steps, args.spherical)


def first_images(data: ImageData, n: int, seed: int) -> Any:
    import torch

    chosen = data.test.subset(n, seed)
    return chosen.batch(torch.arange(len(chosen), device=chosen.device))


def command_export(args: argparse.Namespace) -> None:
    from vaezoo.checkpoint import load
    from vaezoo.exporting import export
    from vaezoo.trainer import resolve_device

    path = run_file(args.run)
    model = load(path, resolve_device(args.device))
    for file in export(model, args.out or path.parent, args.format).values():
        print(file)


def command_push(args: argparse.Namespace) -> None:
    from vaezoo.sharing import push

    print(f"to load it: vaezoo.load('{push(args.run, args.to, private=args.private)}')")


def command_compare(args: argparse.Namespace) -> None:
    from vaezoo.comparison import compare, table
    from vaezoo.registry import MODELS

    if any(is_run(word) for word in args.models):
        return compare_finished(args)
    for name in args.models:
        MODELS.get(name)
    if args.data is None:
        raise VaezooError("the following is required: --data, unless finished runs are compared")
    options = parse_options(args.options)
    data_options = below(options, "data")
    evaluation = below(options, "evaluate")
    model_options = {name: below(options, name) for name in args.models}
    if args.epochs is not None:
        options["epochs"] = args.epochs
    for key in options:
        if key in inspect.signature(compare).parameters:
            raise VaezooError(f"'{key}' is not a key=value option of compare; see vaezoo compare --help")
    data = load_images(args.data, data_options, args.device, args.binarize)
    reports = compare(
        args.models,
        data,
        args.out,
        device=args.device,
        seeds=args.seeds or [0],
        model_options=model_options,
        evaluation=evaluation,
        baseline=args.baseline,
        **options,
    )
    print(table(reports, baseline=args.baseline))
    print(f"\nPictures, tables and runs: {args.out}/report.md and report.html")
    return None


def is_run(word: str) -> bool:
    """A path, and not the name of a model (./vae is a path, vae a model)."""
    from vaezoo.registry import MODELS

    return word not in MODELS.names() and (Path(word).exists() or len(Path(word).parts) > 1)


def compare_finished(args: argparse.Namespace) -> None:
    from vaezoo.comparison import compare_runs, table

    models = [word for word in args.models if not is_run(word)]
    if models:
        raise VaezooError(f"compare takes names of models or folders of runs, not both: '{models[0]}'")
    given = [k for k in ("data", "binarize", "epochs", "seeds", "device") if getattr(args, k) is not None]
    if given or args.options:
        what = given[0] if given else args.options[0]
        raise VaezooError(f"runs are compared as they are, so '{what}' cannot be given")
    print(table(compare_runs(args.models, args.out, args.baseline), baseline=args.baseline))
    print(f"\nThe same as a page: {args.out}/report.html")


# --- The parser -----------------------------------------------------------------------------------------


def at_least(smallest: int) -> Callable[[str], int]:
    """Type of a flag: a whole number that is not below `smallest`."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = smallest - 1
        if number < smallest:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {smallest}")
        return number

    return convert


def seed_list(text: str) -> list[int]:
    """Type of a flag: seeds with commas."""
    return [at_least(0)(part) for part in text.split(",")]


def completed(action: argparse.Action, names: Callable[[], Iterable[str]], files: bool = False) -> None:
    """Say what argcomplete offers for a word: names, or files where none of the names begins like it."""

    def completer(prefix: str, **_: Any) -> Iterable[str]:
        from argcomplete import FilesCompleter

        found = [name for name in names() if name.startswith(prefix)]
        return found if found or not files else FilesCompleter()(prefix)

    action.completer = completer  # type: ignore[attr-defined]


def fitted_priors(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """What argcomplete offers for --prior after a run: the priors that it holds."""
    run = Path(parsed_args.run)
    return [path.stem for path in ((run if run.is_dir() else run.parent) / "priors").glob("*.safetensors")]


def make_parser() -> Parser:
    from vaezoo import __version__
    from vaezoo.registry import DATASETS, MODELS, PRIORS

    parser = Parser(prog="vaezoo", description="A model zoo of variational autoencoders.")
    parser.add_argument("--version", action="version", version=f"vaezoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run_command=run)
        return command

    def add_device(command: argparse.ArgumentParser) -> None:
        device = command.add_argument(
            "--device", help="cpu, cuda, cuda:1, ...; default: the GPU if there is one"
        )
        completed(device, lambda: ("cpu", "cuda"))

    def add_data(command: argparse.ArgumentParser) -> None:
        data = command.add_argument("--data", help="name of a data set, or a path to images")
        completed(data, DATASETS.names, files=True)
        command.add_argument("--binarize", choices=("none", "static", "dynamic"), help="Bernoulli pixels")
        add_device(command)

    def add_options(command: argparse.ArgumentParser, text: str) -> None:
        completed(command.add_argument("options", nargs="*", help=text), tuple)  # no names, and no files

    def add_training(command: argparse.ArgumentParser) -> None:
        command.add_argument("--epochs", type=at_least(1), help="passes over the training images")
        command.add_argument("--batch-size", type=at_least(1), help="images per step")
        command.add_argument("--lr", type=float, help="learning rate")
        command.add_argument("--seed", type=at_least(0), help="seed of the data's order and of all noise")

    def add_prior(command: argparse.ArgumentParser) -> None:
        prior = command.add_argument(
            "--prior", metavar="NAME", help="one of the run's priors; default: the one that was fitted last"
        )
        prior.completer = fitted_priors  # type: ignore[attr-defined]

    command = add("list", command_list, "List the models, plug-ins included.")
    pattern = command.add_argument("pattern", nargs="?", default="*", help="such as '*vq*'")
    completed(pattern, MODELS.names)
    command.add_argument("--pretrained", action="store_true", help="list the trained weights")

    command = add("info", command_info, "Describe a model, or print the header of a run.")
    model = command.add_argument(
        "name", help="name of a model, or path of a run (./vae is a path, vae a model)"
    )
    completed(model, MODELS.names, files=True)

    command = add("train", command_train, "Train a model.")
    completed(command.add_argument("model", nargs="?", help="name of a model"), MODELS.names)
    add_options(command, OPTIONS_HELP)
    add_data(command)
    add_training(command)
    command.add_argument("--out", help="run folder (default: runs/MODEL-DATA)")
    command.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    command.add_argument(
        "--init",
        metavar="NAME",
        help="begin with trained weights: the name of the data set that they were trained on "
        "(see list --pretrained), or a run",
    )
    command.add_argument("--tensorboard", action="store_true", help="write the log to RUN/tensorboard, too")
    command.add_argument(
        "--pictures",
        type=at_least(1),
        metavar="EPOCHS",
        help="draw reconstructions and samples to RUN/pictures every so many epochs",
    )

    command = add("fit-prior", command_fit_prior, "Fit a prior to a trained model's latents.")
    command.add_argument("run", help="run folder")
    add_options(command, "key=value options of the prior and of its training")
    prior = command.add_argument("--prior", help="name of the prior; default: the model's own")
    completed(prior, PRIORS.names)
    command.add_argument("--resume", action="store_true", help="go on with an interrupted fit")
    add_data(command)
    add_training(command)

    command = add("evaluate", command_evaluate, "Measure a trained model.")
    command.add_argument("run", help="run folder or .safetensors file")
    add_options(command, "data.key=value options of the data")
    command.add_argument("--split", choices=("train", "validation", "test"), default="test")
    command.add_argument("-n", type=at_least(1), default=10_000, help="images to measure on")
    command.add_argument(
        "--samples", type=at_least(1), default=50, help="importance samples of the likelihood bound"
    )
    command.add_argument("--likelihood-n", type=at_least(1), default=1000, help="images for that bound")
    command.add_argument(
        "--annealing", type=at_least(0), default=0, help="images for annealed importance sampling (slow)"
    )
    features = command.add_argument(
        "--features",
        default="auto",
        help="what images are compared in: mnist, fashion_mnist, sprites, pixels, inception, dinov2; "
        "default: the first three for their data, else pixels",
    )
    completed(features, lambda: COMPLETED_FEATURES)
    command.add_argument(
        "--protocol",
        choices=("quick", "locatello2019"),
        default="quick",
        help="counts of the disentanglement metrics",
    )
    command.add_argument("--seed", type=at_least(0), default=0)
    add_prior(command)
    add_data(command)

    command = add("sample", picture("samples", draw_samples), "Draw samples from a model's own prior.")
    command.add_argument("run", help="run folder or .safetensors file")
    command.add_argument("-n", type=at_least(1), default=100, help="number of images")
    command.add_argument(
        "--label",
        dest="labels",
        type=at_least(0),
        help="class of the images, for a prior fitted with classes",
    )
    command.add_argument(
        "--temperature", type=float, help="below 1: more typical and less diverse (default: 1)"
    )
    command.add_argument(
        "--guidance", type=float, help="above 1: more typical of the class, twice as slow (default: 1)"
    )
    command.add_argument(
        "--top-k", type=at_least(1), help="of codes: draw from the k most probable ones only"
    )
    command.add_argument("--top-p", type=float, help="of codes: draw from the likeliest of this mass only")
    command.add_argument("--seed", type=at_least(0), default=0)
    command.add_argument("--out", help="PNG to write (default: RUN/samples.png)")
    add_prior(command)
    add_device(command)

    for name, draw, text in (
        (
            "traverse",
            picture("traversals", draw_traversals),
            "Move along the latent dimensions that vary most.",
        ),
        ("interpolate", picture("interpolations", draw_interpolations), "Walk between pairs of test images."),
    ):
        command = add(name, draw, text)
        command.set_defaults(prior=None)  # neither depends on it
        command.add_argument("run", help="run folder or .safetensors file")
        add_options(command, "data.key=value options of the data")
        command.add_argument("--rows", type=at_least(1), default=10, help="rows of the grid")
        command.add_argument("--steps", type=at_least(2), default=11, help="images in a row")
        command.add_argument("--seed", type=at_least(0), default=0, help="seed of the choice of images")
        command.add_argument("--out", help=f"PNG to write (default: RUN/{name}.png)")
        if name == "interpolate":
            command.add_argument("--spherical", action="store_true", help="along the great circle")
        add_data(command)

    command = add("export", command_export, "Write encoder and decoder as programs that need no vaezoo.")
    command.add_argument("run", help="run folder or .safetensors file")
    command.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="default: onnx")
    command.add_argument("--out", help="folder for the two files (default: RUN)")
    command.add_argument(
        "--device", default="cpu", help="where programs of --format torch will run (default: cpu)"
    )

    command = add("push", command_push, "Put a run onto the Hugging Face hub.")
    command.add_argument("run", help="run folder or .safetensors file")
    command.add_argument("to", help="hf://USER/NAME, or a new folder for what would go there")
    command.add_argument("--private", action="store_true", help="for yourself alone, if it is new there")

    command = add(
        "compare",
        command_compare,
        "Train and evaluate several models, or take finished runs, and print one table.",
    )
    command.set_defaults(options=[])
    models = command.add_argument(
        "models",
        nargs="+",
        metavar="model",
        help="names of models, then key=value options; or folders of evaluated runs",
    )
    completed(models, MODELS.names, files=True)
    command.add_argument(
        "--epochs", type=at_least(1), help="passes over the training images, for every model"
    )
    command.add_argument("--seeds", type=seed_list, help="of training and evaluation: 0,1,2 (default: 0)")
    baseline = command.add_argument(
        "--baseline", help="what to compare the others with; default: the best, metric by metric"
    )
    completed(baseline, MODELS.names, files=True)
    command.add_argument("--out", default="runs/compare", help="folder for runs, report and pictures")
    add_data(command)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the words that follow a flag, which argparse leaves over."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may stand at the cursor
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)  # answers and exits
    args, words = parser.parse_known_args(arguments)
    flags = [word for word in words if word.startswith("-")]
    if flags or (words and not hasattr(args, "options")):
        models = args.command in ("train", "compare")
        hint = "; options of models are written key=value, such as beta=4" if models else ""
        parser.error(f"{args.command} does not know {' '.join(flags or words)}{hint}", args.command)
    if args.command == "compare":
        words = args.models + words
        args.models = [word for word in words if "=" not in word]
        args.options = [word for word in words if "=" in word]
    elif args.command == "train":
        words = [*([args.model] if args.model else []), *args.options, *words]
        args.model = next((word for word in words if "=" not in word), None)
        args.options = [word for word in words if word != args.model]
    elif words:
        args.options += words
    return args


def run_command(args: argparse.Namespace) -> None:
    """Run a command, in each of the processes where `torchrun` started several; the first one prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return args.run_command(args)
    if args.command not in ("train", "fit-prior"):
        raise VaezooError("only train and fit-prior run in several processes; start this without torchrun")
    from torch.distributed.elastic.multiprocessing.errors import record

    from vaezoo.distributed import join_group, rank

    join_group()
    # What is raised inside is what torchrun says at the end, from the process that failed first.
    with redirect_stdout(None if rank() else sys.stdout):
        record(args.run_command)(args)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = parse(arguments)
    try:
        run_command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (VaezooError, OSError) as error:
        print(f"vaezoo {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"vaezoo {args.command}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except Terminated as end:
        print(f"vaezoo {args.command}: {end}", file=sys.stderr)
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
