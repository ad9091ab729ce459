"""Where the cases of a comparison run: here, in processes of this machine, or on a cluster."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
)
from contextlib import contextmanager

from gshw.errors import GshwError

CONNECT_SECONDS = 10
"""Patience with a scheduler that does not answer."""


class _Here(Executor):
    """Runs everything at once in this process."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _die_quietly() -> None:
    # A terminal interrupts all its processes; one of them is enough to say so.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def local_workers(n_jobs: int) -> Iterator[tuple[Executor, int]]:
    """Processes of this machine (this one for a single job), and cases to hand out at a time.

    Raises
    ------
    GshwError
        When one dies at work.
    """
    if n_jobs == 1:
        yield _Here(), 1
        return
    # Forked processes would inherit torch's and numba's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(n_jobs, mp_context=context, initializer=_die_quietly)
    try:
        yield executor, n_jobs + 1
    except BrokenExecutor:
        raise GshwError(
            "a worker died; run again to go on, with fewer --jobs if memory was short"
        ) from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def cluster_workers(address: str) -> Iterator[tuple[Executor, int]]:
    """The threads of a ``dask.distributed`` cluster, and cases to hand out at a time.

    Raises
    ------
    GshwError
        Without the package, a scheduler at the address, or a worker; when the cluster goes away.
    """
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ModuleNotFoundError:
        raise GshwError("--scheduler needs distributed: pip install 'gshw[cluster]'") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        first = (str(error).splitlines() or ["no answer"])[0]
        raise GshwError(f"no scheduler at {address}: {first}") from None
    with client:
        n_threads = sum(client.nthreads().values())
        if not n_threads:
            raise GshwError(f"the scheduler at {address} has no worker")
        try:
            yield client.get_executor(pure=False), 2 * n_threads
        except (CancelledError, KilledWorker) as error:
            raise GshwError(
                f"the cluster at {address} lost a case ({type(error).__name__}); run again to go on"
            ) from None
