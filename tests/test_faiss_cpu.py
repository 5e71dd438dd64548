"""The FAISS nominators against exact products, on values."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from reidserve.index.search import faiss_cpu
from reidserve.index.search.faiss_cpu import FlatFp16, Frame, RaBitQ, encode, fit_frame, half_window, rotate
from tests.conftest import unit_rows


def features(count, dim, *, seed=0, queries=0, heavy=False):
    """Rows (count, dim) of identities of about 8 images, and queries of the same identities.

    Intra-identity cosine .7, inter-identity .2 +- .09; `heavy` ones are non-negative, and few
    dimensions weigh most.
    """
    rng = np.random.default_rng(seed)
    # Identities differ in few directions, as real ones do (40 on photographs): isotropic strangers would all be alike.
    identities = unit_rows(rng, count // 8, 32) @ unit_rows(rng, 32, dim)
    identities *= np.float32(0.7) / np.linalg.norm(identities, axis=1, keepdims=True)
    common = unit_rows(rng, 1, dim) * np.float32(0.45)
    scale = np.exp(rng.standard_normal(dim)).astype(np.float32)

    def photograph(pids):
        rows = identities[pids] + common + unit_rows(rng, len(pids), dim) * np.float32(0.55)
        if heavy:
            rows = np.maximum(rows, 0) ** np.float32(1.5) * scale
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return photograph(rng.integers(0, count // 8, count)), photograph(rng.integers(0, count // 8, queries))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(faiss_cpu, "SHARD_ROWS", 1024)


@pytest.fixture(scope="module")
def heavy():
    return features(4000, 256, queries=100, heavy=True)


def every_third(vectors):
    """Row numbers with gaps, as a gallery has."""
    return np.arange(len(vectors), dtype=np.int64) * 3 + 5


def make_rabitq(vectors):
    frame = fit_frame(vectors[:1000])
    return RaBitQ(frame, every_third(vectors), encode(frame, vectors))


MAKERS = {"rabitq": make_rabitq, "flat-fp16": lambda vectors: FlatFp16(every_third(vectors), vectors)}


@pytest.fixture(params=MAKERS)
def maker(request):
    return MAKERS[request.param]


def recall(found, exact):
    return np.mean([len(np.intersect1d(some, best)) / len(best) for some, best in zip(found, exact, strict=True)])


def best_rows(vectors, queries, count):
    return every_third(vectors)[np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :count]]


@pytest.mark.parametrize(("is_heavy", "centred"), [(False, True), (True, True), (True, False)])
def test_the_ten_best_are_nearly_always_among_200_candidates(is_heavy, centred):
    vectors, queries = features(4000, 512, queries=200, heavy=is_heavy)
    frame = fit_frame(vectors) if centred else Frame(np.zeros(512, np.float32))
    nominator = RaBitQ(frame, every_third(vectors), encode(frame, vectors))
    _, rows = nominator.nominate(queries, 200)
    assert recall(rows, best_rows(vectors, queries, 10)) >= 0.999


def test_without_the_rotation_heavy_tailed_features_lose_their_best(monkeypatch):
    vectors, queries = features(4000, 512, queries=200, heavy=True)
    monkeypatch.setattr(faiss_cpu, "rotate", lambda vectors, seed: np.ascontiguousarray(vectors))
    _, rows = make_rabitq(vectors).nominate(queries, 50)
    plain = recall(rows, best_rows(vectors, queries, 10))
    monkeypatch.undo()
    _, rows = make_rabitq(vectors).nominate(queries, 50)
    assert recall(rows, best_rows(vectors, queries, 10)) > plain + 0.02


@pytest.mark.parametrize("dim", [13, 24, 96, 512])
def test_estimates_are_close_to_exact_scores_and_not_lopsided(dim):
    vectors, queries = features(2000, dim, queries=50)
    scores, rows = make_rabitq(vectors).nominate(queries, 2000)
    exact = np.take_along_axis(queries @ vectors.T, (rows - 5) // 3, axis=1)
    assert np.abs(scores - exact).std() < 1 / np.sqrt(dim)
    assert abs((scores - exact).mean()) < 0.2 / np.sqrt(dim)
    assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > 0.6


@pytest.mark.parametrize("dim", [1, 2, 3, 24, 100, 128, 1280])
def test_the_rotation_keeps_products(dim):
    vectors, queries = features(80, dim, queries=20)
    turned = rotate(vectors, seed=1), rotate(queries, seed=1)
    np.testing.assert_allclose(turned[1] @ turned[0].T, queries @ vectors.T, atol=2e-6)
    assert dim < 13 or (turned[0] != rotate(vectors, seed=2)).any()


def test_the_rotation_is_the_same_for_ever():
    assert hashlib.sha256(faiss_cpu._signs(0, 24).tobytes()).hexdigest()[:16] == "fcb2d9f3d5452b6f"
    ramp = np.arange(24, dtype=np.float32)[np.newaxis]
    np.testing.assert_allclose(np.linalg.norm(rotate(ramp, seed=0)), np.linalg.norm(ramp), rtol=1e-6)


@pytest.mark.parametrize("dim", [24, 100, 512])
def test_codes_are_what_faiss_adds_and_do_not_depend_on_each_other(dim):
    vectors, _ = features(2000, dim)
    frame = fit_frame(vectors)
    codes = encode(frame, vectors)
    assert codes.shape == (2000, frame.code_size)
    index = faiss.IndexRaBitQ(dim, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(rotate(frame.centre[np.newaxis], seed=0)[0], index.center)
    index.is_trained = True
    index.add(rotate(vectors, seed=0))
    np.testing.assert_array_equal(faiss.vector_to_array(index.codes).reshape(2000, -1), codes)
    parts = np.split(vectors, [1, 8, 777])
    np.testing.assert_array_equal(np.concatenate([encode(frame, part) for part in parts]), codes)
    assert encode(frame, vectors[:0]).shape == (0, frame.code_size)


def test_scores_are_those_of_faiss_s_own_index():
    vectors, queries = features(900, 128, queries=30)
    nominator = make_rabitq(vectors)
    index = faiss.IndexRaBitQFastScan(128, faiss.METRIC_INNER_PRODUCT)
    index.qb = faiss_cpu.QUERY_BITS
    faiss.copy_array_to_vector(rotate(nominator.frame.centre[np.newaxis], seed=0)[0], index.center)
    index.is_trained = True
    index.add(rotate(vectors, seed=0))
    expected, _ = index.search(rotate(queries, seed=0), 900)
    scores, _ = nominator.nominate(queries, 900)
    np.testing.assert_array_equal(scores, expected)


def test_candidates_do_not_depend_on_batch_order_or_threads(maker, heavy):
    vectors, some = heavy
    queries = np.concatenate([some, features(4000, 256, seed=9, queries=500, heavy=True)[1]])
    nominator = maker(vectors)
    scores, rows = nominator.nominate(queries, 50)
    shuffled = np.random.default_rng(0).permutation(600)
    batches = [*(np.array([place]) for place in range(60)), *np.split(np.arange(7 * 30), 30), np.arange(512), shuffled]
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            for batch in batches:
                found = nominator.nominate(queries[batch], 50)
                np.testing.assert_array_equal(found[0], scores[batch])
                np.testing.assert_array_equal(found[1], rows[batch])
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)


def test_threads_that_search_at_once_get_what_each_gets_alone(maker, heavy):
    vectors, queries = heavy
    nominator = maker(vectors)
    alone = nominator.nominate(queries, 20)

    def search(number):
        size = (1, 7, 40, 100)[number % 4]
        place = number % (101 - size)
        found = nominator.nominate(queries[place : place + size], 20)
        return all((mine == his[place : place + size]).all() for mine, his in zip(found, alone, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(search, range(200)))


@pytest.mark.parametrize("cuts", [[0], [1, 500], [1024], [1023, 1025, 2048, 3999]])
def test_rows_that_come_bit_by_bit_make_the_same_nominator(heavy, cuts):
    vectors, queries = heavy
    rows, frame = every_third(vectors), fit_frame(vectors)
    codes = encode(frame, vectors)
    grown = RaBitQ(frame, rows[: cuts[0]], codes[: cuts[0]])
    grown16 = FlatFp16(rows[: cuts[0]], vectors[: cuts[0]])
    for start, stop in zip(cuts, [*cuts[1:], 4000], strict=True):
        shards = grown._shards
        grown = grown.extended(rows[start:stop], codes[start:stop])
        assert all(new is old for new, old in zip(grown._shards, shards, strict=False) if len(old.rows) == 1024)
        grown16 = grown16.extended(rows[start:stop], vectors[start:stop])
    for one, other in ((grown, RaBitQ(frame, rows, codes)), (grown16, FlatFp16(rows, vectors))):
        np.testing.assert_array_equal(one.rows, rows)
        np.testing.assert_array_equal(one.codes, other.codes)
        for mine, his in zip(one.nominate(queries, 100), other.nominate(queries, 100), strict=True):
            np.testing.assert_array_equal(mine, his)


def test_equal_scores_stand_in_row_order_and_missing_rows_are_padded(maker):
    vectors = np.repeat(unit_rows(np.random.default_rng(0), 1, 64), 5, axis=0)
    scores, rows = maker(vectors).nominate(vectors[:2], 8)
    assert rows.tolist() == [[5, 8, 11, 14, 17, -1, -1, -1]] * 2
    assert (scores[:, :5] == scores[0, 0]).all()
    assert (scores[:, 5:] == -np.inf).all()
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64


@pytest.mark.parametrize("dim", [1024, 1025, 2048, 3001, 4096])
@pytest.mark.parametrize("is_heavy", [False, True])
def test_a_row_is_its_own_first_candidate_however_many_dimensions(dim, is_heavy):
    vectors, _ = features(1000, dim, heavy=is_heavy)
    nominator = make_rabitq(vectors)
    scores, rows = nominator.nominate(vectors, 1)
    # The best are what FastScan's 16 bits overflow for.
    np.testing.assert_array_equal(rows[:, 0], nominator.rows)
    np.testing.assert_allclose(scores[:, 0], 1, atol=0.05)


def test_a_query_that_is_the_centre_finds_the_best(heavy):
    vectors, _ = heavy
    frame = Frame(vectors[7].copy())
    nominator = RaBitQ(frame, every_third(vectors), encode(frame, vectors))
    scores, rows = nominator.nominate(vectors[7:8], 50)
    assert rows[0, 0] == 5 + 3 * 7
    assert (rows >= 0).all()
    np.testing.assert_allclose(scores[0], vectors[(rows[0] - 5) // 3] @ vectors[7], atol=0.1)


def test_a_nominator_of_nothing_finds_nothing(maker):
    vectors, queries = features(80, 64, queries=2)
    nominator = maker(vectors)
    nothing = type(nominator)(*((nominator.frame,) if nominator.kind == "rabitq" else ()), *empty(nominator))
    scores, rows = nothing.nominate(queries, 3)
    assert (scores == -np.inf).all()
    assert (rows == -1).all()
    assert nominator.nominate(queries[:0], 3)[1].shape == (0, 3)


def empty(nominator):
    width = nominator.frame.code_size if nominator.kind == "rabitq" else 64
    return np.empty(0, np.int64), np.empty((0, width), np.uint8 if nominator.kind == "rabitq" else np.float32)


def test_codes_of_another_frame_are_refused():
    frame = fit_frame(features(80, 64)[0])
    with pytest.raises(ValueError, match="16 bytes, got"):
        RaBitQ(frame, np.arange(3), np.empty((3, 17), np.uint8))
    with pytest.raises(ValueError, match="each of 2 rows, got 3"):
        RaBitQ(frame, np.arange(2), np.empty((3, 16), np.uint8))


@pytest.mark.parametrize("dim", [1, 24, 512, 2048])
def test_half_precision_scores_lie_within_their_window_of_vecdot(dim):
    rng = np.random.default_rng(dim)
    vectors, queries = features(800, dim, queries=20)
    sparse = np.eye(dim, dtype=np.float32)[rng.integers(0, dim, 20)]
    tiny = np.full((1, dim), 1e-7, np.float32)
    tiny[0, 0] = 1
    vectors = np.concatenate([vectors, -vectors[:20], sparse, tiny, queries])
    queries = np.concatenate([queries, sparse, tiny])
    nominator = FlatFp16(every_third(vectors), vectors)
    scores, rows = nominator.nominate(queries, len(vectors))
    exact = np.stack([np.vecdot(vectors[(found - 5) // 3], query) for found, query in zip(rows, queries, strict=True)])
    assert np.abs(scores.astype(np.float64) - exact).max() <= nominator.window
    assert nominator.window < 1.5e-3
    assert half_window(dim, rounded_queries=True) > nominator.window


def test_the_window_holds_where_all_roundings_go_one_way():
    # Components just below the middle between two half-precision numbers: the largest error there is.
    size = np.float32(2**-5 * (1 + 2**-11 - 2**-22))
    vectors = np.full((1, 1024), size, np.float32)
    nominator = FlatFp16(np.arange(1), vectors)
    (score,) = nominator.nominate(vectors, 1)[0][0]
    error = abs(float(score) - float(np.vecdot(vectors, vectors)[0]))
    assert 0.9 * 2**-11 < error <= nominator.window
