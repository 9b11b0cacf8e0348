"""Devices as data: what stands in the files, what is refused in one's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.export import Component, Profile, inspect, profile_named
from dit_compress.export.profiles import FOLDER, from_data, names

if TYPE_CHECKING:
    from pathlib import Path


def test_there_are_three_and_each_limit_says_where_it_comes_from() -> None:
    assert names() == ["cpu", "generic-android", "iphone-16-pro-max"]
    for name in names():
        profile = profile_named(name)
        data = json.loads((FOLDER / f"{name}.json").read_text())
        stated = {key for key in ("max_file_bytes", "memory_bytes") if data[key] is not None} | {"max_rank", "dtypes"}
        stated |= {"alignment"} if data["alignment"] > 1 else set()
        assert profile.name == name
        assert stated <= profile.sources.keys()
        assert all(row["source"] for row in profile.measured)


def test_limits_of_the_phone() -> None:
    phone = profile_named("iphone-16-pro-max")
    assert (phone.max_rank, phone.max_file_bytes, phone.memory_bytes, phone.bits) == (5, 2**30, 2**33, 16)
    assert [row["ms"] for row in phone.measured if "ms" in row] == [3315, 880, 155]


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    path.write_text(json.dumps({"name": "chip", "max_rank": 4, "dtypes": ["float32"]}))
    assert profile_named(str(path)) == Profile("chip", max_rank=4, dtypes=("float32",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"max_rank": 4}, "a device profile needs a 'name'"),
        ({"name": "x", "rank": 4}, "unknown key 'rank'"),
        ({"name": "x", "max_rank": "4"}, "'max_rank' is a whole number, not '4'"),
        ({"name": "x", "query_slice": 0}, "'query_slice' is 1 or more, not 0"),
        ({"name": "x", "split_heads": 1}, "'split_heads' is true or false, not 1"),
        ({"name": "x", "precision": "int8"}, "'precision' is float16 or float32, not 'int8'"),
        ({"name": "x", "measured": [{"ms": 3}]}, "a measured latency needs its 'source'"),
    ],
)
def test_what_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_data(data, "chip.json")


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match="no device profile 'iphone'. Take one of cpu, generic-android"):
        profile_named("iphone")


def toy(module: nn.Module, **inputs: torch.Tensor) -> Component:
    return Component("toy", module.eval(), inputs, ("y",), varied=("x",))


def test_memory_and_files_count_the_bits_of_a_weight() -> None:
    component = toy(nn.Linear(512, 512), x=torch.randn(2, 512))

    def errors(**limits: Any) -> list[str]:
        return [found.message for found in inspect(component, Profile("x", **limits))]

    assert errors(memory_bytes=2**19, precision="float32") == ["weights of 1 MiB, the device has 0 MiB"]
    assert errors(max_file_bytes=2**19, weight_bits=4) == []
    assert len(errors(max_file_bytes=2**19, precision="float16")) == 1
    assert inspect(component, Profile("x", max_file_bytes=1), splits=True) == []


def test_short_last_axes_are_one_warning() -> None:
    class Turn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2).transpose(1, 2).contiguous() + 1

    component = toy(Turn(), x=torch.randn(1, 16, 8192))
    found = inspect(component, Profile("x", alignment=32))
    assert [each.severity for each in found] == ["warning"]
    assert "large tensors end in less than 32 values ([1, 8192, 16], first)" in found[0].message
    assert inspect(component, Profile("x", alignment=1)) == []
