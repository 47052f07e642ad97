"""The first signal is recorded, a second one interrupts, and the handlers are the former ones afterwards."""

import signal

import pytest

from utils.system.signals import ctrl_c_ignored, record_signals


@pytest.fixture
def handlers():
    """Handlers that say which signal it was, as those of this process until the test's end."""
    calls, former = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        former[number] = signal.signal(number, lambda number, frame: calls.append(number))
    yield calls
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_interrupts(handlers, number):
    with record_signals() as received:
        signal.raise_signal(number)
        assert (received, handlers) == ([number], [])
        signal.raise_signal(signal.SIGINT)
        assert (received, handlers) == ([number], [signal.SIGINT])


def test_handlers_are_given_back(handlers):
    with pytest.raises(ZeroDivisionError), record_signals():
        raise ZeroDivisionError
    with ctrl_c_ignored():
        signal.raise_signal(signal.SIGINT)
    assert handlers == []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert handlers == [signal.SIGINT, signal.SIGTERM]
