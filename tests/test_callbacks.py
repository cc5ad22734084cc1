"""Callbacks see a run and cannot change or end it; TensorBoard and the pictures hold what the run had."""

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

import vaezoo
from vaezoo.callbacks import Callback, Pictures, TensorBoard
from vaezoo.checkpoint import WEIGHTS
from vaezoo.errors import VaezooError
from vaezoo.plots import reconstructions
from vaezoo.random import seeded

SIZES = {"latent_dim": 2, "network_options": {"hidden": [8]}, "image_shape": (1, 8, 8)}


@pytest.fixture(scope="module")
def data():
    """300 random images: 240 to train on make 7 steps an epoch."""
    noise = torch.Generator().manual_seed(0)
    return vaezoo.load_data(torch.randint(0, 256, (300, 1, 8, 8), generator=noise, dtype=torch.uint8))


def train(data, *callbacks, **options):
    with seeded(0, "cpu"):
        model = vaezoo.create("vae", **SIZES)
    defaults = {"epochs": 4, "batch_size": 32, "log_steps": 3, "device": "cpu", "progress": False}
    return vaezoo.train(model, data, callbacks=callbacks, **{**defaults, **options})


class Recorder(Callback):
    def __init__(self):
        self.lines, self.epochs, self.weights = [], [], []

    def on_log(self, step, values):
        self.lines.append((step, dict(values)))

    def on_epoch(self, epoch, step, model):
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
        self.epochs.append((epoch, step))
        self.weights.append([p.clone() for p in model.parameters()])


class Meddler(Callback):
    """Draws from every generator and leaves the model in another mode."""

    def on_log(self, step, values):
        torch.manual_seed(step)
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002 - the global state is the point
        torch.randn(step)

    def on_epoch(self, epoch, step, model):
        self.on_log(step, {})
        model.sample(3)


class Broken(Callback):
    def __init__(self):
        self.calls = 0

    def on_log(self, step, values):
        self.calls += 1
        raise OSError("no space left")


def test_callbacks_see_every_line_and_every_epoch(data):
    recorder = Recorder()
    run = train(data, recorder)
    entries = [(line["step"], {k: v for k, v in line.items() if "/" in k}) for line in run.history]
    assert recorder.lines == entries
    steps = run.steps // 4
    assert recorder.epochs == [(1, steps), (2, 2 * steps), (3, 3 * steps), (4, 4 * steps)]


def test_callbacks_do_not_change_a_run(data, tmp_path):
    alone = train(data, weight_ema=0.9)
    watched = train(data, Meddler(), Recorder(), Pictures(data, tmp_path), weight_ema=0.9)
    assert alone.history == watched.history
    for (name, a), b in zip(alone.model.state_dict().items(), watched.model.state_dict().values()):
        assert torch.equal(a, b), f"'{name}' differs"


def test_callbacks_see_the_averaged_weights_where_they_are_kept(data):
    recorder = Recorder()
    run = train(data, recorder, weight_ema=0.9)
    best = run.best_step // (run.steps // 4) - 1
    for seen, kept in zip(recorder.weights[best], run.model.parameters(), strict=True):
        assert torch.equal(seen, kept)


def test_a_broken_callback_costs_a_warning_and_no_run(data, tmp_path):
    broken, recorder = Broken(), Recorder()
    with pytest.warns(
        UserWarning, match=r"Broken.on_log failed with OSError: no space left; the training goes on"
    ):
        run = train(data, broken, recorder, out=tmp_path)
    assert broken.calls == 1
    assert len(recorder.lines) == len(run.history)
    assert (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("wrong", [print, TensorBoard, object()])
def test_what_is_no_callback_is_refused_before_the_run(data, tmp_path, wrong):
    with pytest.raises(VaezooError, match="is no callback: that is an object of a subclass"):
        train(data, wrong, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_show_the_model_as_it_was(data, tmp_path):
    pictures = Pictures(data, tmp_path, every=3)
    run = train(data, pictures, epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "reconstructions_0003.png",
        "samples_0003.png",
    ]
    assert run.best_step == run.steps  # so that the weights that are kept are those of the last epoch
    drawn = np.asarray(Image.open(tmp_path / "reconstructions_0003.png"))
    wanted = reconstructions(run.model, pictures.x).permute(1, 2, 0).numpy()
    assert np.abs(drawn / 255 - wanted).max() <= 1 / 255
    with pytest.raises(VaezooError, match="every=0 is not valid"):
        Pictures(data, tmp_path, every=0)


def test_tensorboard_holds_the_log_and_the_pictures(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tensorboard = TensorBoard(tmp_path)
    run = train(data, tensorboard, Pictures(data, tmp_path / "png", 2, tensorboard))
    # Again from the middle, as an interrupted run does: what was written from there on counts once.
    again = TensorBoard(tmp_path)
    later = [line for line in run.history if line["step"] > run.steps // 2]
    for line in later:
        again.on_log(line["step"], {k: v for k, v in line.items() if "/" in k})
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0}).Reload()
    for name in ("train/loss", "validation/loss", "train/rate"):
        wanted = [(line["step"], line[name]) for line in run.history if name in line]
        got = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in got] == [step for step, _ in wanted]
        assert [value for _, value in got] == pytest.approx([value for _, value in wanted], rel=1e-6)
    assert events.Tags()["images"] == ["reconstructions", "samples"]


def test_tensorboard_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        VaezooError, match=r"TensorBoard is not installed: pip install 'vaezoo\[tensorboard\]'"
    ):
        TensorBoard(tmp_path)


def test_the_bar_shows_images_their_rate_and_the_time_left(data, capsys):
    run = train(data, progress=True)
    bar = capsys.readouterr().err
    images = run.steps * 32
    assert re.search(rf"vae: 100%.* {images}/{images} \[\d\d:\d\d<00:00, .*images/s", bar), bar
