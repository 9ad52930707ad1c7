"""The CUDA kernels of TSSA: their values on CPU under Triton's interpreter, and that they compile.

The interpreter has to be chosen before Triton is imported, hence another process; all cases go
through one. The package's shape checks are on there too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: CUDA would use the plain function")

# name: images, tokens, heads, channels of a head, programs wished for, dtype, scale of a channel
CASES = {
    "vit tokens, tost heads": (1, 197, 3, 48, 512, torch.float32),
    "one split": (2, 37, 3, 16, 1, torch.float32),
    "one head, one image": (1, 21, 1, 7, 512, torch.float32),
    "one token": (3, 1, 2, 8, 512, torch.float32),
    "wide heads": (1, 20, 2, 130, 512, torch.float32),
    "bfloat16": (2, 70, 3, 48, 512, torch.bfloat16),
    "float16": (2, 70, 2, 64, 512, torch.float16),
    # Its gradients are so large that nothing else is seen beside them.
    "a channel below the floor": (2, 9, 3, 8, 512, torch.float32, 1e-13),
}

CHILD = """
import sys
import jaxtyping

jaxtyping.install_import_hook("vitrail", "typechecker.check")
import torch
from vitrail.backbones.operators import tssa_triton

cases = torch.load(sys.argv[1], weights_only=True)
for case in cases.values():
    tssa_triton.PROGRAMS = case["programs"]
    inputs = [case["w"].requires_grad_(), case["temp"].requires_grad_()]
    case["out"] = tssa_triton.FusedTokenStatistics.apply(*inputs)
    case["slopes"] = torch.autograd.grad(case["out"], inputs, case["cotangent"])
torch.save({n: [c["out"].detach(), *c["slopes"]] for n, c in cases.items()}, sys.argv[2])
"""


def oracle(w: Tensor, temp: Tensor) -> Tensor:
    """The formula of `test_tssa`, all images and channels at once. w [b, n, d]."""
    heads = w.unflatten(-1, (len(temp), -1))
    unit = heads / heads.square().sum(1, keepdim=True).clamp(min=1e-24).sqrt()
    scores = (unit.square().sum(-1) * temp[:, 0]).exp()
    shares = (scores / scores.sum(-1, keepdim=True))[..., None]
    dots = (shares * heads.square()).sum(1, keepdim=True) / (shares.sum(1, keepdim=True) + 1e-8)
    return (-heads * shares / (1 + dots)).flatten(2)


def make_case(
    images: int,
    tokens: int,
    heads: int,
    p: int,
    programs: int,
    dtype: torch.dtype,
    scale: float = 1.0,
) -> dict[str, object]:
    generator = torch.Generator().manual_seed(images * tokens)
    w = torch.randn(images, tokens, heads * p, generator=generator)
    w[:, :, 1] = 0  # a channel without length
    w[:, :, 2] *= scale
    temp = 1 + 2 * torch.randn(heads, 1, generator=generator)  # some below zero
    cotangent = torch.randn(w.shape, generator=generator)
    tensors = {"w": w.to(dtype), "temp": temp, "cotangent": cotangent.to(dtype)}
    return tensors | {"programs": programs}


def assert_all_close(actual: list[Tensor], case: dict, dtype: torch.dtype) -> None:
    """Value and both gradients, in proportion to their largest entries, or to 1."""
    w, temp = (case[key].detach().double().requires_grad_() for key in ("w", "temp"))
    out = oracle(w, temp)
    slopes = torch.autograd.grad(out, (w, temp), case["cotangent"].double())
    assert [x.dtype for x in actual] == [dtype, dtype, torch.float32]
    # A number that is rounded once to `dtype`, up or down: the interpreter cuts bfloat16 off.
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 0
    for found, wanted in zip(actual, (out, *slopes), strict=True):
        largest = max(wanted.abs().max().item(), 1)
        torch.testing.assert_close(
            found.double(), wanted, rtol=1.01 * rounding, atol=2e-5 * largest
        )


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    folder = tmp_path_factory.mktemp("interpreted")
    cases = {name: make_case(*case) for name, case in CASES.items()}
    torch.save(cases, folder / "cases.pt")
    tests = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", CHILD, folder / "cases.pt", folder / "results.pt"],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
        check=True,
        timeout=300,
    )
    return cases, torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_kernels_give_the_formula_and_its_gradients(
    interpreted: tuple[dict, dict], name: str
) -> None:
    cases, results = interpreted
    assert_all_close(results[name], cases[name], CASES[name][5])


def test_tokens_are_split_where_heads_are_few() -> None:
    """Else the cases above would not test sums over parts."""
    from vitrail.backbones.operators import tssa_triton

    _, grid, sizes = tssa_triton._plan(torch.empty(2, 197, 144), 3)
    assert grid == (6, 4)
    assert sizes["RUN"] * sizes["S"] >= 197
    assert tssa_triton._plan(torch.empty(256, 197, 144), 3)[1] == (768, 1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kernels_compile_for_a_gpu_that_is_not_here(dtype: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vitrail.backbones.operators import tssa_triton

    constants = {"BN": 64, "BP": 64, "BH": 8}
    kernels = [k for k in vars(tssa_triton).values() if isinstance(k, triton.runtime.JITFunction)]
    launched = [k for k in kernels if "BN" in k.arg_names]
    assert len(launched) == 8
    for kernel in launched:
        types = dict.fromkeys(kernel.arg_names, "*fp32")
        types |= dict.fromkeys({"w", "grad", "out", "dw"} & set(types), f"*{dtype}")
        types |= dict.fromkeys(("N", "H", "P", "S", "RUN"), "i32")
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, types, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert ".entry" in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "size", [(32, 197, 8, 48), (2, 37, 3, 16), (1, 5000, 12, 64), (1, 1, 1, 130)]
)
def test_kernels_on_a_gpu(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from vitrail.backbones.operators.tssa import TSSA

    case = {
        key: value.cuda() if isinstance(value, Tensor) else value
        for key, value in make_case(*size, 0, dtype).items()
    }
    operator = TSSA(size[2] * size[3], size[2]).cuda()
    operator.temp.data = case["temp"]
    w = case["w"].requires_grad_()
    out = operator.mix(w)
    assert "FusedTokenStatistics" in type(out.grad_fn).__name__
    slopes = torch.autograd.grad(out, (w, operator.temp), case["cotangent"])
    assert_all_close([out, *slopes], case, dtype)
    again = torch.autograd.grad(operator.mix(w), (w, operator.temp), case["cotangent"])
    assert all(torch.equal(a, b) for a, b in zip(slopes, again, strict=True))
