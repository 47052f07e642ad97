"""Which layers the options name."""

import pytest

from utils.pruning.targets import layers_to_keep
from utils.system.errors import UserError


def test_target_num_layers_takes_the_last_of_each_block():
    assert layers_to_keep(6, None, 3) == [1, 3, 5]
    assert layers_to_keep(12, None, 4) == [2, 5, 8, 11]
    assert layers_to_keep(5, None, 2) == [1, 4]
    assert layers_to_keep(2, None, 2) == [0, 1]


def test_listed_layers():
    assert layers_to_keep(6, [0, 5], None) == [0, 5]
    assert layers_to_keep(3, None, None) == [0, 1, 2]
    for layers in ([2, 1], [1, 1], [-1, 2], [4, 6]):
        with pytest.raises(UserError, match=f"--keep_layers={layers[0]},{layers[1]}: .*from 0 to 5"):
            layers_to_keep(6, layers, None)
    with pytest.raises(UserError, match="has 6"):
        layers_to_keep(6, None, 7)
