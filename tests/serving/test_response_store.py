"""What is kept of responses, for how long, and for whom."""

import pytest

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.responses.store import ResponseStore, Stored


def make(number: int, previous: int | None = None, owner: str = "", text: str = "") -> Stored:
    before = None if previous is None else f"resp_{previous}"
    reply = {"id": f"resp_{number}", "previous_response_id": before, "output": [text]}
    return Stored(reply, [], owner)


def test_the_least_recently_used_goes_first():
    """Going on from a response uses its whole conversation; an unused one must not outlive it."""
    store = ResponseStore(3, 10**6, 100)
    store.put(make(1))
    store.put(make(2))
    store.put(make(3, previous=1))
    assert [each.id for each in store.chain("resp_3", "")] == ["resp_1", "resp_3"]
    store.put(make(4))
    assert list(store.kept) == ["resp_1", "resp_3", "resp_4"]
    store.delete("resp_1", "")
    with pytest.raises(ApiError) as caught:
        store.chain("resp_3", "")
    assert (caught.value.status, caught.value.code) == (404, "previous_response_not_found")


def test_bytes_and_age_are_bounded():
    """A few pictures in base64 weigh as much as thousands of texts."""
    now = [0.0]
    store = ResponseStore(100, 10_000, 60, clock=lambda: now[0])
    store.put(make(1, text="x" * 5000))
    store.put(make(2, text="x" * 5000))
    assert list(store.kept) == ["resp_2"]
    store.put(make(3, text="x" * 20_000))
    assert not store.kept
    store.put(make(4))
    now[0] = 50.0
    assert store.find("resp_4", "") is not None
    now[0] = 100.0
    assert store.find("resp_4", "") is not None
    now[0] = 161.0
    assert store.find("resp_4", "") is None
    nothing = ResponseStore(0, 10_000, 60)
    nothing.put(make(1))
    assert not nothing.kept


def test_a_response_belongs_to_its_key():
    """Ids are not secrets: they stand in logs and in the requests of front ends."""
    store = ResponseStore(10, 10**6, 100)
    store.put(make(1, owner="a"))
    assert store.get("resp_1", "a").id == "resp_1"
    for call in (store.get, store.delete, store.chain):
        with pytest.raises(ApiError) as caught:
            call("resp_1", "b")
        assert caught.value.status == 404
    assert "resp_1" in store.kept
