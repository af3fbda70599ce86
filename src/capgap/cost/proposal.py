"""
Propose a study for a text, a student and a time: its teachers, students, tokens and recipe.

The rules are those of the default study, whose law excludes an exponent of 0 (docs/studies.md): students
around the one that is asked about, teachers from just above it to 13 times its size, each trained on as
many tokens as the longest distillation, three budgets of one stable phase, and two replicas. If the time
does not allow that, runs are left out, first those that matter least for the law
(`benchmarks/thinning.py`). Sizes are parameters without embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from capgap.config.devices import CPU, DEVICES
from capgap.config.shapes import LlamaShape
from capgap.errors import CapgapError
from capgap.law.number_text import two_digits

STUDENTS = (0.6, 1.4, 2.5)  # sizes of the student that is asked about, which the law has not seen
TEACHERS = (1.45, 2.6, 4.0, 5.8, 9.0, 13.0)  # the same
FOUR_TEACHERS = (1.45, 4.0, 5.8, 13.0)  # three of them within RATIO of every student
CONTROL = 4.0  # the teacher whose inits are also trained without it; within RATIO of every student
RATIO = (1.4, 14.0)  # smallest and largest teacher of a student, in sizes of it
FEWEST = 3  # teachers of a student, or its losses have no interior minimum
# Of the student, in the longest budget. At 50 the best teachers of the default study lie inside of the
# ladder. At 68, students of 6k to 23k parameters were best with the largest teachers of theirs.
LEAST_TOKENS_PER_PARAM, TOKENS_PER_PARAM = 35, 50  # a given time chooses between them
LEAST_STUDENT, MOST_STUDENT = 10_000, 2_000_000_000
WARMUP_SHARE = 0.05  # of a teacher's training, and of the shortest distillation
# of the text; more repetitions teach little (Muennighoff et al. 2023, arXiv 2305.16264)
READINGS = 4
STEPS = 200  # of the optimizer, at least, in the shortest distillation
LEAST_VOCABULARY = 512  # 256 bytes, and as many merges
BYTES_PER_ENTRY = 400  # of text, for an entry of a trained vocabulary to be seen often enough
HELD_OUT_BYTES = 120_000  # of a split, if the text has enough
NARROW = 100  # channels, up to which init_std 0.1 learns faster
LAYER_WIDTHS = 10  # parameters of a layer over its squared width: 4 of attention, 6 of the MLP


class Design(NamedTuple):
    """How much of the default study's design a time allows."""

    budgets: tuple[float, ...] = (0.25, 0.5, 1.0)  # of the tokens
    teachers: tuple[float, ...] = TEACHERS
    control: bool = True
    replicas: tuple[int, ...] = (1, 2)
    missing: str = ""  # what the proposal has to say about it


DESIGNS = (  # from the whole one to the least, which still has an interval of each exponent
    Design(),
    Design((0.25, 1.0), missing="no budget between the shortest and the longest"),
    Design((0.25, 1.0), control=False, missing="two budgets and no control without a teacher"),
    Design(
        (0.25, 1.0),
        FOUR_TEACHERS,
        control=False,
        missing="two budgets, four teachers and no control without a teacher",
    ),
    Design(
        (0.25, 1.0),
        control=False,
        replicas=(1,),
        missing="two budgets, no control without a teacher, and one replica. With one replica the law "
        "cannot separate the effect of a teacher's size from chance in its training; expect wide intervals "
        "that may hold an exponent of 0. For an answer, take more time or a smaller student",
    ),
)


@dataclass(frozen=True)
class Wish:
    """The study that a person wants; what is None is chosen here."""

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

    @property
    def given_sizes(self) -> list[int]:
        """Sizes of the teachers that are asked for, in order; empty if they are chosen here."""
        return sorted(self.fetched_sizes.values() if self.fetched else self.teacher_sizes)


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


SCALES = (  # small students would be mostly embeddings with more entries, and need many small steps
    Scale(500e3, 64, 512, 4, 512, 512),
    Scale(2e6, 64, 1024, 4, 1024, 512),
    Scale(20e6, 128, 8192, 6, 8192, 512),
    Scale(200e6, 256, 32768, 8, 16384, 512),
    Scale(float("inf"), 512, 131072, 16, 32768, 1024),
)


def propose(wish: Wish, price: Callable[[dict], float]) -> Proposal:
    """The study for a wish. price: seconds that a study takes on the wish's device.

    Raises CapgapError for a student that no teacher exceeds.
    """
    given, notes = wish.given_sizes, []
    if 0 < len(given) < FEWEST:
        notes.append(
            f"the law needs three teachers or more, here are {len(given)}; with fewer the study "
            "compares teachers and gives no law"
        )
    student = wish.student
    if student is None and given:
        student = two_digits(
            wish.student_share * given[-1] if wish.student_share else _among(given)
        )
    elif student is None and wish.seconds is None:
        student = 16_000 if wish.device == CPU else 2_000_000
    if given and student >= given[-1]:
        raise CapgapError(
            f"--student: {student:,} is not smaller than the largest teacher, which has "
            f"{given[-1]:,} parameters without embeddings; lower it or add a larger teacher"
        )
    if student is None:  # the time decides how large it can be, and the text

        def possible(size: int) -> bool:
            tokens = TOKENS_PER_PARAM * size
            enough = _readings(wish, size, tokens) <= READINGS
            return enough and price(_study(wish, size, tokens)) <= wish.seconds

        student = _largest(possible, LEAST_STUDENT, MOST_STUDENT)
        student = _family(wish, student).nearest(student)
    if wish.tokens or wish.seconds is None:
        tokens, design = wish.tokens or TOKENS_PER_PARAM * student, DESIGNS[0]
        notes += _unusual_tokens(tokens / student)
    else:
        least, most = LEAST_TOKENS_PER_PARAM * student, TOKENS_PER_PARAM * student

        def takes(tokens: int, design: Design) -> float:
            return price(_study(wish, student, tokens, design))

        def possible_tokens(tokens: int) -> bool:
            enough = _readings(wish, student, tokens) <= READINGS
            return enough and takes(tokens, design) <= wish.seconds

        design = next((d for d in DESIGNS if takes(least, d) <= wish.seconds), DESIGNS[-1])
        tokens = most if possible_tokens(most) else _largest(possible_tokens, least, most)
        if design.missing:
            notes.append(f"for that time the study has {design.missing}")
        if takes(least, design) > wish.seconds:
            notes.append(
                f"it takes longer than asked for even at {LEAST_TOKENS_PER_PARAM} tokens per parameter "
                "of the student; take a smaller student, or more time"
            )
        if not design.missing and 1.5 * takes(tokens, design) <= wish.seconds:
            notes.append(
                "there is time left: grid.replicas: [1, 2, 3] makes the law's intervals narrower"
            )
    study = _study(wish, student, tokens, design)
    return Proposal(study, [*notes, *_repeats(wish, student, tokens)])


def _among(given: list[int]) -> float:
    """A student of given teachers: in their middle as in a ladder, three of them within RATIO of all."""
    middle = (given[0] * given[-1]) ** 0.5 / (TEACHERS[0] * TEACHERS[-1]) ** 0.5
    third_largest = given[max(0, len(given) - FEWEST)]
    return min(middle, third_largest / (STUDENTS[-1] * RATIO[0]))


def _unusual_tokens(per_param: float) -> list[str]:
    """A note if the best teacher may lie outside of the ladder, since it grows with the tokens."""
    if LEAST_TOKENS_PER_PARAM <= per_param <= 1.05 * TOKENS_PER_PARAM:
        return []
    side = "smaller" if per_param < TOKENS_PER_PARAM else "larger"
    return [
        f"{per_param:.3g} tokens per parameter of the student; at {TOKENS_PER_PARAM} the best teacher was "
        f"inside of such a ladder, at this number it may be {side}. If the summary reports no interior best "
        f"teacher, add a {side} one"
    ]


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest rounded number between two that fits, by bisection of its logarithm; least if none."""
    low, high = least, most
    while high / low > 1.03:
        middle = int((low * high) ** 0.5)
        low, high = (middle, high) if fits(two_digits(middle)) else (low, middle)
    return two_digits(low)


def _study(wish: Wish, student: int, tokens: int, design: Design = DESIGNS[0]) -> dict[str, Any]:
    """A study as a dictionary in the order of its keys."""
    targets = _targets(wish, student, design)
    largest = max(targets)
    scale = _scale(largest)
    budgets = sorted({two_digits(share * tokens) for share in design.budgets})
    length, batch = scale.sequence_length, _batch(scale, budgets[0])
    shared = {
        "sequence_length": length,
        "batch_tokens": batch,
        **({"precision": "bfloat16"} if _has_bfloat16(wish.device) else {}),
    }
    watched = {"validations": 2, "validation_tokens": 32_000 if largest < 1e6 else 256_000}
    share = min(0.1, max(0.001, round(HELD_OUT_BYTES / (wish.corpus_bytes or 1e9), 3)))
    study = {
        "study": wish.name,
        "corpus": {**wish.corpus, "validation_share": share, "test_share": share},
    }
    if wish.fetched:
        sizes, rate = wish.fetched_sizes, 0.001 if batch < 8192 else 0.0003
        smallest = min(sizes, key=lambda name: (sizes[name], name))
        students = [two_digits(ratio * student) for ratio in STUDENTS if ratio * student < largest]
        study |= {
            "tokenizer": {"source": "teacher", "teacher": smallest},
            "teachers": wish.fetched,
        }
    else:
        family = _family(wish, student)
        shapes = family.ladder(targets)
        sizes = {f"t{_label(size)}": size for size in shapes}
        students = [family.nearest(ratio * student) for ratio in STUDENTS]
        widest = max(shape["hidden"] for shape in shapes.values())
        rate = _rate(widest)
        study |= {
            "tokenizer": {"source": "train", "vocab_size": _vocabulary(scale, wish.corpus_bytes)},
            "teachers": {
                name: {"source": "pretrain", **shapes[size]} for name, size in sizes.items()
            },
            "pretrain": {
                "tokens": budgets[-1],
                "learning_rate": rate,
                **({"init_std": 0.1} if widest <= NARROW else {}),
                **shared,
                "warmup_share": WARMUP_SHARE,
                **watched,
            },
        }
    students = sorted({size for size in students if size < max(sizes.values())})
    study |= {
        "prune": {
            **({} if wish.fetched else {"widths": "proportional"}),
            "calibration_sequences": scale.calibration_sequences,
            "sequence_length": length,
        },
        "distill": {
            "teacher_weight": 0.5,
            "temperature": 1.0,
            "learning_rate": rate,
            "schedule": "wsd",
            "warmup_tokens": max(batch, two_digits(WARMUP_SHARE * budgets[0])),
            **shared,
            **watched,
        },
        "evaluate": {"sequence_length": length},
        "grid": {
            "students": students,
            "tokens": budgets,
            **_limits(students, sizes),
            "replicas": list(design.replicas),
            **(_control(student, students, sizes) if design.control else {}),
        },
        "final": {"student": student, "tokens": budgets[-1], "replicas": [1]},
    }
    if wish.device != CPU:
        study["plan"] = {"device": wish.device, "gpus": wish.devices}
    return study


def _targets(wish: Wish, student: int, design: Design = DESIGNS[0]) -> list[float]:
    """Sizes of the teachers, those to train as they are wanted."""
    return wish.given_sizes or [ratio * student for ratio in design.teachers]


def _scale(largest: float) -> Scale:
    return next(scale for scale in SCALES if largest <= scale.params)


def _family(wish: Wish, student: int) -> Family:
    """The family of the teachers to train, of which the students will be members."""
    return Family(_scale(max(_targets(wish, student))).layers, STUDENTS[0] * student)


def _limits(students: list[int], sizes: dict[str, int]) -> dict[str, list[float]]:
    """`teacher_ratio`, unless it left a student of a sparse family with too few teachers."""
    for student in students:
        if sum(RATIO[0] <= size / student <= RATIO[1] for size in sizes.values()) < FEWEST:
            return {}
    return {"teacher_ratio": list(RATIO)}


def _control(student: int, students: list[int], sizes: dict[str, int]) -> dict[str, list]:
    """The control without a teacher: one teacher's inits, the nearest to CONTROL that all students have."""
    shared = [name for name, size in sizes.items() if size >= RATIO[0] * students[-1]]
    if not shared:
        return {}
    nearest = min(shared, key=lambda name: abs(sizes[name] / student - CONTROL))
    return {"arms": ["no_teacher"], "arm_inits": [nearest], "arm_seeds": [1]}


class Family:
    """Llamas of one proportion: as many heads as the width has, MLPs of twice the width."""

    def __init__(self, layers: int, smallest: float):
        """smallest: parameters of the smallest member, which has eight heads or more if they can be
        4 channels wide, so that sizes are near one another."""
        self.layers = layers
        width = self._width(smallest)
        self.head = next((h for h in (64, 32, 16, 8) if width >= 8 * h), 4)

    def _width(self, params: float) -> float:
        return (params / (LAYER_WIDTHS * self.layers)) ** 0.5

    def member(self, target: float) -> tuple[int, dict[str, int]]:
        """The member nearest to a size: its size and its shape."""
        near = max(2, round(self._width(target) / self.head))
        found = [self._of(heads) for heads in (near - 1, near, near + 1)]
        return min(found, key=lambda member: abs(member[0] - target))

    def _of(self, heads: int) -> tuple[int, dict[str, int]]:
        hidden = heads * self.head
        shape = {
            "layers": self.layers,
            "hidden": hidden,
            "heads": heads,
            "intermediate": 2 * hidden,
        }
        llama = LlamaShape(kv_heads=heads, head_dim=self.head, vocab=1, tied=True, **shape)
        return llama.params()["non_embedding"], shape

    def nearest(self, target: float) -> int:
        """Size of the member nearest to a size, two significant digits."""
        return two_digits(self.member(target)[0])

    def ladder(self, targets: list[float]) -> dict[int, dict[str, int]]:
        """Shapes by size, near the targets, smallest first."""
        return dict(sorted(map(self.member, targets)))


def _rate(widest: int) -> float:
    """Peak learning rate: 0.01 up to 72 channels, then falling as the root of the width."""
    return float(f"{0.01 * min(1.0, (72 / widest) ** 0.5):.1g}")


def _vocabulary(scale: Scale, corpus_bytes: int | None) -> int:
    """Entries of a trained vocabulary, fewer if the text is short."""
    entries = scale.vocabulary
    while entries > LEAST_VOCABULARY and entries * BYTES_PER_ENTRY > (corpus_bytes or 1e12):
        entries //= 2
    return entries


def _batch(scale: Scale, tokens: int) -> int:
    """Tokens of a step: the scale's, or a power of two less, so that there are enough steps."""
    batch = scale.batch_tokens
    while batch > scale.sequence_length and batch * STEPS > tokens:
        batch //= 2
    return batch


def _has_bfloat16(device: str) -> bool:
    return device in DEVICES and not device.startswith(("t4", "v100"))


def _readings(wish: Wish, student: int, tokens: int) -> float:
    """How often the longest training reads the text; 0 if the text is not here."""
    bytes_per_token = 2.3 if student < 1e6 else 3.5
    return bytes_per_token * tokens / wish.corpus_bytes if wish.corpus_bytes else 0.0


def _repeats(wish: Wish, student: int, tokens: int) -> list[str]:
    """A note if the text is read too often."""
    readings = _readings(wish, student, tokens)
    if readings <= 1.1 * READINGS:
        return []
    return [
        f"training reads the text about {readings:.0f} times; repeated text teaches less, so more "
        "text, or a smaller student, is better"
    ]


def _label(size: int) -> str:
    """A size as part of a name: t41k, t2.1m."""
    for suffix, factor in (("b", 1e9), ("m", 1e6), ("k", 1e3)):
        if size >= factor:
            return f"{size / factor:{'.2g' if size < 9.95 * factor else '.0f'}}{suffix}"
    return str(size)
