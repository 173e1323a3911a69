from __future__ import annotations

import shutil

import pytest
import torch

from planted import convolutional, dense, rows
from vaeprune.training import Options, train
from vaeprune.training.stepping import adam


def test_adam_in_one_call_takes_the_steps_of_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=generator), torch.randn(5, 2, 3, 3, generator=generator)]
    start[1] = start[1].to(memory_format=torch.channels_last)
    ours, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    one, many = adam(ours, 1e-2), torch.optim.Adam(theirs, lr=1e-2, foreach=False, fused=False)
    assert one.defaults["fused"]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator).to(memory_format=torch.preserve_format)
            a.grad = torch.empty_like(a).copy_(a.grad)
            b.grad = a.grad.clone()
        one.step()
        many.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vae", [dense((1, 4)), convolutional(input_shape=(1, 17, 17))], ids=["dense", "convolutional"])
def test_bfloat16_trains_almost_as_float32(vae) -> None:
    x = rows(64, vae.input_shape)
    plain, rough = (train(vae, x, Options(epochs=2, batch_size=32, bf16=on)) for on in (False, True))
    assert rough.history.epochs[-1].loss == pytest.approx(plain.history.epochs[-1].loss, rel=0.05)
    assert rough.history.epochs[-1].loss != plain.history.epochs[-1].loss
    assert all(p.dtype == torch.float32 for p in rough.vae.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_is_the_step() -> None:
    plain, compiled = (
        train(dense((1, 4)), rows(64), Options(epochs=2, batch_size=32, compiled=on)).vae for on in (False, True)
    )
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_an_epoch_on_a_gpu_is_that_on_the_cpu() -> None:
    options = Options(epochs=1, batch_size=32)
    here, there = train(dense((1, 4)), rows(64), options), train(dense((1, 4)).to("cuda"), rows(64), options)
    assert there.history.epochs[-1].loss == pytest.approx(here.history.epochs[-1].loss, rel=1e-3)
