"""Runs prepared chains, those of one center or of many (checkpoints, restrictions), and shows them to observers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from devinterp_fast._interrupt import Interrupt
from devinterp_fast.progress import ProgressBar
from devinterp_fast.sampling.goal import at_a_tenth, missing
from devinterp_fast.sampling.observers import Draw, Evaluator, Observer
from devinterp_fast.sampling.prepare import Prepared
from devinterp_fast.sampling.run import Floats, See, Settings, Trace, joined, stretch
from devinterp_fast.sampling.torch_engine import private_copy, undisturbed


def run(
    jobs: Sequence[Prepared], title: str, *, progress: bool, observers: Sequence[Sequence[Observer]] | None = None
) -> list[tuple[Trace, str]]:
    """Runs every chain of every job to its end, or to Ctrl-C: then what was recorded is kept and marked.

    A job's chains are numbered from 0 whatever the other jobs are, so it gives the same bits alone. Threads are spread
    over the chains of a job and, where there are more threads than chains, over native jobs, which share them.

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
    updates = [job.settings.steps * job.settings.chains * (5 if job.tenth else 4) // 4 for job in jobs]
    done = [0] * len(jobs)
    threads = torch.get_num_threads()
    workers = min(len(jobs), threads // max(job.settings.chains for job in jobs))
    apart = workers > 1 and not any(watching) and all(job.choice.program for job in jobs)
    with ProgressBar(title, sum(updates), show=progress) as bar, Interrupt() as stop:

        def one(number: int) -> tuple[Trace, str]:
            job, shown, name = jobs[number], _shown_to(jobs[number], watching[number]), ""
            before = 0

            def report(updated: int, note: str) -> None:
                done[number] = before + updated
                bar.update(sum(done), note)

            def advance(settings: Settings, drawn: int) -> Trace:
                nonlocal name, before
                engine = job.engine(settings, threads=threads // workers if apart else None)
                name, before = engine.name, done[number]
                return engine.run(report, _later(shown, drawn), stop)

            trace = None
            while more := missing(job, trace):
                if trace is not None and stop():
                    trace.interrupted = True
                    break
                drawn = 0 if trace is None else trace.loss.shape[1]
                trace = joined(trace, advance(stretch(job.settings, trace, more), drawn))
            assert trace is not None
            weaker = None if stop() else at_a_tenth(job, trace)
            if weaker is not None:
                shown = None
                beside = advance(weaker, 0)
                trace.tenth = None if stop() else beside
            done[number] = max(updates[number], done[number])
            return trace, name

        if apart:
            with ThreadPoolExecutor(workers) as pool:
                results = list(pool.map(one, range(len(jobs))))
        else:
            results = [one(i) for i in range(len(jobs)) if i == 0 or not stop()]
    if stop():
        results = [(trace, name) for trace, name in results if trace.recorded()[1]]
        if not results:
            raise KeyboardInterrupt
        for trace, _ in results:
            chains, draws = trace.recorded()
            trace.interrupted |= draws < trace.loss.shape[1] or len(chains) < len(trace.loss)
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


def _later(see: See | None, drawn: int) -> See | None:
    """``see`` of a run that has drawn before."""
    if see is None or drawn == 0:
        return see

    def later(k: int, chains: slice, w: Tensor, loss: Floats, baseline: Floats) -> None:
        see(drawn + k, chains, w, loss, baseline)

    return later
