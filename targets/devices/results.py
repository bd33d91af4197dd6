"""One schema of results for every place. What a device answers must fit it: a device is not trusted to be sane."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BoardState(_Strict):
    """What the board said just before or after a block; what it does not tell is None."""

    governor: str | None
    clock_mhz: Amount | None
    temperature_c: float | None
    throttled: Count | None
    """The bits of `vcgencmd get_throttled`; on Android the thermal status, 0 (none) to 6."""
    load: Amount | None


class Block(_Strict):
    """One uninterrupted row of inferences."""

    p50_ms: Amount
    runs: Count
    before: BoardState
    after: BoardState
    throttled: bool | None
    counted: bool
    """Whether its inferences are in the figures: those of a throttled block never are."""


class Measurement(_Strict):
    """One file in one runtime with one number of threads. Times are those of single inferences, in ms."""

    file: str
    artifact: str
    runtime: str
    version: str
    threads: Count
    load_ms: Amount | None
    first_ms: Amount | None
    p50_ms: Amount | None
    p90_ms: Amount | None
    p99_ms: Amount | None
    mean_ms: Amount | None
    std_ms: Amount | None
    per_second: Amount | None
    instructions_m: Amount | None
    """Millions of ARM instructions of one inference, on an emulated core only, where there are no times."""
    runs: Count
    noise: Amount | None
    """(largest − smallest) ÷ median of the blocks' medians."""
    peak_rss_mb: Amount | None
    """Of the process that ran it, Python and the runtime included."""
    max_abs_error: Amount | None
    """Largest difference from the golden vectors' recorded answers; None if it was not finite."""
    checked: bool = True
    """Whether the golden vectors were answered at all; benchmark programs on phones do not."""
    throttled: bool | None
    """Whether any block was; None where the board cannot say."""
    blocks: tuple[Block, ...]


class Skipped(_Strict):
    """A file that did not run, and why."""

    file: str
    runtime: str | None
    why: str
    version: str | None = None
    """Of the runtime there, if it could be imported."""


class Node(_Strict):
    """One operator of a runtime's own graph: its name and type there, the dtypes of its inputs, µs in one inference."""

    name: str
    op: str
    inputs: tuple[str, ...]
    us: Amount


class Profile(_Strict):
    """Where the time of one file goes; `why` there are no nodes."""

    file: str
    runtime: str
    threads: Count
    nodes: tuple[Node, ...]
    why: str | None


class Board(_Strict):
    """The device, as it describes itself."""

    board: str | None
    cpu: str | None
    cores: Count | None
    features: tuple[str, ...]
    machine: str
    kernel: str
    python: str
    memory_mb: Amount | None


class Results(_Strict):
    """Everything that a device answers."""

    device: Board
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    kept: str | None = None
    """The scratch folder there, if it was to stay."""
    profiles: tuple[Profile, ...] = ()
