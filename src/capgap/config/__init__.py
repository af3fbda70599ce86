"""
Settings of a study: every key, its unit and its limits are defined here and nowhere else.

A study is one YAML file, which `capgap.config.study_file` reads into `Study`. The workflow passes each
stage the one section it needs; on a command line the same fields are options.
This package imports no torch.
"""

from capgap.config.grid_settings import Draw, Grid
from capgap.config.harness_settings import Harness, HarnessStage
from capgap.config.law_settings import Law
from capgap.config.pruning_settings import Calibration, Cut, Depth, Prune, Score
from capgap.config.sample_settings import Sample, SampleStage
from capgap.config.section import Section
from capgap.config.study import CollectStage, Evaluate, Final, Study
from capgap.config.teacher_settings import (
    FetchedSource,
    HubTeacher,
    ModelShape,
    PackageTeacher,
    PathTeacher,
    PretrainedTeacher,
    TeacherShape,
)
from capgap.config.text_settings import (
    Corpus,
    CorpusSplit,
    FilesCorpus,
    FilesText,
    HeldOutText,
    HubCorpus,
    HubText,
    OfTeachers,
    PackageCorpus,
    PackageText,
    TeacherTokenizer,
    Tokenizer,
    TrainedTokenizer,
)
from capgap.config.training_settings import Distill, PretrainStage, TargetsStage, Training
