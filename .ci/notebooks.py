"""Run every notebook under examples/ from top to bottom in a copy; a failing cell fails the script."""

import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Run the notebooks in the order of their names."""
    folder = Path(__file__).parent.parent / "examples"
    for path in sorted(folder.glob("*.ipynb")):
        started = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
        print(f"{path.name}: {len(notebook.cells)} cells, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
