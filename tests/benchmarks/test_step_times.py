"""Where a step's time goes: recordings are counted, steps marked, the profiler's sums divided."""

from types import SimpleNamespace

import pytest
import torch
from recorder import CallAgain
from torch.autograd import DeviceType

from benchmarks.jobs import JOBS, Settings
from benchmarks.match import PEERS
from benchmarks.step_times import Recordings, calls_timed, counted, step_times, traced
from engine.recorder import RECORDERS

CPU = torch.device("cpu")


@pytest.fixture
def recorder(monkeypatch):
    """The stand-in for a GPU's recorder, as if this CPU had one."""
    monkeypatch.setitem(RECORDERS, "cpu", CallAgain)


@pytest.fixture
def make(model_folder, data):
    made = []

    def make(name, folder=data, batches=3):
        made.append(
            PEERS[name](JOBS["sst-8"], Settings(str(model_folder), str(folder), batches=batches))
        )
        return made[-1]

    yield make
    for peer in made:
        peer.meter.close()


def steps(count: int):
    """Work of so many optimizer steps."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    return lambda: [optimizer.step() for _ in range(count)]


def test_recordings_are_counted_and_timed_whenever_they_are_made(recorder):
    found, done = Recordings(), []
    with found.watched():
        made = RECORDERS["cpu"](CPU)
    assert RECORDERS["cpu"] is CallAgain
    replay = made.record(lambda: done.append(1))
    replay()
    assert found.count == made.recorded == made.replayed == 1 and done == [1]
    assert 0 < found.seconds < 1


def test_a_step_lasts_from_one_optimizer_step_to_the_next():
    found = step_times(steps(4), CPU)
    assert found.keys() == {"host_ms"} and 0 < found["host_ms"] < 1000
    assert step_times(steps(1), CPU) == {}


def test_the_profiler_looks_at_some_steps_of_many():
    for count in (2, 3, 20):
        assert traced(steps(count), count, CPU) == {"launches": 0, "graphs": 0, "busy_ms": 0}
    assert traced(steps(1), 1, CPU) == {}


def event(key: str, count: int = 1, busy: float = 0.0, kind=DeviceType.CPU, note: bool = False):
    return SimpleNamespace(
        key=key, count=count, self_device_time_total=busy, device_type=kind, is_user_annotation=note
    )


def test_launches_of_kernels_and_graphs_and_the_busy_time_are_of_one_step():
    events = [
        event("cudaLaunchKernel", 60),
        event("cudaLaunchKernelExC", 20),
        event("cuLaunchKernel", 4),
        event("cudaGraphLaunch", 2),
        event("aten::mm", 50, busy=900.0),
        event("gemm", 50, busy=6000.0, kind=DeviceType.CUDA),
        event("copy", 10, busy=2000.0, kind=DeviceType.CUDA),
        event("ProfilerStep#1", 2, busy=9000.0, kind=DeviceType.CUDA, note=True),
    ]
    assert counted(events, 2) == {"launches": 42, "graphs": 1, "busy_ms": 4.0}


def test_calls_of_a_method_are_timed_and_it_is_put_back():
    owner = SimpleNamespace(step=lambda x: 2 * x)
    before = owner.step
    with calls_timed(owner, "step") as times:
        assert owner.step(3) == 6
    assert owner.step is before and len(times) == 1 and times[0] >= 0


@pytest.mark.parametrize("name", ["starter", "ours"])
def test_a_peer_s_steps_are_looked_at_in_turns_of_their_own(name, make):
    peer = make(name)
    peer.run()
    found = peer.profile()
    assert 0 < found["host_ms"] < 10_000 and found["launches"] == 0
    assert ("step_host_ms" in found) == (name == "ours")
    assert found.get("step_host_ms", 0) <= 1.5 * found["host_ms"]


@pytest.mark.parametrize("warm_ups", [1, 2])
def test_two_turns_of_ours_record_all_so_that_none_that_is_timed_does(
    warm_ups, recorder, make, tmp_path, monkeypatch
):
    """Each shape occurs once in the batches: a turn sees it, the next one records it."""
    lines = [f"{n}\tr{n}\t{' '.join(['good'] * n)}\t{n % 5}\n" for n in range(1, 81)]
    text = "\tid\tsentence\tsentiment\n" + "".join(lines)
    (tmp_path / "ids-sst-train.csv").write_text(text, encoding="utf-8")
    peer = make("ours", folder=tmp_path, batches=5)
    object.__setattr__(peer.settings, "use_gpu", True)  # for what depends on nothing else of a GPU
    monkeypatch.setattr(peer, "_leave_memory_to_others", lambda: None)
    assert peer.warm_ups == 2
    peer.warm_ups = warm_ups
    warm, turns = peer.warm_up(), [peer.run() for _ in range(2)]
    shapes = len(peer.trainer.gradients.graphs.recordings)
    recorded = [found["recordings"] for found in (warm, *turns)]
    assert sum(recorded) == shapes > 1 and recorded[2] == 0
    assert (recorded[1] == 0) == (warm_ups == 2)
    assert turns[1]["steps"] == 5 and turns[1]["recording_seconds"] == 0


def test_on_a_cpu_one_turn_warms_up(make):
    peer = make("ours")
    assert peer.warm_up()["recordings"] == 0
    assert peer.meter.counts["steps"] == 1


def test_ours_in_float32_stays_so(model_folder, data):
    settings = Settings(str(model_folder), str(data), bf16=True)
    assert PEERS["ours"].precision(JOBS["sst-8"], settings) == "bfloat16"
    assert PEERS["ours-float32"].precision(JOBS["sst-8"], settings) == "float32"
