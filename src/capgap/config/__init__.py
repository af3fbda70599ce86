"""
Settings of a study: every key, its unit and its limits are defined here and nowhere else.

A study is one YAML file, which `capgap.study_file` reads into `Study`. The workflow hands each
stage the one section it needs; a stage run by hand takes the same fields as command-line options.
This package imports no torch.
"""

from capgap.config.harness import Harness, HarnessStage
from capgap.config.pruning import Depth, Prune, Score
from capgap.config.section import Section
from capgap.config.study import CollectStage, Evaluate, Final, Grid, Law, Study
from capgap.config.teachers import (
    FetchedSource,
    HubTeacher,
    ModelShape,
    PackageTeacher,
    PathTeacher,
    PretrainedTeacher,
    TeacherShape,
)
from capgap.config.text import (
    Corpus,
    CorpusSplit,
    FilesCorpus,
    HubCorpus,
    HubText,
    PackageCorpus,
    TeacherTokenizer,
    Tokenizer,
    TrainedTokenizer,
)
from capgap.config.training import Distill, PretrainStage, SignalStage, Training

__all__ = [
    "CollectStage",
    "Corpus",
    "CorpusSplit",
    "Depth",
    "Distill",
    "Evaluate",
    "FetchedSource",
    "FilesCorpus",
    "Final",
    "Grid",
    "Harness",
    "HarnessStage",
    "HubCorpus",
    "HubTeacher",
    "HubText",
    "Law",
    "ModelShape",
    "PackageCorpus",
    "PackageTeacher",
    "PathTeacher",
    "PretrainStage",
    "PretrainedTeacher",
    "Prune",
    "Score",
    "Section",
    "SignalStage",
    "Study",
    "TeacherShape",
    "TeacherTokenizer",
    "Tokenizer",
    "TrainedTokenizer",
    "Training",
]
