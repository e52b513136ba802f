"""The endless stream of training images: what comes at image number n is a function of (seed, n)."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, Batch, Dataset, to_model_range
from scoregen.data.codec import IDENTITY, Codec
from scoregen.parallel import send
from scoregen.ranges import NonNegativeInt
from scoregen.rng import BatchRng, generator


class Stream:
    """Serves batches by image number: image n of the stream is order_e[n mod N] with e = n // N.

    order_e is the permutation drawn from generator(seed, "order", e), so every image comes once an epoch, a
    batch may cross epochs, and a restart at any n needs no state. Sets in memory are moved to the device
    where they take at most a quarter of its free memory; sets that decode on demand are prefetched one step
    ahead by `workers` threads. `codec` is that of the model which is trained.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        workers: NonNegativeInt = 4,
        codec: Codec = IDENTITY,
    ) -> None:
        self.device = torch.device(device)
        self.dataset = _place(dataset, self.device)
        self.seed, self.codec = seed, codec
        self.workers = workers if dataset.on_demand else 0
        self._orders: dict[int, Tensor] = {}
        self._pool = ThreadPoolExecutor(self.workers, "decode") if self.workers else None
        self._ahead: dict[tuple[int, ...], list[Future[Batch]]] = {}

    def indices(self, nimg: int, size: int, rows: slice = slice(None)) -> Tensor:
        """Indices (int64, CPU) of `rows` of the global batch of `size` that starts at image number `nimg`."""
        n = torch.arange(nimg, nimg + size)[rows]
        epoch, offset = n // len(self.dataset), n % len(self.dataset)
        indices = torch.empty_like(n)
        for e in epoch.unique().tolist():
            here = epoch == e
            indices[here] = self._order(e)[offset[here]]
        return indices

    def batch(self, nimg: int, size: int, rows: slice = slice(None)) -> Batch:
        """Those images, float32 as the model sees them, and their class ids, both on the device."""
        if self._pool is None:
            got = self.dataset.fetch(self.indices(nimg, size, rows))
        else:
            got = self._prefetched(self._pool, nimg, size, rows)
        x = self.codec.encode(to_model_range(send(got.x, self.device)))
        return Batch(x, None if got.label is None else send(got.label, self.device))

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) <= 1}
            self._orders[epoch] = torch.randperm(
                len(self.dataset), generator=generator(self.seed, "order", epoch)
            )
        return self._orders[epoch]

    def _prefetched(self, pool: ThreadPoolExecutor, nimg: int, size: int, rows: slice) -> Batch:
        """Take this batch from the threads and start them on the same rows of the next one."""
        key = (nimg, size, *rows.indices(size))
        futures = self._ahead.pop(key, None) or self._submit(pool, nimg, size, rows)
        self._ahead = {k: ahead for k, ahead in self._ahead.items() if k[0] >= nimg}
        self._ahead[nimg + size, *key[1:]] = self._submit(pool, nimg + size, size, rows)
        parts = [future.result() for future in futures]
        labels = [part.label for part in parts if part.label is not None]
        return Batch(torch.cat([part.x for part in parts]), torch.cat(labels) if labels else None)

    def _submit(self, pool: ThreadPoolExecutor, nimg: int, size: int, rows: slice) -> list[Future[Batch]]:
        chunks = self.indices(nimg, size, rows).chunk(self.workers)
        return [pool.submit(self.dataset.fetch, chunk) for chunk in chunks]


def _place(dataset: Dataset, device: torch.device) -> Dataset:
    if not isinstance(dataset, ArrayDataset) or device.type == "cpu":
        return dataset
    if device.type == "cuda" and dataset.x.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return dataset
    return dataset.to(device)


class LabelStream:
    """Serves class ids without images, for methods that need no data: uniform, a function of (seed, n).

    Args:
        num_classes: 0 serves none.
        dataset: reads the data set, for hooks that compare with it.
    """

    def __init__(
        self,
        num_classes: NonNegativeInt,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        dataset: Callable[[], Dataset],
    ) -> None:
        self.num_classes, self.seed, self.device = num_classes, seed, torch.device(device)
        self._dataset = dataset

    @property
    def dataset(self) -> Dataset:
        """The data set; reads it."""
        return self._dataset()

    def batch(self, nimg: int, size: int, rows: slice = slice(None)) -> Batch:
        """No images [B, 0], and class ids [B]."""
        draws = BatchRng(self.seed, "labels", nimg, size=size, rows=rows, device=self.device).rand()
        labels = (draws * self.num_classes).long().clamp(max=self.num_classes - 1)
        return Batch(draws.new_empty(len(draws), 0), labels if self.num_classes else None)
