"""What the ladder tries, from cheap to dear: the rungs that a scheme has."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.recovery import method_of
from exporter.recovery.base import Candidate, Recovered, Workbench
from exporter.schemes import Method, Scheme

AUTO = "auto"
_METHODS_OF: dict[Method, tuple[str, ...]] = {
    Method.STATIC: ("equalize", "smooth", "bias", "rounding"),
    Method.DYNAMIC: ("equalize", "smooth", "bias", "rounding"),
    Method.WEIGHT_ONLY: ("bias", "rounding"),
    Method.FLOAT: (),
}
"""In the order of their cost. Nothing is equalised for weights stored in blocks: each block has its own scale."""


def methods_of(scheme: Scheme) -> tuple[str, ...]:
    """Return the names of the recovery methods that `scheme` has a use for, cheap ones first."""
    return _METHODS_OF[scheme.method]


@dataclass(frozen=True, slots=True)
class Step:
    """One rung that a recovery method makes of the candidate that the last good rung left."""

    name: str

    def apply(self, candidate: Candidate, bench: Workbench) -> Recovered:
        """Return what the method called `name` makes of `candidate`; imports the method when it is first needed."""
        return method_of(self.name)(candidate, bench)


def steps_of(names: tuple[str, ...]) -> tuple[Step, ...]:
    """Return the steps of the recovery methods called `names`."""
    return tuple(Step(name) for name in names)
