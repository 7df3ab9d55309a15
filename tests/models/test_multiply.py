import pytest
import torch

from danlu.models.multiply import multiply


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_it_is_the_matrix_product_for_rows_and_for_columns(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    x, weight, grad = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(rows, 40)
    for left, right in ((x, weight), (grad, weight.t()), (grad.t(), x.t())):
        left, right = left.to(dtype), right.to(dtype)
        expected = left.double() @ right.double().t()
        tolerance = 1e-4 if dtype == torch.float32 else 0.2
        torch.testing.assert_close(multiply(left, right).double(), expected, rtol=0.01, atol=tolerance)
