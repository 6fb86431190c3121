"""The decay itself: shrinks picked structures of live parameters and watches how they resist.

A :class:`Decayer` owns the state of every structure and does the work of one optimizer step in the
order that the method prescribes: statistics of the step just taken, releases, selection, one step
of age, scaling, zeroing. It knows neither the model nor who selects; the pruner and the hosts
drive it.

A step in which nobody is picked, released or finished asks nothing of the device: vectors have one
place for each structure, whether it decays or not, the host knows all ages by itself, and whether
everything was finite it reads a step later.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from decayprune.method import flag, lifecycle, motion
from decayprune.method import rectify as rules
from decayprune.method.decay import Curve
from decayprune.method.lifecycle import DECAYING, LifecycleState
from decayprune.method.live_weights import LiveWeights
from decayprune.method.members import Members
from decayprune.method.moves import Moves
from decayprune.method.pinning import Pinning
from decayprune.method.reading import Reading
from decayprune.method.rectify import Rectify, Verdict
from decayprune.method.replays import Replays
from decayprune.method.selector import Selector
from decayprune.method.waiting import Waiting
from decayprune.structures.structure_map import StructureMap

logger = logging.getLogger("decayprune")


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
        weights: The slices that it shrinks.
        pinning: What it zeroes after every step.
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
        self._way, self._all = motion.Way(curve, hold), slices == "all"
        self.waiting = Waiting()
        self.weights = LiveWeights(structures, parameters, optimizers)
        self.weights.unpinned |= pin
        self.reading = Reading(self.weights, optimizers)
        self.pinning = Pinning(structures, self.weights, carriers=pin_carriers)
        self.load(LifecycleState.fresh(structures.num_structures, self.weights.device))

    def load(self, state: LifecycleState) -> None:
        """Continue from a saved state."""
        self.state = state
        self.waiting.forget()
        self.replays = Replays()
        self._forget()

    def _forget(self) -> None:
        """Drop everything that belongs to one membership of the decaying set."""
        self._current: Members | None = None
        self.pinning.forget()
        self._end()

    def _end(self) -> None:
        """Drop everything that belongs to one step."""
        self.reading.forget()
        # Who moves, norms of the carriers, and what they are scaled by, if that is known already.
        self._motion: tuple[Tensor, Tensor, Tensor | None] | None = None

    # ------------------------------------------------------------ around the optimizer step

    @torch.no_grad()
    def remember(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        first: bool = True,
        grad_scale: Tensor | float = 1.0,
    ) -> None:
        """Read what the optimizer step starts from: the gradients, and the weights they belong to.

        Args:
            optimizer: Who is about to step; None for all. Only its own parameters are read, for one
                of several may have stepped already, and another not have its gradients yet.
            first: None of them has stepped yet.
            grad_scale: What the gradients are multiplied with at this moment.
        """
        members = self._members()
        if self.rectify is None or not members.ids.numel():
            return
        self.reading.remember(members, self.state, optimizer, first=first, grad_scale=grad_scale)

    @torch.no_grad()
    def observe(
        self,
        grad_scale: Tensor | float = 1.0,
        stepped: Collection[torch.optim.Optimizer] = (),
    ) -> None:
        """Read the resistance of the decaying structures from the gradients as they are now.

        Args:
            grad_scale: What the gradients are multiplied with at this moment.
            stepped: Optimizers that have stepped already; of their parameters it was read before.
        """
        if not self._members().ids.numel():
            return
        self.reading.observe(self._members(), grad_scale, stepped)

    @torch.no_grad()
    def step(self, step: int, selector: Selector) -> list[Moves] | None:
        """Do what follows one optimizer step.

        Args:
            step: Number of the optimizer step just taken; the first is 1.
            selector: Who says which structures start to decay.

        Returns:
            What happened; None if the decay waits because a gradient or a weight of a decaying
            structure is not finite. Where that is known only later, :meth:`late` tells.
        """
        if self.rectify is not None and not self.reading:
            self.observe()
        earlier, moves = self.state, None
        try:
            if self._account(step):
                moves = self._decide(step, selector)
                if moves is not None:
                    moves += self._shrink(step)
                    self.pinning.after(step, lambda: self._members().pruned)
        except BaseException:
            # Scaling and zeroing can be repeated; a step that was taken by half could not.
            self.load(earlier)
            raise
        if moves == [] and self._current is not None:
            self._current.settled = True
        self._end()
        return moves

    def late(self) -> int:
        """How many of the steps before did not count after all. It is told once."""
        missed = int(not self.waiting.counted())
        if self._current is not None:
            missed += self.replays.missed(self.state, self._current)
            if missed:
                self._current.ages[0] -= missed
        return missed

    # ------------------------------------------------------------ a step that a device repeats

    def steady(self, step: int) -> bool:
        """Whether there is nothing to find out before a step, and nothing to decide at it."""
        return self._current is not None and self._current.settled and not self._due(step)

    @torch.no_grad()
    def record(self) -> None:
        """What a steady step does to tensors, written into the very ones that it reads."""
        members = self._members()
        if members.ids.numel():
            length, resistance, finite = self._measured()
            moving, shrunk = members.mask & finite, self.reading.shrunk
            state, factors = motion.account(
                self.state, moving, length, resistance, shrunk, self._way
            )
            lifecycle.write_(self.state, self._scaled(state, moving, length, factors))
        self.pinning.zero_()
        self._end()
        self.replays.keep(self.state, members, self.pinning.zeroed)

    @property
    def repeatable(self) -> bool:
        """Whether what was recorded last goes on from here: no other step was taken since."""
        return self.replays.fits(self.state, self._current, self.pinning.zeroed)

    def repeated(self, step: int) -> None:
        """What was recorded was repeated, as a step of this number."""
        members, zeroed = self._members(), self.pinning.zeroed
        self.replays.add(members)
        if self.pinning.looks(step):
            self.pinning.after(step, lambda: members.pruned)
            members.settled = self.pinning.zeroed is zeroed

    # ------------------------------------------------------------ the parts of a step, in order

    def _account(self, step: int) -> bool:
        """Statistics of the step just taken. False if something is not finite."""
        if not self._members().ids.numel():
            return True
        length, resistance, finite = self._measured()
        moving = self._members().mask
        if self.weights.device.type in flag.ASYNCHRONOUS and not self._due(step):
            self.waiting.tell_later(step, finite)
            moving = moving & finite
        elif not self.waiting.tell(step, bool(finite)):
            return False
        self.state, factors = motion.account(
            self.state, moving, length, resistance, self.reading.shrunk, self._way
        )
        self._motion = moving, length, factors
        return True

    def _measured(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Norms of the carriers and how they resisted, shape ``(S,)``, and if all are finite."""
        members, resistance = self._members(), self.reading.resistance(self.state)
        length = self.weights.length(members.carriers)
        return length, resistance, motion.all_finite(members.mask, length, resistance)

    def _scaled(
        self, state: LifecycleState, moving: Tensor, length: Tensor, factors: Tensor
    ) -> LifecycleState:
        members = self._members()
        return motion.shrink_(
            state,
            moving,
            length,
            factors,
            members.shrinking,
            self.weights.parameters,
            members.carriers if members.read else None,
        )

    def _due(self, step: int) -> bool:
        """Whether something may be released or finished at this step, by what the host knows."""
        age, span = self._members().ages
        return self._judges(step) or bool((age + 1 >= span).any())

    def _judges(self, step: int) -> bool:
        """Whether the verdict has somebody to judge."""
        if self.rectify is None or self._verdict is None or step >= self.last_release:
            return False
        age, span = self._members().ages
        now, last, final = age / span, (age - 1) / span, step == self.last_release - 1
        return bool(self._verdict.judges(now, last, final=final).any())

    def _decide(self, step: int, selector: Selector) -> list[Moves] | None:
        """Releases, and who starts. None if the step turns out not to count."""
        moves = self._release(step, selector)
        chosen = selector.select(self.state, step, self.weights.parameters, released=bool(moves))
        if chosen is None:
            return moves
        if not self.waiting.counted():
            return None
        if chosen.scores is not None:
            score = chosen.scores.to(self.state.score, non_blocking=True)
            self.state = replace(self.state, score=score)
        ended = chosen.cooldowns_ended
        if ended is not None and ended.numel():
            logger.info(
                "step %d: nothing else is left to pick; the cool-downs of %d structures end early",
                step,
                ended.numel(),
            )
        return moves + self._begin(step, chosen.ids.cpu().sort().values)

    def _release(self, step: int, selector: Selector) -> list[Moves]:
        if self.rectify is None or self._verdict is None or not self._judges(step):
            return []
        members, final = self._members(), step == self.last_release - 1
        (age, span), ids = members.ages, members.ids
        order, number = self._verdict.leaving(
            self.state.statistics.cpu().at(ids),
            age / span,
            (age - 1) / span,
            step=step,
            final=final,
        )
        leaving = ids[order][:number]
        if number is None:
            leaving = selector.releasable(self.state, step, leaving)
        if not leaving.numel():
            return []
        moves, there = self._moves("release", step, leaving), self._there(leaving)
        self.weights.give_back_(torch.zeros_like(members.pruned).index_fill(0, leaving, True))
        pause = max(1, round(self.rectify.cool_down * self.decay_steps))
        self.state = lifecycle.release(self.state, there, cool_until=step + pause)
        self._forget()
        return moves

    def _begin(self, step: int, ids: Tensor) -> list[Moves]:
        if not ids.numel():
            return []
        chosen = (self._members().phase == DECAYING).index_fill(0, ids, True)
        carriers, there = self.weights.carriers(chosen), self._there(ids)
        length = self.weights.length(carriers)
        self.weights.frozen.keep()
        self.state = lifecycle.begin(
            self.state, there, length=length[there], decay_steps=self.decay_steps
        )
        self._forget()
        self._current = Members.of(self.state, self.weights, whole=self._all, carriers=carriers)
        self._motion = self._current.mask, length, None
        return self._moves("decay", step, ids)

    def _shrink(self, step: int) -> list[Moves]:
        members = self._members()
        if not members.ids.numel():
            return []
        if self._motion is None:  # the membership has changed
            self._motion = members.mask, self.weights.length(members.carriers), None
        moving, length, factors = self._motion
        if factors is None:
            factors = self._way.factors(self.state, moving, length)
        self.state = self._scaled(self.state, moving, length, factors)
        members.ages[0] += 1
        age, span = members.ages
        gone = members.ids[(age >= span) | members.short]
        if not gone.numel():
            return []
        moves, there = self._moves("prune", step, gone), self._there(gone)
        self.weights.zero_(torch.zeros_like(members.pruned).index_fill(0, gone, True))
        # What a zeroed column crosses is shorter now.
        length = self.weights.length(members.carriers).to(self.state.length.dtype)
        self.state = replace(self.state, length=torch.where(moving, length, self.state.length))
        self.state = lifecycle.finish(self.state, there)
        self._forget()
        self.pinning.look(step + 1)
        return moves

    # ------------------------------------------------------------ helpers

    def _members(self) -> Members:
        if self._current is None:
            self._current = Members.of(self.state, self.weights, whole=self._all)
        return self._current

    def _there(self, ids: Tensor) -> Tensor:
        """Numbers of the host on the device, which nobody waits for."""
        return ids.to(self.weights.device, non_blocking=True)

    def _moves(
        self, kind: Literal["decay", "release", "prune"], step: int, ids: Tensor
    ) -> list[Moves]:
        figures = None
        if kind != "decay" and self.rectify is not None:
            sums = self.state.statistics.at(self._there(ids))
            figures = torch.stack([rules.c_rate(sums), rules.c_len(sums), sums.work], 1)
        return [Moves(step, kind, self.structures, ids, figures)]
