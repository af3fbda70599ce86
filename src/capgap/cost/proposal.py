"""
Propose a study for a text, a student and a time: its teachers, students, tokens and recipe.

The ladder of teachers is geometric, from just above the student to well beyond the 2.5 times of the
published law, so that an optimum has teachers on both sides. Sizes are parameters without embeddings.
The numbers are where the shipped studies started, not the result of a search; the plan prices them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from capgap.config.devices import CPU, DEVICES
from capgap.config.shapes import LlamaShape
from capgap.errors import CapgapError

TEACHERS = (1.4, 2.2, 3.4, 5.4, 8.5)  # sizes of the student
FEWER_TEACHERS = (1.4, 2.4, 4.1, 7.0)
STUDENTS = (0.75, 1.0, 1.3)  # sizes of the student that is asked about
RATIO = (1.15, 12.0)  # smallest and largest teacher of a student, in sizes of it
DISTILL_TOKENS_PER_PARAM = 28  # of the student
LEAST_TOKENS_PER_PARAM, MOST_TOKENS_PER_PARAM = 10, 80  # a given time chooses between them
PRETRAIN_SHARE = 3  # tokens of every teacher's training, in those of a distillation
LEAST_STUDENT, MOST_STUDENT = 6_000, 2_000_000_000
READINGS = (
    4  # of the text; more repetitions teach little (Muennighoff et al. 2023, arXiv 2305.16264)
)
STEPS = 200  # of the optimizer, at least, in a distillation
LEAST_VOCABULARY = 512  # 256 bytes, and as many merges
BYTES_PER_ENTRY = 400  # of text, for an entry of a trained vocabulary to be seen often enough
HELD_OUT_BYTES = 120_000  # of a split, where the text has enough
NARROW = 100  # channels, below which init_std 0.1 learns faster


@dataclass(frozen=True)
class Wish:
    """What a person asks for; what is None is chosen here."""

    name: str
    corpus: dict[str, Any]  # the section, without shares
    corpus_bytes: int | None  # UTF-8 bytes of the text, None if it is not here
    fetched: dict[str, dict[str, Any]] = field(default_factory=dict)  # teachers that exist
    fetched_sizes: dict[str, int] = field(default_factory=dict)
    teacher_sizes: tuple[int, ...] = ()  # of teachers trained here
    student: int | None = None
    student_share: float | None = None  # of the largest teacher, instead of student
    tokens: int | None = None  # of a distillation
    seconds: float | None = None  # that the study may take, instead of tokens
    device: str = CPU
    devices: int = 1  # GPUs, or ignored on a CPU


class Proposal(NamedTuple):
    """A study as a dictionary, and what its reader must know."""

    study: dict[str, Any]
    notes: list[str]


class Scale(NamedTuple):
    """What grows with the models: limits of the largest teacher, and settings below it."""

    params: float
    sequence_length: int
    batch_tokens: int
    layers: int
    vocabulary: int
    calibration_sequences: int


SCALES = (
    Scale(30e3, 64, 1024, 4, 512, 256),
    Scale(1e6, 64, 1024, 4, 1024, 512),
    Scale(20e6, 128, 8192, 6, 8192, 512),
    Scale(200e6, 256, 32768, 8, 16384, 512),
    Scale(float("inf"), 512, 131072, 16, 32768, 1024),
)


def propose(wish: Wish, price: Callable[[dict], float]) -> Proposal:
    """The study for a wish. price: seconds that a study takes on the wish's device.

    Raises CapgapError for a student that no teacher exceeds.
    """
    notes: list[str] = []
    if wish.fetched:
        sizes = sorted(wish.fetched_sizes.values())
        if len(sizes) < 3:
            notes.append(
                f"the law needs three teachers or more, here are {len(sizes)}; with fewer the study "
                "compares teachers and gives no law"
            )
    else:
        sizes = sorted(wish.teacher_sizes)
    student = wish.student
    if student is None and sizes:
        share = wish.student_share or min(0.8 * sizes[0] / sizes[-1], 1 / 3.4)
        student = _round(share * sizes[-1])
    elif student is None and wish.seconds is None:
        student = 20_000 if wish.device == CPU else 2_000_000
    if sizes and student >= sizes[-1]:
        raise CapgapError(
            f"--student: {student:,} is not smaller than the largest teacher, which has "
            f"{sizes[-1]:,} parameters without embeddings; lower it or add a larger teacher"
        )
    if student is None:  # the time decides how large it can be, and the text

        def possible(size: int) -> bool:
            tokens = DISTILL_TOKENS_PER_PARAM * size
            enough = _readings(wish, size, tokens) <= READINGS
            return enough and price(_study(wish, size, tokens)) <= wish.seconds

        student = _largest(possible, LEAST_STUDENT, MOST_STUDENT)
    if wish.tokens or wish.seconds is None:
        tokens = wish.tokens or DISTILL_TOKENS_PER_PARAM * student
        return Proposal(_study(wish, student, tokens), [*notes, *_repeats(wish, student, tokens)])

    def fits(tokens: int, *, lean: bool) -> bool:
        return price(_study(wish, student, tokens, lean=lean)) <= wish.seconds

    least, most = LEAST_TOKENS_PER_PARAM * student, MOST_TOKENS_PER_PARAM * student
    lean = not fits(least, lean=False)
    tokens = _largest(lambda tokens: fits(tokens, lean=lean), least, most)
    study = _study(wish, student, tokens, lean=lean)
    if lean:
        notes.append("for that time the ladder has fewer teachers, one seed and no control arm")
    if tokens <= least and price(study) > wish.seconds:
        notes.append(
            f"it takes longer than asked for even at {LEAST_TOKENS_PER_PARAM} tokens per parameter of "
            "the student; take a smaller student, or more time"
        )
    if tokens >= most and not lean:
        notes.append(
            "there is time left: more seeds, or grid.replicas, make the law's intervals narrower"
        )
    return Proposal(study, [*notes, *_repeats(wish, student, tokens)])


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest rounded number between two that fits, by bisection of its logarithm; least if none."""
    low, high = least, most
    while high / low > 1.03:
        middle = int((low * high) ** 0.5)
        low, high = (middle, high) if fits(_round(middle)) else (low, middle)
    return _round(low)


def _study(wish: Wish, student: int, tokens: int, *, lean: bool = False) -> dict[str, Any]:
    """A study as a dictionary in the order of its keys."""
    tokens = _round(tokens)
    ratios = FEWER_TEACHERS if lean else TEACHERS
    targets = wish.teacher_sizes or tuple(ratio * student for ratio in ratios)
    largest = max(wish.fetched_sizes.values(), default=max(targets))
    scale = next(s for s in SCALES if largest <= s.params)
    length = scale.sequence_length
    on_device = wish.device != CPU
    batch = _batch(scale.batch_tokens, tokens, length)
    vocabulary = scale.vocabulary
    while vocabulary > LEAST_VOCABULARY and vocabulary * BYTES_PER_ENTRY > (
        wish.corpus_bytes or 1e12
    ):
        vocabulary //= 2
    share = min(0.1, max(0.001, round(HELD_OUT_BYTES / (wish.corpus_bytes or 1e9), 3)))
    held_out = 32_000 if largest < 1e6 else 256_000
    if wish.fetched:
        teachers = wish.fetched
        smallest = min(wish.fetched_sizes, key=wish.fetched_sizes.get)
        tokenizer = {"source": "teacher", "teacher": smallest}
        students = [_round(r * student) for r in STUDENTS if r * student < largest]
    else:
        shapes = _ladder(targets, scale.layers)
        teachers = {
            f"t{_label(size)}": {"source": "pretrain", **shape} for size, shape in shapes.items()
        }
        tokenizer = {"source": "train", "vocab_size": vocabulary}
        students = [_round(r * student) for r in STUDENTS if r * student < max(shapes)]
    shared = {
        "sequence_length": length,
        "batch_tokens": batch,
        **({"precision": "bfloat16"} if on_device and _has_bfloat16(wish.device) else {}),
        "warmup_share": 0.05,
        "validations": 2,
        "validation_tokens": held_out,
    }
    study = {
        "study": wish.name,
        "corpus": {**wish.corpus, "validation_share": share, "test_share": share},
        "tokenizer": tokenizer,
        "teachers": teachers,
    }
    if wish.fetched:
        rate = 0.001 if batch < 8192 else 0.0003
    else:
        widest = max(entry["hidden"] for entry in teachers.values())
        rate = _rate(widest)
        study["pretrain"] = {
            "tokens": _round(PRETRAIN_SHARE * tokens),
            "learning_rate": rate,
            **({"init_std": 0.1} if widest < NARROW else {}),
            **shared,
        }
    study |= {
        "prune": {
            "calibration_sequences": scale.calibration_sequences,
            "sequence_length": length,
        },
        "distill": {"teacher_weight": 0.5, "temperature": 1.0, "learning_rate": rate, **shared},
        "evaluate": {"sequence_length": length},
        "grid": {
            "students": students,
            "tokens": [tokens],
            "teacher_ratio": list(RATIO),
            "seeds": [1] if lean else [1, 2],
            **({} if lean else {"arms": ["no_teacher"], "arm_seeds": [1]}),
        },
        "final": {"student": student, "tokens": _round(2 * tokens), "seeds": [1]},
    }
    if wish.fetched:  # sizes are as they are: every larger teacher is used
        del study["grid"]["teacher_ratio"]
    if on_device:
        study["plan"] = {"device": wish.device, "gpus": wish.devices}
    return study


def _ladder(targets: tuple[float, ...], layers: int) -> dict[int, dict[str, int]]:
    """Shapes of one family by size, near the targets: MLPs of twice the width, as many layers."""
    widest = max(_width(target, layers) for target in targets)
    head = next(h for h, most in ((4, 48), (8, 160), (16, 512), (64, 1e9)) if widest <= most)
    shapes = {}
    for target in targets:
        hidden = max(2, round(_width(target, layers) / head)) * head
        shape = {
            "layers": layers,
            "hidden": hidden,
            "heads": hidden // head,
            "intermediate": 2 * hidden,
        }
        size = LlamaShape(
            kv_heads=shape["heads"], head_dim=head, vocab=1, tied=True, **shape
        ).params()["non_embedding"]
        shapes[size] = shape
    return dict(sorted(shapes.items()))


def _width(params: float, layers: int) -> float:
    """Hidden channels of a model of 10 * layers * hidden^2 parameters (4 h^2 attention, 6 h^2 MLP)."""
    return (params / (10 * layers)) ** 0.5


def _rate(widest: int) -> float:
    """Peak learning rate: 0.01 up to 64 channels, then falling as the root of the width."""
    return float(f"{0.01 * min(1.0, (64 / widest) ** 0.5):.1g}")


def _batch(wanted: int, tokens: int, length: int) -> int:
    """Tokens of a step: as wanted, or a power of two less of them, so that there are enough steps."""
    while wanted > length and wanted * STEPS > tokens:
        wanted //= 2
    return wanted


def _has_bfloat16(device: str) -> bool:
    return device in DEVICES and not device.startswith(("t4", "v100"))


def _readings(wish: Wish, student: int, tokens: int) -> float:
    """How often the longest training reads the text; 0 if the text is not here."""
    most = tokens * (2 if wish.fetched else PRETRAIN_SHARE)
    bytes_per_token = 2.3 if student < 1e6 else 3.5
    return bytes_per_token * most / wish.corpus_bytes if wish.corpus_bytes else 0.0


def _repeats(wish: Wish, student: int, tokens: int) -> list[str]:
    """A note if the text is read too often."""
    readings = _readings(wish, student, tokens)
    if readings <= 1.1 * READINGS:
        return []
    return [
        f"training reads the text about {readings:.0f} times; repeated text teaches less, so more "
        "text, or a smaller student, is better"
    ]


def _round(number: float) -> int:
    """Two significant digits."""
    return int(float(f"{number:.2g}"))


def _label(size: int) -> str:
    """A size as part of a name: t41k, t2.1m."""
    for suffix, factor in (("b", 1e9), ("m", 1e6), ("k", 1e3)):
        if size >= factor:
            return f"{size / factor:{'.2g' if size < 9.95 * factor else '.0f'}}{suffix}"
    return str(size)
