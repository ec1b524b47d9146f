"""How well a machine was used: operations and bytes by hand; what is not known is left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bloodcell.config import Config, override
from bloodcell.engine.efficiency import efficiency, measured_ceiling, values_moved
from bloodcell.models import zoo
from bloodcell.report.cost import cost


def test_values_are_those_that_layers_read_and_write() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8192, 2))
    maps = 8 * 32 * 32
    assert values_moved(network, 32) == (3 * 32 * 32 + maps) + 2 * maps + 2 * maps + (maps + 2)

    class Looks(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum().item() > 0 else -images

    assert values_moved(Looks(), 32) is None


def test_shares_follow_from_the_rate() -> None:
    config = override(Config(), {"model.name": "resnet50", "engine.precision": "bf16", "data.size": 224})
    found = efficiency(config, 6000.0, 2, {"tflops": 700.0, "gb_per_s": 4000.0})
    flops = zoo.spec("resnet50").flops
    assert flops is not None
    assert found["tflops"] == pytest.approx(3 * 3000 * flops / 1e12, rel=1e-3)
    assert found["mfu"] == pytest.approx(found["tflops"] / 700, rel=1e-3)
    assert 0.25 < found["bandwidth"] < 0.35  # 10,000 images/s would take all 4,000 GB/s
    half = efficiency(override(config, {"train.sizes": "112x0.5,224"}), 6000.0, 2, None)
    assert half["tflops"] == pytest.approx(found["tflops"] * 0.625, rel=1e-3)
    assert (half["mfu"], half["bandwidth"], half["ceiling"]) == (None, None, None)
    assert measured_ceiling(torch.device("cpu"), "fp32") is None


def test_the_cost_of_a_run_tells_its_speed() -> None:
    status = {"wall_seconds": 9.0, "images_per_s": 12.5, "data_wait": 0.01, "efficiency": {"gb_per_s": 3.0}}
    found = cost(status, {})
    assert found is not None
    assert found["speed"] == {**dict.fromkeys(("tflops", "mfu", "bandwidth")), **status["efficiency"]} | {
        "images_per_s": 12.5,
        "data_wait": 0.01,
    }
    assert cost({"wall_seconds": 9.0}, {})["speed"] is None  # type: ignore[index]
