"""The random states of a training are restored."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from regraft.train.run_state import random_states, set_random_states


def test_random_states_are_restored_from_json() -> None:
    random.gauss(0, 1)
    np.random.standard_normal()
    states = json.loads(json.dumps(random_states()))
    before = random.random(), random.gauss(0, 1), np.random.standard_normal(3), torch.rand(3)
    set_random_states(states)
    after = random.random(), random.gauss(0, 1), np.random.standard_normal(3), torch.rand(3)
    assert before[:2] == after[:2]
    assert np.array_equal(before[2], after[2])
    assert torch.equal(before[3], after[3])
