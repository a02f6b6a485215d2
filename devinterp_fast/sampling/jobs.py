"""Runs prepared chains, those of one center or of many (checkpoints, restrictions), and shows them to observers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from devinterp_fast._interrupt import Interrupt
from devinterp_fast.progress import ProgressBar
from devinterp_fast.sampling.observers import Draw, Evaluator, Observer
from devinterp_fast.sampling.prepare import Prepared
from devinterp_fast.sampling.run import Floats, See, Trace
from devinterp_fast.sampling.torch_engine import private_copy, undisturbed


def run(
    jobs: Sequence[Prepared], title: str, *, progress: bool, observers: Sequence[Sequence[Observer]] | None = None
) -> list[tuple[Trace, str]]:
    """Runs every chain of every job to its end, or to Ctrl-C: then what was recorded is kept and marked.

    A job's chains are numbered from 0 whatever the other jobs are, so it gives the same bits alone. Threads are spread
    over the chains of a job and, where there are more threads than chains, over native jobs.

    Args:
        jobs: what to run.
        title: of the progress bar.
        progress: show it on a terminal.
        observers: for each job, those that are shown its draws.

    Returns:
        For each job its trace and its engine's name; jobs that an interrupt left without a draw are missing at the end.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first draw, or a second time.
    """
    watching = [[] for _ in jobs] if observers is None else observers
    updates = [job.settings.steps * job.settings.chains for job in jobs]
    done = [0] * len(jobs)
    with ProgressBar(title, sum(updates), show=progress) as bar, Interrupt() as stop:

        def one(number: int) -> tuple[Trace, str]:
            def report(updated: int, note: str) -> None:
                done[number] = updated
                bar.update(sum(done), note)

            job = jobs[number]
            engine = job.engine()
            trace = engine.run(report, _shown_to(job, watching[number]), stop)
            done[number] = updates[number]
            return trace, engine.name

        workers = torch.get_num_threads() // max(job.settings.chains for job in jobs)
        if workers > 1 and not any(watching) and all(job.choice.program for job in jobs):
            with ThreadPoolExecutor(workers) as pool:
                results = list(pool.map(one, range(len(jobs))))
        else:
            results = [one(i) for i in range(len(jobs)) if i == 0 or not stop()]
    if stop():
        results = [(trace, name) for trace, name in results if trace.recorded()[1]]
        if not results:
            raise KeyboardInterrupt
        for trace, _ in results:
            trace.interrupted = trace.recorded()[1] < trace.loss.shape[1] or len(trace.recorded()[0]) < len(trace.loss)
    return results


def _shown_to(job: Prepared, observers: Sequence[Observer]) -> See | None:
    if not observers:
        return None
    evaluator = Evaluator(private_copy(job.model), job.objective, job.where, job.choice.program)

    def see(k: int, chains: slice, w: Tensor, loss: Floats, baseline: Floats) -> None:
        with undisturbed(job.where.dim, job.settings.batch_size):
            for observer in observers:
                observer.see(Draw(k, chains, w, loss, baseline, evaluator))

    return see
