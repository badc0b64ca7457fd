"""The progress bar of a search."""

from __future__ import annotations

import time

from vitas.errors import needs
from vitas.search.archive import Archive


class ProgressBar:
    """The progress bar."""

    def __init__(self, archive: Archive, total: int, name: str) -> None:
        with needs("search"):
            from tqdm import tqdm

        self._archive = archive
        self._bar = tqdm(total=total, initial=len(archive.result().history), desc=name, unit="subnet")
        self._shown = 0.0

    def update(self) -> None:
        """Show how far the search is; at most twice a second."""
        now = time.monotonic()
        if now - self._shown >= 0.5:
            self._shown = now
            self._show()

    def _show(self) -> None:
        result = self._archive.result()
        front = result.front
        if front:
            name = next(iter(result.objectives))
            best = {f"best {name}": f"{front[0].scores[name]:.5g}"}
            self._bar.set_postfix({**best, "front": len(front)} if len(result.objectives) > 1 else best, refresh=False)
        self._bar.n = len(result.history)
        self._bar.refresh()

    def close(self) -> None:
        """Show the end and leave the line."""
        self._show()
        self._bar.close()
