"""Oracles 13 and 14 for every prior over code grids: causality without a blind spot, normalisation by
enumeration, cached = naive, samples and completions against enumerated probabilities."""

import itertools
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from vaezoo.errors import VaezooError
from vaezoo.objective import Progress
from vaezoo.priors import PRIORS, Labelled, LatentShape
from vaezoo.priors.codes import CodePrior, _Sampling, draw_code

SMALL = {
    "transformer": {"width": 16, "depth": 2, "heads": 2},
    "pixelcnn": {"width": 8, "layers": 3},
    "pixelsnail": {"width": 8, "blocks": 2, "layers": 1, "heads": 2},
}
HIERARCHIES = [((3, 3),), ((1, 2), (2, 3)), ((1, 1), (2, 2), (4, 4))]

each_prior = pytest.mark.parametrize("name", SMALL)


def make(name, shapes, codes, seed=0, **options):
    prior = PRIORS.get(name)
    torch.manual_seed(seed)
    model = prior(prior.Config(**SMALL[name], **options), LatentShape(shapes, codes)).double().eval()
    for parameter in model.parameters():  # away from the start, where predictions hardly depend on the codes
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def levels(z):
    return z if isinstance(z, tuple) else (z,)


def all_grids(shapes, codes):
    """Every combination of codes, as the latent of a batch."""
    lengths = [math.prod(shape) for shape in shapes]
    grids = torch.tensor(list(itertools.product(range(codes), repeat=sum(lengths))))
    parts = tuple(part.view(-1, *shape) for part, shape in zip(grids.split(lengths, 1), shapes))
    return parts if len(parts) > 1 else parts[0]


@torch.no_grad()
def sequence_logits(model, z, labels=None):
    """Logits of all positions of all levels, [B, T, K]."""
    z = levels(z)
    return torch.cat(model.logits(z, model.check_labels(labels, len(z[0]), z[0].device)), 1)


@each_prior
@pytest.mark.parametrize("shapes", HIERARCHIES)
def test_causal_without_a_blind_spot(name, shapes):
    """The logits at i depend on no code at j >= i, exactly, and on every one at j < i."""
    model = make(name, shapes, codes=5)
    noise = torch.Generator().manual_seed(1)
    z = tuple(torch.randint(5, (1, *shape), generator=noise) for shape in shapes)
    base = sequence_logits(model, z)[0]
    lengths = [math.prod(shape) for shape in shapes]
    for j in range(sum(lengths)):
        flat = torch.cat([level.flatten() for level in z])
        flat[j] = (flat[j] + 1) % 5
        parts = flat.split(lengths)
        changed = sequence_logits(model, tuple(p.view(1, *shape) for p, shape in zip(parts, shapes)))[0]
        assert torch.equal(changed[: j + 1], base[: j + 1]), f"a position up to {j} sees code {j}"
        assert (changed[j + 1 :] != base[j + 1 :]).any(1).all(), f"a position after {j} does not see code {j}"


@pytest.mark.parametrize("position", [(6, 3), (6, 0), (5, 6)])
def test_the_receptive_field_of_pixelcnn_is_the_one_stated(position):
    """Two layers of kernel 3 reach 2 columns, and in the rows above and the row itself one more by the first
    shift: all of those, and none beyond. A masked convolution would miss those above to the right."""
    prior = PRIORS.get("pixelcnn")
    torch.manual_seed(0)
    model = prior(prior.Config(width=8, layers=2), LatentShape(((7, 7),), 3)).double().eval()
    z = torch.randint(3, (1, 7, 7), generator=torch.Generator().manual_seed(1))
    row, column = position
    base = sequence_logits(model, z)[0, row * 7 + column]
    for i, j in itertools.product(range(7), range(7)):
        changed = z.clone()
        changed[0, i, j] = (changed[0, i, j] + 1) % 3
        seen = not torch.equal(sequence_logits(model, changed)[0, row * 7 + column], base)
        above = row - 3 <= i < row and abs(column - j) <= 2
        left = i == row and column - 3 <= j < column
        assert seen == (above or left), f"code at {(i, j)}"


@each_prior
@pytest.mark.parametrize(("shapes", "codes"), [(((3, 3),), 2), (((2, 2),), 4), (((1, 2), (2, 2)), 3)])
def test_probabilities_of_all_grids_sum_to_one(name, shapes, codes):
    model = make(name, shapes, codes, classes=2)
    grids = all_grids(shapes, codes)
    for labels in (None, 1):
        with torch.no_grad():
            total = model.log_prob(grids, labels).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-10)


@each_prior
@pytest.mark.parametrize("shapes", HIERARCHIES)
@pytest.mark.parametrize("options", [{}, {"labels": 1, "guidance": 2.5, "temperature": 0.7, "top_k": 3}])
def test_cached_sampling_is_naive_sampling(name, shapes, options, monkeypatch):
    """The same codes from the same random numbers as with one full forward pass for every position."""
    model = make(name, shapes, codes=4, classes=3)

    def sample():
        return levels(model.sample(8, torch.Generator().manual_seed(0), **options))

    cached = sample()
    assert type(model).step is not CodePrior.step, "this prior has no cache"
    for method in ("begin", "begin_row", "step"):
        monkeypatch.setattr(type(model), method, getattr(CodePrior, method))
    for a, b in zip(cached, sample(), strict=True):
        assert torch.equal(a, b)


@each_prior
def test_cached_logits_are_the_full_forward(name):
    """At every position of a hierarchy, to rounding; where cached and naive draw the same codes they could
    still differ in their logits."""
    shapes = ((2, 2), (3, 4))
    model = make(name, shapes, codes=4, classes=2)
    z = tuple(torch.randint(4, (3, *shape)) for shape in shapes)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        full = model.logits(z, labels)
        for level, (height, width) in enumerate(shapes):
            cache = model.begin(level, z, labels)
            for t in range(height * width):
                if t % width == 0:
                    model.begin_row(level, cache, z, torch.tensor([t // width]))
                for _ in range(2):  # a step that is run again, as before a capture, leaves no trace
                    logits = model.step(level, cache, z, torch.tensor([t]))
                    torch.testing.assert_close(logits, full[level][:, t], rtol=1e-10, atol=1e-10)


@each_prior
def test_cached_sampling_under_autocast(name):
    """Caches in single precision take activations in half, and the logits stay those of the full forward."""
    prior = PRIORS.get(name)
    torch.manual_seed(0)
    model = prior(prior.Config(**SMALL[name]), LatentShape(((2, 2), (3, 4)), 4)).eval()
    seen = []
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        step = model.step
        model.step = lambda *given: seen.append(step(*given)) or seen[-1]
        full = model.logits(
            model.sample(3, torch.Generator().manual_seed(0)), model.check_labels(None, 3, "cpu")
        )
    torch.testing.assert_close(torch.stack(seen, 1).float(), torch.cat(full, 1).float(), rtol=0.05, atol=0.02)


@each_prior
def test_a_batch_of_none(name):
    shapes = ((2, 2), (3, 4))
    model = make(name, shapes, codes=4, classes=2)
    z = model.sample(0, labels=1, guidance=2.0)
    assert [level.shape for level in z] == [(0, *shape) for shape in shapes]
    assert model.log_prob(z).shape == (0,)
    known = tuple(torch.ones(1, *shape, dtype=torch.bool) for shape in shapes)
    assert [level.shape for level in model.complete(z, known, candidates=2)] == [level.shape for level in z]


@each_prior
def test_a_step_compiles_into_one_graph(name):
    """The same compiled step at every position of a level, with nothing read back in between."""
    model = make(name, ((3, 3),), codes=4)
    expected = model.sample(4, torch.Generator().manual_seed(0))
    graphs = CompileCounterWithBackend("aot_eager")
    model.step = torch.compile(model.step, fullgraph=True, backend=graphs)
    assert torch.equal(model.sample(4, torch.Generator().manual_seed(0)), expected)
    assert graphs.frame_count == 1, "compiled anew for some positions"


@pytest.mark.cuda
@each_prior
def test_a_step_is_captured_in_a_cuda_graph(name):
    """One graph, replayed at every position, draws what eager steps draw."""
    model = make(name, ((4, 4),), codes=4).cuda()
    expected = model.sample(4, torch.Generator("cuda").manual_seed(0))
    eager, graph, static = model.step, torch.cuda.CUDAGraph(), {}

    def captured(level, cache, codes, position):
        if not static:
            static["position"] = position.clone()
            stream = torch.cuda.Stream()  # a first run outside the graph, as capture asks for
            with torch.cuda.stream(stream):
                eager(level, cache, codes, static["position"])
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                static["logits"] = eager(level, cache, codes, static["position"])
        static["position"].copy_(position)
        graph.replay()
        return static["logits"]

    model.step = captured
    assert torch.equal(model.sample(4, torch.Generator("cuda").manual_seed(0)), expected)


@each_prior
def test_runs_on_cuda_without_reading_back(name):
    """Training, guided sampling and completion on a fake device: no tensor on the CPU, no sync."""
    prior, shapes = PRIORS.get(name), ((2, 2), (4, 4))
    with FakeTensorMode():
        with torch.device("cuda"):
            model = prior(prior.Config(**SMALL[name], classes=3), LatentShape(shapes, 5))
            z = tuple(torch.zeros(2, *shape, dtype=torch.uint8) for shape in shapes)
            known = tuple(torch.ones(1, *shape, dtype=torch.bool) for shape in shapes)
            labels = torch.zeros(2, dtype=torch.long)
        losses = model.losses(Labelled(z, labels), Progress(torch.zeros((), device="cuda"), 1, 1))
        drawn = model.sample(2, labels=labels, guidance=2.0, top_k=2, top_p=0.5)
        completed = model.complete(z, known, candidates=3, labels=labels)
        for tensor in (losses["prior"].total, *drawn, *completed):
            assert tensor.device.type == "cuda"


@each_prior
def test_samples_follow_the_probabilities(name):
    model = make(name, ((2, 2),), codes=2, classes=2)
    z = model.sample(20_000, torch.Generator().manual_seed(0), labels=1)
    with torch.no_grad():
        p = model.log_prob(all_grids(((2, 2),), 2), 1).exp()
    assert chi_squared(z, 2, p) < limit(15)


def chi_squared(z, codes, p):
    """Pearson's statistic of grids z [N, h, w] against the probabilities of `all_grids`."""
    flat = z.flatten(1)
    digits = codes ** torch.arange(flat.shape[1]).flip(0)
    counts = torch.bincount((flat * digits).sum(1), minlength=len(p)).double()
    assert counts[p == 0].sum() == 0, "a draw that is impossible"
    expected = len(z) * p[p > 0].double()
    return ((counts[p > 0] - expected).square() / expected).sum().item()


def limit(freedom):
    """Mean and 5 standard deviations of chi-squared."""
    return freedom + 5 * (2 * freedom) ** 0.5


def test_guidance_temperature_and_truncation_are_what_they_say():
    """Samples of one position against the distribution, computed by hand from the logits."""
    model = make("transformer", ((1, 1),), codes=6, classes=2)
    given, free = (model.log_prob(torch.arange(6).view(6, 1, 1), labels).detach() for labels in (1, None))
    logits = (free + 1.7 * (given - free)) / 0.8
    p = logits.softmax(0)

    def drawn(**options):
        draws = torch.Generator().manual_seed(0)
        return model.sample(20_000, draws, 0.8, labels=1, guidance=1.7, **options)

    assert chi_squared(drawn(), 6, p) < limit(5)
    order = p.argsort(descending=True)
    kept = torch.zeros(6, dtype=torch.float64)
    kept[order[:3]] = p[order[:3]]
    assert chi_squared(drawn(top_k=3), 6, kept / kept.sum()) < limit(2)
    threshold = (p[order[0]] + 0.5 * p[order[1]]).item()  # crossed by the second code, which stays
    kept[order[2]] = 0
    assert chi_squared(drawn(top_p=threshold), 6, kept / kept.sum()) < limit(1)
    for rounded in (1e-6, 1e-50):  # the second is 0 in single precision
        assert (drawn(top_p=rounded) == order[0]).all()
    assert torch.equal(drawn(top_k=6), drawn())


def test_no_more_than_k_codes_are_kept_where_some_are_equally_probable():
    kept = _Sampling(1.0, 1.0, 2, 1.0).adjust(torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    assert (kept > -math.inf).sum(1).tolist() == [2, 2]
    assert kept[0, 1] == 1
    assert torch.isfinite(_Sampling(1.0, 1.0, None, 1e-50).adjust(torch.zeros(1, 4))).sum() == 1


def test_draws_of_codes_take_what_rounding_leaves():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    for uniform, code in [(0.0, 1), (0.49, 1), (0.51, 2), (1 - 2**-24, 2)]:
        assert draw_code(logits, torch.tensor([uniform])).item() == code


@each_prior
def test_completion_is_exact_where_the_gap_is_at_the_end(name):
    model = make(name, ((2, 2),), codes=3)
    z = torch.tensor([[[2, 1], [0, 0]]])
    known = torch.tensor([[[True, True], [False, False]]])
    drawn = model.complete(z.expand(10_000, -1, -1), known, torch.Generator().manual_seed(0))
    assert (drawn[:, 0] == z[:, 0]).all(), "known codes changed"
    assert chi_squared(drawn, 3, conditional(model, z, known)) < limit(8)


@torch.no_grad()
def conditional(model, z, known, codes=3):
    """p(grid | known codes of z) of all 2 x 2 grids."""
    grids = all_grids(((2, 2),), codes)
    p = model.log_prob(grids).exp() * ((grids == z) | ~known).flatten(1).all(1)
    return p / p.sum()


def test_completion_of_a_gap_tends_to_the_conditional_with_candidates():
    """A gap before a known code: one candidate ignores that code and is far off, many are close."""
    model = make("transformer", ((2, 2),), codes=3, seed=6)
    z = torch.tensor([[[0, 0], [0, 2]]])
    known = torch.tensor([[[False, True], [True, True]]])
    exact, n = conditional(model, z, known), 2000

    def share(candidates):
        draws = torch.Generator().manual_seed(0)
        drawn = model.complete(z.expand(n, -1, -1), known, draws, candidates=candidates)
        assert torch.equal(drawn[:, 0, 1], z[:, 0, 1].expand(n))
        digits = 3 ** torch.arange(4).flip(0)
        return torch.bincount((drawn.flatten(1) * digits).sum(1), minlength=81) / n

    bias = {m: (share(m) - exact).abs().sum().item() for m in (1, 32)}
    noise = (exact * (1 - exact) / n).sqrt().sum().item()
    assert bias[1] > 8 * noise
    assert bias[32] < 4 * noise


@each_prior
def test_the_class_that_a_prior_sees_is_the_one_it_is_given(name):
    """Two classes, each of constant codes: after training, draws of a class are its codes, draws of none are
    of both, and labels are left out at the stated rate while training and never otherwise."""
    prior = PRIORS.get(name)
    torch.manual_seed(0)
    model = prior(prior.Config(**SMALL[name], classes=2, label_dropout=0.2), LatentShape(((2, 2),), 3))
    labels = torch.arange(64) % 2
    batch = Labelled(labels[:, None, None].expand(-1, 2, 2) + 1, labels)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        loss = model.losses(batch, Progress(torch.zeros(()), 1, 64))["prior"].total
        adam.zero_grad()
        loss.backward()
        adam.step()
    draws = torch.Generator().manual_seed(0)
    for label in (0, 1):
        assert (model.sample(200, draws, labels=label) == label + 1).float().mean() > 0.97
    free = model.sample(400, draws)
    assert 0.3 < (free == 1).float().mean() < 0.7
    model.eval()
    with torch.no_grad():
        told = model.losses(batch, Progress(torch.zeros(()), 1, 64))["prior"].total
        assert told.item() == pytest.approx(-model.log_prob(*batch).mean().item(), abs=1e-6)
        assert told < 0.3
        assert -model.log_prob(batch.z).mean() > math.log(2) - 0.05


def test_labels_are_dropped_at_the_stated_rate_in_training_alone(monkeypatch):
    model = make("transformer", ((1, 1),), codes=2, classes=4, label_dropout=0.3)
    seen = []
    monkeypatch.setattr(
        type(model), "log_prob", lambda self, z, labels=None: seen.append(labels) or z.double().sum((1, 2))
    )
    batch = Labelled(torch.zeros(10_000, 1, 1, dtype=torch.long), torch.full((10_000,), 2))
    for training in (True, False):
        model.train(training).losses(batch, Progress(torch.zeros(()), 1, 1))
    dropped = (seen[0] == 4).double().mean().item()
    assert dropped == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 10_000) ** 0.5)
    assert set(seen[0].unique().tolist()) == {2, 4}
    assert (seen[1] == 2).all()


@each_prior
def test_sampling_does_not_depend_on_the_training_mode(name):
    """Trap 9: a prior that is sampled in train mode draws its dropout too, or normalises by the batch."""
    model = make(name, ((2, 2),), codes=4, dropout=0.5)
    expected = model.sample(50, torch.Generator().manual_seed(0))
    for _ in range(2):
        assert torch.equal(model.train().sample(50, torch.Generator().manual_seed(0)), expected)
        assert model.training, "sampling left the prior in another mode"


@each_prior
def test_codes_have_no_order(name):
    """Trap 9: integers fed as floats. With codes and their embeddings permuted alike, nothing changes."""
    model = make(name, ((2, 3),), codes=5)
    z = torch.randint(5, (4, 2, 3), generator=torch.Generator().manual_seed(0))
    before = sequence_logits(model, z)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings in (5, 6):
                first = module.num_embeddings - 5
                module.weight[first:] = module.weight[first:][order]
    inverse = order.argsort()
    torch.testing.assert_close(sequence_logits(model, inverse[z]), before)


@each_prior
def test_gradients_are_those_of_finite_differences(name):
    """log_prob is differentiable in all parameters, and every one of them matters."""
    model = make(name, ((2, 2), (3, 3)), codes=3, classes=2)
    z = tuple(torch.randint(3, (4, *shape)) for shape in ((2, 2), (3, 3)))
    labels = torch.tensor([0, 1, 2, 0])
    model.log_prob(z, labels).sum().backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad.any(), f"'{part}' has no gradient"
    parameter = next(model.parameters())
    index = parameter.grad.abs().argmax()
    values = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            parameter.view(-1)[index] += shift
            values.append(model.log_prob(z, labels).sum().item())
            parameter.view(-1)[index] -= shift
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(parameter.grad.view(-1)[index].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature=0.0 is not valid"),
        ({"top_k": 0}, "top_k=0 is not valid"),
        ({"top_p": 0.0}, "top_p=0.0 is not valid"),
        ({"guidance": math.inf}, "guidance=inf is not valid"),
        ({"labels": 2}, "label 2 is not one of the 2 classes, 0 to 1"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels must be 2 integers"),
        ({"labels": torch.zeros(2)}, "labels must be 2 integers"),
        ({"labels": [0, 1]}, "labels must be one integer or a tensor of 2, not a list"),
        ({"guidance": 2.0}, "guidance=2.0 is towards a class, so it needs labels"),
        ({"labels": torch.tensor([0, 3])}, "label 3 is not one of the 2 classes"),
    ],
)
def test_refuses_what_cannot_be_sampled(options, said):
    with pytest.raises(VaezooError, match=said):
        make("transformer", ((2, 2),), codes=4, classes=2).sample(2, **options)


def test_refuses_classes_it_was_not_fitted_with():
    model = make("pixelcnn", ((2, 2),), codes=4)
    assert not model.conditional
    for options in ({"labels": 1}, {"guidance": 2.0}):
        with pytest.raises(VaezooError, match="fitted without"):
            model.sample(2, **options)


def test_refuses_completions_of_other_shapes():
    model = make("pixelcnn", ((2, 2),), codes=4)
    z = torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(VaezooError, match="2x2 grid of 4 codes each"):
        model.complete(z, torch.ones(1, 2, 3, dtype=torch.bool))
    with pytest.raises(VaezooError, match=r"known must be bool, .* not torch.float32 for 1"):
        model.complete(z, z.float())
    with pytest.raises(VaezooError, match=r"for 1 or 1 images, not torch.bool for 2"):
        model.complete(z, torch.ones(2, 2, 2, dtype=torch.bool))
    with pytest.raises(VaezooError, match="candidates=0"):
        model.complete(z, z.bool(), candidates=0)


@each_prior
def test_refuses_vectors(name):
    prior = PRIORS.get(name)
    with pytest.raises(VaezooError, match="prior over code grids"):
        prior(prior.Config(), LatentShape(((20,),)))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("transformer", {"width": 30, "heads": 4}, "does not divide"),
        ("pixelsnail", {"width": 30, "heads": 4}, "does not divide"),
        ("pixelcnn", {"kernel": 4}, "must be odd"),
    ],
)
def test_refuses_options_that_do_not_fit(name, options, said):
    prior = PRIORS.get(name)
    with pytest.raises(VaezooError, match=said):
        prior(prior.Config(**options), LatentShape(((2, 2),), codes=4))


def test_neighbours_of_the_transformer():
    """Of each position: the one before, the one above, the coarser one under it; 0 where there is none."""
    before, above, under = make("transformer", ((1, 2), (2, 4)), codes=3).neighbours
    assert before.tolist() == list(range(10))
    assert above.tolist() == [0, 0, 0, 0, 0, 0, 3, 4, 5, 6]
    assert under.tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 2, 2]


def test_adjusting_logits_in_one_precision():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_Sampling(1.0, 1.0, None, 1.0).adjust(logits), logits)
