"""
Refit the remaining weights of a pruned model to the outputs of the full model, by least squares.

Layer by layer, from the first to the last, every matrix is solved for in closed form on calibration
text. Its inputs are those of the pruned model, in which all matrices before it are refitted already,
and its targets are the outputs of the whole model:

  readers   of the residual stream behind a norm (query, key, value, gate, up, and the output head):
            R minimises |n - R n'|^2, n and n' the norm's output in the whole and the pruned model;
            a kept row w becomes w R
  writers   to the residual stream (attention output, MLP output): W' minimises |B x - x' - W' a'|^2,
            a' the kept units' activations, x' the pruned model's stream before the write and x the
            whole model's after it, so that a write also corrects errors of the writes before

B maps the stream to that of the pruned model: principal components of the norms' inputs, absorbed into
embeddings, readers and writers (residual_basis.py). Gains of single channels cannot be rotated, so they are
multiplied into the readers, and their norm gets one gain for all channels, at most 1, such that the readers
are no smaller than in the whole model. If embeddings and output head are tied, the last norm is refitted
channel by channel instead of the head. Shapes and architecture are those of the plain cut.

Sources. Least squares on a layer's outputs after structured pruning: OSSCAR (arXiv 2403.12983),
SlimGPT (arXiv 2412.18110), MoDeGPT (arXiv 2408.09632). Whole outputs as targets of pruned inputs:
GPTAQ (arXiv 2504.02692). Rotation of the residual stream: SliceGPT (arXiv 2401.15024). Not taken:
biases that a model's class does not have (FLAP, arXiv 2312.11983), layers of unequal width
(SlimGPT), matrices on the residual connection (SliceGPT).
"""

# B sequences, T tokens, N = B T, D and d hidden channels of the whole and the pruned model

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from capgap.engine.stream_file import StreamFile
from capgap.engine.streaming import layer_by_layer
from capgap.pruning.families import Family, family_of
from capgap.pruning.layerwise import CurrentLayer, LayerPass, Reached
from capgap.pruning.least_squares import Regression
from capgap.pruning.refit_sites import (
    UNITS,
    Linear,
    bias_of,
    check_known,
    is_tied,
    linears_of,
    matrix_of,
    norms_of,
    set_matrix,
    sites_of_layer,
    writes,
)
from capgap.pruning.residual_basis import Basis, NormKind, kind_of, principal_basis
from capgap.pruning.surgery import Kept, channels, sizes_of

HEAD_ROWS = 2048  # of the output head, refitted at a time


def changes(kept: Kept, model: PreTrainedModel) -> bool:
    """Whether anything is cut, so that a refit changes something."""
    sizes = sizes_of(model)
    return kept.widths != sizes.full or len(_kept_layers(kept, sizes.layers)) < sizes.layers


@torch.no_grad()
def refit(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    kept: Kept,
    inputs_BT: torch.Tensor,
    *,
    rows: int,
    folder: Path,
) -> None:
    """Refit a student that was cut out of a teacher, in place, on calibration sequences.

    teacher: in float32, in memory or with its layers on disk (`load_frozen`). rows: sequences per forward
    pass. folder: of the temporary, unnamed files with the activations of all sequences: twice tokens x
    hidden channels in float32, for teacher and student each. A student from which nothing was cut stays
    as it is. Raises CapgapError, naming the tensor or module, if the refit does not support the
    architecture.
    """
    check_known(teacher)
    if changes(kept, teacher):
        _Refit(student, teacher, kept, inputs_BT, rows, folder).run()


def _kept_layers(kept: Kept, layers: int) -> np.ndarray:
    return np.arange(layers) if kept.layers is None else kept.layers


class _Refit:
    def __init__(
        self, student, teacher, kept: Kept, inputs_BT: torch.Tensor, rows: int, folder: Path
    ):
        self.student, self.teacher, self.kept = student, teacher, kept
        self.family: Family = family_of(type(teacher).__name__)
        self.sizes, self.device = sizes_of(teacher), student.device
        self.layers = _kept_layers(kept, self.sizes.layers)
        self.folder = folder
        self.batches = list(inputs_BT.split(rows))
        half_B = torch.arange(len(inputs_BT)) % 2
        halves = half_B[:, None].expand_as(inputs_BT).split(rows)
        self.halves = [half.reshape(-1).to(self.device) for half in halves]
        inner, (self.outer_norm,) = norms_of(teacher, self.family)
        self.linears = linears_of(teacher, self.family)
        [self.kinds] = [
            {name: kind_of(layer.get_submodule(name), name) for name in inner}
            for _, layer in layer_by_layer(teacher).resident([0])
        ]
        self.last_norm = teacher.get_submodule(self.outer_norm)
        self.last_kind = kind_of(self.last_norm, self.outer_norm)
        self.basis: Basis | None = None

    def run(self) -> None:
        if self.kept.widths.hidden < self.sizes.full.hidden:
            self.basis = self._principal_basis()
            self._turn_ends()
        whole = LayerPass(self.teacher, self.batches, self.folder)
        pruned = LayerPass(self.student, self.batches, self.folder)
        place = 0
        for at, _ in whole.layers():
            if at in self.layers:
                self._fit_layer(CurrentLayer(whole, at), CurrentLayer(pruned, place))
                pruned.advance(place)
                whole.step()  # to the streams behind the last write
                place += 1
            else:
                whole.advance(at)
        self._fit_head(whole.streams, pruned.streams)

    # --- the hidden dimension --------------------------------------------------------------------

    def _principal_basis(self) -> Basis:
        """The principal basis of the inputs of the norms of the kept layers and of the last norm."""
        width = self.sizes.full.hidden
        moments = torch.zeros(width, width, dtype=torch.float64, device=self.device)

        def add(kind: NormKind) -> Callable:
            def hook(module, args):
                x_ND = args[0].reshape(-1, width).double()
                if kind.centred:
                    x_ND = x_ND - x_ND.mean(1, keepdim=True)
                x_ND = x_ND / x_ND.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
                moments.addmm_(x_ND.T, x_ND)

            return hook

        whole = LayerPass(self.teacher, self.batches, self.folder)
        hooks = [("before", name, add(kind)) for name, kind in self.kinds.items()]
        for at, _ in whole.layers():
            whole.advance(at, hooks if at in self.layers else ())
        for batch in range(len(self.batches)):
            add(self.last_kind)(None, (whole.streams[batch],))
        return principal_basis(moments, self.kept.hidden, centred=self.last_kind.centred)

    def _turn_ends(self) -> None:
        """Put embeddings and the last norm into the basis."""
        times = 1.0
        if self.family.embeddings_times_root_hidden:
            times = math.sqrt(self.sizes.full.hidden / self.kept.widths.hidden)
        for name in self.family.embeddings:
            table = self.teacher.get_submodule(name).weight
            for rows, out in zip(
                table.split(HEAD_ROWS),
                self.student.get_submodule(name).weight.split(HEAD_ROWS),
                strict=True,
            ):
                out.copy_(times * self.basis.narrow(rows))
        norm = self.student.get_submodule(self.outer_norm)
        if not is_tied(self.student):
            self._turn_norm(self.last_norm, norm, self.last_kind)
            return
        rows_dD, gain = self.basis.rows_dD, self.last_kind.gain(self.last_norm)
        gain_d = (rows_dD * gain @ rows_dD.T).diagonal() / self.basis.scale**2 / times
        norm.weight.copy_(gain_d - self.last_kind.offset)
        if bias_of(norm) is not None:
            norm.bias.copy_(rows_dD @ self.last_norm.bias.double() / self.basis.scale / times)

    def _turn_norm(self, norm, small, kind: NormKind) -> None:
        """Set a norm's gain to 1, as its readers take it over for now, and its bias to the nearest possible."""
        small.weight.fill_(1 - kind.offset)
        if bias_of(small) is not None:
            widened = self.basis.widen(kind.gain(norm))
            small.bias.copy_(torch.linalg.pinv(widened) @ norm.bias.double())

    def _keep_scale(self, small, kind: NormKind, readers: list, whole: Sequence) -> None:
        """Give a norm the factor by which its readers became smaller, and divide them by it.

        The model computes the same. But steps of Adam do not depend on the size of a weight, so a short
        training would overwrite readers that had taken over a small gain. (If they became larger, a gain
        above 1 would make each step larger; they stay.) readers: weights of the pruned model, whole:
        those of the whole model, in parts.
        """
        before, now = _rms(whole), _rms(readers)
        if not 0 < now < before:
            return
        small.weight.fill_(now / before - kind.offset)
        if bias_of(small) is not None:
            small.bias.mul_(now / before)
        for matrix in readers:
            matrix.div_(now / before)

    def _narrow(self, streams: torch.Tensor) -> torch.Tensor:
        """Streams of the whole model, last dimension D, as the pruned model's."""
        return streams.double() if self.basis is None else self.basis.narrow(streams)

    # --- a layer ---------------------------------------------------------------------------------

    def _fit_layer(self, whole: CurrentLayer, pruned: CurrentLayer) -> None:
        if self.basis is not None:
            for name, kind in self.kinds.items():
                self._turn_norm(whole.module(name), pruned.module(name), kind)
        path = f"{self.family.layers}.{whole.place}"
        for site in sites_of_layer(whole, self.linears, self.kinds, path):
            if site.norm is not None:
                self._fit_readers(site.linears, site.norm, whole, pruned)
                continue
            for linear in site.linears:
                self._fit_writer(linear, whole, pruned)

    def _fit_readers(
        self, linears: list[Linear], norm: str, whole: CurrentLayer, pruned: CurrentLayer
    ) -> None:
        """Fit one map from the norm's output in the pruned model to that in the whole, for all readers."""
        biased = [bias_of(pruned.module(linear.name)) is not None for linear in linears]
        first = linears[0].name
        fit = self._regression(self.kept.widths.hidden, self.sizes.full.hidden, all(biased))
        for batch, half_N in enumerate(self.halves):
            fit.add(self._read(pruned, batch, first), self._read(whole, batch, first), half_N)
        wide, shift = fit.solve(self._widened(whole.module(norm), self.kinds[norm]))
        kept_rows = []
        for linear in linears:
            module, fitted = whole.module(linear.name), pruned.module(linear.name)
            rows = self._kept_rows(linear.out, matrix_of(module), whole.place)
            kept_rows.append(rows)
            set_matrix(fitted, rows @ wide)
            if bias_of(module) is not None:
                bias = self._kept_rows(linear.out, module.bias.double(), whole.place)
                fitted.bias.copy_(bias + rows @ shift)
        if self.basis is not None:
            weights = [pruned.module(linear.name).weight for linear in linears]
            self._keep_scale(pruned.module(norm), self.kinds[norm], weights, kept_rows)

    def _widened(self, norm, kind: NormKind) -> torch.Tensor:
        if self.basis is None:
            return torch.eye(self.sizes.full.hidden, dtype=torch.float64, device=norm.weight.device)
        return self.basis.widen(kind.gain(norm))

    def _fit_writer(self, linear: Linear, whole: CurrentLayer, pruned: CurrentLayer) -> None:
        """Fit the map from the kept units to the output of the whole model."""
        module, fitted = whole.module(linear.name), pruned.module(linear.name)
        matrix, at = matrix_of(module), whole.place
        units = self._channels(linear.into, at, matrix.shape[1])
        prior = self._kept_rows(linear.out, matrix, at).index_select(1, units)
        fit = self._regression(prior.shape[1], prior.shape[0], bias_of(fitted) is not None)
        for batch, half_N in enumerate(self.halves):
            z, before = self._write(pruned, batch, linear, reach=False)
            _, want = self._write(whole, batch, linear, reach=True)
            if writes(linear):
                behind = whole.layer_pass.behind
                behind[batch] = want.reshape(behind.shapes[batch])
                want = self._narrow(want) - before
            else:
                want = self._kept_rows(linear.out, want.double().T, at).T
            fit.add(z, want, half_N)
        weight, bias = fit.solve(prior)
        set_matrix(fitted, weight)
        if bias_of(fitted) is not None:
            fitted.bias.copy_(bias)

    def _regression(self, inputs: int, outputs: int, intercept: bool) -> Regression:
        return Regression(inputs, outputs, self.device, intercept=intercept)

    def _read(self, layer: CurrentLayer, batch: int, name: str) -> torch.Tensor:
        """The inputs of a matrix, N x inputs."""
        read = []

        def hook(module, args):
            read.append(args[0])
            raise Reached

        layer.pass_through(batch, [("before", name, hook)])
        return read[0].flatten(0, -2)

    def _write(
        self, layer: CurrentLayer, batch: int, linear: Linear, *, reach: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a matrix reads, and its output (N x outputs).

        For a matrix that writes to the residual stream, the second is the stream: after the write if
        `reach`, else before it.
        """
        read, written = [], []

        def before(module, args):
            read.append(args[0])
            if not reach:
                raise Reached

        def after(module, args, output):
            written.append(output)

        def last(module, args, output):
            written.append(output)
            raise Reached

        others = [other.name for other in self.linears.values() if writes(other)]
        hooks = [("before", linear.name, before)]
        hooks += [("after", name, after) for name in others if name != linear.name]
        if reach:
            hooks += [("after", linear.name, last)]
        layer.pass_through(batch, hooks)
        z = read[0].flatten(0, -2)
        if not writes(linear):
            return z, written[-1].flatten(0, -2) if reach else z.new_empty(0)
        stream = layer.layer_pass.streams[batch].double().flatten(0, -2)
        return z, sum((output.double().reshape(stream.shape) for output in written), stream)

    def _channels(self, carried: tuple[int, str], at: int, size: int) -> torch.Tensor:
        """Indices of a layer's kept units in a dimension."""
        repeats, kind = carried
        if kind not in UNITS:
            return torch.arange(size, device=self.device)
        units = getattr(self.kept, kind)
        units = units if units.ndim == 1 else units[at]
        of = getattr(self.sizes.full, kind)
        return channels(units, of, repeats, size, self.sizes.heads_per_group).to(self.device)

    def _kept_rows(self, carried: tuple[int, str], matrix: torch.Tensor, at: int) -> torch.Tensor:
        """The outputs that stay, of a matrix whose first dimension lists outputs."""
        if carried[1] == "hidden":
            return self._narrow(matrix.T).T
        return matrix.index_select(0, self._channels(carried, at, matrix.shape[0]))

    # --- the output head -------------------------------------------------------------------------

    def _fit_head(self, whole: StreamFile, pruned: StreamFile) -> None:
        norm, head = (
            self.student.get_submodule(self.outer_norm),
            self.student.get_output_embeddings(),
        )
        before = self.teacher.get_output_embeddings()
        biased = bias_of(head) is not None
        tied = is_tied(self.student)
        fit = self._regression(self.kept.widths.hidden, self.sizes.full.hidden, biased and not tied)
        for batch, half_N in enumerate(self.halves):
            read, want = norm(pruned[batch]), self.last_norm(whole[batch])
            fit.add(read.flatten(0, 1), want.flatten(0, 1), half_N)
        if tied:
            self._fit_last_norm(norm, head, before, fit)
            return
        wide, shift = fit.solve(self._widened(self.last_norm, self.last_kind))
        if biased:
            head.bias.copy_(before.bias.double() + before.weight.double() @ shift)
        for out, rows in zip(
            head.weight.split(HEAD_ROWS), before.weight.split(HEAD_ROWS), strict=True
        ):
            out.copy_(rows.double() @ wide)
        if self.basis is not None:
            self._keep_scale(norm, self.last_kind, [head.weight], before.weight.split(HEAD_ROWS))

    def _fit_last_norm(self, norm, head, before, fit: Regression) -> None:
        """Refit the last norm, channel by channel, so that the logits come nearest to the whole model's.

        Their mean over the vocabulary is subtracted, because no probability depends on it.
        """
        d, gram, cross = len(norm.weight), fit.gram.sum(0), fit.cross.sum(0)
        inputs, targets, count = fit.input_sum.sum(0), fit.target_sum.sum(0), fit.count.sum()
        mine, theirs = (_second_moments(head.weight, other.weight) for other in (head, before))
        system, wanted = mine * gram, (mine @ gram).diagonal()
        wanted = (theirs @ cross).diagonal() - wanted
        if bias_of(norm) is not None:
            side = mine * inputs[:, None]
            system = torch.cat(
                [torch.cat([system, side], dim=1), torch.cat([side.T, count * mine], dim=1)]
            )
            wanted = torch.cat([wanted, theirs @ targets - mine @ inputs])
        damped = system + 1e-10 * system.diagonal().mean() * torch.eye(len(system)).to(system)
        change = torch.linalg.solve(damped, wanted)
        gain = self.last_kind.gain(norm)
        if bias_of(norm) is not None:
            norm.bias.copy_((1 + change[:d]) * norm.bias.double() + change[d:])
        norm.weight.copy_((1 + change[:d]) * gain - self.last_kind.offset)


def _rms(matrices: Sequence[torch.Tensor]) -> float:
    """The root of the mean square of all their entries."""
    total, entries = 0.0, 0
    for matrix in matrices:
        total, entries = total + matrix.double().square().sum().item(), entries + matrix.numel()
    return math.sqrt(total / entries)


def _second_moments(left_VI: torch.Tensor, right_VO: torch.Tensor) -> torch.Tensor:
    """Sum over the vocabulary of products of two tables' entries about their means, I x O."""
    total, rows = 0.0, len(left_VI)
    for left, right in zip(left_VI.split(HEAD_ROWS), right_VO.split(HEAD_ROWS), strict=True):
        total = total + left.double().T @ right.double()
    means = (
        sum(part.double().sum(0) for part in table.split(HEAD_ROWS))
        for table in (left_VI, right_VO)
    )
    left_sum, right_sum = means
    return total - torch.outer(left_sum, right_sum) / rows
