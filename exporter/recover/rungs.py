"""What the ladder tries, from cheap to dear: the rungs that a scheme has."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.recover.methods import method_of
from exporter.recover.methods.base import Candidate, Recovered, Workbench
from exporter.schemes import Method, Scheme

AUTO = "auto"
_METHODS_OF: dict[Method, tuple[str, ...]] = {
    Method.STATIC: ("equalize", "smooth", "bias", "rounding"),
    Method.DYNAMIC: ("equalize", "smooth", "bias", "rounding"),
    Method.WEIGHT_ONLY: ("bias", "rounding"),
    Method.FLOAT: (),
}
"""In the order of their cost. Nothing is equalised for weights stored in blocks: each block has its own scale."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rung: recovery methods applied one after the other to the candidate that the last good rung left."""

    name: str
    methods: tuple[str, ...]

    def apply(self, candidate: Candidate, bench: Workbench) -> Recovered:
        """Return what the methods make of `candidate`; each is imported when it is first needed."""
        changed, details = 0, {}
        for method in self.methods:
            recovered = method_of(method)(candidate, bench)
            candidate, changed = recovered.candidate, changed + recovered.changed
            details[method] = dict(recovered.details)
        return Recovered(candidate, changed, details if len(self.methods) > 1 else details[self.methods[0]])


def steps_of(names: tuple[str, ...]) -> tuple[Step, ...]:
    """Return one step for each of the recovery methods called `names`."""
    return tuple(Step(name, (name,)) for name in names)


def rungs_of(scheme: Scheme) -> tuple[Step, ...]:
    """Return the steps that the ladder climbs for `scheme`, cheap ones first.

    Rounding moves the means that biases were corrected for: it is followed by another correction.
    """
    names = _METHODS_OF[scheme.method]
    return tuple(
        Step("rounding, bias", ("rounding", "bias"))
        if name == "rounding" and "bias" in names
        else Step(name, (name,))
        for name in names
    )
