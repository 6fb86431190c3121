"""The decay itself: shrinks picked structures of live parameters and watches how they resist.

A :class:`Decayer` owns the state of every structure and does the work of one optimizer step in the
order that the method prescribes: statistics of the step just taken, releases, selection, one step
of age, scaling, zeroing. It knows neither the model nor who selects; the pruner and the hosts
drive it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from decayprune.method import lifecycle
from decayprune.method import rectify as rules
from decayprune.method.decay import Curve, scale_factors, step_factors, target_length
from decayprune.method.lifecycle import Event, LifecycleState
from decayprune.method.live_weights import LiveWeights
from decayprune.method.rectify import Rectify, Verdict
from decayprune.method.selector import Selector
from decayprune.structures import edits
from decayprune.structures.structure_map import StructureMap

logger = logging.getLogger("decayprune")

_LOOK_EVERY = 64  # steps from one look at the pruned structures to the next


class _Members(NamedTuple):
    """The structures that decay now."""

    ids: Tensor
    carriers: edits.Pick
    """Their norm is held to the schedule."""
    shrinking: edits.Pick
    """They are scaled: the carriers, or all slices."""
    read: bool
    """Scaled lengths are read, not computed: a carrier may be a row of one and a column of another,
    and take both their factors; in half precision rounding moves them by more than training."""


@dataclass
class _Step:
    """What is known of the step that is being taken, of one membership of the decaying set."""

    before: edits.Values | None = None
    """Carriers before the optimizer's step: the weights that the gradients belong to."""
    resistance: Tensor | None = None
    now: Tensor | None = None
    """Norms of the carriers, if they were read since the optimizer's step."""


class Decayer:
    """Decays structures of live parameters.

    Args:
        structures: The structures.
        parameters: Every parameter that the map names.
        optimizers: Who trains them; their state of pruned slices is zeroed.
        curve: Norm over the decay.
        decay_steps: ``N``.
        slices: ``"carriers"``: only slices whose scaling scales the function shrink (the rest is
            zeroed at the end); ``"all"``: every slice shrinks, by the factor of its carriers.
        rectify: When to release; None never releases and needs no gradients.
        verdict: Says who is released; None: the rule of ``rectify``.
        last_release: Step before which structures may be released.
        hold: Hold norms to the schedule; False multiplies by its step ratio only.
        pin: Zero every pruned structure again after each step, whether training may revive it or
            not.
        pin_carriers: Zero the carriers of every pruned structure again after each step. For maps
            without the consumers' columns: whose gradient would revive a structure, and whose
            carriers at zero leave no gradient for the rest of it.

    Attributes:
        state: Where every structure stands.
        last_release: As above; may be set while training goes on.
    """

    def __init__(
        self,
        structures: StructureMap,
        parameters: Mapping[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        curve: Curve,
        decay_steps: int,
        slices: Literal["carriers", "all"] = "carriers",
        rectify: Rectify | None = None,
        verdict: Verdict | None = None,
        last_release: int = 0,
        hold: bool = True,
        pin: bool = False,
        pin_carriers: bool = False,
    ) -> None:
        self.structures, self.rectify = structures, rectify
        self._verdict = verdict or (None if rectify is None else rectify.verdict)
        self.decay_steps, self.last_release = decay_steps, last_release
        self._curve, self._all, self._hold = curve, slices == "all", hold
        self._weights = LiveWeights(structures, parameters, optimizers)
        self._weights.unpinned |= pin
        self._pin_carriers = pin_carriers
        self._waiting, self._look_again = False, 0
        self.load(LifecycleState.fresh(structures.num_structures, self._weights.device))

    def load(self, state: LifecycleState) -> None:
        """Continue from a saved state."""
        self.state = state
        self._forget()

    def _forget(self) -> None:
        """Drop everything that belongs to one membership of the decaying set."""
        self._current: _Members | None = None
        self._pinned: edits.Pick | None = None  # carriers of the pruned structures
        self._step = _Step()

    # ------------------------------------------------------------ around the optimizer step

    @torch.no_grad()
    def remember(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Note the weights that the optimizer step starts from (the gradient belongs to them).

        Args:
            optimizer: Who is about to step; None for all. Only its own weights are noted anew, for
                one of several may have stepped already.
        """
        pick = self._members().carriers
        if self.rectify is not None and pick.size:
            self._step.before = self._weights.read_anew(pick, self._step.before, optimizer)

    @torch.no_grad()
    def observe(self, grad_scale: float = 1.0) -> None:
        """Read the resistance of the decaying structures from the gradients as they are now.

        Args:
            grad_scale: What the gradients are multiplied with at this moment.
        """
        pick = self._members().carriers
        if not pick.size:
            return
        before = self._step.before or self._weights.read(pick)
        length = edits.dot(pick, before, before).sqrt()
        along = edits.dot(pick, before, self._weights.gradients(pick)) / grad_scale
        self._step.resistance = torch.where(length > 0, -along / length.clamp(min=1e-38), 0.0)

    @torch.no_grad()
    def step(self, step: int, selector: Selector) -> list[Event] | None:
        """Do what follows one optimizer step.

        Args:
            step: Number of the optimizer step just taken; the first is 1.
            selector: Who says which structures start to decay.

        Returns:
            What happened; None if the decay waits because a gradient or a weight of a decaying
            structure is not finite.
        """
        if self.rectify is not None and self._step.resistance is None:
            self.observe()
        earlier, events = self.state, None
        try:
            if self._account(step):
                events = self._release(step, selector)
                events += self._begin(step, selector, released=bool(events))
                events += self._shrink(step)
                self._pin(step)
        except BaseException:
            # Scaling and zeroing can be repeated; a step that was taken by half could not.
            self.load(earlier)
            raise
        self._step = _Step()
        return events

    # ------------------------------------------------------------ the parts of a step, in order

    def _account(self, step: int) -> bool:
        """Statistics of the step just taken. False if something is not finite."""
        ids, carriers, *_ = self._members()
        if not ids.numel():
            return True
        length, resistance = self._weights.length(carriers), self._step.resistance
        if not self._go_on(step, length if resistance is None else length + resistance):
            return False
        self._step.now = length
        if resistance is None:
            return True
        before = self.state.length[ids]
        taken = before - length * self._factors(ids, length, self.state.age[ids] + 1)
        given = length - before
        if self._step.before is not None:
            given = given + self._weights.shrinkage(carriers, self._step.before)
        statistics = rules.observe(
            self.state.statistics, ids, resistance=resistance, given=given, taken=taken
        )
        self.state = replace(self.state, statistics=statistics)
        return True

    def _go_on(self, step: int, values: Tensor) -> bool:
        """Whether all is finite; if not, the decay waits, and says so once for a stretch."""
        waits = not bool(values.isfinite().all())
        if waits and not self._waiting:
            logger.warning(
                "step %d: a gradient or weight of a decaying structure is not finite; the decay "
                "waits until all are",
                step,
            )
        elif self._waiting and not waits:
            logger.warning("step %d: gradients and weights are finite; the decay goes on", step)
        self._waiting = waits
        return not waits

    def _release(self, step: int, selector: Selector) -> list[Event]:
        ids = self._members().ids
        if self.rectify is None or self._verdict is None:
            return []
        if step >= self.last_release or not ids.numel():
            return []
        age, span = self.state.age[ids], self.state.span[ids]
        final = step == self.last_release - 1
        order, number = self._verdict.leaving(
            self.state.statistics.at(ids), age / span, (age - 1) / span, step=step, final=final
        )
        leaving = ids[order][:number]
        if number is None:
            leaving = selector.releasable(self.state, step, leaving)
        if not leaving.numel():
            return []
        events = self._events("release", step, leaving)
        pause = max(1, round(self.rectify.cool_down * self.decay_steps))
        self.state = lifecycle.release(self.state, leaving, cool_until=step + pause)
        self._forget()
        return events

    def _begin(self, step: int, selector: Selector, *, released: bool) -> list[Event]:
        chosen = selector.select(self.state, step, self._weights.parameters, released=released)
        if chosen is None:
            return []
        if chosen.scores is not None:
            score = chosen.scores.to(self.state.score)
            self.state = replace(self.state, score=score)
        ended = chosen.cooldowns_ended
        if ended is not None and ended.numel():
            logger.info(
                "step %d: nothing else is left to pick; the cool-downs of %d structures end early",
                step,
                ended.numel(),
            )
        ids = chosen.ids.sort().values
        if not ids.numel():
            return []
        length = self._weights.length(self._weights.carriers(ids))
        self.state = lifecycle.begin(self.state, ids, length=length, decay_steps=self.decay_steps)
        self._forget()
        return self._events("decay", step, ids)

    def _shrink(self, step: int) -> list[Event]:
        ids, carriers, shrinking, read = self._members()
        if not ids.numel():
            return []
        self.state = lifecycle.tick(self.state)
        now = self._step.now
        length = self._weights.length(carriers) if now is None else now
        factors = self._factors(ids, length, self.state.age[ids])
        edits.scale_(shrinking, self._weights.parameters, factors)
        after = self._weights.length(carriers) if read else length * factors
        lengths = self.state.length.index_copy(0, ids, after.to(self.state.length.dtype))
        self.state = replace(self.state, length=lengths)

        # A structure that is too short for its dtype has nothing left to decay.
        over = (self.state.age[ids] >= self.state.span[ids]) | (
            self.state.start_length[ids] < torch.finfo(torch.float32).tiny
        )
        if not bool(over.any()):
            return []
        gone = ids[over]
        events = self._events("prune", step, gone)
        self._weights.zero_(gone)
        self.state = lifecycle.finish(self.state, gone)
        self._forget()
        self._look_again = step + 1
        return events

    def _pin(self, step: int) -> None:
        """Zero again what training may revive: all-zero slices that are no fixed point."""
        if step == self._look_again:
            self._note_revived(step)
        if self._pin_carriers:
            if self._pinned is None:
                pruned = self.state.pruned
                self._pinned = self._weights.carriers(pruned.nonzero().flatten())
            edits.zero_(self._pinned, self._weights.parameters)
        revived = (self.state.pruned & self._weights.unpinned).nonzero().flatten()
        if revived.numel():
            self._weights.zero_(revived)

    def _note_revived(self, step: int) -> None:
        """Find pruned structures that are zero no longer, and zero them from now on."""
        self._look_again = step + _LOOK_EVERY
        pruned = self.state.pruned & ~self._weights.unpinned
        ids = pruned.nonzero().flatten()
        if self._pin_carriers or not ids.numel():
            return
        revived = ids[self._weights.length(self._weights.every(ids)) > 0]
        if revived.numel():
            self._weights.unpinned[revived] = True
            logger.warning(
                "step %d: %d pruned structures are zero no longer (the first: channel %d of %s). "
                "Something writes to them after they were zeroed: noise on the weights, an "
                "optimizer whose codes cannot hold a zero, weights that were copied in. They are "
                "zeroed after every step from now on",
                step,
                revived.numel(),
                int(self.structures.index[revived[0]]),
                self.structures.layer_of(int(revived[0])),
            )

    # ------------------------------------------------------------ helpers

    def _members(self) -> _Members:
        if self._current is None:
            ids = self.state.decaying
            carriers = self._weights.carriers(ids)
            shrinking = self._weights.every(ids) if self._all else carriers
            cut_twice = len(set(shrinking.names)) < len(shrinking.names)
            read = (cut_twice and bool(carriers.blocks)) or self._weights.half
            self._current = _Members(ids, carriers, shrinking, read)
        return self._current

    def _factors(self, ids: Tensor, length: Tensor, age: Tensor) -> Tensor:
        """What takes decaying structures from their length now to where they are at that age."""
        span = self.state.span[ids]
        if not self._hold:
            return step_factors(age, span, self._curve).to(length.dtype)
        target = target_length(self.state.start_length[ids], age, span, self._curve)
        return scale_factors(length, target)

    def _events(
        self, kind: Literal["decay", "release", "prune"], step: int, ids: Tensor
    ) -> list[Event]:
        sums = self.state.statistics.at(ids)
        watched = kind != "decay" and self.rectify is not None
        figures = torch.stack([rules.c_rate(sums), rules.c_len(sums), sums.work], 1).tolist()
        return [
            Event(
                step,
                kind,
                structure,
                self.structures.layer_of(structure),
                int(self.structures.index[structure]),
                *(row if watched else (None, None, None)),
            )
            for structure, row in zip(ids.tolist(), figures, strict=True)
        ]
