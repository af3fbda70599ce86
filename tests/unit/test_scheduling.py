"""Snakemake's scheduler looks for jobs again only when it must (capgap.workflow.private)."""

import threading
from types import SimpleNamespace

import pytest

from capgap.workflow.private import look_again


@pytest.fixture
def scheduler():
    return SimpleNamespace(resources={"_cores": 1}, _open_jobs=threading.Semaphore(0))


def woken(scheduler, timeout_s):
    return scheduler._open_jobs.acquire(timeout=timeout_s)


def test_many_looks_leave_one_timer(scheduler):
    for _ in range(20):
        look_again(scheduler, 0.05)
    assert woken(scheduler, 30)
    assert not woken(scheduler, 0.3)
    look_again(scheduler, 0.05)  # after it has fired, the next one counts again
    assert woken(scheduler, 30)


def test_none_waits_while_every_core_is_busy(scheduler):
    scheduler.resources["_cores"] = 0
    look_again(scheduler, 0.01)
    assert not woken(scheduler, 0.3)


def test_snakemake_has_what_is_replaced():
    """Its scheduler calls this method after every look, with these attributes."""
    import inspect

    from snakemake.scheduling.job_scheduler import JobScheduler

    assert list(inspect.signature(JobScheduler._schedule_reevalutation).parameters) == [
        "self",
        "delay",
    ]
    source = inspect.getsource(JobScheduler)
    assert "self._schedule_reevalutation(self.job_rate_limiter.timespan)" in source
    assert "self._open_jobs.release()" in source
    assert 'self.resources["_cores"]' in source
