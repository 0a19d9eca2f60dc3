"""The one training loop, and the seam through which a technique changes a run.

    for each epoch, for each common batch:   loss = Σ loss_fn(logits, batch) / number of targets
                                             (+ penalties of extensions), one optimizer step
    after each epoch: evaluate, keep the best
    now and then, and at the end: save all that an exact resume needs

The gradient of a step is engine/gradients.py's, what a resume needs is engine/resuming.py's.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from engine.batches import forward_tokens
from engine.checkpoint import RunFolder
from engine.extension import Extension
from engine.inputs import FROZEN, frozen_weights
from engine.options import FitOptions, Progress
from engine.parallel import Worker, barrier
from engine.recorder import RECORDERS
from engine.resuming import load_best, take_over_shorter_run
from engine.signals import Stopped, deferred
from engine.trainer import Trainer


def fit(
    model: nn.Module,
    loader,
    *,
    loss_fn: Callable,
    evaluate: Callable,
    options: FitOptions,
    folder: RunFolder,
    worker: Worker,
    extensions: Iterable[Extension] = (),
    forward: Callable = forward_tokens,
    log: Callable = print,
    recorders: Mapping[str, Callable] = RECORDERS,
    on_epoch: Callable[[dict], None] | None = None,
) -> Progress:
    """Train; afterwards the model holds the weights of the best epoch.

    loss_fn(logits, batch) is the loss summed over the batch's targets (labels that are not
    IGNORED_LABEL); evaluate(model) gives a dict of dev figures. forward(network, batch) returns
    the logits; or `TokenScores`, which loss_fn then gets, and the penalties of extensions, too. The
    extensions were applied to the model before. With options.shard the model is sharded afterwards
    (engine/sharding.py). A loss that is not finite stops the run. log gets lines; on_epoch, on the
    main worker, the figures of each epoch, which log gets without it. recorders: by type of device,
    what makes the recorder of its steps; forward and loss_fn are then called for a few batches of
    each shape alone, with tensors alone, and must not look at a number.

    SIGTERM, SIGHUP and Ctrl-C end it after the step, or before the next batch of an evaluation:
    it saves and raises `Stopped`. SIGUSR1 makes it save after the step and go on. Of several
    workers any one is asked, and all do the same: they must run the same forward passes in
    `evaluate`.
    """
    extensions = list(extensions)
    if FROZEN not in folder.inputs:
        folder.inputs = frozen_weights(model) | folder.inputs
    run = Trainer(
        model,
        loader,
        loss_fn,
        options,
        folder,
        worker,
        extensions,
        forward,
        log,
        recorders,
        on_epoch,
    )
    if options.resume:
        take_over_shorter_run(folder, options, worker)
    folder.check_begun(options.resume)
    with folder.locked():
        folder.start(options.resume)
        with stopped_together(run), folder.writing():
            run_epochs(run, evaluate)
        model.zero_grad(set_to_none=True)  # their memory is free for what follows
        load_best(model, folder, worker)
        return run.progress


def run_epochs(run: Trainer, evaluate: Callable) -> None:
    """All epochs, or those that are left, in a folder that no other process writes into."""
    model, options = run.model, run.options
    if options.resume:
        run.restore()
    elif run.folder.last.exists():
        run.log("a run with these flags was here before and is done anew; --resume would go on")
    if not run.progress.finished and hasattr(run.optimizer, "init_state"):
        run.optimizer.init_state()  # now: memory that runs out later is answered by smaller pieces
    try:
        while not run.progress.finished:
            run.train_epoch()
            with run.evaluated():
                run.check_weights()
                run.judge(evaluate(model))
            run.finish_epoch()
    except Stopped:
        run.save()
        raise


@contextlib.contextmanager
def stopped_together(run: Trainer) -> Iterator[None]:
    """Signals are deferred, and the first worker that ends by one is not the last that writes."""
    with deferred() as run.asked:
        try:
            yield
        except Stopped:
            barrier(run.worker)  # torchrun ends all when one has ended
            raise
