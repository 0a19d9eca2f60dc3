"""The study of a search in its database: opened, counted, gone on with after an interruption."""

import shutil
import socket
import zlib
from pathlib import Path

from engine.database_url import masked
from engine.errors import InputError, excerpt
from engine.files import is_alive
from programs.search.trial import trial_folder


def open_study(args):
    """The study in its database, made if it is not there; one of another command is refused."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings = {name: getattr(args, name) for name in ("program", "fixed", "space", "metric")}
    pruner = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=args.prune_after),
        "none": optuna.pruners.NopPruner(),
    }[args.pruner]
    try:
        storage = optuna.storages.RDBStorage(args.storage, engine_kwargs=_waiting(args.storage))
        study = optuna.create_study(
            study_name=args.study,
            storage=storage,
            direction="minimize" if args.minimize else "maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    except Exception as error:  # of SQLAlchemy, of its drivers, of optuna
        reason = excerpt(masked(f"{type(error).__name__}: {error}", args.storage))
        where = masked(args.storage, args.storage)
        raise InputError(f"--storage {where}: cannot be opened ({reason})") from error
    before = study.user_attrs.get("settings", settings)
    unlike = [name for name in settings if settings[name] != before[name]]
    if unlike:
        raise InputError(
            f"--study {args.study}: another {', '.join(unlike)} there: give another --study"
        )
    study.set_user_attr("settings", settings)
    return study


def _waiting(url: str) -> dict:
    """Processes that share a SQLite file wait for each other."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}


def has_ended(trial) -> bool:
    """Whether a trial came to an end of its own: finished, stopped early, or failed."""
    return trial.state.name in ("COMPLETE", "PRUNED") or (
        trial.state.name == "FAIL" and "failed" in trial.user_attrs
    )


def ended(study) -> list:
    return [trial for trial in study.get_trials(deepcopy=False) if has_ended(trial)]


def retry_interrupted(study, folder: Path) -> None:
    """Put the values of trials that were interrupted, on this machine, at the head of the queue.

    What they left in the study's folder goes.
    """
    from optuna.trial import TrialState

    retried = study.user_attrs.get("retried", [])
    for trial in study.get_trials(deepcopy=False):
        if has_ended(trial) or trial.number in retried:
            continue
        if trial.state == TrialState.RUNNING:
            host, _, process = trial.user_attrs.get("process", ":").partition(":")
            if host != socket.gethostname() or is_alive(int(process)):
                continue  # at work, here or elsewhere
            study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state != TrialState.FAIL:
            continue
        shutil.rmtree(trial_folder(folder, trial.number), ignore_errors=True)
        study.set_user_attr("retried", retried := [*retried, trial.number])
        if trial.params:
            study.enqueue_trial(trial.params)


def sampler_seed(args, study, trial) -> int:
    """Of a trial, by the place that it would have if none had been interrupted.

    No two processes of a study have the same: each trial's number is given once.
    """
    place = trial.number - len(study.user_attrs.get("retried", []))
    return zlib.crc32(f"{args.seed}:{place}".encode())
