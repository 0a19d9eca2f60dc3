"""EMA and SWA: the averages of the formulas, evaluated and kept while training goes on from θ."""

import pytest
import torch
from technique_cases import Tried
from tiny_run import Averager, run, run_path, same_bits, weights

from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.extension import Extension, apply_extensions
from extensions.ema import ExponentialAverage
from extensions.swa import StochasticWeightAveraging

TRIED = {"ema": Tried(varied=["decay=0.5"]), "swa": Tried(varied=["start=3,every=2"])}


class Trace(Extension):
    """Remembers the weights after each step."""

    def __init__(self):
        self.weights = []

    def after_step(self, model):
        self.weights.append(model.head.weight.detach().clone())


def train(tmp_path, *extensions, **options):
    model = Averager()
    apply_extensions(model, extensions)
    trace = Trace()
    run(model, tmp_path, extensions=[*extensions, trace], **options)
    return model, torch.stack(trace.weights)


def kept(tmp_path) -> torch.Tensor:
    return load_tree(run_path(tmp_path, "*/best.safetensors"))["model"]["head.weight"]


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.9])
def test_ema_is_the_corrected_weighted_mean(decay, tmp_path):
    _, steps = train(tmp_path, ExponentialAverage(decay=decay), epochs=3)
    t = len(steps)
    factors = torch.tensor([(1 - decay) * decay ** (t - i) for i in range(1, t + 1)])
    mean = (factors[:, None, None] * steps).sum(dim=0) / (1 - decay**t)
    assert (steps[-1] - steps[0]).abs().max() > 0.05
    torch.testing.assert_close(kept(tmp_path), mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("start, every", [(1, 1), (4, 1), (2, 3)])
def test_swa_is_the_plain_mean_of_its_steps(start, every, tmp_path):
    extension = StochasticWeightAveraging(start=start, every=every)
    _, steps = train(tmp_path, extension, epochs=3)
    mean = steps[start - 1 :: every].mean(dim=0)
    torch.testing.assert_close(kept(tmp_path), mean, atol=1e-6, rtol=1e-5)


def test_before_swa_begins_the_weights_themselves_are_kept(tmp_path):
    _, steps = train(tmp_path, StochasticWeightAveraging(start=100))
    assert torch.equal(kept(tmp_path), steps[-1])


@pytest.mark.parametrize("extension", [ExponentialAverage(0.5), StochasticWeightAveraging()])
def test_training_itself_is_the_plain_run_s_bit_for_bit(extension, tmp_path):
    plain, averaged = Trace(), Trace()
    run(Averager(dropout=0.3), tmp_path / "plain", extensions=[plain], epochs=2)
    model = Averager(dropout=0.3)
    apply_extensions(model, [extension])
    run(model, tmp_path / "averaged", extensions=[extension, averaged], epochs=2)
    assert torch.equal(torch.stack(plain.weights), torch.stack(averaged.weights))


def test_the_dev_figures_are_the_average_s(tmp_path):
    extension, seen = ExponentialAverage(decay=0.9), []
    model = Averager()
    apply_extensions(model, [extension])

    def evaluate(model):
        seen.append(weights(model)["head.weight"])
        return {"dev": float(len(seen))}

    run(model, tmp_path, extensions=[extension], evaluate=evaluate, epochs=2)
    assert torch.equal(seen[-1], kept(tmp_path))
    assert not torch.equal(seen[0], seen[1])


def test_an_evaluation_that_fails_gives_the_weights_back():
    extension, model = ExponentialAverage(decay=0.5), Averager()
    extension.prepare_model(model)
    for _ in range(2):
        model.head.weight.data += 1
        extension.after_step(model)
    before = weights(model)
    with pytest.raises(ZeroDivisionError), extension.evaluated(model):
        assert not torch.equal(model.head.weight, before["head.weight"])
        raise ZeroDivisionError
    assert same_bits(weights(model), before)


def test_frozen_weights_are_not_copied():
    model = Averager()
    model.gpt.requires_grad_(False)
    ExponentialAverage().prepare_model(model)
    assert {name for name, _ in model.average.named_buffers()} == {
        "step",
        "begun",
        "head/weight",
        "head/bias",
    }


def test_two_averages_are_refused():
    with pytest.raises(InputError, match="choose one"):
        apply_extensions(Averager(), [ExponentialAverage(), StochasticWeightAveraging()])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialAverage(decay=1.0),
        lambda: ExponentialAverage(decay=-0.1),
        lambda: StochasticWeightAveraging(start=0),
        lambda: StochasticWeightAveraging(every=0),
    ],
)
def test_invalid_options_are_refused(make):
    with pytest.raises(InputError, match="expected"):
        make()
