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

How each module keeps them, and what would break without it (run, verify, save, accept and pull are in
commands/)
  digest.py    one hash of the source that a stage uses, one of the command of its rule. Snakemake
               does not see imports, so an edited library function would leave stale results in
               place.
  rule_params.py  spec: stage, digests and settings as one text. Snakemake compares parameters
               without their names, so swapped values would go unnoticed.
               hand_down: jobs on a cluster parse the workflow again. After an edit they would run
               the new code, while the records would name the planned one.
               reconcile: contents decide, not times. A file restored with an old time would hide a
               stale result, and Snakemake would accept results that have no record or whose inputs
               were edited or damaged later.
               check_inputs: if an input was left out of a clone, the job would fail only after
               Snakemake had deleted the job's previous output.
  private.py   every undocumented part of Snakemake and DVC in use, with the versions that were
               tested. An upgrade could change them without notice.
  ledger.py    reads Snakemake's records, which dvc.yaml versions beside the results. Without them
               a clone would have file times only, and a changed setting would be invisible.
               The ledger of checksums (records/checksums.py) is capgap's own: jobs note what they
               publish, and runs merge the notes into results/<study>/checksums.json. Snakemake's
               records hold checksums of inputs only, so an edited curve or an added file would pass.
  locks.py     one run per folder, one writer per output, and all jobs end with their run. Otherwise a
               killed run would leave jobs that overwrite the next run's outputs, and stale locks.
  launch.py    starts the stages that use PyTorch: it assigns GPUs, starts the processes and measures
               time and memory.
  node.py      runs torchrun on each machine of a job of several processes. torchrun alone forgets the
               status with which they end, and whether they have saved.
  job_host.py  forks jobs from one process that has loaded PyTorch. Otherwise every job would import
               it, which costs as much as a small job's own work.
  run.py       `capgap run`: lock, clear what a killed run left, compare results with the ledger,
               Snakemake. A dry run takes no lock and changes no file. Under `dvc repro` it verifies
               as well, because DVC would record a damaged or missing checkpoint in dvc.lock.
  pending.py   what a run would make: for dry runs, `capgap plan` and `capgap save`.
  verify.py    `capgap verify`: reads everything. A run rereads only files whose size, time or inode
               changed, so that it costs seconds; silent corruption is found here and by the job that
               opens the folder.
  save.py      `capgap save`: `dvc commit` accepts anything, this command refuses incomplete results.
  remote.py    `capgap push`, `capgap pull`: names and contents are checked before a file is put in
               place. `dvc pull` follows any name, removes existing results when one of them fails,
               and reports a missing bucket as missing files.
  stores.py    fetches, hashes, places and sends objects of DVC's cache and a remote. DVC's own
               transfer deletes damaged objects from a shared remote and trusts an index that a kill
               can tear.
  shared_settings.py  which of DVC's settings a branch may set; the owner of DVC's caches.
  tracking.py  values for experiment trackers. The trackers' names are not parameters of a job, so
               turning a tracker on reruns nothing.
  leftovers.py removes temporary files that kills leave.
  accept.py    `capgap accept`: keeps results after a refactoring, and records that it did.
  pull.py      what a light clone needs: records and small results; one file or folder by name.

The rest of the contract is kept elsewhere. Rules name a folder by its manifest alone, so Snakemake
never deletes a checkpoint and content decides (paths.py). Artifacts appear whole and are checked
when opened (artifacts.py). A stage refuses source that changed after planning (stages/base.py). `rule
all` names every result, because Snakemake counts a job whose input failed as done (Snakefile).
dvc.yaml keeps the outputs of a rerun in place (persist).

Not covered are versions of libraries, which requirements.lock pins. Parent-death signals exist on
Linux only; elsewhere, and on a cluster where jobs outlive the workflow, each output has a lock.
"""
