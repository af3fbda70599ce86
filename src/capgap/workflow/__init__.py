"""
The contract that makes Snakemake and DVC agree.

Snakemake decides what runs, by file times and its own records; DVC versions what came out, by
contents. Left alone they contradict each other: after a clone and a pull the times are arbitrary
and the records are gone, so everything runs again.

Promises, each checked by a test in tests/workflow
  A clone and `dvc pull` run nothing, whatever the file times; so does a checkout there and back.
  A change runs exactly what it affects; comments, docstrings and formatting affect nothing.
  Killing anything at any moment loses no finished job and changes no byte of the end result.
  Nothing failed, stale, torn or damaged passes for a result, and no lock is removed by hand.
  What is shared arrives complete or not at all; no credential is written where others can read it.

The module that keeps each of them, and what would break without it (run, verify, save, accept and pull are in
commands/)
  digest.py    one hash of a stage's source and of its rule's command: Snakemake does not see imports
  rule_params.py  spec: stage, digests and settings as one text, because Snakemake compares parameters
               without their names. hand_down: jobs on a cluster parse the workflow again, maybe after
               an edit. reconcile: contents decide, not times. check_inputs: a job whose input was left
               out of a clone would fail only after its previous output was deleted
  private.py   every undocumented part of Snakemake and DVC in use, with the versions that were tested
  ledger.py    reads Snakemake's records, which dvc.yaml versions beside the results. They hold checksums
               of inputs only; those of outputs are capgap's own (records/checksums.py)
  locks.py     one run per folder, one writer per output, and jobs that end with their run
  launch.py    starts the stages that use PyTorch: GPUs, processes, time and memory. node.py runs torchrun
               on each machine, and keeps the status with which its processes end. job_host.py forks jobs
               from one process that has loaded PyTorch, which costs as much as a small job's own work
  run.py       lock, clear what a killed run left, compare results with the ledger, Snakemake. Under
               `dvc repro` it verifies as well, because DVC would record a damaged checkpoint
  pending.py   what a run would make: for dry runs, `capgap plan` and `capgap save`
  verify.py    reads everything; a run rereads only files whose size, time or inode changed
  save.py      refuses incomplete results, which `dvc commit` accepts
  remote.py    checks names and contents before a file is put in place; `dvc pull` follows any name and
               removes results when one fails. stores.py does the transfer, because DVC's own deletes
               damaged objects from a shared remote and trusts an index that a kill can tear
  shared_settings.py  which of DVC's settings a branch may set; the owner of DVC's caches
  tracking.py  values for experiment trackers, whose names are no parameters of a job
  leftovers.py removes temporary files that kills leave
  accept.py    keeps results after a refactoring, and records that it did

Elsewhere: rules name a folder by its manifest alone (paths.py), artifacts appear whole and are checked
when opened (artifacts.py), a stage refuses source that changed after planning (stages/base.py), `rule
all` names every result (Snakefile), and dvc.yaml keeps the outputs of a rerun in place (persist).

Versions of libraries are not covered; requirements.lock pins them. Parent-death signals exist on
Linux only; elsewhere, and on a cluster where jobs outlive the workflow, each output has a lock.
"""
