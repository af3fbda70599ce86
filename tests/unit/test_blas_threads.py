"""Commands of the law compute in one BLAS thread, unless the user has chosen a number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[1] / "law_cases/clean.csv"
ASK = """
import ctypes, sys
NAMES = [f"{prefix}openblas_get_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]
def threads():
    '''Threads of every OpenBLAS that is loaded, by its file.'''
    with open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps if "openblas" in line and ".so" in line}
    libraries = {file: ctypes.CDLL(file) for file in files}
    return {
        file: next(getattr(library, name)() for name in NAMES if hasattr(library, name))
        for file, library in libraries.items()
    }
"""
FIT = f"""
import atexit
from capgap import cli
atexit.register(lambda: print("threads", *threads().values(), flush=True))
sys.argv = ["capgap", "fit", {str(TABLE)!r}]
cli.dispatch()
"""
IMPORT = """
import os, numpy, scipy.linalg
before = dict(os.environ), threads()
import capgap as cg
cg.fit_law
print("same", (dict(os.environ), threads()) == before)
"""


def printed(code, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    result = subprocess.run(
        [sys.executable, "-c", ASK + code],
        capture_output=True,
        text=True,
        env=environment | variables,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")


@pytest.mark.skipif(os.cpu_count() == 1, reason="OpenBLAS has one thread on one core anyway")
@pytest.mark.parametrize(
    ("variables", "wanted"),
    [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2"), ({"OMP_NUM_THREADS": "2"}, "2")],
)
def test_a_fit_computes_in_one_thread_or_in_as_many_as_the_user_chose(variables, wanted):
    word, *counts = printed(FIT, **variables)
    assert word == "threads"
    assert counts
    assert set(counts) == {wanted}


def test_the_library_leaves_threads_and_environment_as_they_are():
    assert printed(IMPORT) == ["same", "True"]
