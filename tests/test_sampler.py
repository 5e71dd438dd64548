from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")

from reidserve.export.train.sampler import draw_batches


def test_every_batch_holds_k_different_images_of_each_of_p_identities():
    labels = np.repeat(np.arange(10), np.arange(4, 14))
    batches = draw_batches(labels, batch_identities=3, batch_images=4, seed=0, epoch=1)
    assert len(batches) == len(labels) // 12
    for rows in batches:
        assert len(set(rows.tolist())) == 12
        groups = labels[rows].reshape(3, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == 3


def test_identities_and_their_images_come_up_equally_often():
    labels = np.repeat(np.arange(8), 8)
    batches = [draw_batches(labels, batch_identities=4, batch_images=4, seed=0, epoch=one) for one in (1, 2)]
    for rows in batches:
        assert set(Counter(np.concatenate(rows).tolist()).values()) == {1}
    assert [rows.tolist() for rows in batches[0]] != [rows.tolist() for rows in batches[1]]


def test_an_identity_of_few_images_repeats_them():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    (rows,) = draw_batches(labels, batch_identities=3, batch_images=4, seed=0, epoch=1)
    assert sorted(Counter(labels[rows]).items()) == [(0, 4), (1, 4), (2, 4)]
    assert sorted(Counter(rows.tolist()).values(), reverse=True) == [4, 2, 1, 1, 1, 1, 1, 1]


def test_seed_and_epoch_decide_the_batches():
    labels = np.repeat(np.arange(12), 4)

    def draw(seed: int, epoch: int) -> list[list[int]]:
        drawn = draw_batches(labels, batch_identities=4, batch_images=4, seed=seed, epoch=epoch)
        return [rows.tolist() for rows in drawn]

    assert draw(0, 1) == draw(0, 1)
    assert draw(0, 1) != draw(1, 1)
    assert draw(0, 1) != draw(1, 0)
