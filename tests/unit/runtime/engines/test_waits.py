"""The waits between attempts at a service: longer each time, bounded, and not the same for all who wait."""

import random
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st
from polymath.runtime.engines.endpoint import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, waits

ATTEMPTS = 40


@given(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=ATTEMPTS, max_size=ATTEMPTS))
def test_a_wait_is_half_to_all_of_one_that_doubles_up_to_a_bound(chances: list[float]) -> None:
    found = list(islice(waits(iter(chances).__next__), ATTEMPTS))
    longest = [min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt) for attempt in range(ATTEMPTS)]
    assert all(most / 2 <= wait <= most for wait, most in zip(found, longest, strict=True))
    assert all(later >= earlier / 2 for earlier, later in pairwise(found))


def test_clients_that_lost_a_service_together_do_not_come_back_together() -> None:
    clients = [list(islice(waits(random.Random(number).random), 8)) for number in range(100)]
    for together in zip(*clients, strict=True):  # the same attempt of all
        assert len(set(together)) == len(clients)
        assert max(together) - min(together) > 0.4 * max(together)


def test_without_being_told_how_two_clients_wait_differently() -> None:
    assert list(islice(waits(), 8)) != list(islice(waits(), 8))
