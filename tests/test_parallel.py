import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from reidserve.errors import DeviceError, UsageError  # noqa: E402
from reidserve.export.train.parallel import ALONE, Team, join  # noqa: E402
from reidserve.export.train.recipes import change, write_recipe  # noqa: E402
from reidserve.export.train.settings import BatchSettings  # noqa: E402
from reidserve.export.train.state import read_state  # noqa: E402
from tests.runs import SMALL, assert_same_run, log_of, read_small, start_child, train_into, write_data  # noqa: E402
from tests.train_child import normalise_as_begun  # noqa: E402

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

# Gradient descent alone: Adam divides by gradients that are all rounding where they should be zero.
SETTINGS = change(
    SMALL,
    [
        *("stages.1.epochs=1", "optim.name=sgd", "optim.lr=0.01", "loss.centre_weight=0.01", "optim.ema=0.5"),
        *("evaluation.every=0", "optim.clip=2", "schedule.warm_up=0"),
    ],
)


def test_a_team_shares_a_batch_by_whole_identities():
    batch = BatchSettings(identities=6, images=2)
    teams = [Team(rank, 3) for rank in range(3)]
    shares = [np.arange(12)[team.share(batch.size)] for team in teams]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(12))
    assert {len(share) for share in shares} == {4}
    assert [team.leads for team in teams] == [True, False, False]
    with pytest.raises(UsageError, match="a multiple of the 4 processes that share a batch, got 6"):
        Team(0, 4).check(batch)
    ALONE.check(batch)


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    said = {"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match="each process needs a GPU of its own, torch finds"), join("cuda"):
        pass


@pytest.mark.parametrize("size", ["2", "0", "many"])
def test_a_number_of_processes_that_torchrun_did_not_set_is_refused(size: str, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UsageError, match=f"WORLD_SIZE={size} .* RANK, .*: start with torchrun"), join("cpu"):
        pass


# As torchrun gives each process: two threads sum in another order, and what a rounding tips over goes far.
@pytest.mark.usefixtures("one_thread")
def test_two_processes_come_to_the_result_of_one(tmp_path: Path, monkeypatch):
    # Each process normalises by its own share, where the processor is no GPU: norms that keep their statistics agree.
    monkeypatch.setenv("FIXED_NORMS", "1")
    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "forward", normalise_as_begun)
    train_into(tmp_path / "one", read_small(tmp_path), SETTINGS)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(write_recipe(SETTINGS))
    child = start_child(tmp_path / "data", tmp_path / "two", recipe, *TORCHRUN)
    _, errors = child.communicate(timeout=240)
    assert child.returncode == 0, errors
    assert errors.count("stage 1 of 1") == 1
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert [read_state(tmp_path / name / "last.safetensors").machine.processes for name in ("one", "two")] == [1, 2]
    drawn = load_file(tmp_path / "one" / "model.safetensors")["classifier.weight"]
    assert (drawn - one["network/classifier.weight"]).abs().max() > 1e-6
    logs = [log_of(tmp_path / name)[1] for name in ("one", "two")]
    assert logs[1]["step_losses"] == pytest.approx(logs[0]["step_losses"], rel=1e-4)
    assert logs[1]["accuracy"] == logs[0]["accuracy"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        path.name for path in (tmp_path / "two").iterdir()
    )


@pytest.mark.slow
def test_processes_that_were_killed_and_go_on_come_to_the_same_bits(tmp_path: Path):
    data, recipe, out = write_data(tmp_path / "data"), tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(write_recipe(change(SETTINGS, ["stages.1.epochs=4", "precision=bf16", "evaluation.every=1"])))
    whole = start_child(data, tmp_path / "whole", recipe, *TORCHRUN)
    training = start_child(data, out, recipe, *TORCHRUN)
    deadline = time.monotonic() + 200
    while not (out / "log.jsonl").exists() or len(log_of(out)) < 2:
        assert time.monotonic() < deadline, "the run never came to epoch 1"
        time.sleep(0.01)
    training.terminate()
    training.communicate(timeout=60)
    done = read_state(out / "last.safetensors").epoch
    assert done < 4, "the run was not cut off half-way"
    again = start_child(data, out, recipe, *TORCHRUN)
    for child in (again, whole):
        _, errors = child.communicate(timeout=200)
        assert child.returncode == 0, errors
    assert_same_run(out, tmp_path / "whole")
