"""The GPU nominator: its logic against a CPU twin, and itself where there is a GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from reidserve.errors import DeviceError
from reidserve.index.search import faiss_gpu
from reidserve.index.search.faiss_gpu import GpuFlatFp16, check_gpu, gpu_flat_fp16
from tests.conftest import unit_rows

DIM = 32


@pytest.fixture(scope="module")
def vectors():
    return unit_rows(np.random.default_rng(0), 700, DIM)


@pytest.fixture(scope="module")
def queries():
    return unit_rows(np.random.default_rng(1), 50, DIM)


class Twin:
    """What a GPU index does, on the CPU; notes who calls and with what."""

    def __init__(self, vectors):
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)
        self.calls = []
        self.threads = set()
        self.inside = threading.Lock()

    def add(self, vectors, /):
        with self.inside:
            self.index.add(vectors)

    def search(self, queries, count, /):
        assert self.inside.acquire(blocking=False), "two threads are on the GPU"
        try:
            self.calls.append((len(queries), count))
            self.threads.add(threading.current_thread().name)
            return self.index.search(queries, count)
        finally:
            self.inside.release()


def assert_equal_to_brute_force(nominator, vectors, queries, rows, count):
    scores, found = nominator.nominate(queries, count)
    exact = queries @ vectors.T
    order = np.argsort(-exact, axis=1, kind="stable")[:, :count]
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, axis=1), atol=nominator.window)
    places = np.searchsorted(rows, found)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, places, axis=1), atol=nominator.window)
    np.testing.assert_array_equal(rows[places], found)


def test_the_twin_finds_what_brute_force_finds_under_its_row_numbers(vectors, queries):
    rows = np.arange(700, dtype=np.int64) * 2 + 1
    nominator = GpuFlatFp16(rows, Twin(vectors), dim=DIM)
    assert_equal_to_brute_force(nominator, vectors, queries, rows, 25)
    assert (nominator.kind, len(nominator.rows), nominator.most) == ("flat-fp16", 700, 2048)


def test_what_was_added_since_is_never_named_by_an_older_nominator(vectors, queries):
    rows = np.arange(700, dtype=np.int64) * 2 + 1
    first = GpuFlatFp16(rows[:400], Twin(vectors[:400]), dim=DIM)
    alone = first.nominate(queries, 25)
    grown = first.extended(rows[400:], vectors[400:])
    assert_equal_to_brute_force(grown, vectors, queries, rows, 25)
    scores, found = first.nominate(queries, 25)
    for place in range(len(queries)):
        known = found[place] >= 0
        assert set(found[place][known]) <= set(rows[:400])
        # What it names is what it named before, to where it stopped looking.
        np.testing.assert_array_equal(found[place][known], alone[1][place][: known.sum()])
        assert scores[place].min() > -np.inf


def test_batches_are_divided_at_the_limit_and_give_the_same(vectors, queries, monkeypatch):
    whole = GpuFlatFp16(np.arange(700), Twin(vectors), dim=DIM).nominate(queries, 10)
    monkeypatch.setattr(faiss_gpu, "CALL_QUERIES", 16)
    twin = Twin(vectors)
    parts = GpuFlatFp16(np.arange(700), twin, dim=DIM).nominate(queries, 10)
    assert twin.calls == [(16, 10), (16, 10), (16, 10), (2, 10)]
    np.testing.assert_array_equal(parts[1], whole[1])


@pytest.mark.parametrize("count", [0, 2049])
def test_more_than_its_kernels_return_is_never_asked_of_the_gpu(vectors, queries, count):
    twin = Twin(vectors)
    with pytest.raises(ValueError, match=f"1 to 2048, got {count}"):
        GpuFlatFp16(np.arange(700), twin, dim=DIM).nominate(queries, count)
    assert twin.calls == []


def test_missing_rows_are_padded_and_never_asked_for(vectors, queries):
    twin = Twin(vectors[:3])
    scores, rows = GpuFlatFp16(np.arange(3), twin, dim=DIM).nominate(queries[:2], 5)
    assert twin.calls == [(2, 3)]
    assert (rows[:, 3:] == -1).all()
    assert (scores[:, 3:] == -np.inf).all()
    nothing = GpuFlatFp16(np.arange(0), Twin(vectors[:0]), dim=DIM).nominate(queries, 5)
    assert (nothing[1] == -1).all()


def test_equal_scores_stand_in_row_order(vectors):
    same = np.repeat(vectors[:1], 6, axis=0)
    assert GpuFlatFp16(np.arange(6) + 4, Twin(same), dim=DIM).nominate(same[:1], 6)[1].tolist() == [[4, 5, 6, 7, 8, 9]]


def test_many_threads_reach_the_gpu_through_one(vectors, queries):
    twins = Twin(vectors), Twin(vectors)
    nominators = [GpuFlatFp16(np.arange(700), twin, dim=DIM) for twin in twins]
    expected = nominators[0].nominate(queries, 5)[1]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: nominators[number % 2].nominate(queries, 5)[1], range(100)))
    assert all((answer == expected).all() for answer in answers)
    assert twins[0].threads | twins[1].threads == {"faiss-gpu_0"}


def test_a_failure_of_the_gpu_fails_its_caller_and_no_others(vectors, queries):
    class Failing:
        def search(self, queries, count, /):
            raise RuntimeError("Error in faiss::gpu\nCUDA error 2 out of memory")

    with pytest.raises(DeviceError, match="CUDA error 2 out of memory"):
        GpuFlatFp16(np.arange(700), Failing(), dim=DIM).nominate(queries, 5)
    assert GpuFlatFp16(np.arange(700), Twin(vectors), dim=DIM).nominate(queries, 5)[1].shape == (50, 5)


def test_a_build_without_gpu_code_is_refused_and_says_what_to_install(vectors, monkeypatch):
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(DeviceError, match=r"CPU build.*reidserve\[gpu\]"):
        gpu_flat_fp16(np.arange(700), vectors)


@pytest.mark.parametrize(("there", "asked"), [(0, 0), (1, 1), (1, -1)])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, there, asked):
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: there, raising=False)
    with pytest.raises(DeviceError, match=f"expected GPU {asked}, FAISS sees {there}"):
        check_gpu(asked)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [DIM, 100, 2048])
def test_on_a_gpu_scores_lie_within_the_window_of_vecdot(dim):
    rng = np.random.default_rng(dim)
    vectors, queries = unit_rows(rng, 5000, dim), unit_rows(rng, 1100, dim)
    rows = np.arange(5000, dtype=np.int64) * 2
    nominator = gpu_flat_fp16(rows, vectors)
    scores, found = nominator.nominate(queries, 2048)
    for query, some, places in zip(queries[:50], scores, found // 2, strict=False):
        assert len(set(places.tolist())) == 2048
        assert np.abs(some - np.vecdot(vectors[places], query)).max() <= nominator.window
    assert_equal_to_brute_force(nominator, vectors, queries, rows, 100)


@pytest.mark.gpu
def test_on_a_gpu_eight_threads_get_what_one_gets(vectors, queries):
    nominator = gpu_flat_fp16(np.arange(700), vectors)
    expected = nominator.nominate(queries, 700)
    with ThreadPoolExecutor(8) as pool:
        for scores, rows in pool.map(lambda _: nominator.nominate(queries, 700), range(100)):
            np.testing.assert_array_equal(scores, expected[0])
            np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.gpu
def test_on_a_gpu_a_missing_device_is_refused(vectors):
    with pytest.raises(DeviceError, match="expected GPU 99"):
        gpu_flat_fp16(np.arange(700), vectors, device=99)
