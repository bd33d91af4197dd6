"""torch.export programs: dynamic where the recipe says so, fixed for formats that need it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stage_ground import TwoHeads, conv_source, make_source

from exporter.errors import InputError, UnsupportedError
from exporter.model.capture import capture, save_program


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_dynamic_program_takes_any_batch(batch: int) -> None:
    source = conv_source()
    image = np.random.default_rng(1).normal(size=(batch, 1, 8, 8)).astype(np.float32)
    answer = capture(source, dynamic=True).module()(torch.from_numpy(image))
    assert np.allclose(answer.detach().numpy(), source.forward({"image": image})[0], atol=1e-6)


def test_a_fixed_program_takes_its_own_shape_alone() -> None:
    program = capture(conv_source(), dynamic=False).module()
    assert program(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    with pytest.raises((RuntimeError, AssertionError)):
        program(torch.zeros(2, 1, 8, 8))


def test_a_saved_program_is_read_back(tmp_path: Path) -> None:
    source = conv_source()
    program = torch.export.load(save_program(source, tmp_path / "p.pt2")).module()
    answer = program(torch.from_numpy(source.example["image"])).detach().numpy()
    assert np.allclose(answer, source.forward(source.example)[0], atol=1e-6)


def test_axes_of_one_name_are_one_axis() -> None:
    source = make_source(TwoHeads(), {"left": ("batch", 4), "right": ("batch", 4)})
    shapes = [
        node.meta["val"].shape[0]
        for node in capture(source, dynamic=True).graph.nodes
        if node.op == "placeholder"
    ]
    assert len(set(map(str, shapes))) == 1


def test_inputs_that_forward_does_not_take_are_told() -> None:
    source = make_source(TwoHeads(), {"left": ("batch", 4), "right": ("batch", 5)})
    with pytest.raises(InputError, match=r"left float32 \[1, 4\], right float32 \[1, 5\]"):
        capture(source, dynamic=True)
    with pytest.raises(InputError, match="fails on inputs"):
        capture(make_source(TwoHeads(), {"left": ("batch", 4)}), dynamic=False)


class _Pinned(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Work for a batch of one only."""
        return image.reshape(1, 4) * 2


def test_an_axis_that_the_code_pins_is_named() -> None:
    with pytest.raises(UnsupportedError, match="axis 'batch' is called dynamic"):
        capture(make_source(_Pinned(), {"image": ("batch", 4)}), dynamic=True)


def test_memory_running_out_is_not_taken_for_a_bad_model() -> None:
    class Hungry(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        capture(make_source(Hungry(), {"image": ("batch", 4)}), dynamic=True)
