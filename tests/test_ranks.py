"""Two ranks in processes of their own, on results that one process computes, too."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from planted import convolutional, dense, rows
from vaeprune import ranks, verify
from vaeprune.adapters import measuring
from vaeprune.analysis.ablation import Reaction, reactions
from vaeprune.analysis.encoding_pass import How, accumulate, until_certain
from vaeprune.analysis.latents import Thresholds
from vaeprune.analysis.moments import Moments
from vaeprune.data import MemoryRows, as_data
from vaeprune.errors import TrainingError, UsageError
from vaeprune.posterior import Posterior
from vaeprune.training import Objective, Options, train


def _entered(rank: int, job: Callable[[], object], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    Path(folder, str(rank)).write_bytes(pickle.dumps(job()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def by_two(job: Callable[[], object], folder: Path) -> list:
    """What each of two ranks returns from `job`, a function of this module."""
    torch.multiprocessing.start_processes(_entered, (job, str(folder)), nprocs=2, start_method="spawn")
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


def posterior() -> Posterior:
    mean, logvar = torch.randn(2, 501, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Posterior(mean * 3 + 100, logvar)


def merged() -> Moments:
    """Moments of one half of given means, merged with the other rank's."""
    half = slice(*((0, 200), (200, 501))[ranks.rank()])
    first, second = ranks.gathered(Moments.of(Posterior(*(t[half] for t in posterior()))))
    return first.merge(second)


def moments() -> Moments:
    vae = dense((1, 4)).double()
    with measuring(vae):
        return accumulate(vae, MemoryRows("rows", rows(501).double()))


def parted() -> list[torch.Tensor]:
    sets = as_data(rows(3000))
    return [sets.select.tensors[0], sets.verify.tensors[0], torch.tensor(sets.calibrate.count)]


def tried() -> list[Reaction]:
    vae = dense((1, 4)).double()
    with measuring(vae):
        constants = torch.zeros(6, dtype=torch.float64)
        return reactions(vae, MemoryRows("rows", rows(700).double()), constants, [[0], [1, 4]])


def compared() -> object:
    return verify(dense((1, 4)), dense((1, 4), seed=1), as_data(rows(4000))).to_json()


def step(vae=None, whole: int = 40) -> dict[str, torch.Tensor]:
    options = Options(epochs=1, batch_size=whole, trace_every=1)
    return dict(train(vae or dense((1, 4)), rows(whole), options).vae.state_dict())


def step_of_frozen() -> dict[str, torch.Tensor]:
    vae = dense((1, 4))
    vae.mean_head.weight.requires_grad_(False)
    return step(vae)


def convolutional_epochs() -> dict[str, torch.Tensor]:
    vae = convolutional(input_shape=(1, 17, 17))
    return dict(train(vae, rows(40, (1, 17, 17)), Options(epochs=2, batch_size=20)).vae.state_dict())


def step_without_spread() -> dict[str, torch.Tensor]:
    """The weights of the logvar head have no part in the loss."""
    options = Options(epochs=1, batch_size=40, objective=Objective("quadratic", sampling=False))
    return dict(train(dense((1, 4)), rows(40), options).vae.state_dict())


def refused() -> list[str]:
    said = []
    vae = dense((1, 4))
    for call in (
        lambda: train(vae, rows(40), Options(epochs=1, batch_size=3)),
        lambda: until_certain(vae, MemoryRows("rows", rows(50)), Thresholds(), None, How()),
    ):
        with pytest.raises((TrainingError, UsageError)) as caught:
            call()
        said.append(str(caught.value))
    return said


def alone_and_first() -> tuple:
    with ranks.alone():
        inside = (ranks.rank(), ranks.world(), ranks.gathered("own"))
    return inside, ranks.from_first(lambda: (ranks.world(), os.environ["RANK"])), ranks.gathered(ranks.rank())


def all_jobs() -> dict[str, object]:
    """Everything in one start of two processes."""
    jobs = (
        merged,
        moments,
        parted,
        tried,
        compared,
        step,
        step_of_frozen,
        step_without_spread,
        convolutional_epochs,
        refused,
        alone_and_first,
    )
    return {job.__name__: job() for job in jobs}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return by_two(all_jobs, tmp_path_factory.mktemp("ranks"))


def test_moments_of_halves_of_given_means_merge_to_those_of_all(both: list) -> None:
    expected = Moments.of(posterior())
    for rank in both:
        found = rank["merged"]
        assert found.count == 501
        for name in ("mean", "comoment", "variance", "variance_error", "low", "high"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=0)
        for a, b in zip((*found.kl, *found.sigma2), (*expected.kl, *expected.sigma2), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=0)


def test_two_ranks_encode_all_rows_once(both: list) -> None:
    expected = moments()
    for rank in both:
        assert rank["moments"].count == 501
        torch.testing.assert_close(rank["moments"].comoment, expected.comoment, rtol=1e-9, atol=0)
        torch.testing.assert_close(rank["moments"].variance, expected.variance, rtol=1e-9, atol=0)


def test_the_sets_are_those_of_one_rank(both: list) -> None:
    for rank in both:
        for found, expected in zip(rank["parted"], parted(), strict=True):
            assert torch.equal(found, expected)


def test_reactions_and_evidence_are_those_of_one_rank(both: list) -> None:
    for found, expected in zip(both[0]["tried"], tried(), strict=True):
        assert found.cost == pytest.approx(expected.cost, rel=1e-9)
        assert found.cost_ci95 == pytest.approx(expected.cost_ci95, rel=1e-9)
        assert found.noise_ci95 == pytest.approx(expected.noise_ci95, rel=1e-9)
    assert both[0]["tried"] == both[1]["tried"]
    expected = compared()
    for name in ("mean_path", "prior_samples"):
        assert both[0]["compared"][name] == pytest.approx(expected[name], rel=1e-5)
    assert both[0]["compared"]["sampling"]["ci95"] == pytest.approx(expected["sampling"]["ci95"], rel=1e-4)


def test_a_step_is_that_of_one_rank(both: list) -> None:
    for job in (step, step_of_frozen, step_without_spread):
        expected, before = job(), dense((1, 4)).state_dict()
        assert any(not torch.equal(expected[key], before[key]) for key in before)
        for rank in both:
            for key, value in expected.items():
                torch.testing.assert_close(rank[job.__name__][key], value, rtol=1e-5, atol=1e-5)
    assert torch.equal(both[0]["step_of_frozen"]["mean_head.weight"], dense((1, 4)).mean_head.weight)


def test_both_ranks_end_with_the_same_weights_also_with_batchnorm(both: list) -> None:
    a, b = (rank["convolutional_epochs"] for rank in both)
    for key in a:
        if "running" not in key:  # each rank's own until the next step takes rank 0's
            assert torch.equal(a[key], b[key]), key


def test_what_several_ranks_cannot_do_is_refused(both: list) -> None:
    batches, certain = both[0]["refused"]
    told = "array: got minibatches of 3 rows for 2 ranks, expected at least 4; start fewer processes, or raise"
    assert batches == f"{told} --batch-size"
    assert certain == "--until-certain: goes with one process; leave it out, or start without torchrun"
    assert both[1]["refused"] == both[0]["refused"]


def test_inside_alone_there_is_one_rank_and_the_first_makes_what_all_get(both: list) -> None:
    for number, rank in enumerate(both):
        inside, made, found = rank["alone_and_first"]
        assert inside == (0, 1, ["own"]), number
        assert made == (1, "0")
        assert found == [0, 1]


def test_without_others_there_is_one_rank() -> None:
    assert (ranks.rank(), ranks.world()) == (0, 1)
    assert ranks.gathered(3) == [3]
    assert ranks.from_first(lambda: 4) == 4
