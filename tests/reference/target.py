"""A target met by trying: one structure more at a time, every allowed width by its definition.

Nothing of the library is used, and nothing is clever: lists, loops and whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Widths = list[int]


@dataclass
class SlowTarget:
    """As the library's Target, over plain numbers."""

    group_of: Sequence[int]
    sizes: Widths
    floor: Widths
    unit: Widths
    met: Callable[[Widths], bool]
    macs: Callable[[Widths], int]

    def without(self, kept: Widths, ids: Sequence[int]) -> Widths:
        return [k - sum(self.group_of[s] == g for s in ids) for g, k in enumerate(kept)]

    def allowed(self, group: int) -> set[int]:
        """Widths that a group may have: multiples of its unit from its floor on, or uncut."""
        size, unit = self.sizes[group], self.unit[group]
        return {w for w in range(self.floor[group], size) if w % unit == 0} | {size}

    def holds(self, kept: Widths) -> bool:
        """The target, at widths that all are multiples of their units, or uncut."""
        round_ = all(
            k % u == 0 or k == s for k, u, s in zip(kept, self.unit, self.sizes, strict=True)
        )
        return round_ and self.met(kept)

    def leave(self, order: Sequence[int], kept: Widths, number: int) -> list[int]:
        """Who leaves if the first so many are wanted."""
        gone: list[int] = []
        for group, now in enumerate(kept):
            mine = [s for s in order if self.group_of[s] == group]
            wanted = now - sum(self.group_of[s] == group for s in order[:number])
            # The narrowest allowed width that is wide enough, and no wider than the group is now;
            # for a group of a width that is not allowed, maybe the next one below.
            up = [w for w in self.allowed(group) if wanted <= w <= now]
            down = [w for w in self.allowed(group) if w <= wanted]
            width = min(up) if up else max(down, default=now)
            gone += mine[: now - width]
        return [s for s in order if s in gone]

    def free(self, order: Sequence[int], kept: Widths) -> list[int]:
        """Without those that the floors hold."""
        left, found = list(kept), []
        for s in order:
            group = self.group_of[s]
            if left[group] > self.floor[group]:
                left[group] -= 1
                found.append(s)
        return found

    def pool(self, order: Sequence[int], kept: Widths, cooling: Sequence[int]) -> list[int]:
        """Without those that cool down, as far as all others are enough."""
        for number in range(len(cooling) + 1):
            pool = [s for s in order if s not in cooling[number:]]
            free = self.free(pool, kept)
            if self.holds(self.without(kept, self.leave(free, kept, len(free)))):
                return pool
        return list(order)

    def shortest(
        self, order: Sequence[int], kept: Widths, cooling: Sequence[int] = ()
    ) -> list[int]:
        free = self.free(self.pool(order, kept, cooling), kept)
        for number in range(len(free) + 1):
            gone = self.leave(free, kept, number)
            if self.met(self.without(kept, gone)):
                return gone
        return self.leave(free, kept, len(free))

    def releasable(self, ids: Sequence[int], kept: Widths) -> list[int]:
        """Who comes back: group by group as many together as make an allowed width."""
        kept, back, waiting, full = list(kept), [], list(ids), set()
        for s in ids:
            group = self.group_of[s]
            if group in full:
                continue
            seen = ids[: ids.index(s) + 1]
            together = [m for m in seen if self.group_of[m] == group and m in waiting]
            unit, size = self.unit[group], self.sizes[group]
            widths = [w for w in range(kept[group] + 1, size + 1) if w % unit == 0 or w == size]
            if not widths or len(together) < widths[0] - kept[group]:
                continue
            wider = [widths[0] if g == group else k for g, k in enumerate(kept)]
            if self.met(wider):
                kept = wider
                back += together
                waiting = [m for m in waiting if m not in together]
            else:
                full.add(group)
        return back

    def needed(self, order: Sequence[int], kept: Widths, cooling: Sequence[int] = ()) -> list[int]:
        gone = self.shortest(order, kept, cooling)
        left = self.without(kept, gone)
        if not self.met(left):
            return gone
        back = self.releasable(gone[::-1], left)
        return [s for s in gone if s not in back]

    def fitting(self, order: Sequence[int], kept: Widths, cooling: Sequence[int] = ()) -> list[int]:
        order = self.pool(order, kept, cooling)
        found = [self.needed(order, kept)]
        for _ in range(4):  # so many are passed over, one after the other
            last = self.shortest(order, kept)[-1:]
            order = [s for s in order if s not in last]
            others = self.shortest(order, kept)
            if not last or not others or not self.met(self.without(kept, others)):
                break
            gone = self.needed(order, kept)
            if self.holds(self.without(kept, gone)):
                found.append(gone)
        return max(found, key=lambda gone: self.macs(self.without(kept, gone)))

    def leading(self, order: Sequence[int], kept: Widths, number: int) -> list[int]:
        free = self.free(order, kept)
        for wanted in range(len(free) + 1):
            gone = self.leave(free, kept, wanted)
            if len(gone) >= number:
                return gone
        return self.leave(free, kept, len(free))
