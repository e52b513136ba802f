import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from scoregen.denoisers.base import as_sigma
from scoregen.errors import UserError
from scoregen.objectives.base import Loss
from scoregen.parallel import Parallel
from scoregen.training.phases import MicroBatch
from scoregen.training.role import Role


@pytest.fixture
def on_cuda() -> Parallel:
    parallel = Parallel("cpu")
    parallel.device = torch.device("cuda")  # only its name is asked for
    return parallel


def test_repeatable_work_on_cuda_takes_deterministic_kernels_and_nothing_else_does(on_cuda: Parallel) -> None:
    with on_cuda.repeatable():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    on_cuda.deterministic = False
    with on_cuda.repeatable():
        assert not torch.are_deterministic_algorithms_enabled()
    with Parallel("cpu").repeatable():
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_told_with_the_way_out(on_cuda: Parallel) -> None:
    message = "foo_cuda does not have a deterministic implementation, but you set 'x'. You can turn off ..."
    with (
        pytest.raises(UserError, match=r"^foo_cuda does not .* set deterministic=false"),
        on_cuda.repeatable(),
    ):
        raise RuntimeError(message)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="out of memory"), on_cuda.repeatable():
        raise RuntimeError("CUDA out of memory")


def _count_reductions(rank: int, folder: str) -> None:
    """As rank of 2, four micro-batches a step; how often gradients were averaged in each of three steps."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20_000 + os.getppid() % 20_000))
    torch.set_num_threads(1)
    net, reductions, counts = nn.Linear(3, 1), 0, []
    role = Role("model", net, partial(torch.optim.SGD, lr=0.1), Parallel("cpu"))

    def counted(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal reductions
        reductions += 1
        return allreduce_hook(None, bucket)

    def loss(batch: MicroBatch) -> Loss:
        return Loss(net(batch.x0).square().mean(1), as_sigma(1.0, batch.x0).expand(len(batch.x0)))

    role.wrapped.register_comm_hook(None, counted)
    for nimg in (0, 16, 32):
        for i in range(4):
            x0 = torch.full((2, 3), float(nimg + 8 * rank + 2 * i))
            role.backward(loss, MicroBatch(x0, None, 0, nimg, 16, slice(0, 2)), 1.0, last=i == 3)
        role.apply(1.0, clip=None, loss_scale=1.0)
        counts.append(reductions)
    torch.save((counts, net.state_dict()), f"{folder}/{rank}.pt")
    role.parallel.close()


def test_gradients_of_all_micro_batches_of_a_step_are_averaged_at_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_count_reductions, (str(tmp_path),), nprocs=2)
    (ours, weights), (theirs, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert ours == theirs == [1, 2, 3]
    torch.testing.assert_close(weights, others, rtol=0, atol=0)
