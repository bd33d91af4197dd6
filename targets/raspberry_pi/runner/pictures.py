"""From a picture to the tensor, as in calibration; Pillow is needed for nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from targets.raspberry_pi.runner.bundle import Json, read_tensor
from targets.raspberry_pi.runner.errors import ModelError, first_line
from targets.raspberry_pi.runner.layout import laid_out, saturated


def prepare(picture: object, contract: Json, entry: Json) -> dict[str, np.ndarray]:
    """Return the model's input for a `.npy` file (as it is), or for a picture or a frame (by the contract)."""
    if len(entry["inputs"]) != 1:
        raise ModelError(
            "E-unsupported",
            12,
            f"the model takes {len(entry['inputs'])} inputs",
            "give prepared tensors to Model.run, or replay the golden vectors",
        )
    name = entry["inputs"][0]["name"]
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        if not path.is_file():
            raise ModelError("E-input", 10, f"{path} does not exist or is no file", "check the path")
        if path.suffix == ".npy":
            return {name: read_tensor(path)}
    if contract.get("kind") != "image":
        raise ModelError(
            "E-unsupported",
            12,
            "this model's bundle describes no preprocessing for pictures",
            "give a .npy tensor, or an array to Model.run",
        )
    return {name: picture_tensor(picture, contract)}


def picture_tensor(picture: object, contract: Json) -> np.ndarray:
    """Return the tensor of one picture: colour, resize, scale, normalise, cast, lay out; in that order."""
    height, width = contract["size"]
    image = _opened(picture, "L" if contract["color"] == "L" else "RGB")
    pixels = np.asarray(_fitted(image, contract), dtype=np.float64).reshape(height, width, -1)
    if contract["color"] == "BGR":
        pixels = pixels[:, :, ::-1]
    values = (pixels * contract["scale"] - np.asarray(contract["mean"])) / np.asarray(contract["std"])
    values = saturated(values, contract).astype(contract["dtype"])
    return np.ascontiguousarray(laid_out(values, contract["layout"])[np.newaxis])


def _opened(picture: Any, mode: str) -> Any:
    """Return a Pillow image in `mode`, upright and without alpha, from a path, an image or a frame."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ModelError(
            "E-unsupported",
            12,
            "Pillow is not installed",
            "python -m pip install pillow, or give a .npy tensor",
        ) from None
    if isinstance(picture, Image.Image):
        return _flattened(picture, mode)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (
            picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        ):
            raise ModelError(
                "E-input",
                10,
                f"a frame is a uint8 array [height, width, 3] in RGB order or [height, width], "
                f"not {picture.dtype} {list(picture.shape)}",
                "give a prepared tensor to Model.run instead",
            )
        return _flattened(Image.fromarray(picture), mode)
    try:
        with Image.open(picture) as opened:
            return _flattened(opened, mode)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ModelError(
            "E-input", 10, f"{picture} is no readable picture: {first_line(error)}", "give a JPEG or PNG"
        ) from error


def _flattened(image: Any, mode: str) -> Any:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        wide = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(np.clip(wide // 257, 0, 255).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return upright.convert(mode)


def _resized(image: Any, size: tuple[int, ...], method: Any) -> Any:
    # Across, then down, as calibration does: by itself Pillow 13 goes down first where that is cheaper.
    return image.resize((size[0], image.height), method).resize(size, method)


def _fitted(image: Any, contract: Json) -> Any:
    from PIL import Image

    (height, width), fit = contract["size"], contract["fit"]
    method = Image.Resampling[contract["resize"].upper()]
    if fit == "stretch":
        return _resized(image, (width, height), method)
    ratios = (width / image.width, height / image.height)
    ratio = max(ratios) if fit == "crop" else min(ratios)
    sides = tuple(
        max(round(side * ratio), wanted) if fit == "crop" else max(1, min(round(side * ratio), wanted))
        for side, wanted in ((image.width, width), (image.height, height))
    )
    scaled = _resized(image, sides, method)
    left, top = (width - sides[0]) // 2, (height - sides[1]) // 2
    if fit == "crop":
        return scaled.crop((-left, -top, -left + width, -top + height))
    pad = contract["pad"]
    canvas = Image.new(image.mode, (width, height), pad if image.mode == "L" else (pad,) * 3)
    canvas.paste(scaled, (left, top))
    return canvas
