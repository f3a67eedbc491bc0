"""What the eight documented services hold when a task begins, and what a user may give as an argument of their functions.

States are drawn under the names of the benchmark's configurations (`worlds/bfcl/apis`). A value is one that the functions accept in
that state; which of them a task uses is drawn.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...worlds.bfcl.apis.trading import NAMES
from ...worlds.bfcl.apis.travel import AIRPORTS
from ...worlds.bfcl.apis.vehicle import DISTANCES, DOORS, ZIPCODES

States = Mapping[str, Mapping[str, Any]]

NEEDED: Mapping[str, tuple[str, ...]] = {  # optional parameters that a task cannot do without
    "get_user_tickets": ("status",),
    "echo": ("file_name",),
}
_PEOPLE = ["Ada", "Bela", "Chen", "Dana", "Emre", "Fay", "Goro", "Hana", "Ines", "Jonas", "Kofi", "Lena"]
_THINGS = (
    "the printer", "the north gate", "the invoice", "a login page",
    "the heating", "the backup", "a cracked screen", "the lift",
)  # fmt: skip
_VERBS = ["waits for", "stands beside", "has nothing to do with", "was sold with", "came before", "was swapped for"]
_FILES = ["notes.txt", "minutes.md", "plan.csv", "draft.txt", "log.txt", "letter.md", "todo.txt", "report.csv"]
_WORDS = (
    "see you at noon", "please call back", "all is settled",
    "the room is free", "bring the keys", "it is done", "thank you all",
)  # fmt: skip
_STATUSES = ["Open", "Pending", "Closed", "Waiting", "Escalated"]
_DATES = ["2026-03-04", "2026-05-17", "2026-07-21", "2026-09-09", "2026-11-28"]
_REACHABLE = sorted(city for city, code in ZIPCODES.items() if any(code in pair for pair in DISTANCES))


def initial_state(rng: random.Random) -> dict[str, dict[str, Any]]:
    """A configuration of every service."""
    people = rng.sample(_PEOPLE, 8)
    tickets = [
        {"id": number, "title": _sentence(rng), "description": _sentence(rng), "status": status, "priority": rng.randint(1, 5),
         "created_by": people[0]}
        for number, status in zip(rng.sample(range(100, 999), 5), _STATUSES, strict=True)
    ]  # fmt: skip
    tweets = {
        str(number): {"id": number, "username": name.lower(), "content": _sentence(rng), "tags": [], "mentions": []}
        for number, name in zip(rng.sample(range(1000, 9999), 5), people[1:6], strict=True)
    }
    stocks = {
        symbol: {"price": rng.randint(2000, 90_000) / 100, "percent_change": rng.randint(-30, 30) / 10, "volume": 1.5}
        for symbol in NAMES.values()
    }
    orders = {
        str(number): {"id": number, "order_type": "Buy", "symbol": symbol, "price": rng.randint(2000, 90_000) / 100,
                      "amount": rng.randint(20, 90), "status": "Open"}
        for number, symbol in zip(rng.sample(range(10_000, 99_999), 4), rng.sample([*stocks], 4), strict=True)
    }  # fmt: skip
    files = {
        name: {"type": "file", "content": "\n".join(_sentence(rng) for _ in range(rng.randint(1, 4)))}
        for name in rng.sample(_FILES, 5)
    }
    return {
        "GorillaFileSystem": {"root": {"workspace": {"type": "directory", "contents": files}}},
        "MathAPI": {},
        "MessageAPI": {
            "user_map": {name: f"USR{number}" for name, number in zip(people, rng.sample(range(100, 999), 8), strict=True)},
            "current_user": "USR001",
        },
        "TicketAPI": {"ticket_queue": tickets, "ticket_counter": rng.randint(1000, 9999), "current_user": people[0]},
        "TradingBot": {
            "orders": orders,
            "authenticated": True,
            "order_counter": 100_000 + rng.randrange(900_000),
            "stocks": stocks,
            "account_info": {"account_id": 7, "balance": 50_000.0 + rng.randrange(9999), "binding_card": 1},
            "watch_list": [],
        },
        "TravelAPI": {},
        "TwitterAPI": {
            "username": people[0].lower(),
            "authenticated": True,
            "tweets": tweets,
            "tweet_counter": rng.randint(10_000, 99_999),
        },
        "VehicleControlAPI": {
            "fuelLevel": float(rng.randint(2, 15)),
            "doorStatus": dict.fromkeys(DOORS, "locked"),
            "brakePedalForce": 1000.0,
            "brakePedalStatus": "pressed",
        },
    }


def values_for(function: str, parameter: str, states: States) -> list[Any]:
    """What a user may give as an argument; empty where only another function has it."""
    source = VALUES.get(f"{function}.{parameter}", VALUES.get(parameter, ()))
    return [*(source(states) if callable(source) else source)]


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(_THINGS)} {rng.choice(_VERBS)} {rng.choice(_THINGS)} {rng.randint(1000, 9999)}"


def _of(service: str, *path: str) -> Callable[[States], Sequence[Any]]:
    """The keys of a part of a service's state."""

    def keys(states: States) -> Sequence[Any]:
        found: Any = states.get(service, {})
        for key in path:
            found = found.get(key, {})
        return [int(key) if str(key).isdigit() else key for key in found]

    return keys


def _authors(states: States) -> list[str]:
    return sorted({tweet["username"] for tweet in states.get("TwitterAPI", {}).get("tweets", {}).values()})


VALUES: Mapping[str, Sequence[Any] | Callable[[States], Sequence[Any]]] = {
    "file_name": _of("GorillaFileSystem", "root", "workspace", "contents"),
    "echo.file_name": ["summary.txt", "copy.txt", "answer.md", "shared.txt"],
    "tail.lines": [1, 2],
    "rm.file_name": _of("GorillaFileSystem", "root", "workspace", "contents"),
    "a": [12, 45, 130, 260, 75],
    "b": [3, 8, 15, 22, 40],
    "numbers": [[30, 50, 100], [12, 18, 45], [200, 350], [75, 25, 65, 15]],
    "part": [15, 40, 60],
    "whole": [120, 200, 480],
    "user": _of("MessageAPI", "user_map"),
    "user_name": ["Mira", "Nils", "Oren", "Pia", "Quinn"],
    "message": _WORDS,
    "get_user_tickets.status": _STATUSES,
    "title": ["a new badge", "a broken chair", "a missing cable"],
    "resolution": ["replaced", "explained by phone", "not reproducible"],
    "updates": [{"priority": 5}, {"priority": 1}, {"status": "Reviewed"}],
    "tweet_id": _of("TwitterAPI", "tweets"),
    "username": _authors,
    "content": _WORDS,
    "comment_content": _WORDS,
    "mentioned_usernames": [["@mira"], ["@nils", "@oren"], ["@pia"]],
    "name": sorted(NAMES),
    "order_id": _of("TradingBot", "orders"),
    "order_type": ["Buy", "Sell"],
    "price": [120.5, 88.25, 410.75],
    "place_order.amount": [10, 25, 40, 60],
    "fund_account.amount": [500, 1250, 2000],
    "withdraw_funds.amount": [150, 350, 900],
    "location": sorted(AIRPORTS),
    "client_id": ["c-417", "c-902", "c-338"],
    "client_secret": ["s-1b", "s-7k", "s-4f"],
    "refresh_token": ["r-55", "r-81", "r-26"],
    "grant_type": ["read_write"],
    "user_first_name": _PEOPLE,
    "user_last_name": ["Abel", "Bach", "Cole", "Dorn"],
    "card_number": ["4000 1111", "4000 2222", "4000 3333"],
    "expiration_date": ["08/28", "11/29", "03/30"],
    "cardholder_name": ["A. Abel", "B. Bach", "C. Cole"],
    "card_verification_number": [411, 522, 633],
    "travel_date": _DATES,
    "travel_class": ["economy", "business", "first"],
    "insurance_type": ["basic", "travel", "full"],
    "base_currency": ["EUR", "GBP", "JPY"],
    "target_currency": ["USD", "CAD", "AUD"],
    "compute_exchange_rate.value": [1500, 3200, 4100],
    "city": _REACHABLE,
    "liter": [20, 45, 60, 75],
    "option": ["fuel", "climate"],
}
