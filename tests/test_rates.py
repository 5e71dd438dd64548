import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from reidserve.errors import OverloadedError, RateLimitedError
from reidserve.server.guard.bucket import Bucket
from reidserve.server.guard.gate import Gate
from reidserve.server.guard.keys import make_secret, revoke_key, rotate_key
from reidserve.server.guard.keys_file import change_keys
from tests.test_keys import add, with_key


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_full_bucket_gives_a_burst_and_then_a_rate():
    bucket = Bucket(10.0, 30.0, now=0.0)
    assert [bucket.take(10, now=0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(5, now=0.0) == 0.5
    assert bucket.take(5, now=0.4) == pytest.approx(0.1)
    assert bucket.take(5, now=0.5) == 0.0
    # A pause of an hour is worth one burst.
    assert bucket.take(30, now=3600.0) == 0.0
    assert bucket.take(1, now=3600.0) == pytest.approx(0.1)


def test_a_call_larger_than_the_bucket_waits_until_it_is_full_and_is_paid_for_afterwards():
    bucket = Bucket(10.0, 20.0, now=0.0)
    assert bucket.take(1, now=0.0) == 0.0
    assert bucket.take(64, now=0.0) == pytest.approx(0.1)
    assert bucket.take(64, now=0.1) == 0.0
    # 44 are owed: one more may be had when these and it have come.
    assert bucket.take(1, now=0.1) == pytest.approx(4.5)
    assert bucket.take(1, now=4.6) == 0.0


def test_the_rate_holds_in_the_long_run_whatever_is_asked():
    chance = random.Random(8)
    for _ in range(20):
        rate, size, largest = chance.uniform(0.5, 200), chance.uniform(1, 100), 64
        bucket, now, taken = Bucket(rate, size, now=0.0), 0.0, 0
        for _ in range(2000):
            now += chance.expovariate(1.0)
            images = chance.randint(1, largest)
            if not bucket.take(images, now=now):
                taken += images
        assert taken <= size + rate * now + largest


def test_who_waits_as_long_as_it_was_told_gets_through_and_no_sooner():
    chance = random.Random(9)
    for _ in range(200):
        rate, size = chance.uniform(0.1, 500), chance.uniform(1, 300)
        bucket, now = Bucket(rate, size, now=0.0), chance.uniform(0, 1e6)
        while not (wait := bucket.take(7, now=now)):
            pass
        assert bucket.take(7, now=now + 0.99 * wait) > 0
        assert bucket.take(7, now=now + wait) == 0


def guarded(tmp_path: Path, **said) -> tuple[Gate, Clock, str]:
    clock = Clock()
    token = add(tmp_path / "keys.json", "cameras", **said)
    return Gate(tmp_path / "keys.json", clock=clock, look_seconds=0), clock, token


def test_a_key_that_sends_too_much_is_refused_with_the_time_to_wait(tmp_path):
    gate, clock, token = guarded(tmp_path, images_per_second=20.0, burst=40.0)
    caller = gate.admit(with_key(token))
    gate.spend(caller, 40)
    with pytest.raises(
        RateLimitedError, match=r"key 'cameras' may send 20 images a second: try again in 0.5 s"
    ) as refused:
        gate.spend(caller, 10)
    assert refused.value.retry_after == 0.5
    assert isinstance(refused.value, OverloadedError)
    clock.now += 0.5
    gate.spend(caller, 10)
    with pytest.raises(RateLimitedError):
        gate.spend(caller, 1)
    gate.spend(caller, 0)


def test_without_a_burst_one_second_may_come_at_once_and_one_image_always(tmp_path):
    gate, clock, token = guarded(tmp_path, images_per_second=0.5)
    caller = gate.admit(with_key(token))
    gate.spend(caller, 1)
    with pytest.raises(RateLimitedError) as refused:
        gate.spend(caller, 1)
    assert refused.value.retry_after == 2.0
    clock.now += 2.0
    gate.spend(caller, 1)


def test_each_key_has_a_rate_of_its_own_and_its_secrets_share_it(tmp_path):
    gate, _, token = guarded(tmp_path, images_per_second=10.0)
    free = add(tmp_path / "keys.json", "free")
    limited = add(tmp_path / "keys.json", "limited", images_per_second=10.0)
    secret, second = make_secret()
    change_keys(tmp_path / "keys.json", lambda keys: rotate_key(keys, "cameras", secret))
    gate.spend(gate.admit(with_key(token)), 10)
    with pytest.raises(RateLimitedError):
        gate.spend(gate.admit(with_key(second)), 1)
    gate.spend(gate.admit(with_key(limited)), 10)
    for _ in range(100):
        gate.spend(gate.admit(with_key(free)), 64)


def test_another_rate_counts_from_the_moment_it_is_read(tmp_path):
    gate, _, token = guarded(tmp_path, images_per_second=1.0)
    caller = gate.admit(with_key(token))
    gate.spend(caller, 1)
    with pytest.raises(RateLimitedError):
        gate.spend(caller, 1)
    change_keys(tmp_path / "keys.json", lambda keys: revoke_key(keys, "cameras"))
    # Admitted before it was revoked: the call goes on.
    gate.spend(caller, 1000)
    caller = gate.admit(with_key(add(tmp_path / "keys.json", "cameras", images_per_second=100.0)))
    gate.spend(caller, 100)
    with pytest.raises(RateLimitedError, match="may send 100 images a second"):
        gate.spend(caller, 100)
