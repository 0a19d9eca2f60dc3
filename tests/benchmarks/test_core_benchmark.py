"""The matrix of jobs and peers: a job end to end, rows kept and not run again, tables, picture."""

import json
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from benchmarks import core, limits, match, report
from benchmarks.jobs import JOBS, Settings, Workload
from config import GPT2Config
from engine.errors import InputError

MACHINE = {"rates": {"float32": {"8 × 8 × 8": 1e9, "9 × 9 × 9": 2e9}}, "bandwidth": {"copy": 1e9}}


def spread(middle: float, width: float = 0.1) -> dict:
    return {"median": middle, "min": middle * (1 - width), "max": middle * (1 + width)}


@pytest.fixture
def made_up():
    """Results with a job of every peer, one with a peer left out, and one of ours alone."""
    jobs = [
        {
            "job": "a",
            "seconds": {"starter": spread(30), "transformers": spread(15), "ours": spread(10)},
        },
        {"job": "b", "seconds": {"starter": spread(0.02), "ours": spread(0.01)}},
        {"job": "c", "seconds": {"ours": spread(2)}},
    ]
    jobs[0]["seconds"]["ours"] = spread(10)
    jobs[0]["peak_mb"] = {"starter": 4000.0, "transformers": 3000.0, "ours": 2500.0}
    jobs[0]["limit"] = {"flops": 3e12, "bytes": 5e9, "seconds": {"float32": 4.0}}
    jobs[0]["limit"]["share"] = {"starter": 4 / 30, "transformers": 4 / 15, "ours": 0.4}
    jobs[1]["skipped"] = {"transformers": "out of memory"}
    return {"checkpoint": "tiny", "hardware": "a machine", "jobs": jobs}


def test_the_table_has_a_column_a_peer_and_what_is_missing_stays_open(made_up):
    head, _, first, second, third = report.table(made_up).splitlines()
    assert head == "| job | starter, s | transformers, s | ours, s | ours, of the limit |"
    assert first.startswith("| a | 30.00 (27.00–33.00) **3.0×** | 15.00 (13.50–16.50) **1.5×** |")
    assert first.endswith("| 10.00 (9.00–11.00) | 40% |")
    assert second.startswith("| b | 0.02 (0.018–0.022) **2.0×** | out of memory | 0.01 (")
    assert third == "| c | – | – | 2.00 (1.80–2.20) | – |"


def test_a_table_without_limits_has_no_column_for_them(made_up):
    made_up["jobs"] = made_up["jobs"][1:]
    assert "limit" not in report.table(made_up)


def test_memory_and_limits_have_tables_of_their_own(made_up):
    assert "| a | 4,000 | 3,000 | 2,500 |" in report.memory_table(made_up)
    assert "| a | 3 | 5 | 4 (float32) | 13% | 27% | 40% |" in report.limit_table(made_up)
    assert "| 9 × 9 × 9 | 2 |" in report.machine_table(MACHINE)


def test_a_table_shows_where_the_time_of_steps_goes(made_up):
    assert report.step_table(made_up) == ""
    made_up["jobs"][0]["steps"] = {
        "ours": {"host_ms": 1.234, "step_host_ms": 0.62, "device_ms": 4.5, "busy_ms": 4.07}
        | {"launches": 3.0, "graphs": 1.0}
    }
    warm = {"seconds": 2.0, "recordings": 0, "recording_seconds": 0.0, "seconds_a_turn": 0.0}
    made_up["jobs"][0]["warm_up"] = {"starter": warm, "ours": warm | {"recordings": 8}}
    _, _, starter, ours = report.step_table(made_up).splitlines()
    assert starter == "| a | starter | – | – | – | – | – | – | 2.0 | – |"
    assert ours == "| a | ours | 1.23 | 0.62 | 4.5 | 4.07 | 3 | 1 | 2.0 | 0.00 (8) |"


def test_without_matplotlib_there_is_no_picture(
    fake_measure, model_folder, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(core.importlib.util, "find_spec", lambda name: None)
    run(model_folder, data, tmp_path / "core.json", "--jobs", "step")
    assert [path.name for path in tmp_path.iterdir()] == ["core.json"]


def test_the_picture_is_drawn(made_up, tmp_path):
    report.draw(made_up, tmp_path / "core.png")
    assert (tmp_path / "core.png").read_bytes().startswith(b"\x89PNG")
    report.draw({**made_up, "jobs": made_up["jobs"][2:]}, tmp_path / "empty.png")


def test_a_share_of_the_limit_is_the_least_time_by_the_time(model_folder, data):
    settings = Settings(str(model_folder), str(data), batches=1)
    work = Workload(JOBS["step"], settings)
    found = match.limit(work, settings, {"ours": spread(0.5)}, MACHINE)
    assert found["seconds"]["float32"] == found["bytes"] / 1e9
    assert found["share"]["ours"] == pytest.approx(found["bytes"] / 1e9 / 0.5)


def test_the_machine_s_figures_are_measured():
    config = GPT2Config(hidden_size=16, intermediate_size=32, num_attention_heads=2)
    found = limits.measure(config, use_gpu=False, least=0.0)
    assert "float32" in found["rates"] and set(found["bandwidth"]) == {"copy", "read"}
    rates = found["rates"]["float32"]
    assert "184 × 16 × 32" in rates and all(rate > 0 for rate in rates.values())
    assert limits.best_rate(found, "float32") == max(rates.values())
    assert torch.get_float32_matmul_precision() == "highest"


# -- what a peer's trouble does ---------------------------------------------------------------


class Scripted:
    """A peer's process whose turns are given."""

    def __init__(self, *turns):
        self.turns = list(turns)

    def ask(self, method, *_):
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return turn

    def close(self):
        pass


def scripted(model_folder, data, **processes) -> match.Match:
    said = []
    found = match.Match(
        JOBS["sst-8"], Settings(str(model_folder), str(data), batches=1), said.append
    )
    found.processes = processes
    return found


def test_a_peer_that_cannot_do_the_job_here_is_left_out_with_its_reason(
    model_folder, data, monkeypatch
):
    monkeypatch.setattr("benchmarks.huggingface.has_trainer", lambda: False)
    found = scripted(model_folder, data)
    found.start(["transformers"])
    assert found.processes == {} and "accelerate" in found.skipped["transformers"]


def turn(seconds: float, rows: int = 8) -> dict:
    return {"seconds": seconds, "rows": rows, "steps": 1, "positions": 9}


def test_a_turn_that_takes_minutes_is_not_repeated(model_folder, data):
    found = scripted(
        model_folder,
        data,
        starter=Scripted(turn(9), turn(500)),
        ours=Scripted(turn(1), turn(2), turn(3), turn(4)),
    ).play(3)
    assert [t["seconds"] for t in found["starter"]] == [500]
    assert [t["seconds"] for t in found["ours"]] == [2, 3, 4]


@pytest.mark.parametrize(
    "error, reason",
    [(torch.OutOfMemoryError("CUDA"), "out of memory"), (BrokenProcessPool(), "killed: ")],
)
def test_a_peer_that_runs_out_of_memory_leaves_and_the_others_go_on(
    error, reason, model_folder, data
):
    for turns in ((error,), (turn(1), error), (turn(1), turn(1), error)):
        others = Scripted(turn(1), turn(2), turn(3))
        play = scripted(model_folder, data, starter=Scripted(*turns), ours=others)
        assert list(play.play(2)) == ["ours"]
        assert play.skipped["starter"].startswith(reason)


def test_one_of_ours_whose_flags_are_refused_leaves_and_ours_itself_ends_the_run(
    model_folder, data
):
    refused = InputError("--compile: it needs a C++ compiler")
    compiled = {"ours-compiled": Scripted(refused), "ours": Scripted(turn(1), turn(2))}
    play = scripted(model_folder, data, **compiled)
    assert list(play.play(1)) == ["ours"]
    assert play.skipped["ours-compiled"].startswith("refused: --compile")
    with pytest.raises(InputError, match="--compile"):
        scripted(model_folder, data, ours=Scripted(refused)).play(1)


def test_only_a_gpu_s_training_steps_are_looked_at_and_trouble_costs_no_times(model_folder, data):
    figures = {"host_ms": 1.0}
    turns = {"ours": [turn(2)], "starter": [turn(3)], "transformers": [turn(500)]}
    peers = {"ours": Scripted(figures), "starter": Scripted(RuntimeError("no profiler"))}
    found = scripted(model_folder, data, **peers, transformers=Scripted())
    assert found.profile(turns) == {}
    object.__setattr__(found.settings, "use_gpu", True)
    assert found.profile(turns) == {"ours": figures}
    assert list(found.processes) == ["ours", "starter", "transformers"]


def test_the_time_of_a_peer_that_did_less_is_refused(model_folder, data):
    play = scripted(model_folder, data, starter=Scripted(turn(1), turn(1, rows=7)))
    with pytest.raises(InputError, match="starter did not do this job: 7 rows, expected 8"):
        play.play(1)


# -- the program ------------------------------------------------------------------------------


@pytest.fixture
def fake_measure(monkeypatch):
    """Made-up times in place of measuring; the jobs that were asked for are noted."""
    calls = []

    def measure(job, settings, names, **_):
        calls.append(job.name)
        return {"job": job.words, "work": 1, "seconds": {name: spread(2.0) for name in names}}

    monkeypatch.setattr(core, "measure", measure)
    monkeypatch.setattr(core, "alone", lambda *_: MACHINE)
    return calls


def run(folder, data, out, *words) -> dict:
    flags = ["--model_size", str(folder), "--data_dir", str(data), "--out", str(out), *words]
    args = core.get_args(flags)
    core.run_size(args, args.model_size[0], lambda message: None)
    return json.loads(out.read_text(encoding="utf-8"))


def test_runs_in_the_file_are_not_run_again(fake_measure, model_folder, data, tmp_path):
    out = tmp_path / "core.json"
    run(model_folder, data, out, "--jobs", "step", "sst-8")
    results = run(model_folder, data, out)
    assert fake_measure[:2] == ["step", "sst-8"] and len(fake_measure) == len(JOBS)
    assert [row["name"] for row in results["jobs"]] == list(JOBS)
    row = results["jobs"][1]
    assert row["ratio"] == 1.0 and row["commit"] == results["commit"] and row["date"]
    assert results["limits"] == MACHINE and results["checkpoint"] == model_folder.name
    assert out.with_suffix(".png").exists()


def test_other_settings_or_force_measure_again_and_replace(
    fake_measure, model_folder, data, tmp_path
):
    out = tmp_path / "core.json"
    for words in ([], ["--batches", "5"], ["--batches", "5"], ["--batches", "5", "--force"]):
        results = run(model_folder, data, out, "--jobs", "sst-8", *words)
    assert len(fake_measure) == 3 and len(results["jobs"]) == 1
    assert results["jobs"][0]["settings"]["batches"] == 5


def test_figures_of_other_conditions_are_not_mixed(fake_measure, model_folder, data, tmp_path):
    out = tmp_path / "core.json"
    out.write_text(json.dumps({"checkpoint": "another", "jobs": []}), encoding="utf-8")
    with pytest.raises(InputError, match="another --out, or --force"):
        run(model_folder, data, out, "--jobs", "step")
    results = run(model_folder, data, out, "--jobs", "step", "--force")
    assert results["checkpoint"] == model_folder.name


def test_rows_of_the_older_program_are_not_mixed_with_new_ones(
    fake_measure, model_folder, data, tmp_path
):
    out = tmp_path / "core.json"
    results = run(model_folder, data, out, "--jobs", "step")
    del results["jobs"][0]["settings"]
    out.write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(InputError, match="an older program"):
        run(model_folder, data, out, "--jobs", "step")


@pytest.mark.parametrize(
    "flag, peer", [("--bf16", "transformers-bf16"), ("--compile", "ours-compiled")]
)
def test_a_peer_that_is_not_always_wanted_comes_with_its_flag(flag, peer, monkeypatch):
    monkeypatch.setattr(core, "has_bf16_units", lambda device: True)
    assert peer not in core.get_args([]).peers and peer in core.get_args([flag]).peers


def test_an_output_is_of_one_checkpoint():
    with pytest.raises(InputError, match="one --model_size"):
        core.get_args(["--out", "x", "--model_size", "gpt2", "gpt2-medium"])


def test_peers_that_do_not_do_a_job_are_left_out_of_it(fake_measure, model_folder, data, tmp_path):
    results = run(
        model_folder, data, tmp_path / "r.json", "--jobs", "step", "sst-8", "--peers", "torch-fused"
    )
    assert [row["name"] for row in results["jobs"]] == ["step"]


def test_a_job_is_measured_in_a_process_of_the_peer_s_own(model_folder, data):
    settings = Settings(str(model_folder), str(data), batches=2)
    said = []
    how = {"repeats": 2, "machine": MACHINE, "log": said.append}
    row = match.measure(JOBS["sst-8"], settings, ["ours"], **how)
    assert row["job"] == "SST, full model: 16 rows, batch 8" and said == []
    assert row["seconds"]["ours"]["min"] > 0 and row["peak_mb"]["ours"] > 50
    assert row["padding"]["ours"] >= 1 and row["answers_differ_by"] == {}
    least, middle = row["limit"]["seconds"]["float32"], row["seconds"]["ours"]["median"]
    assert row["limit"]["share"]["ours"] == least / middle > 0
    json.dumps(row)
