"""Signals that mean something else for a while."""

import os
import signal
import threading

import pytest

from minddistill.signals import handled


def test_a_handler_hears_its_signals_until_it_is_left():
    told = []
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), handled(lambda number, frame: told.append(number), signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), signal.SIGTERM)
        with handled(signal.SIG_IGN, signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError
    assert told == [signal.SIGTERM, signal.SIGINT]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_threads_hear_none_and_change_nothing():
    found = []

    def other():
        with handled(signal.SIG_IGN, signal.SIGTERM):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)] != [signal.SIG_IGN]
