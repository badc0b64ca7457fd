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
        done = len(archive.result().history)
        self._bar = tqdm(total=total, initial=done, desc=name, unit="subnet")
        self._started, self._before, self._shown = time.monotonic(), done, 0.0

    def update(self) -> None:
        """Show how far the search is; at most twice a second."""
        now = time.monotonic()
        if now - self._shown < 0.5:
            return
        self._shown = now
        self._show(now)

    def _show(self, now: float) -> None:
        result = self._archive.result()
        front = result.front
        done = len(result.history)
        facts = {"per minute": f"{60 * (done - self._before) / max(now - self._started, 1e-9):.0f}"}
        if front:
            name = next(iter(result.objectives))
            facts = {f"best {name}": f"{front[0].scores[name]:.5g}", **facts}
            if len(result.objectives) > 1:
                facts["hypervolume"] = f"{result.hypervolume:.4g}"
        self._bar.n = done
        self._bar.set_postfix(facts)

    def close(self) -> None:
        """Show the end and leave the line."""
        self._show(time.monotonic())
        self._bar.close()
