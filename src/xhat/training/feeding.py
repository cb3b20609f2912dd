"""Where a training's samples come from: workers that decode ahead of it, the device that trains, or memory."""

from accelerate import Accelerator

from xhat.config.options import Options
from xhat.data.ahead import Ahead, workers_for
from xhat.data.on_device import free_memory, on_device
from xhat.data.remembered import remembered
from xhat.data.source import DataSource
from xhat.distributed import local_processes
from xhat.training.sharing import requests_of


def fed(source: DataSource, options: Options, rows: int, accelerator: Accelerator) -> DataSource:
    """The same samples in the same order, from where they are had fastest.

    Args:
        source: of the training.
        options: of it.
        rows: samples of a micro-batch on this process.
        accelerator: the processes and their devices.
    """
    device = accelerator.device
    workers = workers_for(source, options.workers, local_processes())
    decoded = remembered(source, local_processes())
    if not workers:
        return on_device(decoded, device, free_memory(device))
    return Ahead(decoded, workers, requests_of(options, rows, accelerator), pin=device.type == "cuda")
