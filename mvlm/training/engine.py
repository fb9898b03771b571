"""DeepSpeed behind a small interface: one step, and every parameter as a whole fp32 tensor.

Host synchronisations that DeepSpeed itself makes in each update: stages 1 to 3 test the gradient's norm, once a step
(stage 3, fp32) or once a parameter group (stages 1 and 2, for clipping); fp16 reads whether gradients overflowed;
bf16 at stage 0 reads each group's norm. fp32 at stage 0 and bf16 at stage 1 have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mvlm.batch import Batch, GlobalBatch, LabelledBatch, Losses, MetricAccumulator
from mvlm.checkpoint.cut import TensorPart
from mvlm.checkpoint.layout import EMA
from mvlm.config.schema import Objectives, Optim
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.randomness import seed_dropout
from mvlm.runtime import dist, replicas
from mvlm.training.audit import Audit
from mvlm.training.global_batches import with_global_batches
from mvlm.training.gradient_norms import GradientParts
from mvlm.training.optim import set_rates
from mvlm.training.tensor_parallel import Mpu, clip_grad_norm
from mvlm.training.zero.checksums import checksums_of
from mvlm.training.zero.disk import disk_state_of, without_disk
from mvlm.training.zero.divide import kept_divided
from mvlm.training.zero.fill import low_precision
from mvlm.training.zero.frozen import Frozen
from mvlm.training.zero.loss_scale import LossScale
from mvlm.training.zero.offload import build_optimizer
from mvlm.training.zero.share_reduction import reduction_of, without_own
from mvlm.training.zero.shares import Read, gathered, own_read
from mvlm.training.zero.stages import state_of
from mvlm.training.zero.start import import_deepspeed, why_not_computed, without_inductor


class Engine:
    """A model, its optimiser and DeepSpeed's wrapping of both.

    Args:
        model: on the CPU, with its initial fp32 weights, equal on every rank, divided or split by layers; what
            requires no gradient is not trained.
        ds_config: as `zero.config.resolve` returns it.
        ema: decay of an average of the weights; 0 = none is kept.
        seed: of what is drawn on the device.
        checksums: take checksums of weights and moments after each update, and compare them before the next.
        audit: share of the micro-batches that another rank recomputes.
        frozen_until: as `optim.parameter_groups` takes it.

    Attributes:
        ds_config: as it was given.
        updates: made by the optimiser, not counting steps that DeepSpeed skipped.
        overflowed: fp16's loss scaler skipped the last step's update.
        grad_norm: the global gradient's norm before clipping, at the last step; infinite if DeepSpeed found it not
            finite.
        corrupted: 1.0 on the device if weights or moments had changed in memory before the last update, else 0.0;
            None without checksums.
        audit: recomputes micro-batches of the rank before this one; None = nothing is recomputed.
        disk: holds what `own_parts` gives; None = it is not on a disk.

    Raises:
        UserError: the device cannot compute in the precision asked for, or something needed to offload is missing.
    """

    def __init__(
        self,
        model: Encoders,
        optim: Optim,
        objectives: Objectives,
        ds_config: dict[str, Any],
        ema: float = 0.0,
        seed: int = 0,
        checksums: bool = False,
        audit: float = 0.0,
        frozen_until: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        deepspeed = import_deepspeed()
        self.objectives, self.ds_config, self._ema, self._seed = objectives, ds_config, ema, seed
        self.device = dist.device()
        self.stage: int = ds_config["zero_optimization"]["stage"]
        low = low_precision(ds_config)
        if low and (why := why_not_computed(low)):
            raise UserError(f"The DeepSpeed JSON {why}: delete the section.")
        self._plain = self.stage == 0 and not low  # DeepSpeed keeps the optimiser as it is
        self._clip = optim.clip or float("inf")
        if self._plain:  # clipped in `_accumulate`, which gets the norm
            ds_config = ds_config | {"gradient_clipping": 0.0}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._frozen = Frozen([p for p in model.parameters() if not p.requires_grad], bool(low), self.stage == 3)
        optimizer, ds_config = build_optimizer(model, optim, ds_config, self.device, frozen_until)
        matrices = frozenset(id(p) for g in optimizer.param_groups if g.get("muon") for p in g["params"])
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # in bf16 at stage 0, deepspeed.initialize makes an update without gradients
        self.disk = disk_state_of(ds_config)
        divided = kept_divided() if self.stage == 3 else nullcontext()
        on_disk = self.disk.holding_optimizer() if self.disk else nullcontext()
        mpu, config = Mpu() if replicas.size() > 1 else None, without_disk(without_own(ds_config))
        with without_inductor(), divided, on_disk:
            self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=mpu)
        self.model: Encoders = self.engine.module
        self._state = state_of(self.engine.optimizer, self.stage, self._trained, self.has_ema, matrices)
        self._state.bind_matrices(self._trained)
        slices = list(self._state.slices(self._trained))
        named = [(self._names[id(parameter)], parameter) for parameter in self._trained]
        self._reduction = reduction_of(self.engine, named, self.ds_config, slices)
        second = getattr(self.engine.optimizer, "backup_optimizer", None)  # at stage 3, if part is offloaded
        self._gradients = GradientParts([optimizer, *([second] if second else [])], slices, self._names)
        if self.disk:
            self.disk.follow(self.engine.optimizer)
        self._loss_scale = LossScale(self.engine.optimizer.loss_scaler) if low == "fp16" else None
        self.updates, self.overflowed = 0, False
        self.grad_norm: Tensor | float | None = None
        self._checksums = checksums_of(self.model, self._state, ds_config) if checksums else None
        if self.has_ema or self.disk or (self.stage == 0 and not self._plain):
            self.prepare_state(0)  # in bf16 at stage 0, the update without gradients has been counted
        self.corrupted: Tensor | None = None
        self.audit = Audit(audit, self.model, named, objectives, seed) if audit else None

    def is_intact(self) -> bool:
        """Whether memory holds what the last update left, on every rank; all must call. Without checksums, True."""
        return self._checksums is None or dist.all_agree(not self._checksums.changed())

    @property
    def has_ema(self) -> bool:
        """Whether an average of the weights is kept."""
        return self._ema > 0

    def step(
        self,
        micro_batches: Sequence[Batch | LabelledBatch],
        lr_factor: float,
        step: int,
        metrics: MetricAccumulator | None = None,
    ) -> Losses:
        """One update from this rank's micro-batches of a global batch, which all ranks of its replica have.

        Args:
            metrics: gets what the model reports beside its losses, and the norms of its parts' gradients.

        Returns:
            The mean over this rank's micro-batches of each loss, on the device; their mean over ranks is the
            global batch's loss.

        Raises:
            UserError: fp16's gradients overflow at the smallest loss scale.
        """
        micro_batches = [batch.to(self.device) for batch in micro_batches]
        if not self.model.training:  # setting every module's mode in every step would take a millisecond or more
            self.engine.train()
        set_rates(self.engine.optimizer.param_groups, lr_factor, self.updates)
        cannot_halve = self._loss_scale is not None and self._loss_scale.is_smallest
        self._gradients.wanted = metrics is not None
        parts = self._accumulate(micro_batches, step, metrics)
        if self._loss_scale:
            self._loss_scale.finish_update()
        if self._reduction and self._reduction.grad_norm is not None:
            self.grad_norm = self._reduction.grad_norm
        elif not self._plain:
            self.grad_norm = self.engine.get_global_grad_norm()
        applied = self.engine.was_step_applied()
        if metrics and applied and self.grad_norm is not None:
            norms = self._gradients.norms(self.grad_norm, self.device)
            metrics.values |= {f"grad_norms/{part}": norm for part, norm in norms.items()}
        self.updates += applied
        if applied and self.has_ema:
            self._state.update_ema(self._ema)
        if self._checksums:
            self._checksums.keep()
        self.overflowed = self._loss_scale is not None and not applied
        if self._loss_scale and self.overflowed and cannot_halve:
            raise UserError(
                f"fp16's gradients overflow at the smallest loss scale, {self._loss_scale.now:g}, in step {step + 1}: "
                "use bf16 or fp32 in the DeepSpeed JSON, or a smaller optim.lr."
            )
        if len(parts) == 1:  # copied even so, since the next replay of a captured step overwrites them
            return dict(zip(parts[0], torch.stack(list(parts[0].values())).unbind(), strict=True))
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _accumulate(
        self, micro_batches: Sequence[Batch | LabelledBatch], step: int, metrics: MetricAccumulator | None
    ) -> list[Losses]:
        """The losses of each micro-batch, whose gradients are accumulated; with the last one the update is made."""
        starts = [(m * replicas.world() + replicas.rank()) * len(batch) for m, batch in enumerate(micro_batches)]
        parts: list[Losses] = []

        def seed_part(part: int) -> None:
            seed_dropout(self._seed, step, starts[part])

        scale = self.objectives.itm * (self._loss_scale.now if self._loss_scale else 1.0)
        batches = with_global_batches(self.model, micro_batches, seed_part, scale)
        for number, (batch, global_batch) in enumerate(batches):
            seed_part(number)
            passes = partial(self._passes, batch, metrics)
            if self.audit and self.audit.is_due(step, number):
                losses = self.audit.watch(passes, batch, global_batch, step, starts[number])
            else:
                losses = passes(global_batch)
            if self._reduction:
                self._reduction.finish()
            if self.engine.is_gradient_accumulation_boundary():
                if self._checksums:
                    self.corrupted = self._checksums.changed()
                if self._plain:
                    self.grad_norm = clip_grad_norm(self._trained, self._clip)
            self.engine.step()
            parts.append({name: loss.detach() for name, loss in losses.items()})
        return parts

    def _passes(
        self,
        batch: Batch | LabelledBatch,
        metrics: MetricAccumulator | None,
        global_batch: GlobalBatch | None,
        before_backward: Callable[[Losses, Tensor], None] = lambda *_: None,
    ) -> Losses:
        losses: Losses = self.engine(batch, global_batch, metrics)
        total = self.objectives.total(losses)
        before_backward(losses, total)
        self.engine.backward(total)
        return losses

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Every parameter by name, in one order on every rank."""
        return ((self._names[id(parameter)], parameter) for parameter in self.model.parameters())

    def own_parts(self) -> Iterator[tuple[str, dict[str, TensorPart]]]:
        """Of each parameter that this rank has a part of: its name, and that part of its fp32 master weight, average
        and moments.

        Every element belongs to one rank. They are views; nothing is exchanged.
        """
        for parameter, parts in chain(self._state.parts(self._trained, self.updates > 0), self._frozen.parts()):
            yield self._names[id(parameter)], parts

    def write(self, parameter: torch.nn.Parameter, whole: dict[str, Tensor]) -> None:
        """Set the whole tensors that `own_parts` gives parts of, and the low-precision copy.

        All ranks must call, with equal tensors; if the parameter is split by layers, with their own parts.
        """
        self._forget_checksums()
        whole = {key: tensor.to(self.device) for key, tensor in whole.items()}
        (self._state if parameter.requires_grad else self._frozen).write(parameter, whole)

    def fill(self, parameter: torch.nn.Parameter, keys: Sequence[str], read: Read) -> None:
        """As `write`, but each rank reads its share of the tensors; all must call, and `finish_filling` in the end.

        Args:
            keys: those that `own_parts` gives for the parameter.
            read: given a key, gives elements of that tensor, flattened, from one position to before another.
        """
        self._forget_checksums()
        read = own_read(parameter, read)
        if parameter.requires_grad:
            self._state.fill(parameter, keys, read)
            if self.disk:
                self.disk.release()
        else:
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            self._frozen.write(parameter, gathered(keys, read, shape))

    def finish_filling(self) -> None:
        """Have the model compute with what its parameters were filled with; all ranks must call."""
        self._state.finish()
        if self._checksums:
            self._checksums.keep()

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """The model computes with its averaged weights meanwhile, if it has them; all ranks must enter.

        After an error the weights are not swapped back: the ranks can no longer exchange anything, and the run ends.
        """
        self._swap_ema()
        yield
        self._swap_ema()

    def _swap_ema(self) -> None:
        if not self.has_ema:
            return
        for parameter in self._trained:
            whole = {key: tensor.clone() for key, tensor in self._state.read(parameter).items()}
            self._state.write(parameter, {"weight": whole[EMA], EMA: whole["weight"]})

    def prepare_state(self, updates: int) -> None:
        """Zero the optimiser's moments and set the count of updates it is resumed from, so that `write` can fill them.

        May be called before the first update, when torch and DeepSpeed create this state, or at any time after.
        """
        self._forget_checksums()
        with self.disk.holding() if self.disk else nullcontext():
            if self.disk:
                self._state.forget_moments()  # new files are all zeros, without a byte being written
            self._state.prepare(updates)
        self.updates = updates

    def _forget_checksums(self) -> None:
        if self._checksums:
            self._checksums.forget()

    def loss_scale_state(self) -> dict[str, float] | None:
        """All of fp16's dynamic loss scale that the next steps depend on; None without a dynamic loss scale."""
        return self._loss_scale.state() if self._loss_scale else None

    def set_loss_scale_state(self, state: dict[str, float]) -> None:
        """Resume from what `loss_scale_state` gave; does nothing without a dynamic loss scale."""
        if self._loss_scale:
            self._loss_scale.set_state(state)
