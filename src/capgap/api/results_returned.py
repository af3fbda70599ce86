"""What the functions on models return: a folder on disk, and what was measured while it was made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from capgap.pruning.importance import Importance
from capgap.records.run_records import TargetsRecord, TokenStreams, TrainRecord


@dataclass(frozen=True)
class Folder(os.PathLike[str]):
    """A result in a folder; can be given wherever a path is wanted."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class Tokens(Folder):
    """Token streams of the splits train, validation and test."""

    record: TokenStreams  # tokens, documents and UTF-8 bytes by split, vocabulary


@dataclass(frozen=True)
class Scores(Folder):
    """The importance of a model's units."""

    importance: Importance = field(repr=False)  # arrays: groups, neurons, hidden, layers


@dataclass(frozen=True)
class Pruned(Folder):
    """A model that was cut out of a larger one."""

    params_non_embedding: int
    params_total: int
    description: str = field(repr=False)  # what was kept, a few lines

    def __str__(self) -> str:
        return f"{self.folder}: {self.description}"


@dataclass(frozen=True)
class Targets(Folder):
    """A teacher's probabilities on the training text."""

    record: TargetsRecord


@dataclass(frozen=True)
class Trained(Folder):
    """A trained model: `folder` holds it, the folder above curve.csv and train.json as well."""

    record: TrainRecord  # losses in nats per token, steps, FLOPs, lineage
    curve: pd.DataFrame = field(repr=False)  # a row for each measurement; units in column names

    def __str__(self) -> str:
        start, last = (
            self.record.start_val_loss_nats_per_token,
            self.record.last_val_loss_nats_per_token,
        )
        return (
            f"{self.folder}: {self.record.tokens:,} tokens, validation loss {start:.4f} to {last:.4f} "
            "nats per token"
        )
