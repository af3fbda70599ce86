"""
The contract that makes Snakemake and DVC agree.

Snakemake decides what runs, by file times and its own records; DVC versions what came out, by
contents. Left alone they contradict each other: after a clone and a pull the times are arbitrary
and the records are gone, so everything runs again.

Promised, each by a test in tests/workflow
  A clone and `dvc pull` run nothing, whatever the file times; so does a checkout there and back.
  A change runs exactly what it affects; comments, docstrings and formatting affect nothing.
  Killing anything at any moment loses no finished job and changes no byte of the end result.
  Nothing failed, stale, torn or damaged passes for a result, and nobody unlocks anything.
  What is shared arrives whole or not at all; no credential is written where others read.

How, and what would break without it
  digest.py    one number for what a stage's code does and writes, one for the command of its rule.
               Snakemake never sees imports: an edited library function would leave stale results
               in place.
  rule_params.py  spec: stage, digests and settings as one text. Snakemake compares parameters
               without their names: swapped values would go unnoticed.
               hand_down: jobs on a cluster parse the workflow again. After an edit they would run
               what is new, and the run would put on record what was planned.
               reconcile: contents decide, not times. A file put back with an old time would hide
               what is stale; results without records, and what was edited or damaged after others
               were made from it, would be taken as they are.
               check_inputs: before a job whose input was left out of a clone starts, Snakemake has
               deleted what it made the last time.
  private.py   all that is used of Snakemake and DVC and not promised by them, with the versions it was
               checked with. An upgrade would change it unseen.
  ledger.py    reads Snakemake's records, which dvc.yaml versions beside the results. Without them
               a clone sees times only, and a changed setting is invisible.
               The ledger of checksums (records/checksums.py) is capgap's own: jobs note what they
               publish, runs fold the notes into results/<study>/checksums.json. Snakemake's records
               hold checksums of inputs only: an edited curve or an added file would pass.
  locks.py     one run a folder, one writer an output, all ending with the run. A killed run would
               leave jobs that overwrite what the next one makes, and locks to remove by hand.
  launch.py    starts the stages that use PyTorch: on which GPUs, as how many processes, and what they
               took.
  job_host.py  forks them from one process that has loaded PyTorch. Every job would import it, which
               is as much work as a small job's own.
  run.py       `capgap run`: lock, clear what a killed run left, compare results with the ledger,
               Snakemake. A dry run takes no lock and changes no file. Under `dvc repro` also verify,
               for DVC would put a damaged or missing checkpoint into dvc.lock.
  pending.py   what a run would make: for dry runs, `capgap plan` and `capgap save`.
  verify.py    `capgap verify`: reads everything. A run reads again only files whose size, time or inode
               changed, so that it costs seconds; a byte that rotted without shows here and in the job
               that opens the folder.
  save.py      `capgap save`: `dvc commit` takes anything, this refuses what is not whole.
  remote.py    `capgap push`, `capgap pull`: names are contained and contents checked before a file is put
               in place. `dvc pull` follows any name, removes results that are in place when one of
               them fails, and calls a missing bucket missing files.
  stores.py    objects in DVC's cache and in a remote: fetched, hashed, placed, sent. DVC's own
               transfer deletes damaged objects from a shared remote and trusts an index that kills tear.
  shared_settings.py  what a branch's DVC settings may decide; whose DVC's caches are.
  tracking.py  values for experiment trackers. Their names travel beside the parameters of a job: as one
               of them, a study that is watched would run again.
  leftovers.py temporary files of kills.
  accept.py    `capgap accept`: keeps results under a refactor, on record.
  pull.py      what a light clone needs: records and small results; one file or folder by name.

The rest of the contract stands elsewhere: rules name a folder by its manifest alone, so Snakemake
never deletes a checkpoint and content decides (paths.py); artifacts appear whole and are checked
when opened (artifacts.py); a stage refuses source that changed after planning (stages/base.py); `rule
all` asks for every result, for Snakemake counts a job whose input failed as done (Snakefile);
dvc.yaml keeps the outputs of a rerun in place (persist).

Not covered: versions of libraries, which requirements.lock pins. Parent-death signals are Linux only;
elsewhere, and on a cluster where jobs outlive the workflow, the lock of each output holds.
"""
