"""Importing the library changes nothing in the process it is imported into; jobs put back what they
change."""

import json
import subprocess
import sys

STATE = """
import gc, json, sys
import transformers.utils as utils
from transformers import modeling_utils
from transformers.utils import logging
import torch
def state():
    return [
        gc.isenabled(), gc.get_freeze_count(), utils.is_scipy_available(), logging.get_verbosity(),
        logging.is_progress_bar_enabled(), torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_num_threads(), torch.get_default_dtype() == torch.float32,
        modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"].__module__, len(sys.path),
        modeling_utils.AttentionInterface._global_mapping["sdpa"].__module__,
    ]
"""
IMPORT = """
before = state()
import importlib, pkgutil, capgap.engine
for found in pkgutil.iter_modules(capgap.engine.__path__, "capgap.engine."):
    importlib.import_module(found.name)
print(json.dumps([before, state()]))
"""
JOB = """
from capgap.engine import onednn_matmul
from capgap.stages import base
before = state()
def main(argv):
    onednn_matmul.onednn_is_better = lambda: True
    with onednn_matmul.use_onednn():
        inside = state()
    print(json.dumps([before, inside]))
base.os._exit = lambda status: None
base.atexit._run_exitfuncs = lambda: None
base.run_stage(main)
print(json.dumps([before, state()]))
"""


def lines(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "leaked" not in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_importing_the_engine_changes_nothing_global():
    [[before, after]] = lines(STATE + IMPORT)
    assert before == after


def test_a_job_is_quiet_and_puts_back_what_it_changed():
    [[before, inside], [_, after]] = lines(STATE + JOB)
    assert inside[1] > before[1]
    assert inside[3] > before[3]  # errors only
    assert not inside[4]
    assert inside[8] == "capgap.engine.attention"
    assert inside[10] == before[10]
    assert before == after


def test_a_job_ends_with_its_exit_functions_and_all_of_its_output():
    code = (
        "import atexit; atexit.register(print, 'last'); from capgap.stages.base import run_stage; "
        "run_stage(lambda argv: print('first')); print('never')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "first\nlast\n", "")
