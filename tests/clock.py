"""A clock that counts, for tests that must not depend on how busy the machine is."""

from torch import nn

from tests.contract import macs
from vitas.measure import latency


def counted_seconds(run, device):
    """Show a nanosecond for each multiply-add of a call."""

    class Call(nn.Module):
        def forward(self, x):
            return run()

    return macs(Call(), None) / 1e9


def count_for_time(monkeypatch):
    """Let networks and parts take the time that their multiply-adds stand for."""
    monkeypatch.setattr(latency, "seconds_of", counted_seconds)
