import pytest
import torch

from scoregen.errors import UserError
from scoregen.parallel import Parallel


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
