"""The whole method for one tiny model, written down literally: loops, Python numbers, float64.

Nothing of the library is used. Structures, carriers and costs are written by hand; one call of
:meth:`Literal.follow` after each optimizer step does what the method says, in its order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

A, B = 10, 8  # output channels of the two convolutions


def tiny() -> tuple[nn.Sequential, Tensor]:
    """conv - batch norm - relu - conv - relu - pool - linear, and inputs."""
    model = nn.Sequential(
        nn.Conv2d(3, A, 3),
        nn.BatchNorm2d(A),
        nn.ReLU(),
        nn.Conv2d(A, B, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(B, 4),
    ).double()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.normal_(std=0.3)
    return model, torch.randn(8, 3, 8, 8, dtype=torch.float64)


def macs(a: int, b: int) -> int:
    return 6 * 6 * 27 * a + 4 * 4 * 9 * a * b + 4 * b


def params(a: int, b: int) -> int:
    return 27 * a + a + 2 * a + 9 * a * b + b + 4 * b + 4


Place = tuple[str, int, int]  # parameter, dimension, index


def every(structure: int) -> list[Place]:
    """All slices of a structure; 0 .. A-1 are channels of the first convolution, then B."""
    if structure < A:
        own = [("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1)]
        return [(name, dim, structure) for name, dim in own]
    own = [("3.weight", 0), ("3.bias", 0), ("7.weight", 1)]
    return [(name, dim, structure - A) for name, dim in own]


def carriers(structure: int) -> list[Place]:
    """The norm's affine where a norm follows, rows and bias where none does."""
    names = ("1.weight", "1.bias") if structure < A else ("3.weight", "3.bias")
    return [place for place in every(structure) if place[0] in names and place[1] == 0]


def inner(places: list[Place], left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return sum(float((left[n].select(d, i) * right[n].select(d, i)).sum()) for n, d, i in places)


def norm(places: list[Place], tensors: dict[str, Tensor]) -> float:
    return math.sqrt(inner(places, tensors, tensors))


@dataclass
class Decay:
    """One structure on its way to zero."""

    start: float
    last: float
    age: int = 0
    p: list[float] = field(default_factory=list)
    given: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)

    @property
    def c_rate(self) -> float:
        if not any(self.p):
            return 0.0
        mean = sum(self.p) / len(self.p)
        return mean / math.sqrt(sum(p * p for p in self.p) / len(self.p))

    @property
    def c_len(self) -> float:
        return sum(self.given) / sum(self.taken) if sum(self.taken) else 0.0

    @property
    def work(self) -> float:
        return sum(p * t for p, t in zip(self.p, self.taken, strict=True))


@dataclass
class Settings:
    """What the literal twin is told; names as in the library."""

    target: float = 0.5
    start: int = 0
    stop: int = 30
    rounds: int = 3
    decay_steps: int = 6
    rule: str | None = "tournament"
    t_rate: float = 0.5
    t_len: float = 0.25
    warm_up: float = 0.25
    extra: float = 0.5
    judge_at: float = 0.5
    cool_down: float = 1.0
    cosine: bool = False
    all_slices: bool = False
    scope: str = "width"


class Literal:
    """Follows the optimizer steps of one :func:`tiny` model."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings
    ) -> None:
        self.model, self.optimizer, self.set = model, optimizer, settings
        self.decaying: dict[int, Decay] = {}
        self.pruned: set[int] = set()
        self.cool_until: dict[int, int] = {}
        self.score = [0.0] * (A + B)
        self.step = 0
        self.events: list[tuple[int, str, int, float | None, float | None, float | None]] = []
        self.before: dict[str, Tensor] = {}

    # -- small words

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.model.named_parameters()}

    def shrinking(self, s: int) -> list[Place]:
        return every(s) if self.set.all_slices else carriers(s)

    def phi(self, p: float) -> float:
        if p >= 1:
            return 0.0
        return (1 + math.cos(math.pi * p)) / 2 if self.set.cosine else 1 - p

    def target_length(self, d: Decay, age: int) -> float:
        return d.start * self.phi(age / self.set.decay_steps)

    def begins(self, i: int) -> int:
        return max(1, self.set.start + i * (self.set.stop - self.set.start) // self.set.rounds)

    def limit(self, step: int) -> float | None:
        begun = sum(self.begins(i) <= step for i in range(self.set.rounds))
        return 1 - (1 - self.set.target) * begun / self.set.rounds if begun else None

    def meets(self, committed: set[int], step: int | None = None) -> bool:
        a = A - sum(s < A for s in committed)
        b = B - sum(s >= A for s in committed)
        limit = self.limit(self.step if step is None else step)
        return limit is None or macs(a, b) / macs(A, B) <= limit

    @property
    def committed(self) -> set[int]:
        return self.pruned | set(self.decaying)

    def cooling(self, s: int) -> bool:
        return s not in self.committed and self.cool_until.get(s, 0) >= self.step

    def weight_decay_rate(self) -> float:
        group = self.optimizer.param_groups[0]
        rate = group["lr"] * group["weight_decay"]
        if isinstance(self.optimizer, torch.optim.AdamW):
            return rate
        if isinstance(self.optimizer, torch.optim.Adam):
            return 0.0
        return rate / (1 - group["momentum"])

    def note(self, kind: str, s: int, d: Decay | None = None) -> None:
        figures = (None,) * 3 if d is None else (d.c_rate, d.c_len, d.work)
        self.events.append((self.step, kind, s, *figures))

    # -- one step

    def remember(self) -> None:
        """Right before the optimizer steps."""
        self.before = {name: w.clone() for name, w in self.weights.items()}

    def follow(self) -> None:
        """Right after the optimizer stepped: the whole method, in its order."""
        self.step += 1
        self.statistics()
        released = self.release()
        self.select(released)
        for s in sorted(self.decaying):
            self.decaying[s].age += 1
        self.scale()
        self.zero()

    def statistics(self) -> None:
        grads = {name: p.grad for name, p in self.model.named_parameters()}
        for s, d in self.decaying.items():
            length = norm(carriers(s), self.weights)
            d.p.append(-inner(carriers(s), grads, self.before) / norm(carriers(s), self.before))
            back = self.weight_decay_rate() * norm(carriers(s), self.before)
            d.given.append(length - d.last + back)
            d.taken.append(d.last - self.target_length(d, d.age + 1))

    def release(self) -> bool:
        if self.set.rule is None or self.step >= self.set.stop:
            return False
        n = self.set.decay_steps
        leaving = []
        if self.set.rule == "thresholds":
            leaving = [
                s
                for s, d in sorted(self.decaying.items())
                if d.p
                and d.age / n >= self.set.warm_up
                and d.c_rate > self.set.t_rate
                and d.c_len > self.set.t_len
            ]
        else:
            final = self.step == self.set.stop - 1
            judged = [
                s
                for s, d in sorted(self.decaying.items())
                if d.p
                and (d.age - 1) / n < self.set.judge_at
                and (d.age / n >= self.set.judge_at or final)
            ]
            for s in sorted(judged, key=lambda s: -self.decaying[s].work):
                if self.meets(self.committed - {*leaving, s}, self.step - 1):
                    leaving.append(s)
        for s in leaving:
            self.note("release", s, self.decaying.pop(s))
            self.cool_until[s] = self.step + max(1, round(self.set.cool_down * n))
        return bool(leaving)

    def select(self, released: bool) -> None:
        new_round = self.step in [self.begins(i) for i in range(self.set.rounds)]
        if not (new_round or released):
            return
        free = [s for s in range(A + B) if s not in self.committed and not self.cooling(s)]
        if new_round:
            for group in (range(A), range(A, A + B)):
                self.refresh([s for s in free if s in group])
        judged = self.set.rule == "tournament" and self.step < self.set.stop - 1
        n = self.set.decay_steps
        in_time = any(self.set.judge_at <= k / n for k in range(n))
        judged &= in_time or self.set.stop - 1 < self.step + n
        extra = self.set.extra if new_round and judged else 0.0
        chosen = self.shortest(free, extra)
        if chosen is None:
            asleep = [s for s in range(A + B) if self.cooling(s)]
            asleep.sort(key=lambda s: self.cool_until[s])
            while chosen is None and asleep:
                free.append(asleep.pop(0))
                chosen = self.shortest(free, 0.0)
        for s in sorted(chosen or []):
            self.note("decay", s)
            length = norm(carriers(s), self.weights)
            self.decaying[s] = Decay(length, length)

    def refresh(self, members: list[int]) -> None:
        """New scores whose mean is that of the old ones of the same structures."""
        before = sum(self.score[s] for s in members)
        for s in members:
            self.score[s] = norm(every(s), self.weights)
        now = sum(self.score[s] for s in members)
        for s in members:
            self.score[s] *= before / now if before else 1.0

    def rank(self, s: int) -> float:
        """What has the lowest goes first."""
        group = range(A) if s < A else range(A, A + B)
        if self.set.scope == "global":
            return self.score[s] / (sum(self.score[m] for m in group) / len(group))
        above = [m for m in group if (self.score[m], m) > (self.score[s], s)]
        stays = (len([m for m in above if m not in self.committed]) + 0.5) / len(group)
        return -stays * len(group) ** (1 / 3)

    def shortest(self, free: list[int], extra: float) -> list[int] | None:
        kept = [
            A - sum(s < A for s in self.committed),
            B - sum(s >= A for s in self.committed),
        ]
        floor = [max(1, math.ceil(0.1 * A)), max(1, math.ceil(0.1 * B))]
        order = []
        for s in sorted(free, key=self.rank):
            if kept[s >= A] > floor[s >= A]:
                kept[s >= A] -= 1
                order.append(s)
        for n in range(len(order) + 1):
            if self.meets(self.committed | set(order[:n])):
                return order[: math.ceil(n * (1 + extra))] if extra else self.needed(order[:n])
        return None

    def needed(self, order: list[int]) -> list[int]:
        """Without those, from the last on, that the budget can spare."""
        chosen = list(order)
        for s in reversed(order):
            if self.meets(self.committed | set(chosen) - {s}):
                chosen.remove(s)
        return chosen

    def scale(self) -> None:
        factors = {
            s: self.target_length(d, d.age) / norm(carriers(s), self.weights)
            for s, d in self.decaying.items()
        }
        for s, factor in factors.items():
            for name, dim, index in self.shrinking(s):
                self.weights[name].select(dim, index).mul_(factor)
        for s, d in self.decaying.items():
            d.last = norm(carriers(s), self.weights)

    def zero(self) -> None:
        parameters = dict(self.model.named_parameters())
        for s in [s for s in sorted(self.decaying) if self.over(s)]:
            self.note("prune", s, self.decaying.pop(s))
            self.pruned.add(s)
            for name, dim, index in every(s):
                parameter = parameters[name]
                tensors = [parameter.data, *self.optimizer.state[parameter].values()]
                for tensor in tensors:
                    if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                        tensor.select(dim, index).zero_()
        for s, d in self.decaying.items():  # a column that was zeroed may cross their rows
            d.last = norm(carriers(s), self.weights)

    def over(self, s: int) -> bool:
        return self.decaying[s].age >= self.set.decay_steps
