"""Parts of a long run: made once, read from their file, and a damaged file said to be one."""

import numpy as np
import pytest

from utils.system.errors import UserError
from utils.system.journal import cached_in


def unmade():
    raise AssertionError("a part that is there is made again")


def test_parts_are_read_from_the_file(tmp_path):
    path, flags = tmp_path / "run.unfinished", {"--seed": 1}
    cached = cached_in(path, flags, "auto", False)
    assert cached("a", lambda: np.arange(3)) == [0, 1, 2]
    assert cached("b", lambda: "bä\n") == "bä\n"
    for again in (cached, cached_in(path, flags, "always", False)):
        assert again("b", unmade) == "bä\n" and again("a", unmade) == [0, 1, 2]
    assert again("c", lambda: {"x": 1.5}) == {"x": 1.5}
    # What stands in the file is what is given: nothing of it is in memory.
    path.write_bytes(path.read_bytes().replace(b"1.5", b"2.5"))
    assert again("c", unmade) == {"x": 2.5} and again("a", unmade) == [0, 1, 2]


def test_a_part_that_was_cut_off_is_made_again(tmp_path):
    path = tmp_path / "run.unfinished"
    cached = cached_in(path, {}, "auto", False)
    for name in "abc":
        cached(name, lambda: [1, 2])
    path.write_bytes(path.read_bytes()[:-4])
    cached = cached_in(path, {}, "auto", False)
    assert cached("b", unmade) == [1, 2] and cached("c", lambda: [3]) == [3]
    assert cached_in(path, {}, "auto", False)("c", unmade) == [3]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]\n", b'{}\n["a"]\n', b"{}\nnot JSON\n", b"\xff\n", b"{}\n[[], 1]\n"]
)
def test_damaged_file(tmp_path, content):
    path = tmp_path / "run.unfinished"
    path.write_bytes(content)
    with pytest.raises(UserError, match="start again with --overwrite"):
        cached_in(path, {}, "auto", False)
    assert path.read_bytes() == content
    assert cached_in(path, {}, "auto", True)("a", lambda: 1) == 1
