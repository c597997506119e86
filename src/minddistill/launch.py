"""The launcher: runs msrun on a node and watches all ranks, so that none waits for one that is lost.

    python -m minddistill.launch --address HOST:PORT --node N --wait S --silence S --log FILE -- MSRUN...

MindSpore's own heartbeat names the wrong rank where one is killed and takes over a minute where one hangs. On the first
node the launcher listens; the ranks of all nodes and the launchers of the others hold a `Link` to it. It takes SIGTERM
and Ctrl-C: the first rank saves, then all leave; a second one ends all at once.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import signal
import sys
from pathlib import Path

from .errors import UserError
from .link import BEAT, LAUNCHER, SILENCE, Link

_GRACE = 3.0  # seconds for the ranks of this node to end by themselves
_STOPPED = "stopped; the same command goes on from the last saved point"


class Launcher:
    """What one node's launcher knows: the links (on the first node), and why the run is over."""

    def __init__(self, address: str, node: int, wait: float, silence: float):
        self.address, self.node, self.wait, self.silence = address, node, wait, silence
        self.links: dict[str, asyncio.StreamWriter] = {}
        self.quiet: dict[str, float] = {}  # seconds since the last beat
        self.ended: set[str] = set()
        self.stopping = False
        self.told = False  # by a signal to this node; the orders of other nodes come by their links
        self.over: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.up: Link | None = None

    async def run(self, command: list[str], log: Path) -> int:
        """Run msrun; the exit code of the run.

        Raises:
            UserError: the address cannot be listened at, or on another node than the first, not be reached.
        """
        loop = asyncio.get_running_loop()
        await self._open(loop)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.hear)
        log.parent.mkdir(parents=True, exist_ok=True)
        told = {LAUNCHER: self.address, SILENCE: str(self.silence)}
        with open(log, "wb") as errors:
            # A session of its own: Ctrl-C in a terminal is for the launcher alone.
            msrun = await asyncio.create_subprocess_exec(
                *command, stderr=errors, start_new_session=True, env=os.environ | told
            )
        ended = asyncio.create_task(msrun.wait())
        await asyncio.wait({ended, self.over}, return_when=asyncio.FIRST_COMPLETED)
        if not self.over.done() and ended.result() == 0:
            self.finish(0, "")
        left = _GRACE
        while not self.over.done() and (left > 0 or (self.stopping and self._saving())):
            await asyncio.wait({self.over}, timeout=0.5)  # where msrun died of a signal to all, the ranks still save
            left -= 0.5
        if not self.over.done():
            why = f"msrun ended with exit code {ended.result()}; {log} says why"
            self.finish(*((130, _STOPPED) if self.stopping else (1, why)))
        code, reason = self.over.result()
        await _gone(msrun, ended, _GRACE if code else None)
        if reason:  # the last line, behind what msrun still had to print
            print(reason, flush=True)
        return code

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.node == 0:
            host, _, port = self.address.rpartition(":")
            try:
                await asyncio.start_server(self.serve, host, int(port))
            except OSError as error:
                raise UserError(
                    f"{self.address} (MASTER_ADDR, MASTER_PORT + 1): cannot listen there: {error.strerror}; "
                    "give this node's address and a MASTER_PORT that is free, with the next"
                ) from None
            return

        def leave(code: int, reason: str) -> None:
            loop.call_soon_threadsafe(self.finish, code, reason)

        self.up = Link(self.address, f"node {self.node}", self.wait, self.silence, lambda: None, leave)
        self.up.watch()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear one link to its end."""
        name = (await reader.readline()).decode(errors="replace").strip()
        if not re.fullmatch(r"(rank|node) \d+", name):  # a stranger at the port
            return writer.close()
        self.links[name] = writer
        watch = asyncio.create_task(self._watch(name, writer))
        while line := await _line(reader):
            word, _, text = line.decode().strip().partition(" ")
            if word == "beat":
                self.quiet[name] = 0.0
            elif word == "stop":
                if not self.stopping:  # every node may have been told
                    self.stop()
            elif word == "end":
                self.ended.add(name)
                code, _, why = text.partition(" ")
                self._ended(name, int(code), why)
        self._lost(name, "its process ended")
        watch.cancel()
        writer.close()

    async def _watch(self, name: str, writer: asyncio.StreamWriter) -> None:
        """Beat, and see that the other side does; not before its first time: a process that joins the group cannot."""
        while not writer.is_closing():
            writer.write(b"beat\n")
            await asyncio.sleep(BEAT)
            # Counted, not by the clock: a run that was suspended as a whole goes on.
            self.quiet[name] = self.quiet.get(name, -math.inf) + BEAT
            if self.quiet[name] > self.silence:
                self._lost(name, f"nothing was heard of it for {self.silence:g} s")

    def _ended(self, name: str, code: int, why: str) -> None:
        if code == 130 or (code and self.stopping):
            self.finish(130, _STOPPED)
        elif code:
            # Told here: the others may be ended before they find the same.
            self.finish(code, f"{name} ended with exit code {code}: {why} ({_log(name)})")

    def _lost(self, name: str, why: str) -> None:
        if name in self.ended:
            return
        if self.stopping:
            return self.finish(130, _STOPPED)
        self.finish(1, f"{name} was lost: {why} ({_log(name)}); the same command goes on from the last saved point")

    def _saving(self) -> bool:
        """Whether a rank may still save; another node than the first hears of its end."""
        return self.up is not None or any(name.startswith("rank") and name not in self.ended for name in self.links)

    def hear(self) -> None:
        """A signal to this node: the first asks all to stop, as another node may have already, a second ends them at once."""
        again, self.told = self.told, True
        if again:
            self.finish(130, _STOPPED)
        elif not self.stopping:
            self.stop()

    def stop(self) -> None:
        """Have the first rank save and all leave."""
        if not (self.up or "rank 0" in self.links):
            return self.finish(130, _STOPPED)
        self.stopping = True
        if self.up:
            self.up.send("stop")
        else:
            self.links["rank 0"].write(b"stop\n")

    def finish(self, code: int, reason: str) -> None:
        """The run is over: remember why, and tell all who still run. The first reason counts."""
        if self.over.done():
            return
        self.over.set_result((code, reason))
        for name, writer in self.links.items():
            if name not in self.ended and not writer.is_closing():
                writer.write(f"leave {code} {reason}\n".encode())
        if self.up:
            self.up.end(code, reason)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line; empty at the end, also where a process ended with lines unread."""
    try:
        return await reader.readline()
    except ConnectionError:
        return b""


def _log(name: str) -> str:
    """Where a rank's or node's output is, on its node."""
    kind, number = name.split()
    return f"LOG{number}/log.txt" if kind == "rank" else "its log.txt"


async def _gone(msrun: asyncio.subprocess.Process, ended: asyncio.Task, patience: float | None) -> None:
    """See that msrun and what it started on this node have ended, by themselves within `patience` seconds."""
    await asyncio.wait({ended}, timeout=patience)
    if not ended.done():
        msrun.send_signal(signal.SIGINT)  # it kills its ranks, which are sessions of their own
        await asyncio.wait({ended}, timeout=_GRACE)
    if not ended.done():
        os.killpg(msrun.pid, signal.SIGKILL)
        await ended


async def _main(flags: argparse.Namespace) -> int:
    command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    return await Launcher(flags.address, flags.node, flags.wait, flags.silence).run(command, flags.log)


def main() -> None:
    """Entry of `python -m minddistill.launch`."""
    parser = argparse.ArgumentParser(prog="minddistill.launch", description="Run msrun and watch its ranks.")
    parser.add_argument("--address", required=True, help="host:port at which the first node's launcher listens")
    parser.add_argument("--node", type=int, default=0, help="number of this node")
    parser.add_argument("--wait", type=float, default=120, help="seconds until a node gives up that does not reach it")
    parser.add_argument("--silence", type=float, default=30, help="seconds without a beat until a rank is lost")
    parser.add_argument("--log", type=Path, required=True, help="file for msrun's own messages")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="msrun and its arguments")
    flags = parser.parse_args()
    try:
        if flags.silence < 3 * BEAT:
            raise UserError(f"--silence {flags.silence:g} (LOST_TIMEOUT): expected at least {3 * BEAT:g} seconds")
        sys.exit(asyncio.run(_main(flags)))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before the launcher listens
        sys.exit(130)


if __name__ == "__main__":
    main()
