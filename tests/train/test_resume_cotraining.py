"""Co-training keeps nothing but its two networks: killed once and resumed, the same bits."""

import signal

from tests.processes import finish
from tests.train import runs


def test_killed_and_resumed_ends_with_the_bits_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(runs.pretrain, "cotraining", str(whole), {}) == 0
    code = finish(runs.die_at, "fsync", 13, runs.pretrain, "cotraining", str(killed), {})
    assert code == -signal.SIGKILL
    assert finish(runs.resume, str(killed)) == 0
    runs.assert_equal_bits(runs.final_state(killed), runs.final_state(whole))
