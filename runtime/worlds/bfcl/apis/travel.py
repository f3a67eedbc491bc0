"""TravelAPI: flights, cards, insurance and budgets. No task of the multi-turn base set uses it; it follows its documents."""

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Api, ApiError, require

AIRPORTS = {
    "Rivermist": "RMS", "Stonebrook": "SBK", "Maplecrest": "MPC", "Silverpine": "SVP", "Shadowridge": "SHD", "London": "LHR",
    "Paris": "CDG", "Sunset Valley": "SSV", "Oakendale": "OKD", "Willowbend": "WLB", "Crescent Hollow": "CRH",
    "Autumnville": "ATV", "Pinehaven": "PHV", "Greenfield": "GFD", "San Francisco": "SFO", "Los Angeles": "LAX",
    "New York": "JFK", "Chicago": "ORD", "Boston": "BOS", "Beijing": "PEK", "Hong Kong": "HKG", "Rome": "FCO", "Tokyo": "HND",
}  # fmt: skip
PER_USD = {
    "USD": 1.0, "RMB": 7.0, "EUR": 0.8, "JPY": 110.0, "GBP": 0.7, "CAD": 1.3, "AUD": 1.4, "INR": 70.0, "RUB": 60.0,
    "BRL": 3.8, "MXN": 20.0,
}  # fmt: skip
CLASS_FACTORS = {"economy": 1.0, "business": 2.5, "first": 5.0}


class TravelAPI(Api):
    """One traveller's cards, bookings and budget."""

    INITIAL: ClassVar[Mapping[str, Any]] = {
        "credit_card_list": {},
        "booking_record": {},
        "insurance_record": {},
        "access_token": None,
        "token_scope": None,
        "user_first_name": None,
        "user_last_name": None,
        "budget_limit": None,
    }
    credit_card_list: dict[str, dict[str, Any]]
    booking_record: dict[str, dict[str, Any]]
    insurance_record: dict[str, dict[str, Any]]
    access_token: str | None
    token_scope: str | None
    user_first_name: str | None
    user_last_name: str | None
    budget_limit: float | None

    def authenticate_travel(
        self,
        client_id: str,
        client_secret: str,
        refresh_token: str,
        grant_type: str,
        user_first_name: str,
        user_last_name: str,
    ) -> dict[str, Any]:
        require(grant_type in ("read_write", "read", "write"), "grant_type is read_write, read or write")
        self.access_token, self.token_scope = f"token_{client_id}", grant_type
        self.user_first_name, self.user_last_name = user_first_name, user_last_name
        return {"expires_in": 2, "access_token": self.access_token, "token_type": "Bearer", "scope": grant_type}

    def travel_get_login_status(self) -> dict[str, Any]:
        return {"status": self.access_token is not None}

    def list_all_airports(self) -> dict[str, Any]:
        return {"airports": list(AIRPORTS.values())}

    def get_nearest_airport_by_city(self, location: str) -> dict[str, Any]:
        require(location in AIRPORTS, f"no airport near {location} is known")
        return {"nearest_airport": AIRPORTS[location]}

    def get_flight_cost(self, travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> dict[str, Any]:
        return {"travel_cost_list": [_flight_cost(travel_from, travel_to, travel_date, travel_class)]}

    def compute_exchange_rate(self, base_currency: str, target_currency: str, value: float) -> dict[str, Any]:
        require(base_currency in PER_USD and target_currency in PER_USD, f"currencies are {', '.join(PER_USD)}")
        return {"exchanged_value": value / PER_USD[base_currency] * PER_USD[target_currency]}

    def register_credit_card(
        self, access_token: str, card_number: str, expiration_date: str, cardholder_name: str, card_verification_number: int
    ) -> dict[str, Any]:
        self._authorised(access_token)
        card_id = f"card_{len(self.credit_card_list) + 1}"
        self.credit_card_list[card_id] = {
            "card_number": card_number,
            "expiration_date": expiration_date,
            "cardholder_name": cardholder_name,
            "card_verification_value": card_verification_number,
            "balance": 20000.0,
        }
        return {"card_id": card_id}

    def get_all_credit_cards(self) -> dict[str, Any]:
        return {"credit_card_list": self.credit_card_list}

    def get_credit_card_balance(self, access_token: str, card_id: str) -> dict[str, Any]:
        self._authorised(access_token)
        return {"card_balance": self._card(card_id)["balance"]}

    def set_budget_limit(self, access_token: str, budget_limit: float) -> dict[str, Any]:
        self._authorised(access_token)
        self.budget_limit = float(budget_limit)
        return {"budget_limit": self.budget_limit}

    def get_budget_fiscal_year(self, lastModifiedAfter: str | None = None, includeRemoved: str | None = None) -> dict[str, Any]:
        return {"budget_fiscal_year": "2018"}

    def book_flight(
        self, access_token: str, card_id: str, travel_date: str, travel_from: str, travel_to: str, travel_class: str
    ) -> dict[str, Any]:
        self._authorised(access_token)
        cost = _flight_cost(travel_from, travel_to, travel_date, travel_class)
        self._pay(card_id, cost)
        number = len(self.booking_record) + 1
        booking_id, transaction_id = f"booking_{number}", f"transaction_{number}"
        self.booking_record[booking_id] = {
            "transaction_id": transaction_id,
            "card_id": card_id,
            "travel_date": travel_date,
            "travel_from": travel_from,
            "travel_to": travel_to,
            "travel_class": travel_class,
            "travel_cost": cost,
        }
        return {"booking_id": booking_id, "transaction_id": transaction_id, "booking_status": True, "booking_history": {}}

    def cancel_booking(self, access_token: str, booking_id: str) -> dict[str, Any]:
        self._authorised(access_token)
        booking = self._booking(booking_id)
        self._card(booking["card_id"])["balance"] += booking["travel_cost"]
        del self.booking_record[booking_id]
        return {"cancel_status": True}

    def get_booking_history(self, access_token: str) -> dict[str, Any]:
        self._authorised(access_token)
        return {"booking_history": self.booking_record}

    def purchase_insurance(
        self, access_token: str, insurance_type: str, booking_id: str, insurance_cost: float, card_id: str
    ) -> dict[str, Any]:
        self._authorised(access_token)
        self._booking(booking_id)
        self._pay(card_id, insurance_cost)
        insurance_id = f"insurance_{len(self.insurance_record) + 1}"
        bought = {"booking_id": booking_id, "insurance_type": insurance_type, "insurance_cost": insurance_cost}
        self.insurance_record[insurance_id] = bought
        return {"insurance_id": insurance_id, "insurance_status": True}

    def retrieve_invoice(self, access_token: str, booking_id: str | None = None, insurance_id: str | None = None) -> dict[str, Any]:
        self._authorised(access_token)
        if insurance_id in self.insurance_record:
            booking_id = self.insurance_record[str(insurance_id)]["booking_id"]
        booking: Mapping[str, Any] = self._booking(str(booking_id))
        return {"invoice": {"booking_id": booking_id, **{key: value for key, value in booking.items() if key != "card_id"}}}

    def contact_customer_support(self, booking_id: str, message: str) -> dict[str, Any]:
        self._booking(booking_id)
        return {"customer_support_message": "Thank you for your message. We will answer soon."}

    def verify_traveler_information(
        self, first_name: str, last_name: str, date_of_birth: str, passport_number: str
    ) -> dict[str, Any]:
        if (first_name, last_name) != (self.user_first_name, self.user_last_name):
            return {"verification_status": False, "verification_failure": "the name is not that of the user"}
        return {"verification_status": True, "verification_failure": ""}

    def _authorised(self, access_token: str) -> None:
        require(self.access_token is not None and access_token == self.access_token, "the access token is not valid")

    def _card(self, card_id: str) -> dict[str, Any]:
        if card_id not in self.credit_card_list:
            raise ApiError(f"there is no card {card_id}")
        return self.credit_card_list[card_id]

    def _booking(self, booking_id: str) -> dict[str, Any]:
        if booking_id not in self.booking_record:
            raise ApiError(f"there is no booking {booking_id}")
        return self.booking_record[booking_id]

    def _pay(self, card_id: str, cost: float) -> None:
        card = self._card(card_id)
        require(card.get("balance", 0.0) >= cost, "the card's balance is too low")
        require(self.budget_limit is None or cost <= self.budget_limit, "that is above the budget limit")
        card["balance"] -= cost


def _flight_cost(travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> float:
    """A price that follows from the route, the weekday-free date and the class alone."""
    codes = list(AIRPORTS.values())
    require(travel_from in codes and travel_to in codes and travel_from != travel_to, "from and to are two different airport codes")
    require(travel_class in CLASS_FACTORS, "the class is economy, business or first")
    parts = travel_date.split("-")
    require(len(parts) == 3 and all(part.isdigit() for part in parts), "the date is YYYY-MM-DD")
    legs = abs(codes.index(travel_from) - codes.index(travel_to))
    return round((100.0 + 20.0 * legs + int(parts[2])) * CLASS_FACTORS[travel_class], 2)
