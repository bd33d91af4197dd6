"""What was seen of a whole model: one sketch a tensor, of which model and which data.

Merges, and is stored as stable bytes. Must not know how it was collected.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from calibration.ranges import Range, Rule, range_by
from calibration.sketch import Sketch
from exporter.errors import CalibrationError, IntegrityError, InternalError, ResourceError

_MAGIC = b"edge-exporter statistics 1\n"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Statistics:
    """What `collect` saw: every range rule can be derived from it.

    Nothing in it depends on batch size or storage. `model_sha256` names the float model, `dataset_fingerprint` the
    samples it was shown (of merged statistics: those of the parts, sorted and joined by "+"), `samples` how many they
    were.
    """

    sketches: Mapping[str, Sketch]
    model_sha256: str
    dataset_fingerprint: str
    samples: int

    def range_of(self, tensor: str, rule: Rule | str) -> Range:
        """Return the range of `tensor` under `rule`; CalibrationError, naming it, if it was always empty."""
        sketch = self.sketches.get(tensor)
        if sketch is None:
            raise InternalError(
                f"tensor {tensor!r} was not observed", fix="observe it: name it in the tensors to collect"
            )
        try:
            return range_by(rule, sketch)
        except CalibrationError as error:
            raise CalibrationError(f"tensor {tensor!r}: {error.cause}", fix=error.fix) from error

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both data sets, as if collected in one.

        Bit-exact in the sketches, whatever the order. Raises CalibrationError when they are of different models or
        different tensors.
        """
        if self.model_sha256 != other.model_sha256:
            raise CalibrationError(
                f"statistics of models {self.model_sha256[:12]} and {other.model_sha256[:12]} do not merge",
                fix="collect both from the same model file",
            )
        if self.sketches.keys() != other.sketches.keys():
            odd = sorted(self.sketches.keys() ^ other.sketches.keys())
            raise CalibrationError(
                f"statistics of different tensors cannot be merged ({odd[0]!r} is in one only)",
                fix="collect the same tensors",
            )
        merged = {name: sketch.merge(other.sketches[name]) for name, sketch in self.sketches.items()}
        parts = self.dataset_fingerprint.split("+") + other.dataset_fingerprint.split("+")
        return Statistics(
            MappingProxyType(merged), self.model_sha256, "+".join(sorted(parts)), self.samples + other.samples
        )

    def to_bytes(self) -> bytes:
        """Return a stable form: equal statistics give equal bytes on every machine."""
        blobs = {name: self.sketches[name].to_bytes() for name in sorted(self.sketches)}
        header = {
            "model_sha256": self.model_sha256,
            "dataset_fingerprint": self.dataset_fingerprint,
            "samples": self.samples,
            "sketches": [[name, len(blob)] for name, blob in blobs.items()],
        }
        text = json.dumps(header, sort_keys=True, ensure_ascii=True).encode()
        body = _MAGIC + len(text).to_bytes(8, "little") + text + b"".join(blobs.values())
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "statistics") -> Statistics:
        """Return what `to_bytes` wrote; raises IntegrityError, naming `name`, for any other bytes."""
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            raise IntegrityError(
                f"{name}: calibration statistics are damaged or of another version", fix="calibrate again"
            )
        start = len(_MAGIC) + 8
        end = start + int.from_bytes(body[len(_MAGIC) : start], "little")
        header = json.loads(body[start:end])
        sketches = {}
        for tensor, length in header["sketches"]:
            sketches[tensor] = Sketch.from_bytes(body[end : end + length])
            end += length
        return cls(
            MappingProxyType(sketches),
            header["model_sha256"],
            header["dataset_fingerprint"],
            header["samples"],
        )

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all. Raises ResourceError when the disk refuses."""
        # Written beside, flushed and renamed: a kill at any point leaves the old file or the new one.
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        data = self.to_bytes()
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise ResourceError(
                f"cannot write {len(data)} bytes of calibration statistics to {path}: {error.strerror}",
                fix="free some space, or write elsewhere",
            ) from error

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Return what `save` wrote; IntegrityError when it is missing, damaged or of another version."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise IntegrityError(f"cannot read {path}: {error.strerror}", fix="calibrate again") from error
        return cls.from_bytes(data, str(path))
