"""Says which rank of a training has stopped, where the others would wait in silence until torch's timeout.

Each rank tells the store of `torchrun` again and again that it lives, from a thread of its own, so that a long step, a slow
disk or a checkpoint keep nobody silent: only a process that does not run any more, stopped, frozen or on a machine
that is gone. Copy this file beside a script of your own; it needs torch alone.
"""

import datetime
import os
import socket
import sys
import threading

import torch.distributed as dist

ROUNDS = 20
"""Words in the time of silence, counted in rounds of one's own: after a machine that slept as a whole nobody is missing."""


class RankWatch:
    """Watches the other ranks from a thread, and ends this process with a sentence where one falls silent.

    Args:
        silence: Seconds after which a silent rank is taken for stopped; below the timeout of the process group.
        advice: What the sentence ends with.

    Attributes:
        step: Number of the step that this rank is in, which the loop says.
    """

    def __init__(self, silence: float, advice: str = "") -> None:
        self.silence, self.advice, self.step = silence, advice, 0
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = datetime.timedelta(seconds=2 * silence)
        store = dist.TCPStore(address, port, is_master=False, timeout=patience)  # torch's own connection may be waiting
        self._store = dist.PrefixStore("rank_watch", store)
        self._say("has joined", 0)
        self._store.wait([str(rank) for rank in range(self.world)])  # from here on each has said something
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take leave: the others do not wait for this rank any more."""
        self._ended.set()
        self._thread.join()
        self._say("has ended", 0)

    def _say(self, state: str, number: int) -> None:
        self._store.set(str(self.rank), f"{state}|{number}|{self.step}|process {os.getpid()} on {socket.gethostname()}")

    def _watch(self) -> None:
        others = [str(rank) for rank in range(self.world) if rank != self.rank]
        heard, silent, number = dict.fromkeys(others, b""), dict.fromkeys(others, 0), 0
        while not self._ended.wait(self.silence / ROUNDS):
            number += 1
            try:
                self._say("runs", number)
                words = dict(zip(others, self._store.multi_get(others), strict=True))
            except RuntimeError:  # the store has ended, and with it the run
                return
            for rank, word in words.items():
                silent[rank] = 0 if word != heard[rank] or word.startswith(b"has ended") else silent[rank] + 1
            heard = words
            if max(silent.values()) > ROUNDS:
                self._end([rank for rank in others if silent[rank] > ROUNDS], heard)

    def _end(self, stopped: list[str], heard: dict[str, bytes]) -> None:
        for rank in stopped:
            _, _, step, process = heard[rank].decode().split("|")
            print(
                f"rank {rank} ({process}) was last heard of {self.silence:g} s ago, in step {step}; rank {self.rank} is in"
                f" step {self.step} and ends the run{self.advice}",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)  # the main thread waits inside a collective and hears nothing
