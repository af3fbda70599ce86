"""The plan's arithmetic: against real models, published figures and schedules done by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pruning_models
import pytest
import torch
import yaml
from pruning_models import MODELS, VOCAB, build
from torch.autograd.graph import saved_tensors_hooks

from capgap.commands import plan
from capgap.config import Distill
from capgap.config.shapes import simple_training_flops
from capgap.config.study import Plan
from capgap.cost import device_memory
from capgap.cost.architectures import architecture, shape_of_config
from capgap.cost.host_memory import BASE_MB, CUDA_MB
from capgap.cost.job_costs import StudyCost
from capgap.cost.requests import Requests
from capgap.cost.speed import DEVICE_STARTUP_S, Assumed
from capgap.cost.teacher_configs import open_study
from capgap.engine import attention
from capgap.engine.counting import count_params, forward_flops
from capgap.engine.device_path import as_on_gpu
from capgap.engine.forward import hidden_states, model_output, output_form
from capgap.engine.rounded_linear import round_products
from capgap.errors import CapgapError
from capgap.law.answers.answer_records import Choice
from capgap.pruning.surgery import sizes_of

REPOSITORY = Path(__file__).parents[2]
REAL = ["gpt2", "pythia", "llama2-minima", "smollm2-family"]
COUNTED = [name for name in MODELS if name != "llama-mqa-biased"]  # no Llama of use has biases


def counted(model):
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]  # as save_pretrained writes
    return architecture(shape_of_config(config, "a model"))


def real(name):
    return open_study(REPOSITORY / f"configs/{name}.yaml")


# --- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTED)
def test_sizes_and_flops_are_those_of_the_real_model(name):
    model = build(name)
    found, params = counted(model), count_params(model)
    whole, sizes = found.whole(), sizes_of(model)
    assert (whole.non_embedding, whole.embedding, whole.norm, whole.params) == (
        params.non_embedding, params.embedding, params.norm, params.total
    )  # fmt: skip
    assert whole.forward_flops(64) == forward_flops(model, 64)
    for groups, neurons, hidden, layers in [(2, 12, 16, 1), (3, 20, 24, 2)]:
        widths = type(sizes.full)(groups, neurons, hidden)
        assert found.sizes.params(widths, layers) == sizes.params(widths, layers)
        assert found.sizes.total(widths, layers) == sizes.total(widths, layers)
    assert found.sizes.hidden_is_heads == sizes.hidden_is_heads


PUBLISHED = {  # parameters without embeddings and in all
    ("pythia", "p70m"): (18_915_328, 70_426_624),
    ("pythia", "p160m"): (85_056_000, 162_322_944),
    ("pythia", "p410m"): (302_311_424, 405_334_016),
    ("pythia", "p1b"): (805_736_448, 1_011_781_632),
    ("pythia", "p1.4b"): (1_208_602_624, 1_414_647_808),
    ("pythia", "p2.8b"): (2_517_652_480, 2_775_208_960),
    ("gpt2", "gpt2"): (None, 124_439_808),
    ("gpt2", "gpt2-medium"): (None, 354_823_168),
    ("gpt2", "gpt2-large"): (None, 774_030_080),
    ("gpt2", "gpt2-xl"): (None, 1_557_611_200),
    ("llama2-minima", "l7b"): (None, 6_738_415_616),
    ("llama2-minima", "l13b"): (None, 13_015_864_320),
    ("llama2-minima", "l70b"): (None, 68_976_648_192),
    ("smollm2-family", "s135m"): (None, 134_515_008),
    ("smollm2-family", "s360m"): (None, 361_821_120),
    ("smollm2-family", "s1.7b"): (None, 1_711_376_384),
}


@pytest.mark.parametrize(("study", "teacher"), PUBLISHED)
def test_declared_shapes_have_the_published_counts(study, teacher):
    whole = architecture(real(study).plan.shapes[teacher]).whole()
    non_embedding, total = PUBLISHED[study, teacher]
    assert whole.params == total
    assert non_embedding in (None, whole.non_embedding)
    assert whole.non_embedding == real(study).teachers[teacher].params_non_embedding


def test_minima_student_has_exactly_the_published_shape():
    study = real("llama2-minima")
    cost = StudyCost(study)
    for teacher in ("l7b", "l13b"):
        model = cost.architecture(teacher).pruned(study.final.student, study.prune.shaping())
        assert (model.layers, model.hidden, model.attention, model.neurons) == (
            24, 3072, 24 * 128, 8192
        )  # fmt: skip


# --- FLOPs ------------------------------------------------------------------------------------

PARETO = [  # student, teacher, tokens, published FLOPs (one decimal)
    (3e9, 7e9, 126e9, "4.0e+21"),  # MiniMA-3B
    (7e9, 0, 2e12, "8.4e+22"),  # LLaMA2-7B, trained on the data alone
    (2.7e9, 0, 50e9, "8.1e+20"),  # ShearedLLaMA-2.7B, published as 0.8e21
]


@pytest.mark.parametrize(("student", "teacher", "tokens", "published"), PARETO)
def test_published_flops_are_reproduced(student, teacher, tokens, published):
    assert f"{simple_training_flops(student, teacher, tokens):.1e}" == published


def test_published_cost_of_searching_all_teachers_is_reproduced():
    search = sum(simple_training_flops(3e9, teacher, 126e9) for teacher in (7e9, 13e9, 70e9))
    assert search / simple_training_flops(3e9, 7e9, 126e9) == pytest.approx(7.3, abs=0.05)


def test_pareto_rows_rank_as_published():
    """The plain mean of six benchmarks against FLOPs: none of the three dominates another."""
    scores = {
        "ShearedLLaMA-2.7B": [26.97, 22.88, 19.98, 4.88, 30.48, 3.56],
        "MiniMA-3B": [28.51, 28.23, 22.50, 10.98, 31.61, 8.11],
        "LLaMA2-7B": [46.00, 34.40, 31.57, 12.80, 32.02, 14.10],
    }
    flops = dict(
        zip(
            ["MiniMA-3B", "LLaMA2-7B", "ShearedLLaMA-2.7B"],
            [simple_training_flops(*row[:3]) for row in PARETO],
            strict=True,
        )
    )
    by_cost = sorted(scores, key=flops.get)
    assert by_cost == list(scores)
    means = [sum(scores[name]) / 6 for name in by_cost]
    assert means == sorted(means)
    assert means == pytest.approx([18.125, 21.657, 28.482], abs=1e-3)


def test_counted_flops_of_minima_are_the_published_ones_and_the_terms_they_leave_out():
    study = real("llama2-minima")
    cost = StudyCost(study)
    student = cost.architecture("l7b").pruned(study.final.student, study.prune.shaping())
    teacher = cost.architecture("l7b").whole()
    tokens = 126e9
    counted = tokens * (3 * student.forward_flops(4096) + teacher.forward_flops(4096))
    simple = simple_training_flops(student.params, teacher.params, tokens)
    assert simple == pytest.approx(4.0e21, rel=0.03)
    attention = tokens * (3 * 24 * 2 * 3072 + 32 * 2 * 4096) * 4096  # 2 L W T a forward pass
    look_ups = tokens * (6 * 3072 + 2 * 4096) * 32000  # input embeddings: no product
    norms = tokens * (6 * student.norm + 2 * teacher.norm)
    assert counted == pytest.approx(simple + attention - look_ups - norms, rel=1e-9)


# --- memory -----------------------------------------------------------------------------------


def saved_floats(model, ids, precision="float32"):
    """Bytes that autograd keeps for the backward pass through the layers, over those of a float32;
    without those of parameters and their rounded copies."""
    held = [*model.parameters(), *model.buffers()]
    parameters = {p.untyped_storage().data_ptr() for p in held}
    copies = {p.shape for p in held if p.ndim >= 2} | {p.T.shape for p in held if p.ndim == 2}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        copy = tensor.dtype == torch.bfloat16 and tensor.shape in copies
        if storage.data_ptr() not in parameters and tensor.is_floating_point() and not copy:
            kept[storage.data_ptr()] = (storage.nbytes() / 4, tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        if precision == "float32":
            hidden_states(model, ids).sum().item()
        else:
            model_output(model, ids, precision=precision).hidden.sum().item()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("neurons", [20, 200])
@pytest.mark.parametrize(
    "name", ["llama-mha-tied", "llama-gqa-untied", "qwen2", "qwen3", "gpt2", "neox", "opt"]
)
def test_activations_are_what_autograd_saves(name, neurons, monkeypatch):
    monkeypatch.setattr(pruning_models, "NEURONS", neurons)
    model = build(name)
    ids = torch.randint(VOCAB, (4, 48))
    shape = counted(model).whole()
    monkeypatch.setattr(attention, "onednn_in_use", lambda: False)
    assert device_memory.saved_channels(shape) * ids.numel() == pytest.approx(
        saved_floats(model, ids), rel=0.05
    )
    monkeypatch.setattr(attention, "onednn_in_use", lambda: True)
    counted_floats = device_memory.saved_channels(shape, scores=48) * ids.numel()
    saved = saved_floats(model, ids)
    assert 0.95 * saved < counted_floats < (1.25 if name == "neox" else 1.05) * saved


@pytest.mark.parametrize("neurons", [20, 200])
@pytest.mark.parametrize(
    "name", ["llama-mha-tied", "llama-gqa-untied", "qwen2", "qwen3", "gpt2", "neox", "opt"]
)
def test_rounded_activations_are_what_autograd_saves(name, neurons, monkeypatch):
    monkeypatch.setattr(pruning_models, "NEURONS", neurons)
    model = build(name)
    ids = torch.randint(VOCAB, (4, 48))
    output_form(model)
    shape = counted(model).whole()
    with as_on_gpu():
        round_products(model, "bfloat16")
        saved = 4 * saved_floats(model, ids, "bfloat16")
    assert device_memory.saved_bytes(shape, "bfloat16") * ids.numel() == pytest.approx(
        saved, rel=0.1
    )
    assert saved < 0.9 * device_memory.saved_bytes(shape, "float32") * ids.numel()


PASSES = """
import json, sys, torch
from pathlib import Path
from capgap.config import Distill
from capgap.cost import device_memory
from capgap.cost.architectures import architecture, shape_of_config
from capgap.engine.forward import hidden_states
from capgap.engine.models import llama_config, new_model
from capgap.engine.onednn_matmul import use_onednn
from capgap.config.shapes import LlamaShape

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

checkpointed, shape = sys.argv[1] == "checkpointed", LlamaShape(4, 256, 8, 8, 32, 704, 64, True)
model = new_model(llama_config(shape, max_positions=512, bos_id=0, eos_id=0), 0).train()
if checkpointed:
    model.gradient_checkpointing_enable({"use_reentrant": False})
ids = torch.zeros(4, 512, dtype=torch.int64)
with use_onednn():
    hidden_states(model, ids[:1]).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    hidden_states(model, ids).sum().backward()
config = json.loads(model.config.to_json_string()) | {"architectures": ["LlamaForCausalLM"]}
whole = architecture(shape_of_config(config, "it")).whole()
settings = Distill(
    sequence_length=512, batch_tokens=ids.numel(), activation_checkpointing=checkpointed
)
counted = device_memory.training(whole, settings, scores=512).activations
print((status("VmHWM") - before) * 1024, counted)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", ["plain", "checkpointed"])
def test_passes_hold_no_more_than_is_counted(kind):
    """Bytes at the peak of a forward and a backward pass, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PASSES, kind],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    peak, counted = map(float, done.stdout.split())
    assert 0.4 * counted < peak <= counted


def test_memory_of_training_by_hand():
    model = architecture(real("gpt2").plan.shapes["gpt2"]).whole()
    settings = Distill(sequence_length=512, batch_tokens=4096, micro_batch_tokens=2048)
    alone = device_memory.training(model, settings)
    assert (alone.weights, alone.gradients, alone.optimizer) == tuple(
        k * 4 * 124_439_808 for k in (1, 1, 2)
    )
    assert alone.loss == 4 * (176 * 50257 + 768 * (2048 + 50257))
    teacher = architecture(real("gpt2").plan.shapes["gpt2-xl"]).whole()
    taught = device_memory.training(model, settings, teacher)
    assert taught.teacher == 4 * 1_557_611_200
    assert taught.loss - alone.loss == 2 * 4 * 176 * 50257  # a chunk of 176 tokens
    half = device_memory.training(model, settings.model_copy(update={"micro_batch_tokens": 1024}))
    assert half.activations * 2 == alone.activations
    again = device_memory.training(
        model, settings.model_copy(update={"activation_checkpointing": True})
    )
    layer = 4 * 768 + 4 * 768 + 5 * 3072
    assert alone.activations == 4 * 2048 * (12 * layer + 2 * 768)
    assert again.activations == 4 * 2048 * (layer + 12 * 768 + 2 * 768)
    few = device_memory.training(model, settings.model_copy(update={"loss_chunk_tokens": 16}))
    assert alone.loss - few.loss == 4 * (176 - 16) * 50257


def test_cached_targets_are_a_job_of_their_own_and_save_the_teacher_in_every_other():
    data = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    online = {job.output: job for job in StudyCost(open_study(data)).jobs}
    data["distill"] |= {"teacher_targets": "sampled", "unique_tokens": "500k"}
    kept = {job.output: job for job in StudyCost(open_study(data)).jobs}
    caches = [kept[name] for name in set(kept) - set(online)]
    assert {job.rule for job in caches} == {"cache_teacher"}
    assert len(caches) == len(data["teachers"]) * len(data["grid"]["replicas"])
    assert {job.disk_bytes for job in caches} == {500_000 * 48 * 2}
    for name, job in kept.items():
        if job.rule != "distill_student":
            continue
        (targets,) = [s for s in caches if s.output in job.needs] or [None]
        assert job.device.teacher == 0
        assert (job.flops < online[name].flops) == (targets is not None) == ("from-t" in name)


def test_the_printed_table_is_whole_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    plan.main(["--study", str(REPOSITORY / "configs/llama2-minima.yaml")])
    text = capsys.readouterr().out
    assert "…" not in text
    assert "device GB" in text


def test_memory_of_several_processes_by_hand():
    model = architecture(real("gpt2").plan.shapes["gpt2"]).whole()
    settings = Distill(sequence_length=512, batch_tokens=4096, micro_batch_tokens=2048)
    alone = device_memory.training(model, settings)
    copies = device_memory.training(model, settings, processes=4)  # 1024 tokens of a step each
    assert copies.activations * 2 == alone.activations
    assert (copies.weights, copies.optimizer) == (alone.weights, alone.optimizer)
    shared = device_memory.training(model, settings, model, processes=4, shards=4)
    ends, layer = (50257 + 1024) * 768, 85_056_000 // 12
    part = 4 * 124_439_808 // 4
    assert shared.optimizer == 2 * part
    whole_at_a_time = 4 * (ends + 2 * layer)
    assert shared.weights == shared.gradients == shared.teacher == part + whole_at_a_time
    smaller = settings.model_copy(update={"micro_batch_tokens": 512})  # two, that add up
    added = device_memory.training(model, smaller, model, processes=4, shards=4)
    assert added.gradients == 4 * 124_439_808
    assert added.weights == shared.weights


def test_several_processes_take_as_many_devices_and_the_same_device_hours():
    study = real("gpt2")
    plan = study.plan.model_copy(update={"processes": 4})
    shared = study.model_copy(update={"plan": plan})
    speed, one, four = Assumed("a100-80gb", 0.4), StudyCost(study).jobs, StudyCost(shared).jobs
    for alone, together in zip(one, four, strict=True):
        trained = alone.rule == "distill_student"
        measured = alone.rule in ("evaluate_teacher", "evaluate_student", "score_importance")
        assert together.processes == (4 if trained or measured else 1)
        assert together.flops == alone.flops
        computing = speed.seconds(alone) - DEVICE_STARTUP_S
        if trained or measured:
            assert speed.seconds(together) - DEVICE_STARTUP_S == pytest.approx(computing / 4)
    asked = [Requests(s).mem_mb("distill_student") for s in (study, shared)]
    run = {"student": "32M", "init": "pruned-gpt2", "teacher": "gpt2", "tokens": "50M"}
    alone_mb, together_mb = (ask(run, 1) for ask in asked)
    own_mb = BASE_MB["torch"] + CUDA_MB  # the weights are mapped by all
    assert together_mb == pytest.approx(alone_mb + 1.25 * 3 * own_mb, abs=4)
    # on two nodes memory is asked for on each, and a model is measured on one
    plan = study.plan.model_copy(update={"processes": 4, "nodes": 2, "shard": True})
    spread = Requests(study.model_copy(update={"plan": plan}))
    halved_mb = spread.mem_mb("distill_student")(run, 1)
    assert halved_mb == pytest.approx(alone_mb + 1.25 * own_mb, abs=4)
    assert (spread.processes, spread.nodes, spread.measuring, plan.shards) == (4, 2, 2, 2)


def test_models_are_cut_among_the_processes_of_a_node_or_else_of_all():
    def parts(**plan):
        return Plan(device="h100-80gb", **plan).shards

    assert parts(processes=16, nodes=2) == 1
    assert parts(processes=16, nodes=2, shard=True) == 8
    assert parts(processes=2, nodes=2, shard=True) == 2


def test_a_shape_of_another_size_is_refused():
    data = yaml.safe_load((REPOSITORY / "configs/gpt2.yaml").read_text())
    shape = real("gpt2").plan.shapes["gpt2"].model_dump(exclude_none=True)
    data["plan"]["shapes"] = {"gpt2": shape | {"layers": 11}}
    with pytest.raises(
        CapgapError, match=r"plan.shapes.gpt2: this shape has 77,968,128 parameters"
    ):
        plan.make_plan(open_study(data))


def test_a_teacher_of_unknown_architecture_is_guessed_and_said_so():
    study = real("gpt2")
    known = {name: shape for name, shape in study.plan.shapes.items() if name != "gpt2-xl"}
    study = study.model_copy(update={"plan": study.plan.model_copy(update={"shapes": known})})
    made = plan.make_plan(study)
    assert any("cost of the architecture of gpt2-xl unknown" in note for note in made.notes)
    whole = StudyCost(study).architecture("gpt2-xl").whole()
    assert whole.non_embedding == pytest.approx(1_475_561_600, rel=0.1)


# --- studies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_real_studies_plan_offline(name, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    study = real(name)
    made = plan.make_plan(study)
    assert made.notes == [
        "tokens of the harness's tasks are rough",
        "the final runs are counted in full, because their teachers are not chosen yet",
    ]
    assert made.left == made.jobs
    outputs = [job.output for job in made.jobs]
    assert len(set(outputs)) == len(outputs)
    for job in made.jobs:
        assert set(job.needs) <= set(outputs)
        assert outputs.index(job.output) > max(map(outputs.index, job.needs), default=-1)
    assert made.schedule.makespan_s >= made.schedule.critical_s * (1 - 1e-9)
    text = plan.short(made)
    assert "GPU hours" in text
    assert "does not fit" not in text
    for student in study.grid.students:  # off the ladder: 2.5 times a student is no teacher
        for size in map(study.teacher_size, study.teachers):
            assert abs(size / (2.5 * student) - 1) > 0.03, (student, size)
    for student in made.jobs:
        if student.rule == "prune_student":
            asked = student.output.split("/")[3]
            from capgap.config.counts import parse_count

            init = student.output.split("/")[4]
            got = StudyCost(study).student(asked, init).non_embedding
            assert got == pytest.approx(parse_count(asked), rel=0.01)


def test_finished_jobs_are_left_out_and_the_choice_is_used_once_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = open_study(REPOSITORY / "tests/tiny/config.yaml")
    made = plan.make_plan(study, not_done=[])
    assert len(made.left) == len(made.jobs)  # nothing is there
    for job in made.jobs:
        path = Path(job.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    choice = Choice(
        student_params_non_embedding=4000, tokens=8000, law_tokens=5000, basis="nearest_student",
        basis_note="", teacher_params_star=None, chosen="t6k", neighbour=None, largest="t16k",
    )  # fmt: skip
    Path("results/tiny/law/choice.json").write_text(choice.to_json())
    done = plan.make_plan(study, not_done=[])
    assert done.left == []
    assert plan.short(done) == f"0 of {len(done.jobs)} jobs to do"
    assert {
        j.output.split("/")[5] for j in done.jobs if "/4k/pruned" in j.output and "from" in j.output
    } == {"from-t6k", "from-t16k"}
    run = "results/tiny/students/3k/pruned-t6k/from-t6k/tokens-5k/seed-0/model/manifest.json"
    again = plan.make_plan(study, not_done=[run])
    assert [j.output for j in again.left] == [run]
    assert "1 of " in plan.short(again)
    metrics = run.replace("model/manifest.json", "metrics.json")
    Path(metrics).unlink()
    assert [j.output for j in plan.make_plan(study, not_done=[]).left] == [metrics]


def test_tasks_of_the_harness_are_jobs_with_the_outputs_of_their_rules():
    data = yaml.safe_load((REPOSITORY / "tests/tiny/config.yaml").read_text())
    without = {job.output for job in StudyCost(open_study(data)).jobs}
    data["harness"] = {"preset": "plain", "tasks": {"gsm8k": 8}, "limit": 100, "teachers": ["t6k"]}
    study = open_study(data)
    cost = StudyCost(study)
    added = {job.output: job for job in cost.jobs if job.output not in without}
    assert {output: job.needs for output, job in added.items()} == {
        "results/tiny/teachers/t6k/harness.json": (
            "results/tiny/teachers/t6k/model/manifest.json",
        ),
        "results/tiny/final/harness.json": ("results/tiny/final/final.json",),  # with the model
    }
    assert {job.tokens for job in added.values()} == {3 * 100 * 1024}
    assert "tokens of the harness's tasks are rough" in cost.notes
    needs = Requests(study)
    assert needs.mem_mb("harness_teacher")({"study": "tiny", "teacher": "t6k"}, 1) > 500
    assert needs.runtime("harness_final")({"study": "tiny"}, 1) == 10


def test_students_of_one_shape_are_counted_with_it():
    data = yaml.safe_load((REPOSITORY / "configs/gpt2.yaml").read_text())
    data["prune"]["one_shape"] = False
    own = StudyCost(open_study(data))
    assert own.student("150M", "pruned-gpt2-large").layers == 36
    data["teachers"].pop("gpt2-xl")
    data["prune"].update(one_shape=True, depth="keep_middle", layers=12)
    shared = StudyCost(open_study(data))
    assert shared.student("64M", "pruned-gpt2-large") == shared.student("64M", "pruned-gpt2")
    job = shared.job("prune_student", student="64M", init="pruned-gpt2-large")
    assert "results/gpt2/teachers/gpt2/model/manifest.json" in job.needs
