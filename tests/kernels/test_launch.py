"""Launch choices are pure functions of shape and capability: tested on any machine, without a GPU."""

import pytest

from pgolf.kernels.launch import nearest

TABLE = {80: "Ampere", 90: "Hopper", 100: "Blackwell"}


@pytest.mark.parametrize(
    "capability, entry",
    [(75, "Ampere"), (80, "Ampere"), (86, "Ampere"), (89, "Ampere"), (90, "Hopper"), (103, "Blackwell"), (120, "Blackwell")],
)
def test_a_card_without_an_entry_takes_the_nearest_lower_one(capability, entry):
    assert nearest(TABLE, capability) == entry
