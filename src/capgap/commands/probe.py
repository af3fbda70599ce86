"""
Calibration: a minute of measurements of CPU time and memory on this machine.

Rates come from the engine's own loops on random models of the study's smallest and largest shapes.
Start-up time and memory come from one run of each stage on very little work. CPU seconds are those
of one thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from capgap.commands.rates import LARGEST_PARAMS, Rates, of_few_steps, random_model
from capgap.config import (
    FilesCorpus,
    PackageCorpus,
    PretrainedTeacher,
    Section,
    Study,
    Training,
    run_grid,
)
from capgap.config.counts import format_count
from capgap.config.devices import CPU
from capgap.cost.host_memory import BASE_MB, MEGA, host_mb
from capgap.cost.job_costs import StudyCost
from capgap.cost.one_job import Job
from capgap.cost.speed import CALIBRATION, computed_as
from capgap.data.packages import files_in_package
from capgap.data.sources import corpus_files
from capgap.data.token_streams import Streams
from capgap.engine.counting import count_params
from capgap.engine.models import save_model, tokenizer_digest
from capgap.engine.onednn_matmul import use_onednn
from capgap.errors import CapgapError
from capgap.law.simulate import simulate_study
from capgap.records.artifacts import publish_folder, write_text
from capgap.records.paths import SPLITS, TOKENS_RECORD
from capgap.records.run_records import Calibration, Lineage, TokenStreams
from capgap.workflow import job_host

SAMPLE_BYTES = 3 * MEGA
TOKENIZER_SAMPLE_BYTES = 20 * MEGA
LIKE = {  # rules that start as another one does
    "evaluate_student": "evaluate_teacher",
    "random_init_student": "prune_student",
    "given_student": "prune_student",
    "cut_round": "prune_student",
    "distill_round": "distill_student",
    "score_round": "score_importance",
}


class Run(NamedTuple):
    """Resources that a finished process used."""

    cpu_s: float
    peak_mb: float


def calibrate(study: Study) -> Calibration:
    """Measure this machine, write scratch/calibration.json and return its contents."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    study = study.model_copy(update={"plan": study.plan.model_copy(update={"device": CPU})})
    with tempfile.TemporaryDirectory() as name:
        probe = _Probe(study, Path(name))
        text = probe.text()
        rates = Rates(probe.cost, probe.streams_folder, probe.folder / "rates").measured()
        startup, base = probe.starts(rates)
        law = probe.law()
        result = Calibration(
            study=study.study,
            computed_as=computed_as(study),
            startup_s=startup | text["startup_s"] | {rule: r.cpu_s for rule, r in law.items()},
            base_mb=base | text["base_mb"] | {rule: r.peak_mb for rule, r in law.items()},
            text_s_per_mb=text["s_per_mb"],
            rates=rates,
            matmul_gflops=matmul_gflops(),
        )
    write_text(CALIBRATION, result.to_json())
    print(f"calibrated in {time.monotonic() - begun:.0f} s: {CALIBRATION}", flush=True)
    return result


@use_onednn()
def matmul_gflops() -> float:
    """GFLOP/s of one thread in a float32 matmul."""
    width = 1024
    a, b = torch.randn(width, width), torch.randn(width, width)
    torch.mm(a, b)
    begun, count = time.process_time(), 0
    while time.process_time() - begun < 0.5:
        torch.mm(a, b)
        count += 1
    return count * 2 * width**3 / (time.process_time() - begun) / 1e9


REPORT_PEAK = """
import atexit, os, re, resource, runpy, sys
def report():
    try:  # the peak of this process alone; ru_maxrss starts at that of the process it was forked from
        text = open("/proc/self/status").read()
        peak = int(re.search(r"VmHWM:\\s*(\\d+)", text)[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open(os.environ["CAPGAP_PROBE"], "w").write(str(peak))
atexit.register(report)
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_stage_process(words: list, folder: Path) -> Run:
    """Run a module with its options in a process of one thread; CapgapError if it fails."""
    log, peak = folder / "probe.log", folder / "probe.peak"
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CAPGAP_PROBE": str(peak)}
    environment = {k: v for k, v in os.environ.items() if k != "CAPGAP_UNDER_WORKFLOW"} | variables
    command = [sys.executable, "-c", REPORT_PEAK, *map(str, words)]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CapgapError(f"calibration: {' '.join(command[3:])} failed: {log.read_text()[-600:]}")
    return Run(usage.ru_utime + usage.ru_stime, int(peak.read_text()) * 1024 / MEGA)


def _length(study: Study) -> int:
    """Number of tokens of a stream that is long enough for every measured loop."""
    longest = max(
        study.evaluate.batch_tokens,
        study.evaluate.sequence_length,
        study.prune.sequence_length * 4,
        *(s.batch_tokens for s in (study.distill, study.pretrain) if s),
    )
    return longest + max(study.prune.sequence_length, study.distill.sequence_length) + 2


class _Probe:
    def __init__(self, study: Study, folder: Path):
        self.folder, self.length = folder, _length(study)
        fitting = {}
        for name in ("pretrain", "distill"):
            settings = getattr(study, name)
            if settings and settings.unique_tokens:  # of the streams that are measured on
                whole = (self.length - 1) // settings.sequence_length * settings.sequence_length
                tokens = {"unique_tokens": min(settings.unique_tokens, whole)}
                fitting[name] = settings.model_copy(update=tokens)
        self.study = study.model_copy(update=fitting)
        self.cost = StudyCost(self.study)
        self.tokenizer = folder / "tokenizer"
        self.vocab = min(self.cost.vocab, 2**15)

    @cached_property
    def streams_folder(self) -> Path:
        """Random streams of the tokenizer that `text` makes."""
        out, length = self.folder / "tokens", self.length
        random = np.random.default_rng(0)
        with publish_folder(out) as folder:
            for split in SPLITS:
                stream = random.integers(0, self.vocab, length).astype(np.uint32)
                np.save(folder / f"{split}.npy", stream, allow_pickle=False)
            counts = dict.fromkeys(SPLITS, length)
            meta = TokenStreams(
                vocab_size=self.vocab,
                tokenizer_sha256=tokenizer_digest(self.tokenizer),
                documents=dict.fromkeys(SPLITS, 1),
                tokens=counts,
                bytes={split: 4 * n for split, n in counts.items()},
            )
            (folder / TOKENS_RECORD).write_text(meta.to_json(), encoding="utf-8")
        return out

    # --- text -----------------------------------------------------------------------------------

    def text(self) -> dict[str, dict[str, float]]:
        """Start-up, memory and seconds per MB of the text stages, by rule.

        The time to train a tokenizer is not proportional to the text, so it gets a large sample.
        """
        found: dict[str, dict[str, float]] = {"startup_s": {}, "base_mb": {}, "s_per_mb": {}}

        def stage(rule: str, size: int, name: str, *options) -> None:
            empty = run_stage_process([f"capgap.stages.{name}", "--help"], self.folder)
            run = run_stage_process([f"capgap.stages.{name}", *options], self.folder)
            found["startup_s"][rule] = empty.cpu_s
            found["s_per_mb"][rule] = max(0.0, run.cpu_s - empty.cpu_s) / (size / MEGA)
            counted = host_mb(self.cost, rule) - BASE_MB["text"]
            found["base_mb"][rule] = run.peak_mb - counted * size / self.cost.corpus_bytes

        large, small = self._sample(TOKENIZER_SAMPLE_BYTES), self._sample(SAMPLE_BYTES)
        corpora = {}
        for name, (files, size) in {"large": large, "small": small}.items():
            corpora[name] = self.folder / f"corpus-{name}"
            words = ["--source", "files", "--pattern", f"{files}/*.txt", "--out", corpora[name]]
            stage("prepare_corpus", size, "corpus", *words)
        stage(
            "make_tokenizer", large[1], "tokenizer", "--source", "train",
            "--vocab-size", self.vocab, "--source-folder", corpora["large"],
            "--out", self.tokenizer,
        )  # fmt: skip
        stage(
            "pack_tokens", small[1], "pack", "--corpus", corpora["small"],
            "--tokenizer", self.tokenizer, "--out", self.folder / "packed",
        )  # fmt: skip
        return found

    def _sample(self, limit: int) -> tuple[Path, int]:
        """(folder with some MB of the study's text, or of made-up words; its size in bytes)."""
        corpus, out = self.study.corpus, self.folder / f"sample-{limit}"
        out.mkdir()
        files: list[Path] = []
        if isinstance(corpus, PackageCorpus):
            files = files_in_package(corpus.package, corpus.pattern)
        elif isinstance(corpus, FilesCorpus) and corpus.pattern.endswith(".txt"):
            files = sorted(corpus_files(corpus.pattern)[0])
        size = 0
        for i, file in enumerate(file for file in files if file.suffix == ".txt"):
            if size < limit:
                shutil.copyfile(file, out / f"{i:05}.txt")
                size += file.stat().st_size
        if size == 0:
            random = np.random.default_rng(0)
            letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
            words = ["".join(random.choice(letters, n)) for n in random.integers(1, 9, 20_000)]
            for i in range(100):
                text = " ".join(random.choice(words, 5000))
                (out / f"{i:05}.txt").write_text(text)
                size += len(text)
        return out, size

    # --- law ------------------------------------------------------------------------------------

    def law(self) -> dict[str, Run]:
        """The stages after the runs, on simulated losses of the study's own grid, by rule."""
        study, sizes = self.study, sorted({*run_grid.teacher_sizes(self.study).values()})
        students = study.grid.every_size(run_grid.given_sizes(study))
        table, law = self.folder / "runs.csv", self.folder / "law.json"
        simulate_study(
            np.random.default_rng(0), students, sizes,
            budgets=study.grid.budgets(min(students)), seeds=len(study.grid.draws()),
            arms=study.grid.arms,
        ).to_csv(table, index=False)  # fmt: skip
        student, tokens = min(students), min(study.grid.budgets(min(students)))
        if study.final:
            student, tokens = study.final.student, study.final.tokens
        found = {}
        for rule, words in {
            "fit_law": ["capgap.stages.fit", "--runs", table, "--out", law],  # as by default
            "choose_teacher": [
                "capgap.stages.choose", "--law", law, "--runs", table, "--student", student,
                "--tokens", tokens, "--out", self.folder / "choice.json",
            ],
            "write_report": [
                "capgap.stages.report", "--runs", table, "--law", law, "--study-name", study.study,
                "--out", self.folder / "report",
            ],
            "collect_runs": ["capgap.stages.collect", "--help"],
            "compare_final": ["capgap.stages.compare", "--help"],
            "write_metrics": ["capgap.stages.metrics", "--help"],
        }.items():  # fmt: skip
            found[rule] = run_stage_process(words, self.folder)
        return found

    # --- start-up -------------------------------------------------------------------------------

    def starts(self, rates: dict) -> tuple[dict[str, float], dict[str, float]]:
        """CPU seconds and memory (MB) of each torch stage besides its work, by rule."""
        study = self.study
        sizes = run_grid.teacher_sizes(study)
        name = min(sizes, key=sizes.get)
        jobs = {job.rule: job for job in reversed(self.cost.jobs)}
        if self.cost.architecture(name).whole().params > LARGEST_PARAMS:
            return {}, {}
        model = random_model(self.cost.architecture(name).whole())
        teacher = self._published(model, "teacher", name)
        imports_s = 0.0  # not counted, because the job host imports once for all jobs
        if job_host.possible():
            imports_s = run_stage_process(["capgap.stages.distill", "--help"], self.folder).cpu_s
        startup: dict[str, float] = {}
        base: dict[str, float] = {}

        def stage(rule: str, module: str, *words, settings: Section, **work: int) -> None:
            options = [f"capgap.stages.{module}", *words, *self._options(settings)]
            run = run_stage_process(options, self.folder)
            spent = sum(n * rates[kind][0][1] for kind, n in work.items() if kind in rates)
            startup[rule] = max(0.1, run.cpu_s - spent - imports_s)
            base[rule] = run.peak_mb - self._counted_mb(jobs[rule], name)

        tokens = ["--token-streams", self.streams_folder]
        state = ["--scratch", self.folder / "state"]
        length = len(Streams(self.streams_folder)["test"])
        stage(
            "evaluate_teacher", "evaluate", "--model", teacher, *tokens,
            "--out", self.folder / "metrics.json", settings=study.evaluate.stage(),
            evaluate=2 * length,
        )  # fmt: skip
        targets = []
        if self.cost.caches_targets:
            targets = ["--targets", self.folder / "targets"]
            settings = study.distill.targets_stage()
            stage(
                "cache_teacher", "cache_teacher", "--teacher", teacher, *tokens,
                "--out", self.folder / "targets", *state,
                settings=settings, targets=settings.unique_tokens,
            )  # fmt: skip
        scored = study.prune.scoring().model_copy(update={"calibration_sequences": 1})
        importance = self.folder / "importance"
        stage(
            "score_importance", "score", "--model", teacher, *tokens, "--out", importance,
            settings=scored, score=scored.sequence_length,
        )  # fmt: skip
        cut = study.grid.sizes(run_grid.given_sizes(study))
        students = [size for size in cut if size < sizes[name]]
        if "prune_student" in jobs and students:
            start = self.folder / "start"  # without a refit, which counts as work of its own
            stage(
                "prune_student", "prune", teacher, "--importance", importance,
                "--params", min(students), "--out", start,
                settings=study.prune.cutting().model_copy(update={"refit": "none"}),
            )  # fmt: skip
            stage(
                "distill_student", "distill", "--init", start, "--teacher", teacher, *targets, *tokens,
                "--tokens", study.distill.batch_tokens, "--out", self.folder / "run", *state,
                settings=of_few_steps(study.distill), distill=study.distill.batch_tokens,
                evaluate=self._validated(study.distill, length),
            )  # fmt: skip
        if "pretrain_teacher" in jobs and isinstance(study.teachers[name], PretrainedTeacher):
            settings = study.pretrain_stage(name)
            settings = of_few_steps(settings).model_copy(update={"tokens": settings.batch_tokens})
            stage(
                "pretrain_teacher", "pretrain", "--name", name, *tokens, "--tokenizer", self.tokenizer,
                "--out", self.folder / "trained", *state, settings=settings,
                pretrain=settings.batch_tokens, evaluate=self._validated(settings, length),
            )  # fmt: skip
        for rule in {*jobs} & {*LIKE}:
            for found in (startup, base):
                if LIKE[rule] in found:
                    found[rule] = found[LIKE[rule]]
        return startup, base

    def _validated(self, settings: Training, length: int) -> int:
        """Validation tokens of a run of one step, which validates at its start and its end."""
        return 2 * min(settings.validation_tokens, length)

    def _counted_mb(self, job: Job, teacher: str) -> float:
        """Counted memory of the job that was run, MB, without the base of its rule."""
        student = min(self.study.grid.sizes(run_grid.given_sizes(self.study)))
        counted = self.cost.job(
            job.rule,
            teacher=teacher,
            student=format_count(student),
            init=run_grid.pruned_from(teacher),
            tokens=format_count(min(self.study.grid.budgets(student))),
        )
        return counted.host_mb - BASE_MB["torch"]

    def _published(self, model, kind: str, name: str) -> Path:
        """A model folder as a stage reads it."""
        out = self.folder / kind
        with publish_folder(out) as folder:
            lineage = Lineage(kind="teacher", name=name, params=count_params(model))
            save_model(model, folder, lineage, self.tokenizer)
        return out

    def _options(self, settings) -> list[str]:
        """A section as command-line options."""
        given = settings.model_dump(exclude_none=True)
        return [
            word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)
        ]
