"""Words for what Snakemake reports: names of jobs, reasons, durations, and the ends of logs."""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 16_384
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def job_identity(wildcards: dict[str, str], outputs: list[str]) -> str:
    """
    Name what a job makes: the parts of its first output path that carry a wildcard.

    The study is left out; a wildcard may hold several levels, or none. If a level is not found in the path as a whole part or behind a dash
    (`seed-1`), the identity is the list of all values instead.
    """
    values = [
        level
        for name, value in wildcards.items()
        if name != "study"
        for level in value.split("/")
        if level
    ]
    parts = [
        part
        for part in (outputs[0].split("/") if outputs else [])
        if part != wildcards.get("study") and any(f"-{part}".endswith(f"-{v}") for v in values)
    ]
    found = all(any(f"-{part}".endswith(f"-{v}") for part in parts) for v in values)
    return "/".join(parts if found else values)


def short_reason(reason: str) -> str:
    """Reduce Snakemake's reason to run a job to its kinds, without files and parameters."""
    kinds = [clause.split(":")[0] for clause in re.split(r"; (?=[A-Z])", reason)]
    return "; ".join(kind[:1].lower() + kind[1:] for kind in kinds)


def duration(seconds: float) -> str:
    """Format seconds as `41 s`, `12:41` or `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def job_count(count: int) -> str:
    """Count jobs in words."""
    return f"{count} job" if count == 1 else f"{count} jobs"


def plain(text: str) -> str:
    """Remove terminal escapes and other control characters but line ends and tabs."""
    return CONTROL.sub("", text)


def log_tail(path: str, max_lines: int | None) -> list[str]:
    """Last lines of a log (None: all), blank ones left out; [] if it does not exist yet."""
    try:
        with open(path, "rb") as log:
            if max_lines is not None:
                log.seek(max(0, Path(path).stat().st_size - TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"cannot read the log: {error}"]
    lines = [plain(line).rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-(max_lines or 0) :]


def error_lines(paths: list[str]) -> list[str]:
    """The logs of a failed job from their last line that starts with `error:`."""
    for path in paths:
        lines = log_tail(path, None)
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        if starts:
            return lines[starts[-1] :]
    return []
