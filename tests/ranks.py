"""Run a function in several processes that can talk to each other over gloo, and get back what each returned."""

import datetime
import time
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

SECONDS = 300
"""How long a collective may take before it fails: a rank that waits for ever fails its test instead."""


def run_ranks(function, folder, *args, world=2, seconds=1200):
    """Return `function(rank, world, *args)` of every rank; processes that outlive `seconds` are ended and fail the test."""
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_one, args=(rank, world, str(folder), function, args)) for rank in range(world)]
    for job in jobs:
        job.start()
    end = time.monotonic() + seconds
    for job in jobs:
        job.join(max(0.0, end - time.monotonic()))
    hung = [rank for rank, job in enumerate(jobs) if job.is_alive()]
    for job in jobs:
        if job.is_alive():
            job.kill()
            job.join()
    assert not hung, f"ranks {hung} did not end within {seconds} s"
    results = [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(world)]
    for rank, (fine, result) in enumerate(results):
        assert fine, f"rank {rank}:\n{result}"
    return [result for _, result in results]


def _one(rank, world, folder, function, args):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timeout)
    try:
        result = True, function(rank, world, *args)
    except BaseException:
        result = False, traceback.format_exc()
    torch.save(result, f"{folder}/result{rank}")
    dist.destroy_process_group()
