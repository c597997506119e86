"""A process's line to the launcher, which watches all of them: beats there, orders back.

A link is a TCP connection that carries lines of text. Its first line is a name ("rank 1", "node 1"); after that each
side sends "beat" every few seconds. A process says "end CODE TEXT" before it ends and "stop" where it was told to stop; the
launcher answers with "stop" (save and leave) or "leave CODE TEXT".
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

from .errors import UserError

LAUNCHER = "MINDDISTILL_LAUNCHER"  # host:port of the launcher, for the processes that it starts
SILENCE = "MINDDISTILL_SILENCE"  # seconds without a beat after which a process counts as lost
BEAT = 1.0  # seconds between two signs of life


class Link:
    """One end of a link, in a rank or in the launcher of another node.

    Args:
        address: host:port of the launcher.
        name: of this process.
        wait: seconds for which connecting is tried.
        silence: seconds without a beat of the launcher after which it counts as lost.
        stop, leave: called, from a thread, where the launcher says so; `leave` gets the exit code and the reason, and is
            also called where the launcher is lost.

    Raises:
        UserError: the launcher was not reached.
    """

    def __init__(
        self,
        address: str,
        name: str,
        wait: float,
        silence: float,
        stop: Callable[[], None],
        leave: Callable[[int, str], None],
    ):
        self.address, self.silence, self.stop, self.leave = address, silence, stop, leave
        self._socket = _connected(address, name, wait)
        self._lock, self._ended = threading.Lock(), False
        self.send(name)

    def watch(self) -> None:
        """Beat and listen from now on. Not before the process group is joined, which halts Python's threads."""
        threading.Thread(target=self._watch, name="link", daemon=True).start()

    def send(self, line: str) -> None:
        """Send a line; a launcher that is gone is noticed elsewhere."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(line.encode() + b"\n")

    def end(self, code: int, why: str) -> None:
        """Say that this process ends by itself, and why."""
        self._ended = True
        self.send(f"end {code} {' '.join(why.splitlines())}")

    def _watch(self) -> None:
        quiet, rest = 0.0, b""  # counted, not by the clock: a run that was suspended as a whole goes on
        while True:
            readable, _, _ = select.select([self._socket], [], [], BEAT)
            self.send("beat")
            data, quiet = b"", 0.0 if readable else quiet + BEAT
            if readable:
                with contextlib.suppress(OSError):
                    data = self._socket.recv(4096)
            if self._ended:
                return
            if (readable and not data) or quiet > self.silence:
                return self.leave(1, f"the launcher at {self.address} was lost")
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                word, _, text = line.decode().partition(" ")
                if word == "stop":
                    self.stop()
                elif word == "leave":
                    code, _, reason = text.partition(" ")
                    return self.leave(int(code), reason)


def _connected(address: str, name: str, wait: float) -> socket.socket:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + wait
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=max(until - time.monotonic(), 1))
        except OSError as error:
            if time.monotonic() + 1 >= until:
                raise UserError(
                    f"{name}: the launcher at {address} (MASTER_ADDR, MASTER_PORT + 1) was not reached within "
                    f"{wait:.0f} s ({error}); start the first node too, and check that this address leads to it"
                ) from None
            time.sleep(1)


def of_rank(wait: float = 0.0) -> Link | None:
    """The link of this process to the launcher that started it, not yet watched; None where there is none.

    Args:
        wait: seconds for which connecting is tried; 0 for those of the launcher's patience.

    SIGTERM reaches the process where the launcher says stop; where it says leave, the process ends with a line.
    """
    address = os.environ.get(LAUNCHER)
    if not address or os.environ.get("MS_ROLE") != "MS_WORKER":
        return None

    def leave(code: int, reason: str) -> None:
        print(reason, flush=True)
        os._exit(code)  # the main thread waits for the other processes, or holds no file that is not written whole

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    silence = float(os.environ[SILENCE])
    return Link(address, f"rank {os.environ['RANK_ID']}", wait or silence, silence, stop, leave)
