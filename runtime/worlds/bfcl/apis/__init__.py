"""The eight simulated services of BFCL's multi-turn tasks, written from their function documents and reference answers.

What it does: keeps the state that the tasks are judged by, deterministically: no clock, no randomness. What it does not do: repeat
the wording or the invented data of the benchmark's own services. Reference and model run on these, so their states are comparable;
texts that a model sees differ from the benchmark's.
"""

from collections.abc import Mapping

from .base import Api, ApiError
from .file_system import GorillaFileSystem
from .mathematics import MathAPI
from .message import MessageAPI
from .posting import TwitterAPI
from .ticket import TicketAPI
from .trading import TradingBot
from .travel import TravelAPI
from .vehicle import VehicleControlAPI

__all__ = ["APIS", "DOCUMENTS", "Api", "ApiError"]

APIS: Mapping[str, type[Api]] = {
    "GorillaFileSystem": GorillaFileSystem,
    "MathAPI": MathAPI,
    "MessageAPI": MessageAPI,
    "TicketAPI": TicketAPI,
    "TradingBot": TradingBot,
    "TravelAPI": TravelAPI,
    "TwitterAPI": TwitterAPI,
    "VehicleControlAPI": VehicleControlAPI,
}
DOCUMENTS: Mapping[str, str] = {  # the file that documents each, in the folder of function documents
    "GorillaFileSystem": "gorilla_file_system.jsonl",
    "MathAPI": "math_api.jsonl",
    "MessageAPI": "message_api.jsonl",
    "TicketAPI": "ticket_api.jsonl",
    "TradingBot": "trading_bot.jsonl",
    "TravelAPI": "travel_booking.jsonl",
    "TwitterAPI": "posting_api.jsonl",
    "VehicleControlAPI": "vehicle_control.jsonl",
}
