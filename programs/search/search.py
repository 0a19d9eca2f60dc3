"""Search: the flags and options of any task that do best on dev, by optuna, in runs of the task.

    next values ~ argmax l(x) / g(x)   l, g: densities of the good and the other trials (TPE),
                                       Bergstra et al. 2011, section 4
    stop a run   whose best epoch so far is worse than the median of other runs at this epoch:
                                       Golovin et al. 2017, section 3.2.2 (median stopping rule)
    importance   the share of the figures' variance that a flag explains (fANOVA),
                                       Hutter et al. 2014

A trial is a run of the task's own program in a process of its own (search_trial.py); --space is
explained in search_space.py. Trials stand in a database: the same command goes on where it was, an
interrupted trial is done again with its values, and by --storage several machines share one study.
Test files are never read: the task gets a stand-in in their place.

Akiba et al. 2019, "Optuna"; Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization".
Differs from the papers: all three methods are the library's, whose median is that of the epoch's
figures, not of running means; one seed gives the same trials, whether interrupted or not.

    python -m programs.search --trials 30 \\
        --space lr=log:1e-5..1e-3 batch_size=8,16,32 'extension=none|lora:rank=4..64' \\
        -- classifier.py --dataset sst --fine-tune-mode full-model --epochs 5 --use_gpu
"""

import glob
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.database_url import masked
from engine.errors import InputError, Parser, command, leave_stopped, optional
from engine.files import atomic_path, check_writable, is_alive
from engine.run_lock import RunLock
from engine.signals import Stopped

# isort: split

from engine.extension import load_extensions
from engine.flags import check_range
from programs.search.space import parse_space, probes, words_of
from programs.search.study import ended, open_study, retry_interrupted, sampler_seed
from programs.search.trial import WITHOUT_TEST, TrialFailed, run_trial
from programs.tasks import PROGRAMS, named_program, split_command

STARTUP = 10  # trials that are drawn evenly, before TPE
STAND_INS = "data"  # of the names of folders in which something stands in the place of test files
FAILURES = 3  # in a row, before anything worked: then something else is wrong

# -- the study -------------------------------------------------------------------------------------


def search(args, study) -> Iterator[str]:
    """Run trials until there are as many as wanted; what each one came to."""
    import optuna
    from optuna.trial import TrialState

    with RunLock(args.folder, wait=True):
        retry_interrupted(study, args.folder)
    failures = 0
    while len(done := ended(study)) < args.trials:
        trial = study.ask()
        seed = sampler_seed(args, study, trial)
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)
        try:
            value = run_trial(args, trial)
            outcome, state = f"{args.metric} {value:.4f}", TrialState.COMPLETE
        except optuna.TrialPruned:
            value, outcome, state = None, "stopped early", TrialState.PRUNED
        except TrialFailed as error:
            value, outcome, state = None, f"failed, {error}", TrialState.FAIL
            trial.set_user_attr("failed", str(error))
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        study.tell(trial, value, state=state)
        words = shlex.join(words_of(args.parsed_space, optuna.trial.FixedTrial(trial.params)))
        yield f"trial {trial.number} ({len(done) + 1} of {args.trials}): {outcome}: {words}"
        failures = failures + 1 if state == TrialState.FAIL else 0
        if failures == FAILURES and all(other.state == TrialState.FAIL for other in done):
            raise InputError(f"{failures} trials failed and none worked, the last: {outcome}")


def report(args, study) -> list[str]:
    """What the search found, and the command that uses it."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if not complete:
        return ["no trial was finished: widen --space, or --pruner none"]
    best = study.best_trial
    lines = [f"best of {len(ended(study))} trials: {best.number}, {args.metric} {best.value:.4f}"]
    shares = importances(study, args.seed)
    if shares:
        path = args.folder / "importance.png"
        plot(shares, path, args.metric)
        listed = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        lines.append(f"importance: {listed}; drawn in {path}")
    words = words_of(args.parsed_space, optuna.trial.FixedTrial(best.params))
    return [*lines, f"next: {shlex.join(['python', args.program, *args.fixed, *words])}"]


def importances(study, seed: int) -> dict[str, float]:
    """By fANOVA; {} if the finished trials are too few or too much alike to tell."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    common = set.intersection(*(set(trial.params) for trial in complete))
    varied = [n for n in sorted(common) if len({trial.params[n] for trial in complete}) > 1]
    if len({trial.value for trial in complete}) < 2 or not varied:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)


def plot(shares: dict[str, float], path: Path, metric: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(shares)[::-1]
    figure, axes = pyplot.subplots(figsize=(6, 1 + 0.4 * len(names)), layout="constrained")
    axes.barh(names, [shares[name] for name in names])
    axes.set(xlabel=f"share of the variance of {metric}", xlim=(0, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


# -- flags -----------------------------------------------------------------------------------------


def check_space(args) -> None:
    """Try the space out on the task's own flags, so that a typo is said now."""
    task = PROGRAMS[args.program]
    for probe in probes(args.parsed_space):
        words = words_of(args.parsed_space, probe)
        try:
            load_extensions(task.get_args([*args.fixed, *words]).extension)
        except InputError as error:
            given = shlex.join([*args.fixed, *words])
            raise InputError(f"{args.program}: it does not take {given}: {error}") from error


def get_args(argv=None):
    own, task_words = split_command(sys.argv[1:] if argv is None else list(argv))
    parser = Parser(
        __doc__,
        usage="python -m programs.search --space NAME=VALUES … [options] -- PROGRAM.py [flags]",
    )
    parser.add_argument("--space", nargs="+", required=True, metavar="NAME=VALUES")
    parser.add_argument("--trials", type=int, default=20, help="in the study, earlier ones too")
    parser.add_argument("--metric", help="of metrics.jsonl; default: dev_acc; of sonnets dev_loss")
    parser.add_argument("--study", help="a name to share or go on with; default: by the command")
    parser.add_argument("--storage", help="a database URL; default: SQLite below --runs_dir")
    parser.add_argument("--pruner", choices=("median", "none"), default="median")
    parser.add_argument("--prune_after", type=int, default=1, help="epochs before a run is judged")
    parser.add_argument("--seed", type=int, default=11711, help="of the search, not of the runs")
    parser.add_argument("--runs_dir", default="runs")
    args = parser.parse_args(own)
    check_range(args, "trials", 1)
    check_range(args, "prune_after", 0)
    check_range(args, "seed", 0)
    args.program, args.fixed = named_program(task_words)
    args.parsed_space = parse_space(args.space)
    check_space(args)
    args.metric = args.metric or PROGRAMS[args.program].metric
    args.minimize = any(word in args.metric for word in ("loss", "perplexity"))
    key = json.dumps([args.fixed, args.space, args.metric, args.seed]).encode()
    default = f"{Path(args.program).stem}-{hashlib.sha256(key).hexdigest()[:8]}"
    args.study = args.study or default
    args.folder = Path(args.runs_dir) / "search" / args.study
    args.storage = args.storage or f"sqlite:///{args.folder.resolve()}.db"
    return args


def prepare(args) -> None:
    """The folder of the study with its stand-ins; what would fail later fails now."""
    optional("optuna", "search")
    parsed = PROGRAMS[args.program].get_args(args.fixed)
    for name in ("checkpoint", "resume"):
        if getattr(parsed, name):
            raise InputError(f"--{name}: a trial trains anew: leave it out")
    check_writable(args.folder / "importance.png")
    mine = f"{STAND_INS}-{socket.gethostname()}-"
    with RunLock(args.folder, wait=True):
        for folder in args.folder.glob(f"{glob.escape(mine)}*"):
            if not is_alive(int(folder.name.removeprefix(mine))):  # of a search that was killed
                shutil.rmtree(folder, ignore_errors=True)
    args.stand_in_folder = args.folder.resolve() / f"{mine}{os.getpid()}"
    args.stand_in_folder.mkdir(exist_ok=True)
    args.stand_in = WITHOUT_TEST[args.program](parsed, args.stand_in_folder)


@command
def main():
    args = get_args()
    prepare(args)
    study = open_study(args)
    storage = masked(args.storage, args.storage)
    print(f"study {args.study} in {storage}; logs in {args.folder}", flush=True)
    try:
        for line in search(args, study):
            print(line, flush=True)
    except (KeyboardInterrupt, Stopped) as end:
        leave_stopped(end, "the same command goes on with this study")
    finally:
        shutil.rmtree(args.stand_in_folder, ignore_errors=True)
    for line in report(args, study):
        print(line)
