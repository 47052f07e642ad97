"""Which terms the linear rung counts."""

from utils.measuring.rungs import words_repeat


def test_words_repeat():
    assert words_repeat(["the film is good", "the film is bad", "a good plot"])
    assert not words_repeat(["這部電影很好，我喜歡", "故事很差，演員也不好", "音樂好聽"])
    assert not words_repeat(["", "a"])
