"""One inference for the Swift doubles: a request as JSON on stdin, the outputs as JSON on stdout."""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
import onnxruntime

DTYPES = {"float": "float32", "uInt8": "uint8"}


def main() -> None:
    request = json.load(sys.stdin)
    options = onnxruntime.SessionOptions()
    # int8 stays int8, as on a phone: x86 without VNNI otherwise saturates 16-bit sums.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    feeds = {
        item["name"]: np.frombuffer(
            base64.b64decode(item["data"]), DTYPES.get(item["dtype"], item["dtype"])
        ).reshape(item["shape"])
        for item in request["inputs"]
    }
    names = request["outputs"] or [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(names, feeds), strict=True))
    json.dump(
        {name: base64.b64encode(value.tobytes()).decode() for name, value in answers.items()}, sys.stdout
    )


if __name__ == "__main__":
    main()
